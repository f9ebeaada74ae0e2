"""A sketch of proteins by their 5-mers: which are worth aligning, and clusters without any program.

Two proteins are worth it that share enough 5-mers on nearly the same diagonal. How much of near copies that finds is
told in heads/near_copies.py; of relatives under 40 % identity it finds few, as hardly a 5-mer of theirs is the same.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from xtrimo.alignment import align
from xtrimo.tokens import RESIDUES

K = 5
FEWEST_SHARED, SHARED_RATIO = 3, 0.0075
"""5-mers on one diagonal that make a pair worth aligning: at least so many, and of the shorter protein's so large a
share, which is half of what 50 % identity over half of it leaves."""
DIAGONAL_DRIFT = 8
"""Residues that a diagonal may shift between neighbouring shared 5-mers, by insertions and deletions."""

_LETTERS = np.zeros(256, dtype=np.int64)
for _number, _letter in enumerate(RESIDUES):
    _LETTERS[ord(_letter)] = _number


class WordIndex:
    """5-mers of many proteins: which have which, and where."""

    def __init__(self, sequences: list[str]) -> None:
        self.sequences = sequences
        self.dropped = np.zeros(len(sequences), dtype=bool)
        self.num_dropped = 0
        words = [words_of(sequence) for sequence in sequences]
        self.num_words = np.array([len(own) for own in words], dtype=np.int64)
        codes = np.concatenate(words) if words else np.zeros(0, dtype=np.int64)
        order = np.argsort(codes, kind="stable")
        self.codes = codes[order]
        self.owners = np.repeat(np.arange(len(words)), self.num_words)[order]
        starts = np.cumsum(self.num_words) - self.num_words
        self.places = (np.arange(len(codes)) - np.repeat(starts, self.num_words))[order]

    def drop(self, i: int) -> None:
        """No longer look for protein i."""
        self.dropped[i] = True
        self.num_dropped += 1

    def candidates(self, sequence: str) -> list[int]:
        """Proteins that share enough 5-mers with `sequence` on one diagonal."""
        words = words_of(sequence)
        low = np.searchsorted(self.codes, words, "left")
        counts = np.searchsorted(self.codes, words, "right") - low
        total = int(counts.sum())
        if not total:
            return []
        entries = np.repeat(low - (np.cumsum(counts) - counts), counts) + np.arange(total)
        owners, diagonals = self.owners[entries], self.places[entries] - np.repeat(np.arange(len(words)), counts)
        kept = ~self.dropped[owners]
        owners, diagonals = owners[kept], diagonals[kept]
        order = np.lexsort((diagonals, owners))
        owners, diagonals = owners[order], diagonals[order]
        # a run: one owner, each diagonal at most DIAGONAL_DRIFT from the one before
        starts = np.flatnonzero(
            np.append(True, (np.diff(owners) != 0) | (np.diff(diagonals) > DIAGONAL_DRIFT))
        ) if len(owners) else np.zeros(0, dtype=np.int64)  # fmt: skip
        sizes = np.diff(np.append(starts, len(owners)))
        best = owners[starts]
        shorter = np.minimum(self.num_words[best], len(words))
        enough = sizes >= np.maximum(np.minimum(FEWEST_SHARED, shorter), np.ceil(SHARED_RATIO * shorter))
        return np.unique(best[enough]).tolist()


def words_of(sequence: str) -> Int64[np.ndarray, "word"]:
    """A number for each 5-mer."""
    letters = _LETTERS[np.frombuffer(sequence.encode(), dtype=np.uint8)]
    if len(letters) < K:
        return np.zeros(0, dtype=np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(letters, K)
    return windows @ (len(RESIDUES) ** np.arange(K))


def cluster_by_words(sequences: Sequence[str], identity: float, coverage: float) -> Int64[np.ndarray, "protein"]:
    """What `xtrimo.mmseqs.cluster` says, less sure: of each protein the number of the one that stands for its cluster.

    Greedily, the longest first: each that has no cluster yet makes one, of all those without that align to it so well.
    X is left out.

    Args:
        identity: share of identical columns of the best local alignment.
        coverage: share of either protein that the alignment covers.
    """
    known = [sequence.replace("X", "") for sequence in sequences]
    index = WordIndex(known)
    stands = np.arange(len(known), dtype=np.int64)
    for number in sorted(range(len(known)), key=lambda i: -len(known[i])):
        if index.dropped[number]:
            continue
        index.drop(number)
        for other in index.candidates(known[number]):
            match = align(known[number], known[other])
            if match.identity >= identity and min(match.covered) >= coverage:
                stands[other] = number
                index.drop(other)
    return stands
