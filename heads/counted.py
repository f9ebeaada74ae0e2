"""What metrics are made of: each figure by its library, and as a function of how often each protein was drawn.

The second is set up once and called some thousand times: it adds up or sorts once, and is linear in the proteins, or
items, from then on.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int, Shaped
from sklearn import metrics as sklearn_metrics

from heads.answers import Truth
from heads.calibration import bin_numbers
from heads.preferences import verdicts

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


# The figures as functions of counts, set up once and called often.


def said_labels(items: Items) -> Int[np.ndarray, "item"]:
    return items.prediction.argmax(1)


def is_right(items: Items) -> Shaped[np.ndarray, "item"]:
    """Whether the class held most likely is the true one."""
    right: Shaped[np.ndarray, "item"] = said_labels(items) == items.truth
    return right


def mean(items: Items, values: Callable[[Items], Shaped[np.ndarray, "item"]]) -> Counted:
    each = values(items).astype(np.float64)
    sums = items.sums(np.stack((each, np.ones_like(each)), axis=1))

    def count(counts: Counts) -> float:
        total, size = counts @ sums
        return float(total / size)

    return count


def rmse(items: Items) -> Counted:
    squared = mean(items, lambda items: (items.truth - items.prediction) ** 2)
    return lambda counts: float(np.sqrt(squared(counts)))


def calibration(items: Items) -> Counted:
    """In the bins of all items. Chance adds to the error of a draw as it does to the figure, so intervals lie high."""
    belief, is_so = verdicts(items.truth, items.prediction)
    numbers = bin_numbers(belief)
    gaps = np.zeros((items.num_proteins, numbers.max() + 1))
    np.add.at(gaps, (items.protein, numbers), belief - is_so)
    sizes = np.bincount(items.protein, minlength=items.num_proteins)
    return lambda counts: float(np.abs(counts @ gaps).sum() / (counts @ sizes))


def _by_class(items: Items) -> Callable[[Counts], Float64[np.ndarray, "3 class"]]:
    """Items rightly said to be of each class, items said to be, and items that are."""
    said, num_classes = said_labels(items), items.prediction.shape[1]
    right = np.where(said == items.truth, said, num_classes)  # a class more, for the wrong
    tables = np.zeros((3, items.num_proteins, num_classes + 1))
    for table, labels in zip(tables, (right, said, items.truth), strict=True):
        np.add.at(table, (items.protein, labels), 1.0)
    return lambda counts: counts @ tables[:, :, :-1]


def mcc(items: Items) -> Counted:
    """Matthews' coefficient of any number of classes (Gorodkin 2004)."""
    by_class = _by_class(items)

    def count(counts: Counts) -> float:
        right, said, true = by_class(counts)
        total = said.sum()
        spread = (total**2 - said @ said) * (total**2 - true @ true)
        return float((right.sum() * total - said @ true) / np.sqrt(spread)) if spread > 0 else 0.0

    return count


def f1(items: Items) -> Counted:
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


def auroc(items: Items) -> Counted:
    """The share of (one, zero) pairs in the right order, ties by half (Mann and Whitney's U)."""
    ordered = _ordered(items)

    def count(counts: Counts) -> float:
        ones, zeros = ordered(counts)
        below = np.cumsum(zeros, axis=1) - zeros / 2
        return _mean_ratio((ones * below).sum(1), ones.sum(1) * zeros.sum(1))

    return count


def auprc(items: Items) -> Counted:
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


def pearson(items: Items) -> Counted:
    x, y = (column - column.mean(dtype=np.float64) for column in (items.truth, items.prediction))
    sums = items.sums(np.stack((np.ones_like(x), x, y, x * x, y * y, x * y), axis=1))

    def count(counts: Counts) -> float:
        n, x, y, xx, yy, xy = (counts @ sums).tolist()
        return _correlation(xx - x * x / n, yy - y * y / n, xy - x * y / n, flat=1e-12 * max(xx, yy))

    return count


def spearman(items: Items) -> Counted:
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


def against_others(figure: Callable[..., float]) -> Callable[[Items], float]:
    """A figure of the scores of a class, averaged over the judged ones; NaN where there is one class alone."""

    def value(items: Items) -> float:
        if len(np.unique(items.truth)) < 2:
            return float("nan")
        return float(np.mean([figure(items.truth == label, items.prediction[:, label]) for label in _judged(items)]))

    return value


def of_labels(figure: Callable[..., float]) -> Callable[[Items], float]:
    return lambda items: figure(items.truth, said_labels(items))


def correlated(figure: Callable[..., tuple[float, float]]) -> Callable[[Items], float]:
    """A correlation by scipy; 0 for predictions that are all the same, which order nothing."""

    def value(items: Items) -> float:
        if len(items.truth) < 2 or np.ptp(items.truth) == 0:
            return float("nan")
        return figure(items.truth, items.prediction)[0] if np.ptp(items.prediction) > 0 else 0.0

    return value


def log_loss(items: Items) -> float:
    """By scikit-learn, of each pair as two: first won, weighing how likely it did, and second won."""
    won, said = np.repeat((True, False), len(items.truth)), np.tile(items.prediction[:, 0], 2)
    weights = np.concatenate((items.truth, 1 - items.truth))
    return float(sklearn_metrics.log_loss(won, said, sample_weight=weights))
