"""Low complexity and repeats: what a sampler that has lost its way writes, and what real proteins have some of.

Low complexity is that of SEG (Wootton & Federhen 1993): the entropy, in bits, of the letters in each window of 12. A
stretch of overlapping windows of at most 2.5 bits, one of which has at most 2.2, is of low complexity. SEG then trims a
stretch to its least likely part, which is left out here, so that stretches are somewhat longer than its own.

A tandem repeat is a unit of 1 to 10 residues written again and again, letter by letter, three times and over six
residues at least.
"""

import numpy as np
from jaxtyping import Bool, Float64

from xtrimo.tokens import encode_residues

WINDOW, TRIGGER, EXTENSION = 12, 2.2, 2.5  # residues, bits, bits
LONGEST_UNIT, FEWEST_COPIES, FEWEST_RESIDUES = 10, 3, 6

Mask = Bool[np.ndarray, "residue"]


def window_entropies(sequence: str) -> Float64[np.ndarray, "window"]:
    """Of the letters in each window, in bits; none where the protein is shorter than one."""
    letters = encode_residues(sequence)
    if len(letters) < WINDOW:
        return np.zeros(0)
    seen = np.zeros((len(letters) + 1, 256), dtype=np.int64)
    seen[1:] = np.cumsum(letters[:, None] == np.arange(256), axis=0)
    share = (seen[WINDOW:] - seen[:-WINDOW]) / WINDOW
    return -(share * np.log2(np.where(share > 0, share, 1.0))).sum(1)


def low_complexity(sequence: str) -> Mask:
    """Whether each residue lies in a stretch of low complexity."""
    entropies = window_entropies(sequence)
    found = np.zeros(len(sequence), dtype=bool)
    for start, end in _stretches(entropies <= EXTENSION):
        if entropies[start:end].min() <= TRIGGER:
            found[start : end + WINDOW - 1] = True
    return found


def longest_run(sequence: str) -> int:
    """Residues of the longest stretch of one letter."""
    letters = encode_residues(sequence)
    return 1 + max((end - start for start, end in _stretches(letters[1:] == letters[:-1])), default=0)


def tandem_repeats(sequence: str) -> Mask:
    """Whether each residue lies in a tandem repeat."""
    letters = encode_residues(sequence)
    found = np.zeros(len(letters), dtype=bool)
    for unit in range(1, min(LONGEST_UNIT, len(letters) - 1) + 1):
        for start, end in _stretches(letters[unit:] == letters[:-unit]):
            length = end - start + unit
            if length >= max(FEWEST_COPIES * unit, FEWEST_RESIDUES):
                found[start : start + length] = True
    return found


def _stretches(mask: Bool[np.ndarray, "place"]) -> list[tuple[int, int]]:
    """(start, end) of each run of True; the end is not in it."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]
