"""Whether probabilities are as good as their word: of what is held likely by 0.7, seven in ten should be so.

Items are put into bins of as many items each, the least believed first. The expected calibration error is how far a
bin's mean belief is from the share that is so, averaged over all items (Naeini et al. 2015).
"""

import numpy as np
from jaxtyping import Float, Float64, Int, Shaped

NUM_BINS = 10

Belief = Float[np.ndarray, "item"]
IsSo = Shaped[np.ndarray, "item"]
"""1 and 0, or how likely in truth."""


def bin_numbers(belief: Belief) -> Int[np.ndarray, "item"]:
    """The bin of each item, from 0; fewer than NUM_BINS where there are fewer items."""
    numbers = np.empty(len(belief), dtype=np.int64)
    for number, part in enumerate(np.array_split(np.argsort(belief, kind="stable"), NUM_BINS)):
        numbers[part] = number
    return numbers


def calibration_bins(
    belief: Belief, is_so: IsSo
) -> tuple[Float64[np.ndarray, "bin"], Float64[np.ndarray, "bin"], Float64[np.ndarray, "bin"]]:
    """Mean belief, share that is so, and share of all items, of each bin that has an item."""
    numbers = bin_numbers(belief)
    sizes = np.bincount(numbers)
    expected, found = (np.bincount(numbers, values.astype(np.float64)) / sizes for values in (belief, is_so))
    return expected, found, sizes / len(belief)


def calibration_error(belief: Belief, is_so: IsSo) -> float:
    """Expected calibration error: 0 is calibrated."""
    expected, found, share = calibration_bins(belief, is_so)
    return float((share * np.abs(expected - found)).sum())
