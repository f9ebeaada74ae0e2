"""Floors of the tasks of residues and pairs: what the letters near by, and nothing else, say.

windows     logistic regression of the 15 letters around a residue, one column a place and letter
fivemers    the labels that the same five letters had in training; of rarer ones those of three, then of one
separation  P(contact | |i - j|), the same for every protein
letters     the odds of a contact given |i - j|, times those given both amino acids over the odds of any pair
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64
from scipy import sparse

from heads.answers import UNSCORED
from heads.composition import best, logistic, numbers
from heads.rows import Dataset, Row

WINDOW = 15
MAX_RESIDUES = 300_000  # that a regression is fitted on; whole proteins, the first ones
PENALTIES = (1e-1, 1e0, 1e1)
PRIOR = 2.0  # how many residues a shorter word counts for where a longer one is asked
OTHER = 20  # number of a letter that is none of the twenty, and of the place beyond an end
MAX_SEPARATION = 512
SMOOTH = 4  # separations on each side that are counted as one
RANGES = (12, 24)  # |i - j| from which the pairs of letters are counted anew


def windows(dataset: Dataset) -> tuple[Float[np.ndarray, "residue class"], str]:
    """Logistic regression on one-hot windows."""
    train, valid = _some(dataset.train), _some(dataset.valid)
    num_classes = len(dataset.classes)

    def fit_and_say(penalty: float, known: Sequence[Row], asked: Sequence[Row]) -> Float[np.ndarray, "residue class"]:
        labels = _labels(known)
        scored = labels != UNSCORED
        model = logistic(_one_hot(known)[scored], labels[scored], penalty)
        said = np.zeros((sum(len(row.sequence) for row in asked), num_classes))
        said[:, model.classes_] = model.predict_proba(_one_hot(asked))
        return said

    penalty = best(PENALTIES, lambda penalty: fit_and_say(penalty, train, dataset.valid), dataset)
    said = fit_and_say(penalty, (*train, *valid), dataset.test)
    num = sum(len(row.sequence) for row in (*train, *valid))
    return said, f"window {WINDOW}, {num:,} residues, penalty {penalty:g}"


def _some(rows: Sequence[Row]) -> Sequence[Row]:
    """The first rows with MAX_RESIDUES residues or a few more."""
    ends = np.cumsum([len(row.sequence) for row in rows])
    return rows[: int(np.searchsorted(ends, MAX_RESIDUES)) + 1]


def _labels(rows: Sequence[Row]) -> Int64[np.ndarray, "residue"]:
    return np.concatenate([np.asarray(row.label) for row in rows]).astype(np.int64)


def _neighbours(rows: Sequence[Row], size: int) -> Int64[np.ndarray, "residue size"]:
    """The numbers of the letters around each residue, proteins end to end."""
    half = size // 2
    found = []
    for row in rows:
        letters = np.pad(numbers(row.sequence), half, constant_values=OTHER)
        found.append(np.lib.stride_tricks.sliding_window_view(letters, size))
    return np.concatenate(found)


def _one_hot(rows: Sequence[Row]) -> sparse.csr_array:
    columns = _neighbours(rows, WINDOW) + (OTHER + 1) * np.arange(WINDOW)
    starts = WINDOW * np.arange(len(columns) + 1)
    on = np.ones(columns.size, dtype=np.float32)
    return sparse.csr_array((on, columns.ravel(), starts), shape=(len(columns), (OTHER + 1) * WINDOW))


def fivemers(dataset: Dataset) -> tuple[Float[np.ndarray, "residue class"], str]:
    """P(class | word) = (count + PRIOR * P(class | word without its ends)) / (count of all + PRIOR)."""
    known = (*dataset.train, *dataset.valid)
    labels = _labels(known)
    scored = labels != UNSCORED
    share = np.bincount(labels[scored], minlength=len(dataset.classes)) / max(1, scored.sum())
    said = np.tile(share, (sum(len(row.sequence) for row in dataset.test), 1))
    for size in (1, 3, 5):
        powers = (OTHER + 1) ** np.arange(size)
        words, asked = (_neighbours(rows, size) @ powers for rows in (known, dataset.test))
        counts = np.zeros(((OTHER + 1) ** size, len(dataset.classes)), dtype=np.float32)
        np.add.at(counts, (words[scored], labels[scored]), 1.0)
        seen = counts[asked]
        said = (seen + PRIOR * said) / (seen.sum(1, keepdims=True) + PRIOR)
    return said, "words of 5, 3 and 1 letters"


def separation(dataset: Dataset) -> tuple[Float[np.ndarray, "pair"], str]:
    """P(contact | |i - j|)."""
    odds = _separation_odds(_count(dataset).sum((1, 2)))
    said = [odds[_apart(len(row.sequence))].ravel() for row in dataset.test]
    return _share(np.concatenate(said)), f"counted in {len(dataset.train) + len(dataset.valid):,} proteins"


def letters(dataset: Dataset) -> tuple[Float[np.ndarray, "pair"], str]:
    """P(contact) from |i - j| and both letters, as if they told independently."""
    table = _count(dataset)
    by_separation = _separation_odds(table.sum((1, 2)))
    edges = (0, *RANGES, MAX_SEPARATION)
    by_letters = np.zeros((len(edges) - 1, OTHER + 1, OTHER + 1))
    for values, start, end in zip(by_letters, edges[:-1], edges[1:], strict=True):
        counts = table[start:end].sum(0)
        counts = counts + counts.transpose(1, 0, 2)  # a pair is the same both ways round
        any_pair = counts.sum((0, 1))
        prior = 100 * any_pair / max(1.0, any_pair.sum())
        smooth = counts + prior
        values[:] = np.log(smooth[..., 1] / smooth[..., 0]) - np.log(prior[1] / prior[0])
    said = []
    for row in dataset.test:
        codes, apart = numbers(row.sequence), _apart(len(row.sequence))
        of_range = np.digitize(apart, RANGES)
        said.append((by_separation[apart] + by_letters[of_range, codes[:, None], codes]).ravel())
    return _share(np.concatenate(said)), f"counted in {len(dataset.train) + len(dataset.valid):,} proteins"


def _apart(length: int) -> Int64[np.ndarray, "length length"]:
    place = np.arange(length)
    return np.minimum(np.abs(place[:, None] - place), MAX_SEPARATION - 1)


def _share(odds: Float64[np.ndarray, "pair"]) -> Float32[np.ndarray, "pair"]:
    return (1 / (1 + np.exp(-odds))).astype(np.float32)


def _count(dataset: Dataset) -> Float64[np.ndarray, "separation letter letter 2"]:
    """Pairs i < j of the training and valid proteins by |i - j|, both letters, and whether they touch."""
    size = OTHER + 1
    table = np.zeros(MAX_SEPARATION * size * size * 2)
    for row in (*dataset.train, *dataset.valid):
        codes, contacts = numbers(row.sequence), np.asarray(row.label)
        first, second = np.triu_indices(len(codes))
        touch = contacts[first, second].astype(np.int64)
        apart = np.minimum(second - first, MAX_SEPARATION - 1)
        cell = ((apart * size + codes[first]) * size + codes[second]) * 2 + touch
        table += np.bincount(cell[touch != UNSCORED], minlength=len(table))
    return table.reshape(MAX_SEPARATION, size, size, 2)


def _separation_odds(counts: Float64[np.ndarray, "separation 2"]) -> Float64[np.ndarray, "separation"]:
    """Log odds of a contact at each separation, of SMOOTH separations on each side together."""
    ends = np.pad(np.cumsum(counts, axis=0), ((1, 0), (0, 0)))
    place = np.arange(len(counts))
    low, high = np.maximum(place - SMOOTH, 0), np.minimum(place + SMOOTH + 1, len(counts))
    near = ends[high] - ends[low]
    prior = counts.sum(0) / max(1.0, counts.sum())
    near = near + np.maximum(prior, 1e-9)
    return np.log(near[:, 1] / near[:, 0])
