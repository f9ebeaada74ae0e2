"""Low complexity and repeats against slow loops and cases by hand."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from generate.complexity import longest_run, low_complexity, tandem_repeats, window_entropies
from xtrimo.testing import toy_sequences

REPETITIVE = st.text("AGX", min_size=1, max_size=40)


def entropy(window: str) -> float:
    shares = [number / len(window) for number in Counter(window).values()]
    return -sum(share * math.log2(share) for share in shares)


@pytest.mark.parametrize("sequence", [*toy_sequences(5, min_length=5, max_length=60), "A" * 30 + "ACDEFGHIKLMN", "MK"])
def test_entropies(sequence: str) -> None:
    expected = [entropy(sequence[i : i + 12]) for i in range(len(sequence) - 11)]
    np.testing.assert_allclose(window_entropies(sequence), expected, atol=1e-12)


@given(st.text("ACDEFGHIKL", min_size=1, max_size=50), st.integers(0, 30))
def test_low_complexity(varied: str, num: int) -> None:
    """Windows under the second limit, of a chain of overlapping ones that has one under the first."""
    sequence = varied + "Q" * num + varied[::-1]
    low = [entropy(sequence[i : i + 12]) for i in range(len(sequence) - 11)]
    triggered = {i for i, bits in enumerate(low) if bits <= 2.2 + 1e-12}
    grown = set()
    while grown != triggered:
        grown = set(triggered)
        triggered |= {j for i in grown for j in (i - 1, i + 1) if 0 <= j < len(low) and low[j] <= 2.5 + 1e-12}
    expected = {place for start in grown for place in range(start, start + 12)}
    assert set(np.flatnonzero(low_complexity(sequence)).tolist()) == expected


def test_what_is_of_low_complexity() -> None:
    assert low_complexity("Q" * 20).all()
    assert not low_complexity("ACDEFGHIKLMNPQRSTVWY" * 3).any()
    assert not low_complexity("QQQQ").any()  # shorter than a window


@given(REPETITIVE)
def test_longest_run(sequence: str) -> None:
    runs = [end - start for start in range(len(sequence)) for end in range(start + 1, len(sequence) + 1)
            if len(set(sequence[start:end])) == 1]  # fmt: skip
    assert longest_run(sequence) == max(runs)


@given(REPETITIVE)
def test_tandem_repeats(sequence: str) -> None:
    """Every stretch that is some unit over and over."""
    expected = set()
    for unit in range(1, 11):
        for start in range(len(sequence)):
            for end in range(start + max(3 * unit, 6), len(sequence) + 1):
                if all(sequence[i] == sequence[i + unit] for i in range(start, end - unit)):
                    expected |= set(range(start, end))
    assert set(np.flatnonzero(tandem_repeats(sequence)).tolist()) == expected


@pytest.mark.parametrize(
    ("sequence", "num"),
    [("MKVAAAAAAW", 6), ("MKVAAAAAW", 0), ("GSGSGSK", 6), ("GSGSK", 0), ("MKVWMKVWMKVW", 12), ("MKVWMKVWMKV", 0)],
)
def test_repeats_by_hand(sequence: str, num: int) -> None:
    assert tandem_repeats(sequence).sum() == num
