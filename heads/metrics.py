"""How good predictions are: one table of metrics, each with a 95 % interval over proteins.

The figure itself comes from scikit-learn or scipy. Its interval needs the same figure some thousand times, of proteins
drawn with replacement, where an item counts as often as its protein was drawn; so each row of the table also holds a
form with counts (`counted`). Tests hold the two to each other.

What is drawn is a protein with all it was asked: its label, all its residues, or all pairs of them. Where pairs of
proteins are judged and share proteins, both ends are drawn, and a pair counts as often as the one times the other (Owen
2007, arXiv:0712.1111), which is rather too wide than too narrow.

AUROC and AUPRC of more than two classes are the mean over the classes that are there, each against all others.

Precision of contacts is the share of true ones among the L/k pairs held most likely, averaged over proteins; L is the
length of the protein (Rao et al. 2020, bioRxiv 2020.12.15.422761).
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float64, Int
from scipy import stats
from sklearn import metrics as sklearn_metrics

from heads import counted
from heads.answers import UNSCORED, Of, Predictions
from heads.calibration import calibration_error
from heads.counted import Counted, Items
from heads.preferences import in_order, log_losses, verdicts
from xtrimo.errors import ConfigError
from xtrimo.intervals import DRAWS, Estimate, drawn_counts


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One way to score predictions."""

    title: str
    """As a table or an axis names it."""
    of: Of
    """Labels of any number of classes, of two only (which no metric asks for), values, contact maps, or preferences."""
    value: Callable[[Items], float]
    """The figure, by the library; NaN where it is not defined, as the AUROC of one class alone."""
    counted: Callable[[Items], Counted]
    """The same figure where each protein counts as often as drawn; given the items first, the counts then."""
    larger_is_better: bool = True
    pairs: tuple[int, int] | None = None
    """For contacts: (k, the least |i - j|); the items are then proteins and their precisions at L/k."""


def evaluate(name: str, predictions: Predictions, *, seed: int = 0) -> Estimate:
    """A metric of METRICS with its 95 % bootstrap interval over proteins.

    NaN where it is not defined; a draw where it is not (one class alone, by luck) is left out of the interval.

    Raises:
        ConfigError: an unknown metric, or one that is not for such predictions.
    """
    value, draws = _figure_and_draws(name, predictions, seed)
    return _estimate(value, draws)


