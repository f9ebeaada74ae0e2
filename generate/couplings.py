"""Two-site correlations: do residues that change together in nature change together in what was written?

Proteins are laid on the match columns of one HMM. With f_i(a) the share of them that have amino acid a in column i, and
f_ij(a, b) those that have a in i and b in j, the covariances

    C_ij(a, b) = f_ij(a, b) - f_i(a) f_j(b),      i != j, gaps left out

of two sets of proteins are compared by Pearson's r over all columns and amino acids, as Russ et al. (2020,
doi:10.1126/science.aba3304) and Hawkins-Hooker et al. (2021, doi:10.1371/journal.pcbi.1008736) do. An HMM writes each
column by itself: it has every f_i right and no C_ij at all.

No C is formed, which makes drawing again cheap. With x_n the columns of protein n as zeros and ones, weights w that add
up to 1, f = sum_n w_n x_n and C = sum_n w_n x_n x_n' - f f', the product of two sets' C, entry by entry, needs only
G_nm = x_n . y_m, in how many columns proteins n and m agree:

    <C, D> = w'(G*G)v - w'((Gv)*(Gv)) - v'((G'w)*(G'w)) + (w'Gv)^2

of which that of the blocks i = j is taken away, a function of f alone.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, UInt8

from generate.divergence import UNDEFINED, centred, of_halves
from xtrimo.intervals import Estimate, drawn_counts
from xtrimo.tokens import AMINO_ACIDS

GAP = len(AMINO_ACIDS)
FEWEST = 4  # proteins
_CHUNK = 100  # draws at a time

Columns = UInt8[np.ndarray, "protein column"]
Weights = Float64[np.ndarray, "draw protein"]


class _Marginals(NamedTuple):
    """What the weighted proteins of one set say column by column; a row for each draw."""

    letters: Float64[np.ndarray, "draw column letter"]
    mean: Float64[np.ndarray, "draw"]
    """Of all C_ij(a, b), i != j."""


def correlation(own: Columns, other: UInt8[np.ndarray, "other column"]) -> Estimate:
    """Pearson's r of the covariances of two sets; the proteins of `own` are drawn.

    NaN for fewer than FEWEST, and where either set has no covariance, such as copies of one protein.

    Args:
        own: places of the amino acids in AMINO_ACIDS, GAP for everything else.
    """
    if min(len(own), len(other)) < FEWEST:
        return UNDEFINED
    x, y = one_hot(own), one_hot(other)
    even = np.full((1, len(y)), 1 / len(y))
    products = (x @ y.T, x @ x.T, y @ y.T)

    def against(weights: Weights) -> Float64[np.ndarray, "draw"]:
        return _pearson(x, weights, y, np.broadcast_to(even, (len(weights), len(y))), products)

    weights = np.stack(list(drawn_counts(len(x)))) / len(x)
    draws = np.concatenate([against(weights[start : start + _CHUNK]) for start in range(0, len(weights), _CHUNK)])
    # A draw of few proteins, one many times, may have no covariance at all.
    value = float(against(np.full((1, len(x)), 1 / len(x)))[0])
    draws = draws[np.isfinite(draws)]
    return centred(value, draws, low=-1.0, high=1.0) if np.isfinite(value) and len(draws) else UNDEFINED


def correlation_of_halves(own: Columns, seed: int) -> Estimate:
    """The same of the halves of one set, halved at random."""
    x = one_hot(own)
    product = x @ x.T

    def between(half: np.ndarray, rest: np.ndarray) -> float:
        one, two = (mask[None] / mask.sum() for mask in (half, rest))
        return float(_pearson(x, one, x, two, (product, product, product))[0])

    return of_halves(len(x), seed, between)


def one_hot(columns: Columns) -> Float64[np.ndarray, "protein place"]:
    """A one for the amino acid in each column, no one for a gap."""
    found = columns[:, :, None] == np.arange(GAP, dtype=np.uint8)
    return found.reshape(len(columns), -1).astype(np.float64)


def _pearson(
    x: Float64[np.ndarray, "protein place"],
    w: Weights,
    y: Float64[np.ndarray, "other place"],
    v: Float64[np.ndarray, "draw other"],
    products: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> Float64[np.ndarray, "draw"]:
    """Of the covariances of x weighted by each row of w and of y by each of v; `products` are xy', xx', yy'."""
    one, two = _marginals(x, w), _marginals(y, v)
    num_columns = one.letters.shape[1]
    num = num_columns * (num_columns - 1) * GAP * GAP
    cross, own, other = (
        _inner(product, first, second, a.letters, b.letters) / num - a.mean * b.mean
        for product, first, second, a, b in (
            (products[0], w, v, one, two), (products[1], w, w, one, one), (products[2], v, v, two, two)
        )
    )  # fmt: skip
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((own > 1e-18) & (other > 1e-18), cross / np.sqrt(own * other), np.nan)


def _marginals(x: Float64[np.ndarray, "protein place"], w: Weights) -> _Marginals:
    letters = (w @ x).reshape(len(w), -1, GAP)
    filled = letters.sum(2)
    sizes = x.sum(1)
    total = w @ sizes**2 - (w @ sizes) ** 2 - (filled - filled**2).sum(1)
    num_columns = letters.shape[1]
    return _Marginals(letters, total / max(1, num_columns * (num_columns - 1) * GAP * GAP))


def _inner(
    g: Float64[np.ndarray, "protein other"],
    w: Weights,
    v: Float64[np.ndarray, "draw other"],
    f: Float64[np.ndarray, "draw column letter"],
    h: Float64[np.ndarray, "draw column letter"],
) -> Float64[np.ndarray, "draw"]:
    """<C, D> over i != j; see the module's equation."""
    from_other, from_own = v @ g.T, w @ g
    full = ((w @ g**2) * v).sum(1) - (w * from_other**2).sum(1) - (v * from_own**2).sum(1) + (from_own * v).sum(1) ** 2
    both = f * h
    same_column = both.sum((1, 2)) - (both * (f + h)).sum((1, 2)) + (both.sum(2) ** 2).sum(1)
    return full - same_column
