"""Contacts read from attention, without training a network: logistic regression over the maps of a few proteins.

Residues that touch attend to each other in some heads of a protein language model. Each map is made symmetric, what
its rows and columns share is taken out (average product correction, Dunn et al. 2008),

    F = A + A^T,    F'_ij = F_ij - (sum_k F_ik) (sum_k F_kj) / sum_kl F_kl,

and P(contact of i and j) = sigmoid(bias + sum_maps weight * F'_ij) is fitted with an L1 penalty on some twenty
proteins, |i - j| >= 6 (Rao et al. 2020, bioRxiv 2020.12.15.422761; whose penalty is 0.15). Which penalty is best
depends on how much the maps of a model say, so others than that one are tried on validation proteins.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int8

from heads.answers import UNSCORED, Predictions
from heads.rows import Dataset, Row
from xtrimo.backbone import Backbone, attentions
from xtrimo.errors import DataError, MissingExtraError
from xtrimo.pair_maps import correct_maps

MIN_SEPARATION = 6
NUM_PROTEINS = 20
NUM_VALID = 50
PENALTY = 0.15
PENALTIES = (PENALTY, 0.015, 1.5, 15.0)
"""That are tried; the first is taken where there is nothing to try them on, and of equal ones."""


def corrected_attentions(model: Backbone, sequence: str) -> Float32[np.ndarray, "map length length"]:
    """The attention maps of a protein, all layers and heads, as the regression reads them.

    Raises:
        SequenceError: as `backbone.attentions`.
    """
    maps = attentions(model, sequence)
    return correct_maps(torch.from_numpy(maps.reshape(-1, *maps.shape[2:]))).numpy()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ContactRegression:
    """What was fitted: how much each map says of a contact."""

    weights: Float64[np.ndarray, "map"]
    """One for each layer and head; the L1 penalty leaves most at 0."""
    bias: float

    def probabilities(self, maps: Float[np.ndarray, "map length length"]) -> Float32[np.ndarray, "length length"]:
        """Of a contact of each pair of residues, from corrected maps.

        Raises:
            DataError: maps of another model.
        """
        if len(maps) != len(self.weights):
            raise DataError(f"{len(maps)} attention maps; the regression was fitted on {len(self.weights)}")
        logits = np.tensordot(self.weights.astype(np.float32), maps, axes=1) + self.bias
        return torch.from_numpy(logits).sigmoid().float().numpy()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `ContactRegression(**)` of arrays turns it back."""
        return {"weights": self.weights.tolist(), "bias": self.bias}


def fit(
    model: Backbone,
    rows: Iterable[Row],
    *,
    num_proteins: int = NUM_PROTEINS,
    penalty: float = PENALTY,
    seed: int = 0,
) -> ContactRegression:
    """Fit on the first `num_proteins` of `rows`, whose labels are contact maps.

    The features of all pairs are in memory: 8 bytes x layers x heads x length^2 / 2 a protein.

    Args:
        penalty: strength of the L1 penalty: the larger, the fewer maps are used.
        seed: of the solver, which takes the maps in random order.

    Raises:
        DataError: no contact, or nothing but contacts, among the pairs.
        MissingExtraError: scikit-learn is not installed.
    """
    return _fit(*_pairs(model, rows, num_proteins), penalty, seed)


def regress(
    model: Backbone, dataset: Dataset, figure: Callable[[Predictions], float], *, seed: int = 0
) -> tuple[Predictions, str]:
    """What the regression says of the test proteins, and how it was made: fitted on NUM_PROTEINS training proteins.

    Args:
        figure: by which the penalty is chosen, on NUM_VALID validation proteins; higher is better.

    Raises:
        DataError, MissingExtraError: as `fit`.
    """
    pairs, contacts = _pairs(model, dataset.train, NUM_PROTEINS)
    fitted = [_fit(pairs, contacts, penalty, seed) for penalty in PENALTIES]
    best, num_valid = 0, min(NUM_VALID, len(dataset.valid))
    if num_valid:
        figures = [figure(said) for said in _predict(fitted, model, dataset.valid[:num_valid])]
        best = figures.index(max(figures))
    note = f"penalty {PENALTIES[best]:g}, chosen on {num_valid} proteins, {(fitted[best].weights != 0).sum()} of"
    note += f" {len(fitted[best].weights)} maps; fitted on {min(NUM_PROTEINS, len(dataset.train))} proteins"
    return predict(fitted[best], model, dataset.test), note


def _pairs(
    model: Backbone, rows: Iterable[Row], num_proteins: int
) -> tuple[Float32[np.ndarray, "pair map"], Bool[np.ndarray, "pair"]]:
    """The corrected maps of the pairs of the first proteins that are far enough apart, and whether those touch."""
    features, labels = [], []
    for _, row in zip(range(num_proteins), rows, strict=False):
        maps, contacts = corrected_attentions(model, row.sequence), _contacts(row)
        first, second = np.triu_indices(len(contacts), k=MIN_SEPARATION)
        known = contacts[first, second] != UNSCORED
        features.append(maps[:, first[known], second[known]].T)
        labels.append(contacts[first[known], second[known]] == 1)
    wanted = np.concatenate(labels) if labels else np.zeros(0, dtype=bool)
    if wanted.all() or not wanted.any():
        raise DataError(
            f"{wanted.sum():,} of {len(wanted):,} pairs {MIN_SEPARATION} or more apart are contacts; expected some that"
            " are and some that are not"
        )
    return np.concatenate(features), wanted


def _fit(
    pairs: Float32[np.ndarray, "pair map"], contacts: Bool[np.ndarray, "pair"], penalty: float, seed: int
) -> ContactRegression:
    try:
        from sklearn.linear_model import LogisticRegression
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "contacts from attention need scikit-learn; run: pip install 'xtrimo[heads]'"
        ) from error
    regression = LogisticRegression(l1_ratio=1.0, C=1 / penalty, solver="liblinear", random_state=seed)
    regression.fit(pairs, contacts)
    return ContactRegression(weights=regression.coef_[0].astype(np.float64), bias=float(regression.intercept_[0]))


def predict(regression: ContactRegression, model: Backbone, rows: Iterable[Row]) -> Predictions:
    """P(contact) of every pair of each protein, beside the truth.

    Raises:
        DataError: no protein at all, or a regression fitted on another model.
    """
    return _predict([regression], model, rows)[0]


def _predict(regressions: Sequence[ContactRegression], model: Backbone, rows: Iterable[Row]) -> list[Predictions]:
    """What each regression says; the maps, which are large, are formed once and not kept."""
    truths, said, lengths = [], [], []
    for row in rows:
        maps = corrected_attentions(model, row.sequence)
        truths.append(_contacts(row).ravel())
        said.append([regression.probabilities(maps).ravel() for regression in regressions])
        lengths.append(len(row.sequence))
    if not lengths:
        raise DataError("no protein to predict the contacts of; expected at least one row")
    truth, length = np.concatenate(truths), np.array(lengths)
    return [Predictions(truth=truth, prediction=np.concatenate(one), length=length) for one in zip(*said, strict=True)]


def _contacts(row: Row) -> Int8[np.ndarray, "length length"]:
    if not isinstance(row.label, np.ndarray) or row.label.ndim != 2:
        raise DataError(f"{row.name or row.sequence[:20]}: its label is no contact map; use a task of level pair")
    return row.label.astype(np.int8)
