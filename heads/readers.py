"""Labelled proteins from files: each format to the same cells, by what the file is.

    .csv .tsv (plain or gzipped)   a header line, then rows
    .parquet, .arrow               tables (readers_arrow)
    .fasta .fa .faa                labels in the header: `>id label=0.7 split=train`, or FLIP's
                                   `>id TARGET=0.7 SET=train VALIDATION=False`
    .lmdb                          TAPE (readers_lmdb)
    .npz .pdb .ent .cif .mmcif     coordinates, of which contacts are the labels (readers_structure)

A folder holds a file for each split, which its name tells (`train.csv`, `fluorescence_valid.lmdb`, `train/...`,
`test-00000.parquet`), or one file alone; or it is what `datasets` saves; or FLIP's pair `sequences.fasta` and a FASTA
file of residue labels with SET and VALIDATION in the headers, where `mask.fasta` may tell residues (0) not scored.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from heads.readers_arrow import arrow_files, read_arrow, read_parquet
from heads.readers_lmdb import read_lmdb
from heads.readers_structure import Labels, contacts, near
from heads.tasks import TASKS, UNSCORED, Columns, Task
from xtrimo.chains import STRUCTURES, read_archive, read_structure
from xtrimo.errors import DataError
from xtrimo.fasta import numbered_lines, open_text, parse_fasta

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
SPLIT_WORDS: dict[str, Split] = {
    "train": "train", "training": "train", "valid": "valid", "validation": "valid", "val": "valid", "dev": "valid",
    "test": "test", "testing": "test",
}  # fmt: skip
ALIASES = {
    "sequence": ("seq", "sequence", "protein", "primary"),
    "label": ("label", "labels", "target", "log_fluorescence", "stability_score", "fold_label", "ss3", "tertiary"),
    "split": ("split", "set"),
}
"""Other names of a column whose usual name is missing: those of FLIP and TAPE, and usual ones."""
NAMES = ("name", "id")
_SETTING = re.compile(r"(\w+)=(\S+)")


class Cells(NamedTuple):
    """One row of a file, before anything in it is judged."""

    where: str
    """The file and the place in it, for errors."""
    name: str
    split: str | None
    """As the file has it; None where it has none."""
    sequence: object
    second: object
    label: object
    unusable: str = ""
    """Why the row cannot be used, if the reader knows."""


class Record(NamedTuple):
    """One row of a file: its values by column."""

    where: str
    name: str
    values: Mapping[str, Any]


def cells(path: Path, task: Task) -> Iterator[Cells]:
    """The rows of a file or folder, as the module says.

    Raises:
        DataError: no such file, an unknown format, a missing column, or damage.
    """
    labels = Labels(path if path.is_dir() else path.parent)
    for file, split in _files(path):
        for record in _reader(file)(file):
            yield _picked(record, task, split, labels)


def _files(path: Path) -> Iterator[tuple[Path, str | None]]:
    """Each file to read with the split that its place tells."""
    if not path.exists():
        raise DataError(f"{path}: there is nothing; give a file or folder of labelled proteins")
    if not path.is_dir() or _is_single(path):
        yield path, None
        return
    saved = path / "dataset_dict.json"
    if saved.is_file():
        for split in json.loads(saved.read_text("utf-8")).get("splits", ()):
            yield from ((file, split) for file in arrow_files(path / split))
        return
    known = sorted(child for child in path.rglob("*") if _suffix(child) in READERS and _is_data(child, path))
    by_split = [(file, _split_of(file.relative_to(path))) for file in known]
    named = [(file, split) for file, split in by_split if split]
    if not named and len(known) > 1 and not all(_suffix(file) in (*STRUCTURES, ".arrow", ".parquet") for file in known):
        raise DataError(
            f"{path} holds {len(known)} files that name no split; name them train.csv and so on, or give one"
        )
    if not known:
        raise DataError(f"{path} holds no labelled proteins; expected files of {', '.join(READERS)}")
    yield from named or by_split


def _is_single(folder: Path) -> bool:
    """Whether a folder is read as one: LMDB, or FLIP's pair."""
    return (folder / "data.mdb").is_file() or (folder / "sequences.fasta").is_file()


