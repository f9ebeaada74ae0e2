"""The verb `mutate`: what a model makes of mutations of a protein, those that are named or every substitution."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tyro.conf import Positional

from xtrimo.answer import giving_rows
from xtrimo.backbone import Backbone
from xtrimo.command import ModelOptions, counting, progress_bar, replacing
from xtrimo.errors import ConfigError, DataError
from xtrimo.fasta import Record, file_names, numbered_lines, open_text, read_fasta
from xtrimo.likelihood import Reading
from xtrimo.model import GLM
from xtrimo.mutation import Mutation, mutated, read_mutations
from xtrimo.mutation_scan import quick_method, scan
from xtrimo.variants import Method, are_substitutions, score_variants, usual_method

TABLE = "mutations.csv"
COLUMNS = ("name", "mutations", "score", "sequence")
SCANNED = ("name", "length", "method", "best", "score", "page")
WORDS = ("mutations", "mutant")
"""What the column of mutations may be called; the second by ProteinGym."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MutateOptions(ModelOptions):
    """Score mutations of proteins: how many nats likelier than the wild type a model finds them. Give --mutations,
    --file or --scan."""

    fasta: Positional[Path]
    """The wild types, plain or gzipped, one chain a record."""
    out: Path
    """Folder of the answers: mutations.csv, or NAME.csv, NAME.png and NAME.html of each scanned protein."""
    mutations: tuple[str, ...] = ()
    """Variants of the one protein of the file, such as A123G A123G:K45C K23del K23_L25del K23_L24insGS K23_L25delinsG;
    positions count from 1."""
    file: Path | None = None
    """CSV file of variants: a column mutations (or mutant), and a column name for which protein they are of, where the
    FASTA file has several."""
    scan: bool = False
    """Every substitution of each protein, as table, picture and a page to point at."""
    method: Method | None = None
    """masked-marginals: the mutated positions of the wild type masked, all of a variant at once. masked-alone: one by
    one. wild-type-marginals: none masked. likelihood: of the whole protein, for a model that generates. pseudo: each
    residue masked in turn. By default masked-marginals, for insertions and deletions likelihood or pseudo; one for all
    variants of a protein."""
    direction: Reading | None = None
    """Of a likelihood: forward, reverse, or both. By default all that the model was trained in."""
    offset: int = 0
    """What positions count more than from 1: 23 where the first residue is called 24."""

    def __post_init__(self) -> None:
        if self.precision == "int8":
            raise ConfigError("mutate compares small differences, which int8 does not keep; use fp32 or bf16")
        if sum((bool(self.mutations), self.file is not None, self.scan)) != 1:
            raise ConfigError("expected one of --mutations, --file and --scan, to say which mutations are scored")


class Named(NamedTuple):
    """A variant as it was written, and as it is read."""

    text: str
    mutations: tuple[Mutation, ...]


