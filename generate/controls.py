"""What a judge's figures are worth: proteins that nobody would want, made to be judged beside the generated ones.

* copies: training members, letter by letter. A model that only remembers writes these.
* composition: amino acids drawn one by one by their shares among the training members.
* 3-gram: each residue drawn given the two before it, by the smoothed counts of the training members (xtrimo/trigrams).
* HMM: emitted by the family's own HMMs, each column by itself. What they write reaches the
  threshold of a family where that is low: membership alone would be content with it.

Lengths of the second and third are those of training members, drawn at random.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float64, Int64

from xtrimo.tokens import AMINO_ACIDS, FIRST_RESIDUE, encode_residues
from xtrimo.trigrams import EDGE, count_trigrams, log_tables

Control = Callable[[Sequence[str], int, np.random.Generator], list[str]]


def copies(members: Sequence[str], num: int, rng: np.random.Generator) -> list[str]:
    """Training members, none twice before each is there."""
    order = [members[i] for _ in range(-(-num // len(members))) for i in rng.permutation(len(members))]
    return order[:num]


def by_composition(members: Sequence[str], num: int, rng: np.random.Generator) -> list[str]:
    """Residues drawn one by one."""
    pooled = np.bincount(np.concatenate([encode_residues(member) for member in members]), minlength=256)
    share = pooled[FIRST_RESIDUE : FIRST_RESIDUE + len(AMINO_ACIDS)].astype(np.float64)
    letters = np.array(list(AMINO_ACIDS))
    drawn = (rng.choice(letters, size=length, p=share / share.sum()) for length in _lengths(members, num, rng))
    return ["".join(row) for row in drawn]


def by_trigrams(members: Sequence[str], num: int, rng: np.random.Generator) -> list[str]:
    """Residues drawn given the two before."""
    table = trigram_table(members)
    lengths = _lengths(members, num, rng)
    written = np.zeros((num, int(lengths.max())), dtype=np.int64)
    before = one_before = np.full(num, EDGE)
    for place in range(written.shape[1]):
        reached = np.cumsum(table[before, one_before], axis=1)
        drawn = (rng.random(num)[:, None] * reached[:, -1:] >= reached).sum(1)
        written[:, place] = drawn
        before, one_before = one_before, drawn + FIRST_RESIDUE
    letters = np.array(list(AMINO_ACIDS))
    return ["".join(letters[row[:length]]) for row, length in zip(written, lengths, strict=True)]


def trigram_table(members: Sequence[str]) -> Float64[np.ndarray, "word word letter"]:
    """Probability of each of the 20 amino acids after each two words of trigrams.py."""
    encoded = [encode_residues(member).astype(np.int64) for member in members]
    counts = count_trigrams(np.concatenate(encoded), np.array([len(member) for member in encoded]))
    *_, table = log_tables(counts)
    kept = np.exp(table[..., FIRST_RESIDUE : FIRST_RESIDUE + len(AMINO_ACIDS)])
    return kept / kept.sum(-1, keepdims=True)


CONTROLS: dict[str, Control] = {"copies": copies, "composition": by_composition, "3-gram": by_trigrams}
"""Those that need the training members alone."""


def _lengths(members: Sequence[str], num: int, rng: np.random.Generator) -> Int64[np.ndarray, "protein"]:
    return rng.choice(np.array([len(member) for member in members], dtype=np.int64), size=num)