def _is_data(file: Path, folder: Path) -> bool:
    """Not hidden, nor the inside of a folder that is read as one."""
    hidden = any(part.startswith((".", "cache-")) for part in file.relative_to(folder).parts)
    return not hidden and (file.is_file() or (file / "data.mdb").is_file()) and file.name != "data.mdb"


def _split_of(file: Path) -> str | None:
    """The split that a path tells, from its last part to its first; `fluorescence_valid.lmdb` is valid."""
    for part in reversed(file.parts):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in SPLIT_WORDS:
                return word
    return None


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _reader(path: Path) -> Callable[[Path], Iterator[Record]]:
    """What reads a file, by its name.

    Raises:
        DataError: for a name that tells no format.
    """
    if path.is_dir():
        return _lmdb if (path / "data.mdb").is_file() else _flip
    if _suffix(path) not in READERS:
        raise DataError(f"{path}: its name tells no format; expected one of {', '.join(READERS)}, or a folder of them")
    return READERS[_suffix(path)]


def _table(path: Path) -> Iterator[Record]:
    """Rows of a CSV or TSV file."""
    with open_text(path) as handle:
        lines = (line for _, line in numbered_lines(handle, path))
        rows = csv.reader(lines, delimiter="\t" if _suffix(path) == ".tsv" else ",", strict=True)
        try:
            header = [name.strip() for name in next(rows, [])]
            for row in rows:
                where = f"{path}, line {rows.line_num}"
                if not row:
                    continue
                if len(row) != len(header):
                    raise DataError(f"{where}: {len(row)} cells where the header has {len(header)}; correct the row")
                yield Record(where, f"{path.name}:{rows.line_num}", dict(zip(header, row, strict=True)))
        except csv.Error as error:
            raise DataError(f"{path}, line {rows.line_num}: {error}; correct the row") from error


def _numbered(read: Callable[[Path], Iterator[dict[str, Any]]]) -> Callable[[Path], Iterator[Record]]:
    def records(path: Path) -> Iterator[Record]:
        for number, values in enumerate(read(path), start=1):
            yield Record(f"{path}, row {number}", f"{path.name}:{number}", values)

    return records


def _lmdb(path: Path) -> Iterator[Record]:
    for number, (where, values) in enumerate(read_lmdb(path)):
        yield Record(where, f"{path.name}:{number}", values)


def _fasta(path: Path) -> Iterator[Record]:
    """Records whose headers hold settings; names of settings in any case."""
    for line, record in parse_fasta(path):
        settings = {name.lower(): value for name, value in _SETTING.findall(record.description)}
        yield Record(f"{path}, line {line}: {record.name}", record.name, settings | {"seq": record.sequence})


def _flip(folder: Path) -> Iterator[Record]:
    """FLIP's residue labels: sequences.fasta, the file of labels, and mask.fasta if there is one."""
    beside = [file for file in sorted(folder.glob("*.fasta")) if file.stem not in ("sequences", "mask")]
    if len(beside) != 1:
        raise DataError(
            f"{folder} has sequences.fasta and {len(beside)} files of residue labels"
            f" ({', '.join(file.name for file in beside) or 'none'}); keep one beside it"
        )
    sequences = {record.name: record.sequence for _, record in parse_fasta(folder / "sequences.fasta")}
    masks = {name: mask for _, name, _, mask in _letters(folder / "mask.fasta")}
    for where, name, settings, label in _letters(beside[0]):
        if name not in sequences:
            raise DataError(f"{where}: sequences.fasta has no record of that name; fetch both again")
        mask = masks.get(name, "1" * len(label))
        if len(mask) != len(label):
            raise DataError(f"{where}: {len(label)} labels, but mask.fasta has {len(mask)} letters; fetch both again")
        label = "".join(letter if kept == "1" else UNSCORED for letter, kept in zip(label, mask, strict=True))
        yield Record(where, name, settings | {"seq": sequences[name], "label": label})


