"""Scores of `xtrimo zeroshot` beside floors that no model is needed for, as a table.

    python -m benchmarks.zeroshot --assays runs/mavenn --scores runs/zeroshot/*

Spearman's correlation with the measurements and its 95 % interval, of whole assays or of the variants that were scored.
The interval is over positions, drawn with replacement: a variant counts as often as all the positions it changes were
drawn together (the pigeonhole bootstrap, Owen 2007), for variants that share a position are no independent evidence.

The floors: BLOSUM62's score of each substitution, added up; the gain of hydropathy (Kyte and Doolittle 1982), added up;
and minus the number of substitutions.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from jaxtyping import Float64

from heads.counted import Items
from heads.metrics import METRICS
from heads.proteingym import Assay, read_assay, read_reference
from heads.zeroshot import SETTINGS
from xtrimo.intervals import Estimate
from xtrimo.mutation import Mutation

Scores = Float64[np.ndarray, "variant"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TableConfig:
    """Which assays and scores."""

    assays: Path = Path("runs/mavenn")
    """Folder of the assays, and of reference.csv."""
    scores: tuple[Path, ...] = ()
    """Folders that `xtrimo zeroshot` wrote; a row of the table each."""
    draws: int = 300
    """Of the bootstrap."""


def main() -> None:
    config = tyro.cli(TableConfig, description=__doc__)
    reference = read_reference(config.assays / "reference.csv")
    assays = [read_assay(config.assays / row["DMS_filename"], reference) for row in reference.values()]
    rows: dict[str, dict[str, str]] = {}
    for assay in assays:
        for title, floor in FLOORS.items():
            scores = np.array([sum(map(floor, variant.mutations or ())) for variant in assay.variants], dtype=float)
            rows.setdefault(title, {})[assay.name] = cell(assay, scores, config.draws)
        for folder in config.scores:
            if (folder / f"{assay.name}.csv").is_file():
                scores = np.array(list(column(folder / f"{assay.name}.csv")))
                measured = assay
                if len(scores) < len(assay.variants):
                    measured = read_assay(folder / f"{assay.name}.csv", reference)
                rows.setdefault(title_of(folder), {})[assay.name] = cell(measured, scores, config.draws)
    print("| scores | " + " | ".join(f"{assay.name} ({len(assay.variants):,})" for assay in assays) + " |")
    print("| --- " * (len(assays) + 1) + "|")
    for title, cells in rows.items():
        print(f"| {title} | " + " | ".join(cells.get(assay.name, "") for assay in assays) + " |")


def title_of(folder: Path) -> str:
    """The model and how it was asked."""

    settings: dict[str, Any] = json.loads((folder / SETTINGS).read_text())
    limit = f", {settings['limit']:,} variants" if settings["limit"] else ""
    return f"{Path(settings['model']).name}, {settings['method'] or 'likelihood'}{limit}"


def column(path: Path) -> Iterator[float]:
    """The last column of a file of scores."""
    with path.open() as file:
        next(file)
        yield from (float(line.rpartition(",")[2]) for line in file)


def cell(assay: Assay, scores: Scores, draws: int) -> str:
    """Spearman's correlation and its interval."""
    truth = np.array([variant.score for variant in assay.variants])
    places = [[m.position - 1 for m in variant.mutations or ()] for variant in assay.variants]
    # a place more, which is always drawn once, for a variant that changes none
    flat = np.array([place for own in places for place in (*own, len(assay.wild_type))])
    starts = np.cumsum([0, *(len(own) + 1 for own in places[:-1])])
    items = Items(truth, scores, np.arange(len(truth)), len(truth))
    metric, rng = METRICS["spearman"], np.random.default_rng(0)
    counted, length = metric.counted(items), len(assay.wild_type)
    drawn = []
    for _ in range(draws):
        often = np.append(np.bincount(rng.integers(length, size=length), minlength=length), 1).astype(np.float64)
        drawn.append(counted(np.multiply.reduceat(often[flat], starts)))
    return str(Estimate.of(metric.value(items), np.array(drawn)))


@cache
def _blosum() -> Any:
    from Bio.Align import substitution_matrices

    return substitution_matrices.load("BLOSUM62")  # type: ignore[no-untyped-call]


@cache
def _hydropathy() -> dict[str, float]:
    from Bio.SeqUtils.ProtParamData import kd

    return dict(kd)


FLOORS: dict[str, Callable[[Mutation], float]] = {
    "BLOSUM62, summed": lambda m: float(_blosum()[m.wild][m.mutant]),
    "hydropathy gained, summed": lambda m: _hydropathy()[m.mutant] - _hydropathy()[m.wild],
    "number of substitutions": lambda m: -1.0,
}


if __name__ == "__main__":
    main()
