"""Labelled proteins: one Row a label, a Dataset of three splits, and `read`, which makes one from a file or folder.

`readers` turns each format into cells; here cells become rows. A row that cannot be used (no sequence, letters that are
no residues, no label, too short) is left out and counted with its reason; a label that is wrong is an error that names
file, row and value, because it says that the table is not what it is taken for.

Splits are as the file gives them. Where it gives none, each protein is put into one by a hash of its sequence, so that
copies of it never part: 80 % train, 10 % valid, 10 % test; a missing valid split is a tenth of train, drawn likewise.
Of pairs to prefer from, `preferences` says which stay together.
"""

import hashlib
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int8, Int64

from heads import preferences, readers
from heads.readers import SPLIT_WORDS, SPLITS, Cells, Split
from heads.tasks import UNSCORED, Task
from xtrimo.errors import DataError
from xtrimo.log import warn_once
from xtrimo.tokens import RESIDUES

logger = logging.getLogger(__name__)

TENTHS: tuple[Split, ...] = (*("train",) * 8, "valid", "test")
NO_LABEL = -1
"""The number of a residue or pair without a label."""
Label = int | float | Int64[np.ndarray, "length"] | Int8[np.ndarray, "length length"]
_NOT_A_RESIDUE = re.compile(f"[^{RESIDUES}]")
_MISSING_WORDS = ("nan", "none", "null", "na", "n/a")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Row:
    """One labelled protein."""

    sequence: str
    """Residues, upper case, at most the task's max_length."""
    label: Label
    """A number for regression; for a preference how likely `sequence` is better than `second`. For classes the place of
    its word in `Dataset.classes`: one number, one for each residue (int64), or for each pair (int8, symmetric: 1
    contact, 0 none); NO_LABEL where there is none."""
    second: str = ""
    """The other protein, or the molecule's name or SMILES; empty where the level has none."""
    name: str = ""
    """What the file calls it; `file:row` where it does not."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Dataset:
    """The rows of a task."""

    task: Task
    train: tuple[Row, ...]
    valid: tuple[Row, ...]
    test: tuple[Row, ...]
    classes: tuple[str, ...]
    """The words behind the numbers of the labels; empty for regression."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Reason -> number of rows that could not be used."""
    num_cut: int = 0
    """Proteins that were longer than the task's max_length; their first residues are here."""
    split_rule: str = "as given"
    """Where the splits come from."""

    @property
    def splits(self) -> dict[Split, tuple[Row, ...]]:
        """All three, by name."""
        return {"train": self.train, "valid": self.valid, "test": self.test}

    def __str__(self) -> str:
        sizes = " / ".join(f"{len(rows):,}" for rows in self.splits.values())
        lost = f"; left out {', '.join(f'{n:,} {reason}' for reason, n in self.left_out.items())}"
        cut = f"; {self.num_cut:,} cut to {self.task.max_length:,} residues"
        return (
            f"{self.task.name}: train / valid / test {sizes}, split {self.split_rule}"
            f"{lost if self.left_out else ''}{cut if self.num_cut else ''}"
        )


class _Unusable(Exception):
    """Why a row cannot be used; counted, never seen by a user."""


class _Kept(NamedTuple):
    """A usable row before the numbers of its classes are known."""

    split: str | None
    where: str
    sequence: str
    second: str
    label: object
    name: str


def read(path: str | Path, task: Task, *, seed: int = 0, only: Split | None = None) -> Dataset:
    """The labelled proteins of a file or folder; `readers` says which formats.

    Args:
        seed: of the splits that the file does not give.
        only: put every row into this split and draw no other, for a file to be judged on.

    Raises:
        DataError: no such file, no known format, a missing column, a wrong label or split, or no usable row.
    """
    left_out: Counter[str] = Counter()
    kept, num_cut = [], 0
    for cells in readers.cells(Path(path), task):
        try:
            row = _usable(cells, task)
        except _Unusable as reason:
            left_out[str(reason)] += 1
            continue
        num_cut += len(row.sequence) > task.max_length
        kept.append(row)
    if not kept:
        raise DataError(f"{path}: no row can be used for {task.name} ({dict(left_out) or 'the file has none'})")
    sides, rule = ([only] * len(kept), f"all {only}") if only else _splitting(kept, task, seed, path)
    classes = task.classes or _found_classes(kept, task)
    numbers = {word: number for number, word in enumerate(classes)}
    splits: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for row, side in zip(kept, sides, strict=True):
        if side is None:
            left_out["of proteins on two sides of the split"] += 1
        else:
            splits[side].append(_row(row, task, numbers))
    if not only and not splits["train"]:
        raise DataError(f"{path}: none of its {len(kept)} rows is in train; give rows to learn from")
    return Dataset(
        task=task, **{split: tuple(splits[split]) for split in SPLITS}, classes=classes,
        left_out=dict(left_out), num_cut=num_cut, split_rule=rule,
    )  # fmt: skip


