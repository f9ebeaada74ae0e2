"""The linear floor of a task: amino-acid and dipeptide composition of each chain, ridge or logistic regression.

A chain is 20 + 400 shares (of its residues, of its neighbouring pairs) and the logarithm of its length, a molecule the
bits of its fingerprint. Columns are brought to mean 0 and variance 1. The penalty is the one with the smallest loss on
the valid rows; then train and valid are fitted together. Of two proteins, one of which is better, differences are read,
without a constant.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64, Shaped

from heads.answers import UNSCORED
from heads.molecules import fingerprints, kind_of
from heads.preferences import log_losses
from heads.rows import Dataset, Row
from xtrimo.tokens import AMINO_ACIDS

PENALTIES = (1e0, 1e1, 1e2, 1e3, 1e4)
MAX_STEPS = 100  # of a fit; what is gained after them is not seen in the figures
NUM_BITS = 512
_NUMBER = np.full(256, len(AMINO_ACIDS))
_NUMBER[np.frombuffer(AMINO_ACIDS.encode(), np.uint8)] = np.arange(len(AMINO_ACIDS))

Features = Float32[np.ndarray, "row feature"]
Fitted = Callable[[Features], Float[np.ndarray, "row *class"]]


def numbers(sequence: str) -> Int64[np.ndarray, "length"]:
    """0 to 19 for the amino acids, 20 for any other letter."""
    return _NUMBER[np.frombuffer(sequence.encode(), np.uint8)]


def shares(sequence: str) -> Float32[np.ndarray, "421"]:
    """Of each amino acid among the residues, of each pair among the neighbours (other letters count to neither), and
    log(length)."""
    codes = numbers(sequence)
    pairs = 21 * codes[:-1] + codes[1:]
    single = np.bincount(codes, minlength=21)[:20] / max(1, len(codes))
    double = np.bincount(pairs, minlength=441).reshape(21, 21)[:20, :20] / max(1, len(pairs))
    return np.concatenate((single, double.ravel(), [np.log(len(codes))])).astype(np.float32)


def features(rows: Sequence[Row], columns: Sequence[Callable[[Row], Any]]) -> Features:
    """What `columns` say of each row, side by side."""
    return np.stack([np.concatenate([column(row) for column in columns]) for row in rows])


def predict(dataset: Dataset) -> tuple[Float[np.ndarray, "row *class"], str]:
    """What the linear floor says of the test rows, and the penalty it took."""
    columns = _columns(dataset)
    train, valid, test = (features(rows, columns) for rows in (dataset.train, dataset.valid, dataset.test))
    wanted = [np.array([row.label for row in rows]) for rows in (dataset.train, dataset.valid)]
    fit = {"regression": _ridge, "preference": _preferring}.get(dataset.task.target, _logistic(len(dataset.classes)))
    penalty = best(PENALTIES, lambda penalty: fit(train, wanted[0], penalty)(valid), dataset)
    final = fit(np.concatenate((train, valid)), np.concatenate(wanted), penalty)
    return final(test), f"penalty {penalty:g}"


def best(choices: Sequence[float], say: Callable[[float], Float[np.ndarray, "item *class"]], dataset: Dataset) -> float:
    """The choice that predicts the valid rows with the smallest loss, nats or squared error; the first without any.

    By the task's metric it would be chosen among ties: with two in three of one class, all strong penalties have the
    same accuracy.
    """
    if not dataset.valid:
        return choices[0]
    truth = np.concatenate([np.atleast_1d(row.label) for row in dataset.valid])
    return min(choices, key=lambda choice: _loss(truth, say(choice)))


def _loss(truth: Shaped[np.ndarray, "item"], said: Float[np.ndarray, "item *class"]) -> float:
    if said.ndim == 1:
        return float(((truth - said) ** 2).mean())
    if truth.dtype.kind == "f":
        return float(log_losses(truth, said).mean())
    scored = np.flatnonzero(truth != UNSCORED)
    return float(-np.log(np.maximum(said[scored, truth[scored]], 1e-9)).mean())


def logistic(
    x: Any,
    y: Shaped[np.ndarray, "row"],
    penalty: float,
    *,
    weights: Float[np.ndarray, "row"] | None = None,
    constant: bool = True,
) -> Any:
    """Multinomial logistic regression by scikit-learn; its `classes_` are those that are there."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=1 / penalty, max_iter=MAX_STEPS, tol=1e-3, fit_intercept=constant)
        return model.fit(x, y, sample_weight=weights)


def _columns(dataset: Dataset) -> list[Callable[[Row], Any]]:
    columns: list[Callable[[Row], Any]] = [lambda row: shares(row.sequence)]
    different = list(dict.fromkeys(row.second for row in (*dataset.train, *dataset.valid, *dataset.test)))
    place = {text: number for number, text in enumerate(different)}
    if dataset.task.target == "preference":
        return [lambda row: shares(row.sequence) - shares(row.second)]
    if dataset.task.level == "two_sequences":
        table = [shares(text) for text in different]
        columns.append(lambda row: table[place[row.second]])
    elif dataset.task.level == "molecule":
        bits = fingerprints(different, kind=kind_of(different), num_bits=NUM_BITS)
        columns.append(lambda row: bits[place[row.second]])
    return columns


class _Standard:
    """Columns to mean 0 and variance 1 of the rows it is made from; a constant column to 0."""

    def __init__(self, x: Features) -> None:
        self.mean, spread = x.mean(0), x.std(0)
        self.factor = np.divide(1, spread, out=np.zeros_like(spread), where=spread > 0)

    def __call__(self, x: Features) -> Features:
        return (x - self.mean) * self.factor


def _ridge(x: Features, y: Float[np.ndarray, "row"], penalty: float) -> Fitted:
    from sklearn.linear_model import Ridge

    standard = _Standard(x)
    model = Ridge(alpha=penalty).fit(standard(x), y)
    return lambda other: model.predict(standard(other)).astype(np.float64)


def _preferring(x: Features, y: Float[np.ndarray, "row"], penalty: float) -> Fitted:
    """A linear reward from differences, each pair as two rows: won and lost, weighing as its label says."""
    standard = _Standard(np.concatenate((x, -x)))  # of mean 0: a pair turned round is the opposite
    won, weights = np.repeat((1, 0), len(x)), np.concatenate((y, 1 - y))
    model = logistic(np.tile(standard(x), (2, 1)), won, penalty, weights=weights, constant=False)
    return lambda other: model.predict_proba(standard(other))[:, 1:].astype(np.float64)


def _logistic(num_classes: int) -> Callable[[Features, Shaped[np.ndarray, "row"], float], Fitted]:
    """Multinomial, with a column for every class whether or not a row has it."""

    def fit(x: Features, y: Shaped[np.ndarray, "row"], penalty: float) -> Fitted:
        standard = _Standard(x)
        model = logistic(standard(x), y, penalty)

        def say(other: Features) -> Float[np.ndarray, "row class"]:
            answer = np.zeros((len(other), num_classes))
            answer[:, model.classes_] = model.predict_proba(standard(other))
            return answer

        return say

    return fit
