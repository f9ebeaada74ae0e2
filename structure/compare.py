"""The verb `compare`: predicted structures beside their references, chain by chain, and the means over all of them.

Which residue is which: by number, where most letters agree there; otherwise by aligning the sequences. Predictions
count from 1, experiments as their authors like, so both are needed.
"""

import csv
import io
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int
from tyro.conf import Positional

from structure import metrics
from xtrimo.answer import give
from xtrimo.chains import STRUCTURES, Chain, file_type, read_archive, read_structure
from xtrimo.command import progress_bar
from xtrimo.durable import write_json, write_text
from xtrimo.errors import ConfigError, DataError
from xtrimo.intervals import Estimate, bootstrap_ratio

logger = logging.getLogger(__name__)

AGREEMENT = 0.9
"""Share of letters that have to be the same for numbers to be believed: mutants pass, a shift by one does not."""
OVERLAP = 0.5
"""Share of the shorter chain that has to have numbers of the other."""
LEAST_ALIKE = 0.3
"""Share of the shorter chain that is the same in both, for two chains of files with several to be taken for one."""
TITLES = {
    "tm": "TM", "rmsd_ang": "RMSD", "lddt": "lDDT", "gdt_ts": "GDT-TS", "precision_l5": "P@L/5",
    "precision_l2": "P@L/2", "precision_l": "P@L",
}  # fmt: skip
"""The figures that have a mean."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareOptions:
    """Compare predicted structures with their references."""

    models: Positional[Path]
    """Predicted structures: a PDB or mmCIF file, or a folder of them."""
    references: Positional[Path]
    """What they should look like: a file, a folder, or an archive of chains (.npz). Two files are compared as they are;
    of folders and archives those of one name."""
    out: Path | None = None
    """Table of all figures: a .csv file, or a .json file, which holds the means too."""
    page: Path | None = None
    """An .html file of the structures superposed, to look at in a browser, without a network; the 100 of the highest
    TM-score at most."""

    def __post_init__(self) -> None:
        if self.page and self.page.suffix != ".html":
            raise ConfigError(f"--page {self.page}: expected a name that ends in .html")
        if self.out and self.out.suffix not in (".csv", ".json"):
            raise ConfigError(f"--out {self.out}: expected a name that ends in .csv or .json")


class Match(NamedTuple):
    """Which residues of two chains are the same."""

    rows: Int[np.ndarray, "pair 2"]
    """Rows of the one and of the other chain, ascending."""
    num_identical: int
    num_known: int
    """Pairs with two letters other than X."""
    by: Literal["number", "sequence"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Two chains compared."""

    model: str
    reference: str
    figures: metrics.Comparison
    identity: float
    """Share of the matched residues whose letters are the same; 0 where none is known."""
    matched_by: Literal["number", "sequence"]

    def to_dict(self) -> dict[str, Any]:
        """Its figures by name, None where there is nothing to measure."""
        figures = asdict(self.figures) | {"coverage": self.figures.coverage, "identity": self.identity}
        known = {name: None if math.isnan(value) else value for name, value in figures.items()}
        return {"model": self.model, "reference": self.reference, **known, "matched_by": self.matched_by}


class Pair(NamedTuple):
    """What a row is of."""

    row: Row
    model: Chain
    reference: Chain
    match: Match


def main(args: Sequence[str] | None = None) -> None:
    """`xtrimo compare`."""
    import tyro

    options = tyro.cli(CompareOptions, prog="xtrimo compare", args=args)
    pairs: list[Pair] = []
    rows = compare_paths(options.models, options.references, see=pairs.append if options.page else None)
    estimates = means(rows)
    lines = _table(rows)
    if len(rows) > 1:
        lines += [f"mean {TITLES[name]:<7} {estimate}" for name, estimate in estimates.items()]
    content = {
        "rows": [row.to_dict() for row in rows],
        "means": {name: asdict(estimate) for name, estimate in estimates.items()},
    }
    give(content, "\n".join(lines))
    if options.out and options.out.suffix == ".csv":
        write_text(options.out, _csv(rows))
    elif options.out:
        write_json(options.out, content)
    if options.page:
        from structure.compare_page import write_compare_page

        write_compare_page(options.page, pairs)


