"""Near copies of proteins among others, which may be a whole corpus.

A near copy has at least half of its aligned residues identical, over at least half of either protein: the rule of
30 to 50 % clusters, by which splits are made. mmseqs2 looks for them where it is installed. Otherwise a k-mer sketch
does: pairs that share enough 5-mers on nearly the same diagonal are aligned (local, BLOSUM62) and measured.

The sketch misses some. Where each of L residues stays with chance p, of L - 4 5-mers p^5 stay: 6 of 200 at p = 0.5, of
which 3 are asked, more from 400 residues on. Of made-up pairs with changes at random places it finds

    residues        30      60     100     200     400
    identity 90 %  100 %   100 %   100 %   100 %   100 %
             70 %   70 %    99 %   100 %   100 %   100 %
             60 %   24 %    64 %    87 %   100 %   100 %
             50 %    2 %    28 %    41 %    89 %    98 %

where mmseqs2 finds 91 % and more from 60 residues on. Real families, whose changes lie together, are easier to find;
of peptides it finds close copies alone.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from xtrimo.alignment import align
from xtrimo.fasta import Record
from xtrimo.mmseqs import find_similar
from xtrimo.tokens import RESIDUES

IDENTITY, COVERAGE = 0.5, 0.5
K = 5
FEWEST_SHARED, SHARED_RATIO = 3, 0.0075
"""5-mers on one diagonal that make a pair worth aligning: at least so many, and of the shorter protein's so large a
share, which is half of what 50 % identity over half of it leaves."""
DIAGONAL_DRIFT = 8
"""Residues that a diagonal may shift between neighbouring shared 5-mers, by insertions and deletions."""
SURE_RATIO = 0.5
"""Of the 5-mers of one protein that the other has: then half its residues are identical, and nothing is aligned."""
DISTINCT_RATIO = 0.5
"""Of a protein's 5-mers, those that differ; below it the protein is repetitive, and is aligned."""
SENSITIVITY = 4
"""Of mmseqs2, whose own is 5.7: of two sets of 2,000 it finds 97 % of the near copies in 60 % of the time."""


class Near(NamedTuple):
    """A protein and the one it is a near copy of."""

    name: str
    other: str
    identity: float
    """Share of the aligned residues; or of the common 5-mers, which is less, where those told enough."""


def by_sketch(names: Mapping[str, str], others: Iterable[Record]) -> dict[str, Near]:
    """Sequence -> its near copy, for each of `names` (sequence -> name) that has one."""
    found: dict[str, Near] = {}
    index = _Index(list(names))
    for other in others:
        for i in index.candidates(other.sequence):
            query = index.sequences[i]
            identity = _common(query, other.sequence) or _near_identity(query, other.sequence)
            if identity:
                found[query] = Near(names[query], other.name, round(identity, 3))
                index.drop(i)
        # Variants of one protein share nearly all: what is found must not be met again at each of the others.
        if index.num_dropped > len(index.sequences) / 2:
            index = _Index([s for i, s in enumerate(index.sequences) if not index.dropped[i]])
    return found


class _Index:
    """5-mers of many proteins: which have which, and where."""

    def __init__(self, sequences: list[str]) -> None:
        self.sequences = sequences
        self.dropped = np.zeros(len(sequences), dtype=bool)
        self.num_dropped = 0
        words = [_words(sequence) for sequence in sequences]
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
        words = _words(sequence)
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


_LETTERS = np.zeros(256, dtype=np.int64)
for _number, _letter in enumerate(RESIDUES):
    _LETTERS[ord(_letter)] = _number


def _words(sequence: str) -> Int64[np.ndarray, "word"]:
    """A number for each 5-mer."""
    letters = _LETTERS[np.frombuffer(sequence.encode(), dtype=np.uint8)]
    if len(letters) < K:
        return np.zeros(0, dtype=np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(letters, K)
    return windows @ (len(RESIDUES) ** np.arange(K))


def _common(one: str, other: str) -> float:
    """Share of the different 5-mers of the one with fewer that the other has, or 0 where it does not tell enough.

    It tells nothing of a protein that has the same 5-mers again and again: one copy of its unit has them all.
    """
    every = _words(one), _words(other)
    words = np.unique(every[0]), np.unique(every[1])
    if any(len(own) < DISTINCT_RATIO * len(all_own) for own, all_own in zip(words, every, strict=True)):
        return 0.0
    share = len(np.intersect1d(*words, assume_unique=True)) / max(1, min(len(own) for own in words))
    return share if share >= SURE_RATIO else 0.0


def _near_identity(one: str, other: str) -> float:
    """Share of identical residues of the best local alignment, or 0 where it is no near copy."""
    match = align(one, other)
    return match.identity if match.identity >= IDENTITY and max(match.covered) >= COVERAGE else 0.0


def by_mmseqs(names: Mapping[str, str], others: Iterable[Record]) -> dict[str, Near]:
    """As `by_sketch`, by the program mmseqs.

    Raises:
        XtrimoError: without the program, or where it fails.
    """
    sequences, targets = list(names), list[str]()
    if not sequences:
        return {}

    def noted() -> Iterator[str]:
        for other in others:
            targets.append(other.name)
            yield other.sequence

    # one near copy is enough; some proteins have hundreds
    options = "-s", str(SENSITIVITY), "--min-seq-id", str(IDENTITY), "--max-seqs", "50", "--max-accept", "5"
    found: dict[str, Near] = {}
    for query, target, (identity, *covered) in find_similar(sequences, noted(), ("fident", "qcov", "tcov"), options):
        sequence = sequences[query]
        is_best = sequence not in found or float(identity) > found[sequence].identity
        if max(map(float, covered)) >= COVERAGE and is_best:
            found[sequence] = Near(names[sequence], targets[target], float(identity))
    return found
