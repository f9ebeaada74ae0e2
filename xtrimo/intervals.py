"""How far a mean may lie off by the luck of which proteins were measured: 95 % percentile bootstrap intervals.

What is drawn again, with replacement, are whole groups (a protein, or a cluster of alike ones), each with its sums: the
residues of a protein are no independent evidence. A mean over residues is then a ratio of two drawn sums.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64

DRAWS = 2000

Sums = Float64[np.ndarray, "group column"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, draws: Float64[np.ndarray, "draw"]) -> "Estimate":
        """The interval that holds the middle 95 % of the draws."""
        low, high = np.percentile(draws, (2.5, 97.5)).tolist()
        return cls(value=float(value), low=low, high=high)

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def drawn_counts(num_groups: int, seed: int = 0) -> Iterator[Int64[np.ndarray, "group"]]:
    """How often each group is in one draw of as many groups, with replacement; DRAWS draws, one at a time.

    They depend on the number of groups and the seed alone, so two models on the same proteins meet the same draws.
    """
    rng = np.random.default_rng(seed)
    for _ in range(DRAWS):
        yield np.bincount(rng.integers(num_groups, size=num_groups), minlength=num_groups)


def bootstrap(sums: Sums, seed: int = 0) -> Float64[np.ndarray, "draw column"]:
    """Sums over as many groups as there are, drawn with replacement, DRAWS times; memory for one draw at a time.

    Columns are drawn together, so that what they say of the same groups can be compared draw by draw.
    """
    draws = np.empty((DRAWS, sums.shape[1]))
    for draw, counts in zip(draws, drawn_counts(len(sums), seed), strict=True):
        draw[:] = counts @ sums
    return draws


def bootstrap_ratio(
    numerators: Float[np.ndarray, "group"], denominators: Float[np.ndarray, "group"], *, seed: int = 0
) -> Estimate:
    """sum(numerators) / sum(denominators) over all groups, such as the nats and the residues of each protein.

    A single group is all that can be drawn, so its interval is a point and says nothing.
    """
    sums = np.stack((numerators, denominators), axis=1).astype(np.float64)
    draws = bootstrap(sums, seed)
    total, size = sums.sum(0)
    return Estimate.of(total / size, draws[:, 0] / draws[:, 1])
