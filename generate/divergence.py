"""How far a set of proteins lies from held-out members in length and composition, with the luck of the draw.

Lengths are compared by the Wasserstein distance, in residues: how far each protein's length would have to move, on the
mean, to make one set's lengths the other's. Compositions are compared by the Jensen-Shannon divergence, in bits: 0 for
the same shares, 1 for nothing in common. They are shares of the amino acids, and of the pairs of neighbours.

Proteins are drawn again for the interval (xtrimo/intervals.py). To draw again moves any distance up, since no draw has
all the proteins; so the draws are moved back to lie about the figure.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float64, Shaped

from xtrimo.intervals import Estimate, bootstrap, drawn_counts
from xtrimo.tokens import AMINO_ACIDS, LAST_RESIDUE, encode_residues

NUM_HALVES = 200
NUM_LETTERS = len(AMINO_ACIDS)

Counts = Float64[np.ndarray, "protein letter"]


def letter_counts(sequences: Sequence[str]) -> Counts:
    """How often each of the 20 amino acids is in each protein."""
    rows = [np.bincount(encode_residues(sequence), minlength=LAST_RESIDUE + 1) for sequence in sequences]
    return np.stack(rows)[:, 1 : NUM_LETTERS + 1].astype(np.float64)


def pair_counts(sequences: Sequence[str]) -> Counts:
    """How often each amino acid follows each in each protein: 400 columns."""
    size = LAST_RESIDUE + 1
    rows = []
    for sequence in sequences:
        letters = encode_residues(sequence).astype(np.int64)
        both = np.bincount(size * letters[:-1] + letters[1:], minlength=size * size).reshape(size, size)
        rows.append(both[1 : NUM_LETTERS + 1, 1 : NUM_LETTERS + 1].ravel())
    return np.stack(rows).astype(np.float64)


def jensen_shannon(
    one: Float64[np.ndarray, "*set letter"], other: Float64[np.ndarray, "letter"]
) -> Float64[np.ndarray, "*set"]:
    """Divergence in bits of counts, or of each row of counts, from `other`; NaN where nothing is counted."""
    from scipy.spatial.distance import jensenshannon

    with np.errstate(invalid="ignore"):
        distance = jensenshannon(one, np.broadcast_to(other, one.shape), base=2.0, axis=-1)
    return np.asarray(np.square(distance))


def composition_distance(own: Counts, other: Float64[np.ndarray, "other letter"]) -> Estimate:
    """Jensen-Shannon divergence of all that is counted in `own` from all in `other`; the rows of `own` are drawn."""
    total = other.sum(0)
    return centred(float(jensen_shannon(own.sum(0), total)), jensen_shannon(bootstrap(own), total))


def length_distance(own: Float64[np.ndarray, "protein"], other: Float64[np.ndarray, "other"]) -> Estimate:
    """Wasserstein distance of two sets of lengths, in residues; those of `own` are drawn."""
    from scipy.stats import wasserstein_distance

    draws = [wasserstein_distance(own, other, counts) for counts in drawn_counts(len(own))]
    return centred(float(wasserstein_distance(own, other)), np.array(draws))


def composition_distance_of_halves(own: Counts, seed: int) -> Estimate:
    """The same divergence between halves of one set; see `of_halves`."""
    return of_halves(len(own), seed, lambda half, rest: float(jensen_shannon(own[half].sum(0), own[rest].sum(0))))


def length_distance_of_halves(own: Float64[np.ndarray, "protein"], seed: int) -> Estimate:
    """The same distance between halves of one set; see `of_halves`."""
    from scipy.stats import wasserstein_distance

    return of_halves(len(own), seed, lambda half, rest: float(wasserstein_distance(own[half], own[rest])))


def of_halves(
    num: int, seed: int, distance: Callable[[Bool[np.ndarray, "protein"], Bool[np.ndarray, "protein"]], float]
) -> Estimate:
    """Mean of `distance` between the halves of one set, halved at random, and what holds the middle 95 % of them.

    What a sampler as good as nature could get, from sets half as large; NaN for fewer than four proteins.
    """
    if num < 4:
        return UNDEFINED
    found = np.array([distance(half, ~half) for half in halves(num, seed)])
    return Estimate.of(float(found.mean()), found)


def halves(num: int, seed: int) -> Iterator[Bool[np.ndarray, "protein"]]:
    """NUM_HALVES random halves of a set; of an odd number the other half has one more."""
    rng = np.random.default_rng(seed)
    for _ in range(NUM_HALVES):
        yield rng.permutation(num) < num // 2


def centred(value: float, draws: Shaped[np.ndarray, "draw"], *, low: float = 0.0, high: float = np.inf) -> Estimate:
    """The interval of the draws, moved so that their mean is the figure; within what the figure can be at all."""
    if not np.isfinite(draws).all():
        return UNDEFINED
    return Estimate.of(value, np.clip(draws - draws.mean() + value, low, high))


UNDEFINED = Estimate(value=float("nan"), low=float("nan"), high=float("nan"))
