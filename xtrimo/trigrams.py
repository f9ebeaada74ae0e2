"""Counts of residues after the two before them, and smoothed tables of three orders: unigram, bigram, 3-gram.

Each order shrinks to the one below it by a Dirichlet prior (MacKay & Peto 1995, "A hierarchical Dirichlet language
model"). With n(h, r) the training residues r that follow the context h, and h' that context without its first residue,

    p(r | h) = (n(h, r) + kappa p(r | h')) / (n(h) + kappa),      below the unigram: one in 25

The strength kappa of an order is the power of two that makes the training residues most likely when each is left out
of the counts that predict it, so nothing is fitted on held-out data and there is nothing to choose.

At the edge of a chain the missing residues count as EDGE, itself a context ("what starts a protein?").
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float64, Int64, Integer

from xtrimo.tokens import LAST_RESIDUE

EDGE = 0  # no residue has id 0
NUM_WORDS = LAST_RESIDUE + 1
_STRENGTHS = 2.0 ** np.arange(-4, 25)

Counts = Int64[np.ndarray, "word word word"]
Table = Float64[np.ndarray, "... word"]


def count_trigrams(residues: Integer[np.ndarray, "residue"], lengths: Integer[np.ndarray, "protein"]) -> Counts:
    """How often each residue follows each two, in proteins laid end to end; EDGE stands for what is not there."""
    starts = np.cumsum(lengths) - lengths
    text = np.append([EDGE, EDGE], residues).astype(np.int64)
    two_before, one_before = text[:-2].copy(), text[1:-1].copy()
    one_before[starts] = two_before[starts] = EDGE
    two_before[starts[lengths > 1] + 1] = EDGE
    codes = (two_before * NUM_WORDS + one_before) * NUM_WORDS + text[2:]
    return np.bincount(codes, minlength=NUM_WORDS**3).reshape(NUM_WORDS, NUM_WORDS, NUM_WORDS)


def log_tables(counts: Counts) -> Iterator[Table]:
    """Log-probabilities of the three orders; every shorter context's counts are sums over the longer ones'."""
    table: Table = np.full(NUM_WORDS, 1 / (NUM_WORDS - 1))
    table[EDGE] = 0.0  # a context, never a residue
    for order in (counts.sum((0, 1)), counts.sum(0), counts):
        table = shrink(order, table)
        with np.errstate(divide="ignore"):
            yield np.log(table)


def shrink(counts: Int64[np.ndarray, "... word"], lower: Table) -> Table:
    """Probabilities of one order from its counts and the order below; see the module's equation."""
    n, total = counts.astype(float), counts.sum(-1, keepdims=True)
    seen = counts > 0

    def left_out(kappa: float) -> float:
        rest = np.broadcast_to(total - 1 + kappa, n.shape)[seen]
        return float((n[seen] * np.log((n - 1 + kappa * lower)[seen] / rest)).sum())

    best = max(_STRENGTHS, key=left_out)
    return (n + best * lower) / (total + best)