def compare_paths(models: Path, references: Path, *, see: Callable[[Pair], None] | None = None) -> list[Row]:
    """Structures of the same name compared, in order of their names.

    What cannot be compared is left out; a warning tells how much and the first reason.

    Args:
        see: is shown each pair of chains.

    Raises:
        DataError: nothing could be compared.
    """
    ours, others = _named(models), _named(references)
    if models.is_file() and references.is_file() and len(ours) == len(others) == 1:
        pairs = {name: (*ours.values(), *others.values()) for name in ours}
    else:
        pairs = {name: (ours[name], others[name]) for name in sorted(ours.keys() & others.keys())}
        left_out = sorted(ours.keys() - pairs.keys())
        if not pairs:
            raise DataError(
                f"no structure of {models} has the name of one of {references}, such as {min(ours)} and {min(others)}; "
                "name the files alike"
            )
        if left_out:
            logger.warning(
                "%s: %d of %d have no reference of their name, such as %s",
                models,
                len(left_out),
                len(ours),
                left_out[0],
            )
    rows: list[Row] = []
    reasons: list[str] = []
    with progress_bar() as progress:
        for name, (read, read_other) in progress.track(pairs.items(), description="comparing"):
            try:
                rows += compare_structures(read(), read_other(), see=see)
            except DataError as error:
                reasons.append(f"{name}: {error}")
    if not rows:
        raise DataError(f"nothing could be compared, the first of {len(reasons)} because: {reasons[0]}")
    if reasons:
        logger.warning("left out %d of %d structures, the first because: %s", len(reasons), len(pairs), reasons[0])
    return rows


def compare_structures(
    models: Sequence[Chain], references: Sequence[Chain], *, see: Callable[[Pair], None] | None = None
) -> list[Row]:
    """The chains of two structures compared, one by one; of several, those most alike and of the same letter.

    Args:
        see: is shown each pair of chains.

    Raises:
        DataError: no chain of the one is a chain of the other.
    """
    pairs = [(models[0], references[0])] if len(models) == len(references) == 1 else _alike(models, references)
    if not pairs:
        raise DataError(
            f"no chain of {models[0].name} is one of {references[0].name}; compare structures of the same proteins"
        )
    if len(pairs) < len(models):
        logger.warning(
            "%s: compared %d of %d chains, as many as the reference has", models[0].name, len(pairs), len(models)
        )
    rows = []
    for model, reference in pairs:
        found = match(model, reference)
        placed = np.full((len(reference.sequence), 3, 3), np.nan, dtype=np.float32)
        placed[found.rows[:, 1]] = model.xyz[found.rows[:, 0], :3]
        rows.append(
            Row(
                model=model.name, reference=reference.name, figures=metrics.compare(placed, reference.xyz[:, :3]),
                identity=found.num_identical / max(1, found.num_known), matched_by=found.by,
            )
        )  # fmt: skip
        if see:
            see(Pair(rows[-1], model, reference, found))
    return rows


def _alike(models: Sequence[Chain], references: Sequence[Chain]) -> list[tuple[Chain, Chain]]:
    """Each chain with that of the other structure which is most like it, no chain twice."""
    candidates = []
    for row, model in enumerate(models):
        for column, reference in enumerate(references):
            shorter = min(len(chain.sequence.replace("X", "")) for chain in (model, reference))
            share = match(model, reference).num_identical / max(1, shorter)
            is_other_letter = model.name.rpartition("_")[2] != reference.name.rpartition("_")[2]
            candidates.append((-round(share, 2), is_other_letter, row, column))
    taken: dict[int, int] = {}
    for share, _, row, column in sorted(candidates):
        if -share >= LEAST_ALIKE and row not in taken and column not in taken.values():
            taken[row] = column
    return [(models[row], references[taken[row]]) for row in sorted(taken)]


def match(one: Chain, other: Chain) -> Match:
    """The residues that two chains share."""
    by_number = _match_numbers(one, other)
    return by_number or _counted(one, other, _aligned(one.sequence, other.sequence), "sequence")