def data_hash(dataset: Dataset) -> str:
    """Hex digest of all that is learned from: sequences, second inputs, labels, classes and splits, in order."""
    digest = hashlib.sha256(repr((dataset.task.level, dataset.task.target, dataset.classes)).encode())
    for split, rows in dataset.splits.items():
        digest.update(f"\n{split} {len(rows)}\n".encode())
        for row in rows:
            digest.update(f"{row.sequence}\t{row.second}\t".encode())
            digest.update(row.label.tobytes() if isinstance(row.label, np.ndarray) else repr(row.label).encode())
    return digest.hexdigest()


def _usable(cells: Cells, task: Task) -> _Kept:
    """What a row holds for the task.

    Raises:
        _Unusable: with the reason.
    """
    if cells.unusable:
        raise _Unusable(cells.unusable)
    sequence = _protein(cells.sequence, "sequence")
    if len(sequence) < task.shortest:
        raise _Unusable(f"shorter than {task.shortest} residues")
    second = ""
    if task.reads_two:
        second = _protein(cells.second, "second sequence")
    elif task.level == "molecule":
        second = _text(cells.second)
        if not second:
            raise _Unusable("without a molecule")
    label = cells.label
    if not isinstance(label, (np.ndarray, list)):
        word = _text(label)
        # A class may well be called NA, a number may not.
        if not word or (task.target != "classes" and word.lower() in _MISSING_WORDS):
            raise _Unusable("without a label")
    if task.target == "preference" and sequence == second:
        raise _Unusable("of a protein with itself")
    return _Kept(cells.split, cells.where, sequence, second, label, cells.name)


def _protein(value: object, what: str) -> str:
    sequence = _text(value).upper().removesuffix("*")
    if not sequence:
        raise _Unusable(f"without a {what}")
    if _NOT_A_RESIDUE.search(sequence):
        raise _Unusable(f"with letters in the {what} that are no residues")
    return sequence


def _text(value: object) -> str:
    if isinstance(value, float) and math.isnan(value):
        return ""
    return "" if value is None else str(value).strip()


def _splitting(rows: Sequence[_Kept], task: Task, seed: int, path: str | Path) -> tuple[list[Split | None], str]:
    """The split of each row, None where none can have it, and how that was found."""

    def draw(some: Sequence[_Kept], side: Callable[[int], Split]) -> list[Split | None]:
        def of(sequence: str) -> Split:
            return side(_draw(sequence, seed))

        if task.target == "preference":
            return preferences.apart([(row.sequence, row.second) for row in some], of)
        return [of(row.sequence) for row in some]

    given = {row.split for row in rows}
    if given == {None}:
        warn_once(logger, "%s gives no splits; each protein is put into one by a hash of its sequence", path)
        return draw(rows, TENTHS.__getitem__), f"random 80/10/10 by sequence, seed {seed}"
    named = {row.split: _split(row) for row in rows}
    if "valid" not in named.values() and "train" in named.values():
        warn_once(logger, "%s gives no valid split; it is a tenth of train, by a hash of the sequence", path)
        train = [row for row in rows if named[row.split] == "train"]
        carved = iter(draw(train, lambda tenth: "train" if tenth else "valid"))
        sides = [next(carved) if named[row.split] == "train" else named[row.split] for row in rows]
        return sides, f"as given, valid a random tenth of train, seed {seed}"
    return [named[row.split] for row in rows], "as given"


