"""What a language model has to beat: predictions from the letters alone, one row a floor.

Each is fitted on train and valid together once valid has chosen what there is to choose. A large set is thinned, at
random but always alike: 40,000 training rows at most, 6,000 test rows.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from heads import composition, local_statistics, neighbours, one_hot
from heads.answers import Predictions
from heads.predictor import pairs_of
from heads.rows import Dataset, Row
from heads.tasks import Level
from xtrimo.errors import ConfigError

MAX_TRAIN, MAX_TEST = 40_000, 6_000
OF_PROTEINS: tuple[Level, ...] = ("sequence", "two_sequences", "molecule")


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """One floor."""

    summary: str
    levels: tuple[Level, ...]
    prefers: bool = False
    """Whether it can say which of two proteins is better."""
    predict: Callable[[Dataset], tuple[Float[np.ndarray, "item *class"], str]]
    """From a data set to what is said of its test rows, and a note on how."""


BASELINES = {
    "composition": Baseline(
        summary="amino-acid and dipeptide composition and length, linear",
        levels=OF_PROTEINS,
        prefers=True,
        predict=composition.predict,
    ),
    "nearest": Baseline(summary="most alike training proteins", levels=OF_PROTEINS, predict=neighbours.predict),
    "windows": Baseline(
        summary="one-hot window of 15 residues, linear", levels=("residue",), predict=local_statistics.windows
    ),
    "fivemers": Baseline(summary="look-up of 5-mers", levels=("residue",), predict=local_statistics.fivemers),
    "separation": Baseline(
        summary="P(contact | separation)", levels=("pair",), predict=local_statistics.separation
    ),
    "letters": Baseline(
        summary="amino-acid pair and separation", levels=("pair",), predict=local_statistics.letters
    ),
    "one_hot": Baseline(summary="pair head on one-hot residues", levels=("pair",), predict=one_hot.predict),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a floor says."""

    predictions: Predictions
    """Of the test rows asked."""
    rows: Int64[np.ndarray, "row"]
    """Which of the test rows those are; `Predictions.take` picks the same of a model's."""
    note: str
    """How they were made, with the numbers of rows."""


def for_task(dataset: Dataset) -> list[str]:
    """The names of the floors of a task."""
    which = dataset.task
    fitting = {name: baseline for name, baseline in BASELINES.items() if which.level in baseline.levels}
    return [name for name, baseline in fitting.items() if baseline.prefers or which.target != "preference"]


def run(
    name: str, dataset: Dataset, *, max_train: int = MAX_TRAIN, max_test: int | None = MAX_TEST, seed: int = 0
) -> Answer:
    """Fit a floor and ask it of the test rows.

    Args:
        name: key of BASELINES.
        max_train: training and valid rows to fit on.
        max_test: test rows to ask; None for all.
        seed: of the thinning, and nothing else.

    Raises:
        ConfigError: an unknown floor, one of another level, or no rows to fit or to ask.
    """
    if name not in for_task(dataset):
        raise ConfigError(f"no baseline {name!r} of level {dataset.task.level}; it has {', '.join(for_task(dataset))}")
    if not dataset.train or not dataset.test:
        raise ConfigError(f"{dataset.task.name}: {len(dataset.train)} training and {len(dataset.test)} test rows; a"
                          " baseline needs some of each")  # fmt: skip
    share = min(1.0, max_train / (len(dataset.train) + len(dataset.valid)))
    rows = _chosen(len(dataset.test), max_test or len(dataset.test), seed)
    thinned = replace(
        dataset,
        train=_thinned(dataset.train, share, seed),
        valid=_thinned(dataset.valid, share, seed + 1),
        test=tuple(dataset.test[row] for row in rows),
    )
    prediction, note = BASELINES[name].predict(thinned)
    predictions = Predictions(
        truth=np.concatenate([np.ravel(row.label) for row in thinned.test]),
        prediction=prediction,
        length=np.array([len(row.sequence) for row in thinned.test]),
        pairs=pairs_of(dataset.task, thinned.test),
    )
    fitted = f"fitted on {len(thinned.train) + len(thinned.valid):,} rows, {len(rows):,} test rows"
    return Answer(predictions=predictions, rows=rows, note=f"{note}; {fitted}")


def _chosen(num: int, most: int, seed: int) -> Int64[np.ndarray, "row"]:
    """`most` of `num` numbers, in order."""
    rng: Any = np.random.default_rng(seed)
    return np.sort(rng.permutation(num)[:most])


def _thinned(rows: tuple[Row, ...], share: float, seed: int) -> tuple[Row, ...]:
    return tuple(rows[row] for row in _chosen(len(rows), int(share * len(rows)), seed))