def _letters(path: Path) -> Iterator[tuple[str, str, dict[str, str], str]]:
    """(where, name, settings, letters) of a FASTA-like file whose letters are no residues; nothing if it is missing."""
    from Bio.SeqIO.FastaIO import SimpleFastaParser

    if not path.is_file():
        return
    with open_text(path) as handle:
        for title, letters in SimpleFastaParser(handle):  # type: ignore[no-untyped-call]
            name, _, description = title.partition(" ")
            settings = {key.lower(): value for key, value in _SETTING.findall(description)}
            yield f"{path}: {name}", name, settings, letters


def _archive(path: Path) -> Iterator[Record]:
    for chain in read_archive(path):
        values = {"seq": chain.sequence, "label": contacts(chain.xyz), "dssp8": chain.dssp8}
        split = {"split": chain.split} if chain.split else {}
        yield Record(f"{path}: {chain.name}", chain.name, values | split)


def _structure(path: Path) -> Iterator[Record]:
    for chain in read_structure(path):
        values = {"seq": chain.sequence, "label": contacts(chain.xyz)}
        yield Record(f"{path}: {chain.name}", chain.name, values)


READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    **dict.fromkeys((".csv", ".tsv"), _table),
    ".parquet": _numbered(read_parquet),
    ".arrow": _numbered(read_arrow),
    **dict.fromkeys((".fasta", ".fa", ".faa"), _fasta),
    ".lmdb": _lmdb,
    ".npz": _archive,
    **dict.fromkeys(STRUCTURES, _structure),
}
"""End of a file's name, without .gz -> what reads it."""


def _picked(record: Record, task: Task, split: str | None, labels: Labels) -> Cells:
    """The cells of a row that the task asks for; a folder's split counts more than a column's."""
    values = record.values
    column = {kind: _column(record, task, kind) for kind in ("sequence", "label", "second", "split")}
    label: Any = values[column["label"]] if column["label"] else 1.0
    mask = values.get("valid_mask")  # TAPE: residues that were seen
    if task.level == "pair":
        is_places = isinstance(label, np.ndarray) and mask is not None
        label = near(label, np.asarray(mask, bool)) if is_places else labels.of(label, record.where)
    elif task.level == "residue" and isinstance(label, np.ndarray) and mask is not None:
        label = np.where(mask, label, -1)
    unusable = ""
    if split is None and column["split"]:
        split = str(values[column["split"]] or "").strip()
        if split.lower() in ("", "nan", "none"):
            unusable = "without a split"
        elif SPLIT_WORDS.get(split.lower()) == "train" and str(values.get("validation")).lower() in (
            "true",
            "1",
            "1.0",
        ):
            split = "valid"
    name = next((str(values[key]) for key in NAMES if values.get(key)), record.name)
    second = values[column["second"]] if column["second"] else ""
    return Cells(record.where, name, split, values[column["sequence"]], second, label, unusable)


def _column(record: Record, task: Task, kind: str) -> str:
    """The name under which a row holds what; empty for none.

    Raises:
        DataError: a column that is asked for and not there.
    """
    wanted = getattr(task.columns, kind)
    if not wanted or wanted in record.values:
        return str(wanted)
    is_usual = wanted == getattr(Columns(), kind)
    if is_usual and (found := [name for name in ALIASES[kind] if name in record.values]):
        return found[0]
    if is_usual and (kind == "split" or (kind == "label" and task.target == "preference")):
        return ""
    shown = ", ".join(islice(map(str, record.values), 20))
    has_flag = kind in ("label", "second") and task.name not in TASKS
    cure = f"name the column with --{kind}" if has_flag else f"a column must be called {wanted!r}"
    raise DataError(f"{record.where}: no {kind} {wanted!r} among {shown}; {cure}")
