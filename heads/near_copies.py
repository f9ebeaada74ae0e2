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

from xtrimo.alignment import align
from xtrimo.fasta import Record
from xtrimo.mmseqs import find_similar
from xtrimo.sketch import WordIndex, words_of

IDENTITY, COVERAGE = 0.5, 0.5
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
    index = WordIndex(list(names))
    for other in others:
        for i in index.candidates(other.sequence):
            query = index.sequences[i]
            identity = _common(query, other.sequence) or _near_identity(query, other.sequence)
            if identity:
                found[query] = Near(names[query], other.name, round(identity, 3))
                index.drop(i)
        # Variants of one protein share nearly all: what is found must not be met again at each of the others.
        if index.num_dropped > len(index.sequences) / 2:
            index = WordIndex([s for i, s in enumerate(index.sequences) if not index.dropped[i]])
    return found


def _common(one: str, other: str) -> float:
    """Share of the different 5-mers of the one with fewer that the other has, or 0 where it does not tell enough.

    It tells nothing of a protein that has the same 5-mers again and again: one copy of its unit has them all.
    """
    every = words_of(one), words_of(other)
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
