"""Whitening against a covariance computed apart from it."""

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf

from heads.whitening import zca


def test_many_states_come_out_uncorrelated() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(6, 6)) * 10.0 ** np.arange(-3, 3)
    states = rng.normal(size=(50_000, 6)) @ mixing + 7
    mean, whitening = zca(states)
    np.testing.assert_allclose(mean, states.mean(0))
    np.testing.assert_allclose(np.cov(((states - mean) @ whitening).T), np.eye(6), atol=0.01)


def test_few_states_are_shrunk_as_ledoit_and_wolf_have_it() -> None:
    states = np.random.default_rng(1).normal(size=(12, 8))
    standard = (states - states.mean(0)) / states.std(0)
    shrunk = LedoitWolf(assume_centered=True).fit(standard).covariance_  # towards its mean variance, here 1
    _, whitening = zca(states)
    inner = whitening * states.std(0)[:, None]
    np.testing.assert_allclose(inner @ shrunk @ inner, np.eye(8), atol=1e-9)  # W is C^-1/2
    np.testing.assert_allclose(inner, inner.T, atol=1e-12)


def test_more_numbers_than_states_stay_finite_and_small() -> None:
    rng = np.random.default_rng(2)
    mean, whitening = zca(rng.normal(size=(20, 100)).astype(np.float32))
    assert np.abs((rng.normal(size=(500, 100)) - mean) @ whitening).max() < 10


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_number_that_never_changes_becomes_zero(value: float) -> None:
    states = np.random.default_rng(3).normal(size=(50, 4))
    states[:, 2] = value
    mean, whitening = zca(states)
    assert ((states - mean) @ whitening)[:, 2] == pytest.approx(0, abs=1e-12)


def test_rounding_is_not_blown_up() -> None:
    rng = np.random.default_rng(4)
    states = rng.normal(size=(5_000, 1)) @ np.ones((1, 4))  # one direction; the others hold nothing
    mean, whitening = zca(states)
    rounded = (states + 1e-3 * rng.normal(size=states.shape) - mean) @ whitening
    assert np.abs(rounded - (states - mean) @ whitening).max() < 0.2
