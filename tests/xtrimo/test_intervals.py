"""Bootstrap intervals against formulas: the normal approximation, a coverage count, exact small cases."""

import numpy as np
import pytest

from xtrimo.intervals import Estimate, bootstrap, bootstrap_ratio


def test_the_interval_is_that_of_a_ratio() -> None:
    """Of many groups the interval is 1.96 standard errors of the linearised ratio (the delta method) on each side."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 500, 2000).astype(float)
    nats = sizes * rng.normal(2.5, 0.3, 2000)
    ratio = nats.sum() / sizes.sum()
    error = np.sqrt(((nats - ratio * sizes) ** 2).sum()) / sizes.sum()
    estimate = bootstrap_ratio(nats, sizes)
    assert estimate.value == pytest.approx(ratio)
    assert estimate.low == pytest.approx(ratio - 1.96 * error, abs=0.15 * error)
    assert estimate.high == pytest.approx(ratio + 1.96 * error, abs=0.15 * error)


def test_it_holds_the_truth_nineteen_times_in_twenty() -> None:
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(100):
        sizes = rng.integers(20, 500, 60).astype(float)
        estimate = bootstrap_ratio(sizes * rng.normal(2.5, 0.3, 60), sizes)
        held += estimate.low <= 2.5 <= estimate.high
    assert held >= 86  # 95 expected, less 4 standard deviations


def test_the_spread_is_the_standard_error_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(2.0, 0.5, size=400)
    draws = bootstrap(np.stack((values, np.ones(400)), axis=1))
    means = draws[:, 0] / draws[:, 1]
    assert means.std() == pytest.approx(0.5 / 20, rel=0.15)
    assert means.mean() == pytest.approx(values.mean(), abs=0.005)


def test_every_draw_is_of_as_many_groups() -> None:
    columns = np.stack((np.ones(7), np.arange(7.0), 3 * np.arange(7.0)), axis=1)
    draws = bootstrap(columns, seed=2)
    assert (draws[:, 0] == 7).all()
    np.testing.assert_array_equal(draws[:, 2], 3 * draws[:, 1])  # columns of the same groups
    assert draws[:, 1].min() < 10 and draws[:, 1].max() > 32  # 21 +- 5.3
    np.testing.assert_array_equal(draws, bootstrap(columns, seed=2))
    assert (draws != bootstrap(columns, seed=3)).any()


def test_groups_that_move_together() -> None:
    """Fifty clusters of eight equal proteins know no more than fifty proteins."""
    values = np.random.default_rng(1).normal(2.0, 0.5, size=50)
    alone = bootstrap_ratio(values, np.ones(50))
    eight = bootstrap_ratio(8 * values, np.full(50, 8.0))
    assert (eight.low, eight.high) == pytest.approx((alone.low, alone.high))


def test_a_single_group_is_a_point() -> None:
    assert bootstrap_ratio(np.array([6.0]), np.array([2.0])) == Estimate(value=3.0, low=3.0, high=3.0)


def test_as_text() -> None:
    assert str(Estimate(value=2.5, low=2.25, high=2.75)) == "2.500 (2.250 to 2.750)"
