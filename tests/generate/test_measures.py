"""Intervals of means and of shares."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from generate.measures import SHARES, mean


@pytest.mark.parametrize(("hits", "num"), [(8, 8), (0, 8), (3, 8), (1, 1)])
@pytest.mark.parametrize("measure", sorted(SHARES))
def test_a_share_has_the_interval_of_wilson(measure: str, hits: int, num: int) -> None:
    """The ends solve (p - q)^2 = z^2 q (1 - q) / n."""
    found = mean(measure, "generated", [1.0] * hits + [0.0] * (num - hits) + [math.nan])
    z = norm.ppf(0.975)
    share = hits / num
    ends = np.roots([1 + z * z / num, -2 * share - z * z / num, share * share]).real
    assert found.estimate.value == share and found.num == num
    np.testing.assert_allclose((found.estimate.low, found.estimate.high), sorted(ends), atol=1e-9)
    assert found.estimate.low < found.estimate.high


def test_one_protein_has_a_mean_without_an_interval() -> None:
    found = mean("length", "generated", [60.0]).estimate
    assert found.value == 60 and math.isnan(found.low) and math.isnan(found.high)
    assert mean("length", "generated", [60.0, 70.0]).estimate.low == 60
    assert math.isnan(mean("member", "generated", []).estimate.value)