def _split(row: _Kept) -> Split:
    found = SPLIT_WORDS.get((row.split or "").lower())
    if found is None:
        raise DataError(
            f"{row.where}: split {row.split!r} is not one of {', '.join(SPLIT_WORDS)}; correct it, or name the column"
            " of the splits"
        )
    return found


def _draw(sequence: str, seed: int) -> int:
    """0 to 9, the same for the same protein wherever it stands."""
    return int.from_bytes(hashlib.sha256(f"{seed} {sequence}".encode()).digest()[:8], "big") % 10


def _found_classes(rows: Iterable[_Kept], task: Task) -> tuple[str, ...]:
    """Every word of the labels of all splits, numbers by size and words by alphabet; none for numbers."""
    if task.target != "classes":
        return ()
    words = {word for row in rows for word in _words(row.label, task)}
    if len(words) < 2:
        raise DataError(f"{task.name}: all labels are {', '.join(words) or 'missing'}; there is nothing to learn")
    is_numeric = all(word.isdecimal() for word in words)
    return tuple(sorted(words, key=(lambda word: (int(word), word)) if is_numeric else None))


def _words(label: object, task: Task) -> Iterator[str]:
    """The class words of one label."""
    if task.level == "residue":
        yield from set(label.strip() if isinstance(label, str) else _letters(label)) - {UNSCORED}
    else:
        yield _word(label)


def _word(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else _text(value)


def _letters(label: object) -> list[str]:
    """A class word for each residue of a list of values, where None and negatives are none."""
    values = label.tolist() if isinstance(label, np.ndarray) else label
    assert isinstance(values, list)
    return [UNSCORED if v is None or (isinstance(v, (int, float)) and not v >= 0) else _word(v) for v in values]


def _row(row: _Kept, task: Task, numbers: Mapping[str, int]) -> Row:
    """The row with its label as numbers, cut to the task's max_length.

    Raises:
        DataError: a label that is wrong.
    """
    most = task.max_length
    label: Label
    if task.level == "residue":
        label = _residue_label(row, task, numbers)[:most]
    elif task.level == "pair":
        label = _pair_label(row)[:most, :most]
    elif task.target != "classes":
        label = _number(row)
        if task.target == "preference" and not 0 <= label <= 1:
            raise DataError(f"{row.where}: label {label:g} is not how likely the first is better; expected 0 to 1")
    else:
        word = _word(row.label)
        label = _class_number(word if word in numbers else re.sub(r"\.0+$", "", word), row, numbers)
    second = row.second[:most] if task.reads_two else row.second
    return Row(sequence=row.sequence[:most], second=second, label=label, name=row.name)


def _class_number(word: str, row: _Kept, numbers: Mapping[str, int]) -> int:
    if word in numbers:
        return numbers[word]
    if word.isdecimal() and int(word) < len(numbers):
        return int(word)
    raise DataError(f"{row.where}: label {word!r} is not one of {', '.join(numbers)}; correct it")


def _number(row: _Kept) -> float:
    try:
        value = float(_text(row.label))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{row.where}: label {row.label!r} is not a number; correct it, or use target classes")
    return value


def _residue_label(row: _Kept, task: Task, numbers: Mapping[str, int]) -> Int64[np.ndarray, "length"]:
    words = row.label.strip() if isinstance(row.label, str) else _letters(row.label)
    if len(words) != len(row.sequence):
        raise DataError(
            f"{row.where}: {len(words)} labels {words[:20]!r}... for {len(row.sequence)} residues; give one for each,"
            f" {UNSCORED} where there is none"
        )
    known = {word: _class_number(word, row, numbers) for word in set(words) - {UNSCORED}} | {UNSCORED: NO_LABEL}
    return np.array([known[word] for word in words], dtype=np.int64)


def _pair_label(row: _Kept) -> Int8[np.ndarray, "length length"]:
    label, length = np.asarray(row.label), len(row.sequence)
    if label.shape != (length, length):
        raise DataError(f"{row.where}: contacts of shape {label.shape} for {length} residues; give one for each pair")
    if not np.isin(label, (NO_LABEL, 0, 1)).all():
        raise DataError(
            f"{row.where}: contacts are 1, 0 or {NO_LABEL} for unknown; got {np.unique(label)[:5].tolist()}"
        )
    return label.astype(np.int8)
