"""How good predictions are: one table of metrics, each with a 95 % interval over proteins.

The figure itself comes from scikit-learn or scipy. Its interval needs the same figure some thousand times, of proteins
drawn with replacement, where an item counts as often as its protein was drawn; so each row of the table also holds a
form with counts, which adds up or sorts once and is linear in the proteins, or items, from then on. Tests hold the two
to each other.

What is drawn is a protein with all it was asked: its label, all its residues, or all pairs of them.

AUROC and AUPRC of more than two classes are the mean over the classes that are there, each against all others.

Precision of contacts is the share of true ones among the L/k pairs held most likely, averaged over proteins; L is the
length of the protein (Rao et al. 2020, bioRxiv 2020.12.15.422761).
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int, Shaped
from scipy import stats
from sklearn import metrics as sklearn_metrics

from heads.answers import UNSCORED, Of, Predictions, Truth
from xtrimo.errors import ConfigError
from xtrimo.intervals import DRAWS, Estimate, drawn_counts

Counts = Float64[np.ndarray, "protein"]


class Items(NamedTuple):
    """What is scored, item by item."""

    truth: Truth
    prediction: Float[np.ndarray, "item *class"]
    protein: Int[np.ndarray, "item"]
    """Which one of the drawn proteins it belongs to."""
    num_proteins: int

    def sums(self, values: Shaped[np.ndarray, "item column"]) -> Float64[np.ndarray, "protein column"]:
        """Added up by protein."""
        columns = [np.bincount(self.protein, column, self.num_proteins) for column in values.T]
        return np.stack(columns, axis=1)


Counted = Callable[[Counts], float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One way to score predictions."""

    title: str
    """As a table or an axis names it."""
    of: Of
    """Labels of any number of classes, of two only (which no metric asks for), values, or contact maps."""
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
        counted = metric.counted(items)
        draws = [counted(counts.astype(np.float64)) for counts in drawn_counts(items.num_proteins, seed)]
    return figure(name, predictions), np.array(draws)


def _items(metric: Metric, predictions: Predictions) -> Items:
    """What the metric scores."""
    num_proteins = len(predictions.length)
    if metric.pairs:
        precision = contact_precision(predictions, *metric.pairs)
        protein = np.flatnonzero(np.isfinite(precision))
        return Items(precision[protein], precision[protein], protein, num_proteins)
    protein = np.repeat(np.arange(num_proteins), predictions.sizes)
    scored = np.ones(len(protein), dtype=bool) if predictions.of == "values" else predictions.truth != UNSCORED
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


# The figures as functions of counts, set up once and called often.


def _labels(items: Items) -> Int[np.ndarray, "item"]:
    return items.prediction.argmax(1)


def _mean(items: Items, values: Callable[[Items], Shaped[np.ndarray, "item"]]) -> Counted:
    each = values(items).astype(np.float64)
    sums = items.sums(np.stack((each, np.ones_like(each)), axis=1))

    def count(counts: Counts) -> float:
        total, size = counts @ sums
        return float(total / size)

    return count


def _rmse(items: Items) -> Counted:
    squared = _mean(items, lambda items: (items.truth - items.prediction) ** 2)
    return lambda counts: float(np.sqrt(squared(counts)))


def _by_class(items: Items) -> Callable[[Counts], Float64[np.ndarray, "3 class"]]:
    """Items rightly said to be of each class, items said to be, and items that are."""
    said, num_classes = _labels(items), items.prediction.shape[1]
    right = np.where(said == items.truth, said, num_classes)  # a class more, for the wrong
    tables = np.zeros((3, items.num_proteins, num_classes + 1))
    for table, labels in zip(tables, (right, said, items.truth), strict=True):
        np.add.at(table, (items.protein, labels), 1.0)
    return lambda counts: counts @ tables[:, :, :-1]


def _mcc(items: Items) -> Counted:
    """Matthews' coefficient of any number of classes (Gorodkin 2004)."""
    by_class = _by_class(items)

    def count(counts: Counts) -> float:
        right, said, true = by_class(counts)
        total = said.sum()
        spread = (total**2 - said @ said) * (total**2 - true @ true)
        return float((right.sum() * total - said @ true) / np.sqrt(spread)) if spread > 0 else 0.0

    return count


def _f1(items: Items) -> Counted:
    by_class = _by_class(items)

    def count(counts: Counts) -> float:
        right, said, true = by_class(counts)
        there = said + true > 0
        return float((2 * right[there] / (said + true)[there]).mean())

    return count


def _judged(items: Items) -> Int[np.ndarray, "class"]:
    """The classes whose scores are ordered: of two the second, of more all that are there."""
    return np.array([1]) if items.prediction.shape[1] == 2 else np.unique(items.truth)


def _ordered(
    items: Items,
) -> Callable[[Counts], tuple[Float64[np.ndarray, "class score"], Float64[np.ndarray, "class score"]]]:
    """For each judged class, how many items of it and of others have each different score, the lowest first."""
    labels = _judged(items)
    places = np.stack([np.unique(items.prediction[:, label], return_inverse=True)[1] for label in labels])
    shape = len(labels), int(places.max()) + 1
    flat = (places + shape[1] * np.arange(len(labels))[:, None]).ravel()
    is_one = items.truth == labels[:, None]

    def count(counts: Counts) -> tuple[Float64[np.ndarray, "class score"], Float64[np.ndarray, "class score"]]:
        weights = np.broadcast_to(counts[items.protein], is_one.shape)
        ones, both = (np.bincount(flat, w.ravel(), shape[0] * shape[1]).reshape(shape)
                      for w in (weights * is_one, weights))  # fmt: skip
        return ones, both - ones

    return count