def figure(name: str, predictions: Predictions) -> float:
    """A metric of METRICS without its interval, as training asks for it again and again.

    Raises:
        ConfigError: as `evaluate`.
    """
    items = _items(_find(name, predictions), predictions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of figures that are not defined, which here is said by NaN
        return float(METRICS[name].value(items)) if len(items.truth) else float("nan")


def difference(name: str, ours: Predictions, others: Predictions, *, seed: int = 0) -> Estimate:
    """How much better `ours` are than `others` of the same proteins: positive is better whatever the metric.

    Both are drawn together (paired bootstrap), which takes out what makes a protein hard for either. Better beyond
    luck is `low > 0`.

    Raises:
        ConfigError: as `evaluate`, or they are not of the same proteins.
    """
    if len(ours.truth) != len(others.truth) or not np.array_equal(ours.truth, others.truth, equal_nan=True):
        raise ConfigError(
            f"predictions of {len(ours.length)} and of {len(others.length)} proteins whose truths differ; expected both"
            " of the same proteins in the same order"
        )
    (value, draws), (other, other_draws) = (_figure_and_draws(name, which, seed) for which in (ours, others))
    sign = 1 if METRICS[name].larger_is_better else -1
    return _estimate(sign * (value - other), sign * (draws - other_draws))


def applicable(predictions: Predictions) -> list[str]:
    """The metrics that such predictions can be scored by, in the order of the table."""
    kinds = {predictions.of, "classes"} if predictions.of == "two classes" else {predictions.of}
    return [name for name, metric in METRICS.items() if metric.of in kinds]


def _find(name: str, predictions: Predictions) -> Metric:
    if name not in METRICS:
        raise ConfigError(f"no metric {name!r}; known: {', '.join(METRICS)}")
    if name not in applicable(predictions):
        raise ConfigError(
            f"{name} is a metric of {METRICS[name].of}, the predictions are of {predictions.of}; try one of"
            f" {', '.join(applicable(predictions))}"
        )
    return METRICS[name]


def _figure_and_draws(name: str, predictions: Predictions, seed: int) -> tuple[float, Float64[np.ndarray, "draw"]]:
    metric = _find(name, predictions)
    items = _items(metric, predictions)
    if not len(items.truth):
        return float("nan"), np.full(DRAWS, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):  # a draw of one class alone, which is NaN
        figure_of = metric.counted(items)
        draws = [figure_of(counts.astype(np.float64)) for counts in _drawn(predictions, seed)]
    return figure(name, predictions), np.array(draws)


def _drawn(predictions: Predictions, seed: int) -> Iterator[Int[np.ndarray, "protein"]]:
    """How often each protein counts in a draw; a pair of proteins of which others are made too, as often as both do."""
    if predictions.pairs is None:
        yield from drawn_counts(len(predictions.length), seed)
    else:
        num_proteins = int(predictions.pairs.max()) + 1
        yield from (counts[predictions.pairs].prod(1) for counts in drawn_counts(num_proteins, seed))


def _items(metric: Metric, predictions: Predictions) -> Items:
    """What the metric scores."""
    num_proteins = len(predictions.length)
    if metric.pairs:
        precision = contact_precision(predictions, *metric.pairs)
        protein = np.flatnonzero(np.isfinite(precision))
        return Items(precision[protein], precision[protein], protein, num_proteins)
    protein = np.repeat(np.arange(num_proteins), predictions.sizes)
    unscored = {"values": np.nan, "preferences": 0.5}.get(predictions.of, UNSCORED)  # NaN is equal to nothing
    scored = predictions.truth != unscored
    return Items(predictions.truth[scored], predictions.prediction[scored], protein[scored], num_proteins)


def _estimate(value: float, draws: Float64[np.ndarray, "draw"]) -> Estimate:
    finite = draws[np.isfinite(draws)]
    return Estimate.of(value, finite if len(finite) else np.array([np.nan]))


def contact_precision(predictions: Predictions, k: int, separation: int) -> Float64[np.ndarray, "protein"]:
    """Share of contacts among the L/k pairs held most likely, of those with |i - j| >= `separation`, by protein.

    At least one pair is taken, and of a protein with fewer such pairs all of them; NaN for one without any.
    """
    precision = np.full(len(predictions.length), np.nan)
    ends = np.cumsum(predictions.sizes)
    for number, (length, end) in enumerate(zip(predictions.length.tolist(), ends.tolist(), strict=True)):
        truth = predictions.truth[end - length**2 : end].reshape(length, length)
        score = predictions.prediction[end - length**2 : end].reshape(length, length)
        first, second = np.triu_indices(length, k=separation)
        known = truth[first, second] != UNSCORED
        first, second = first[known], second[known]
        if len(first):
            top = np.argsort(-score[first, second], kind="stable")[: max(1, length // k)]
            precision[number] = (truth[first[top], second[top]] == 1).mean()
    return precision


METRICS = {
    "accuracy": Metric(
        title="accuracy",
        of="classes",
        value=counted.of_labels(sklearn_metrics.accuracy_score),
        counted=partial(counted.mean, values=counted.is_right),
    ),
    "mcc": Metric(
        title="MCC", of="classes", value=counted.of_labels(sklearn_metrics.matthews_corrcoef), counted=counted.mcc
    ),
    "f1": Metric(
        title="F1 (macro)",
        of="classes",
        value=counted.of_labels(partial(sklearn_metrics.f1_score, average="macro", zero_division=0)),
        counted=counted.f1,
    ),
    "auroc": Metric(
        title="AUROC", of="classes", value=counted.against_others(sklearn_metrics.roc_auc_score), counted=counted.auroc
    ),
    "auprc": Metric(
        title="AUPRC",
        of="classes",
        value=counted.against_others(sklearn_metrics.average_precision_score),
        counted=counted.auprc,
    ),
    "spearman": Metric(
        title="Spearman", of="values", value=counted.correlated(stats.spearmanr), counted=counted.spearman
    ),
    "pearson": Metric(title="Pearson", of="values", value=counted.correlated(stats.pearsonr), counted=counted.pearson),
    "rmse": Metric(
        title="RMSE",
        of="values",
        value=lambda items: sklearn_metrics.root_mean_squared_error(items.truth, items.prediction),
        counted=counted.rmse,
        larger_is_better=False,
    ),
    "order": Metric(
        title="pairs in order",
        of="preferences",
        value=lambda items: float(in_order(items.truth, items.prediction).mean()),
        counted=partial(counted.mean, values=lambda items: in_order(items.truth, items.prediction)),
    ),
    "log_loss": Metric(
        title="log loss (nats)",
        of="preferences",
        value=counted.log_loss,
        counted=partial(counted.mean, values=lambda items: log_losses(items.truth, items.prediction)),
        larger_is_better=False,
    ),
    "calibration": Metric(
        title="calibration error",
        of="preferences",
        value=lambda items: calibration_error(*verdicts(items.truth, items.prediction)),
        counted=counted.calibration,
        larger_is_better=False,
    ),
} | {
    f"precision@L/{k}" + ("" if separation == 24 else f" sep{separation}"): Metric(
        title=f"precision@L/{k}, |i-j| >= {separation}",
        of="contacts",
        value=lambda items: float(items.truth.mean()),
        counted=partial(counted.mean, values=lambda items: items.truth),
        pairs=(k, separation),
    )
    for separation in (24, 12, 6, 7)
    for k in (5, 1, 2, 10)
    if separation != 7 or k == 5
}
"""By name. precision@L/5 (of pairs at least 24 apart) is the headline of contact maps, precision@L/5 sep7 (|i-j| > 6)
the figure of the xTrimoPGLM paper."""
