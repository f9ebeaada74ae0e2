"""Distances of lengths and compositions against their definitions."""

import numpy as np
import pytest

from generate import divergence
from generate.divergence import UNDEFINED, centred, halves, jensen_shannon, letter_counts, of_halves, pair_counts
from xtrimo.testing import toy_sequences
from xtrimo.tokens import AMINO_ACIDS


def entropy(shares: np.ndarray) -> float:
    known = shares[shares > 0]
    return float(-(known * np.log2(known)).sum())


def test_counts() -> None:
    sequences = [*toy_sequences(5), "MXKK", "M"]
    letters, pairs = letter_counts(sequences), pair_counts(sequences)
    for row, both, sequence in zip(letters, pairs, sequences, strict=True):
        assert row.tolist() == [sequence.count(letter) for letter in AMINO_ACIDS]
        for i, a in enumerate(AMINO_ACIDS):
            for j, b in enumerate(AMINO_ACIDS):
                assert both[20 * i + j] == sum(sequence[k : k + 2] == a + b for k in range(len(sequence) - 1))


def test_jensen_shannon() -> None:
    p, q = np.array([0.5, 0.5, 0.0]), np.array([0.0, 0.25, 0.75])
    expected = entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2
    assert float(jensen_shannon(40 * p, 8 * q)) == pytest.approx(expected)
    np.testing.assert_allclose(jensen_shannon(np.stack((p, q)), q), [expected, 0], atol=1e-12)
    assert float(jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 1.0]))) == pytest.approx(1)


def test_composition_distance_has_an_interval_about_it() -> None:
    own, other = toy_sequences(40, seed=1), ["".join(s) for s in zip(*(iter("AG" * 300),) * 30, strict=True)]
    found = divergence.composition_distance(letter_counts(own), letter_counts(other))
    assert found.low < found.value < found.high
    assert found.value == float(jensen_shannon(letter_counts(own).sum(0), letter_counts(other).sum(0)))
    same = divergence.composition_distance(letter_counts(own), letter_counts(own))
    assert same.value == pytest.approx(0, abs=1e-12) and same.low >= 0


def test_length_distance() -> None:
    """Of as many lengths: the mean difference of the sorted ones."""
    own, other = np.array([10.0, 30, 20, 50]), np.array([21.0, 11, 33, 70])
    expected = np.abs(np.sort(own) - np.sort(other)).mean()
    found = divergence.length_distance(own, other)
    assert found.value == pytest.approx(expected)
    assert found.low < expected < found.high


def test_halves() -> None:
    found = list(halves(7, seed=0))
    assert len(found) == divergence.NUM_HALVES and {int(half.sum()) for half in found} == {3}
    assert np.mean(found, axis=0).min() > 0.35 and len({half.tobytes() for half in found}) > 25  # of 35
    values = np.arange(7.0)
    distances = [abs(values[half].mean() - values[~half].mean()) for half in found]
    told = of_halves(7, 0, lambda half, rest: abs(float(values[half].mean() - values[rest].mean())))
    assert told.value == pytest.approx(np.mean(distances))
    assert (told.low, told.high) == pytest.approx(tuple(np.percentile(distances, (2.5, 97.5))))
    assert of_halves(3, 0, lambda half, rest: 1.0) is UNDEFINED


def test_draws_are_moved_to_the_figure() -> None:
    found = centred(1.0, np.linspace(2.0, 4.0, 2001))
    assert (found.value, found.low, found.high) == pytest.approx((1.0, 0.05, 1.95))
    assert centred(0.1, np.linspace(2.0, 4.0, 2001)).low == 0
    assert np.isnan(centred(0.1, np.array([np.nan, 1.0])).value)