def main(args: Sequence[str] | None = None) -> None:
    """`xtrimo mutate`."""
    import tyro

    options = tyro.cli(MutateOptions, prog="xtrimo mutate", args=args)
    records = list(read_fasta(options.fasta, unknown="error"))
    variants = {} if options.scan else _variants(options, records)
    model = options.load()
    if isinstance(model, GLM):
        from xtrimo.prepacking import prepack

        model = prepack(model)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.scan:
        with giving_rows("scans", "\t".join(SCANNED)) as give_row:
            for row in _scanned(options, model, records):
                give_row(_facts(SCANNED, row), "\t".join(row))
        return
    with (
        giving_rows("mutations", "\t".join(COLUMNS[:3])) as give_row,
        replacing(options.out / TABLE) as partial,
        partial.open("w", encoding="utf-8", newline="") as file,
        progress_bar() as progress,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for record in progress.track(records, description="scoring"):
            for row in _scored(options, model, record, variants.get(record.name, [])):
                writer.writerow(row)
                give_row(_facts(COLUMNS[:3], row), "\t".join(row[:3]))


def _facts(columns: Sequence[str], row: Sequence[str]) -> dict[str, str | float | None]:
    """A row by its columns, numbers as numbers; a scan may find nothing best."""
    numbers = {"length": int, "score": float}
    return {name: numbers.get(name, str)(said) if said else None for name, said in zip(columns, row, strict=False)}


def _scored(
    options: MutateOptions, model: Backbone, record: Record, variants: list[Named]
) -> Iterator[tuple[str, ...]]:
    """The rows of a protein's variants."""
    if not variants:
        return
    known = [own.mutations for own in variants]
    method = options.method or (quick_method(model) if are_substitutions(known) else usual_method(model, known))
    scores = score_variants(model, record.sequence, known, method=method, direction=options.direction, name=record.name)
    for own, score in zip(variants, scores.tolist(), strict=True):
        yield record.name, own.text, f"{score:.6f}", mutated(record.sequence, own.mutations)


def _scanned(options: MutateOptions, model: Backbone, records: list[Record]) -> Iterator[tuple[str, ...]]:
    """What is said of each protein, once its files are there."""
    from xtrimo.scan_files import write_csv, write_html, write_png

    with counting("scanning", sum(len(record.sequence) for record in records), "residues") as count:
        for record, stem in zip(records, file_names([record.name for record in records]), strict=True):
            found = scan(
                model, record.sequence, method=options.method, direction=options.direction, offset=options.offset,
                name=record.name,
            )  # fmt: skip
            write_csv(options.out / f"{stem}.csv", found)
            write_png(options.out / f"{stem}.png", found)
            page = options.out / f"{stem}.html"
            write_html(page, found, model=Path(options.model).name)
            best = max(found.substitutions(), key=lambda own: own.score, default=None)
            said = (best.mutation, f"{best.score:.6f}") if best else ("", "")
            count(len(record.sequence))
            yield record.name, str(len(record.sequence)), found.method, *said, str(page)


def _variants(options: MutateOptions, records: list[Record]) -> dict[str, list[Named]]:
    """The variants of each protein, by its name.

    Raises:
        DataError: one that does not fit its protein, or of no protein or of one of several of the FASTA file.
    """
    proteins = {record.name: record.sequence for record in records}
    if len(proteins) < len(records):
        raise DataError(f"{options.fasta}: two proteins of one name; give each its own")
    rows = _rows(options.file) if options.file else (("--mutations", "", text) for text in options.mutations)
    found: dict[str, list[Named]] = {}
    for where, name, text in rows:
        if not name and len(proteins) > 1:
            raise DataError(
                f"{where}: {text} of which of the {len(proteins)} proteins of {options.fasta}? Give --file with a"
                " column name, or a FASTA file of one protein"
            )
        name = name or next(iter(proteins))
        if name not in proteins:
            raise DataError(f"{where}: no protein {name!r} in {options.fasta}, which has {', '.join([*proteins][:5])}")
        mutations = read_mutations(text, proteins[name], offset=options.offset, name=f"{where}: {name}")
        found.setdefault(name, []).append(Named(text, mutations))
    if not found:
        raise DataError(f"{options.file}: holds no variant; expected the columns {' or '.join(WORDS)}, name")
    return found


def _rows(path: Path) -> Iterator[tuple[str, str, str]]:
    """(where it stands, name of the protein or nothing, mutations) of each row."""
    with open_text(path) as handle:
        rows = csv.DictReader(line for _, line in numbered_lines(handle, path))
        column = next((word for word in WORDS if word in (rows.fieldnames or ())), None)
        if column is None:
            raise DataError(f"{path}: columns {', '.join(rows.fieldnames or ())}; expected {' or '.join(WORDS)}")
        for row in rows:
            yield f"{path}, line {rows.line_num}", (row.get("name") or "").strip(), (row[column] or "").strip()