def _mean_ratio(above: Float64[np.ndarray, "class"], below: Float64[np.ndarray, "class"]) -> float:
    """Of the classes that have one; a draw may lack some."""
    has_one = below > 0
    return float((above[has_one] / below[has_one]).mean()) if has_one.any() else float("nan")


def _auroc(items: Items) -> Counted:
    """The share of (one, zero) pairs in the right order, ties by half (Mann and Whitney's U)."""
    ordered = _ordered(items)

    def count(counts: Counts) -> float:
        ones, zeros = ordered(counts)
        below = np.cumsum(zeros, axis=1) - zeros / 2
        return _mean_ratio((ones * below).sum(1), ones.sum(1) * zeros.sum(1))

    return count


def _auprc(items: Items) -> Counted:
    ordered = _ordered(items)

    def count(counts: Counts) -> float:
        ones, zeros = (columns[:, ::-1] for columns in ordered(counts))
        found, taken = np.cumsum(ones, axis=1), np.cumsum(ones + zeros, axis=1)
        precision = np.divide(found, taken, out=np.zeros_like(found), where=taken > 0)
        return _mean_ratio((ones * precision).sum(1), ones.sum(1))

    return count


def _correlation(xx: float, yy: float, xy: float, flat: float) -> float:
    """Of squares about the mean: 0 where y, the prediction, is constant, and NaN where x, the truth, is."""
    return float("nan") if xx <= flat else 0.0 if yy <= flat else float(xy / np.sqrt(xx * yy))


def _pearson(items: Items) -> Counted:
    x, y = (column - column.mean(dtype=np.float64) for column in (items.truth, items.prediction))
    sums = items.sums(np.stack((np.ones_like(x), x, y, x * x, y * y, x * y), axis=1))

    def count(counts: Counts) -> float:
        n, x, y, xx, yy, xy = (counts @ sums).tolist()
        return _correlation(xx - x * x / n, yy - y * y / n, xy - x * y / n, flat=1e-12 * max(xx, yy))

    return count


def _spearman(items: Items) -> Counted:
    """Ties share the mean of their ranks, whose mean over all n items is n / 2 (counted from one half)."""
    places = [np.unique(column, return_inverse=True)[1] for column in (items.truth, items.prediction)]

    def count(counts: Counts) -> float:
        weights = counts[items.protein]
        total = weights.sum()
        sizes = [np.bincount(place, weights) for place in places]
        x, y = (np.cumsum(size) - (size + total) / 2 for size in sizes)
        xy = (weights * x[places[0]] * y[places[1]]).sum()  # a dot product would wake BLAS's threads each time
        return _correlation((sizes[0] * x**2).sum(), (sizes[1] * y**2).sum(), xy, flat=0.0)

    return count


def _against_others(figure: Callable[..., float]) -> Callable[[Items], float]:
    """A figure of the scores of a class, averaged over the judged ones; NaN where there is one class alone."""

    def value(items: Items) -> float:
        if len(np.unique(items.truth)) < 2:
            return float("nan")
        return float(np.mean([figure(items.truth == label, items.prediction[:, label]) for label in _judged(items)]))

    return value


def _of_labels(figure: Callable[..., float]) -> Callable[[Items], float]:
    return lambda items: figure(items.truth, _labels(items))


def _correlated(figure: Callable[..., tuple[float, float]]) -> Callable[[Items], float]:
    """A correlation by scipy; 0 for predictions that are all the same, which order nothing."""

    def value(items: Items) -> float:
        if len(items.truth) < 2 or np.ptp(items.truth) == 0:
            return float("nan")
        return figure(items.truth, items.prediction)[0] if np.ptp(items.prediction) > 0 else 0.0

    return value


METRICS = {
    "accuracy": Metric(
        title="accuracy",
        of="classes",
        value=_of_labels(sklearn_metrics.accuracy_score),
        counted=partial(_mean, values=lambda items: _labels(items) == items.truth),
    ),
    "mcc": Metric(title="MCC", of="classes", value=_of_labels(sklearn_metrics.matthews_corrcoef), counted=_mcc),
    "f1": Metric(
        title="F1 (macro)",
        of="classes",
        value=_of_labels(partial(sklearn_metrics.f1_score, average="macro", zero_division=0)),
        counted=_f1,
    ),
    "auroc": Metric(title="AUROC", of="classes", value=_against_others(sklearn_metrics.roc_auc_score), counted=_auroc),
    "auprc": Metric(
        title="AUPRC", of="classes", value=_against_others(sklearn_metrics.average_precision_score), counted=_auprc
    ),
    "spearman": Metric(title="Spearman", of="values", value=_correlated(stats.spearmanr), counted=_spearman),
    "pearson": Metric(title="Pearson", of="values", value=_correlated(stats.pearsonr), counted=_pearson),
    "rmse": Metric(
        title="RMSE",
        of="values",
        value=lambda items: sklearn_metrics.root_mean_squared_error(items.truth, items.prediction),
        counted=_rmse,
        larger_is_better=False,
    ),
} | {
    f"precision@L/{k}" + ("" if separation == 24 else f" sep{separation}"): Metric(
        title=f"precision@L/{k}, |i-j| >= {separation}",
        of="contacts",
        value=lambda items: float(items.truth.mean()),
        counted=partial(_mean, values=lambda items: items.truth),
        pairs=(k, separation),
    )
    for separation in (24, 12, 6, 7)
    for k in (5, 1, 2, 10)
    if separation != 7 or k == 5
}
"""By name. precision@L/5 (of pairs at least 24 apart) is the headline of contact maps, precision@L/5 sep7 (|i-j| > 6)
the figure of the xTrimoPGLM paper."""