def _match_numbers(one: Chain, other: Chain) -> Match | None:
    """Residues of the same number; None where numbers repeat, or do not mean the same."""
    if one.numbers is None or other.numbers is None:
        return None
    if any(len(np.unique(numbers)) < len(numbers) for numbers in (one.numbers, other.numbers)):
        return None  # inserted residues
    _, rows, others = np.intersect1d(one.numbers, other.numbers, return_indices=True)
    found = _counted(one, other, np.stack((rows, others), axis=1), "number")
    shorter = min(len(chain.sequence.replace("X", "")) for chain in (one, other))
    is_same = found.num_identical >= AGREEMENT * found.num_known and found.num_known >= OVERLAP * shorter
    return found if is_same and found.num_known else None


def _counted(one: Chain, other: Chain, rows: Int[np.ndarray, "pair 2"], by: Literal["number", "sequence"]) -> Match:
    letters = [(one.sequence[row], other.sequence[column]) for row, column in rows.tolist()]
    known = [pair for pair in letters if "X" not in pair]
    return Match(rows, sum(a == b for a, b in known), len(known), by)


def _aligned(one: str, other: str) -> Int[np.ndarray, "pair 2"]:
    """Rows of the best alignment of two whole chains; what hangs over costs nothing."""
    one, other = (sequence.translate(str.maketrans("UO", "XX")) for sequence in (one, other))  # BLOSUM62 has neither
    best = next(iter(_aligner().align(one, other)))
    spans = zip(*best.aligned, strict=True)
    rows = [np.stack([np.arange(*span) for span in pair], axis=1) for pair in spans]
    return np.concatenate([np.empty((0, 2), dtype=np.int64), *rows])


@cache
def _aligner() -> Any:
    from Bio.Align import PairwiseAligner, substitution_matrices

    aligner: Any = PairwiseAligner()  # type: ignore[no-untyped-call]
    aligner.substitution_matrix = substitution_matrices.load("BLOSUM62")  # type: ignore[no-untyped-call]
    aligner.open_gap_score, aligner.extend_gap_score = -11, -1
    aligner.end_gap_score = 0
    return aligner


def _named(path: Path) -> dict[str, Callable[[], list[Chain]]]:
    """The structures there by name, each with what reads it; of a name twice, the mmCIF file counts."""
    if path.suffix.lower() == ".npz":
        return {chain.name: partial(list, [chain]) for chain in read_archive(path)}
    if not path.exists():
        raise DataError(f"{path}: there is nothing; give a structure file, a folder of them, or an archive")
    files = [path] if path.is_file() else [file for file in path.iterdir() if file_type(file) in STRUCTURES]
    if not files:
        raise DataError(f"{path} holds no structures; expected files of {', '.join(STRUCTURES)}, also with .gz")
    ordered = sorted(files, key=lambda file: (STRUCTURES.index(file_type(file)) if len(files) > 1 else 0, file.name))
    return {Path(file.name.removesuffix(".gz")).stem: partial(_read, file) for file in ordered}  # the last one stays


def _read(path: Path) -> list[Chain]:
    return list(read_structure(path))


def means(rows: Sequence[Row]) -> dict[str, Estimate]:
    """The mean of each figure over the rows that have it, with its interval over them."""
    found = {}
    for name in TITLES:
        values = np.array([getattr(row.figures, name) for row in rows], dtype=np.float64)
        values = values[np.isfinite(values)]
        if len(values):
            found[name] = bootstrap_ratio(values, np.ones_like(values))
    return found


def _table(rows: Sequence[Row]) -> list[str]:
    """Lines of text: a row for each pair of chains."""
    cells = [["model", "reference", *TITLES.values(), "aligned", "identity", "by"]]
    for row in rows:
        figures = [getattr(row.figures, name) for name in TITLES]
        cells.append([
            row.model, row.reference, *("-" if math.isnan(value) else f"{value:.3f}" for value in figures),
            f"{row.figures.num_aligned}/{row.figures.num_reference}", f"{row.identity:.2f}", row.matched_by,
        ])  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    table = [row.to_dict() for row in rows]
    writer = csv.DictWriter(text, table[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()
