"""Proteins so alike that their differences can be counted: variants of one protein, and peptides.

Of variants of one length a(i, p) is 1 where variant i differs from the consensus at place p. Two of them differ at

    |a(i)| + |a(j)| - (places both change) - (places both change to the same letter)

places, so one product of sparse matrices, whose columns are places and letters at places, counts all pairs of many
thousands of variants in seconds.

Of peptides half of whose residues are identical there are many by chance alone (two of the 20^9 peptides of nine
residues once in 26,000 pairs), so only those count as near copies that are one substitution, insertion or deletion
away.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain

import numpy as np
from jaxtyping import Int64, UInt8

from heads.near_copies import Near
from xtrimo.fasta import Record

FEWEST_VARIANTS = 10
MOST_MUTATED = 0.1
"""Of all residues: at least half of the variants of one protein differ from their consensus by no more."""
LONGEST_PEPTIDE = 30
CHUNK = 1024

Letters = UInt8[np.ndarray, "protein place"]


def consensus(sequences: Collection[str]) -> str:
    """The commonest residue at each place of variants of one protein; empty if that is not what they are."""
    if len(sequences) < FEWEST_VARIANTS or len(lengths := set(map(len, sequences))) > 1:
        return ""
    (length,) = lengths
    letters = _letters(sequences, length)
    common = np.array([np.bincount(column).argmax() for column in letters.T], dtype=np.uint8)
    is_mutated = letters != common
    return common.tobytes().decode() if np.median(is_mutated.sum(1)) <= MOST_MUTATED * length else ""


def are_peptides(sequences: Iterable[str]) -> bool:
    """Whether none is longer than a peptide."""
    return all(len(sequence) <= LONGEST_PEPTIDE for sequence in sequences)


def fewest_mutations(variants: Sequence[str], others: Collection[str], common: str) -> Int64[np.ndarray, "variant"]:
    """How many places each variant differs at from the nearest of `others`, all as long as their consensus `common`."""
    from scipy import sparse

    wild = np.frombuffer(common.encode(), dtype=np.uint8)
    counts, columns = [], []
    for sequences in (variants, others):
        letters = _letters(sequences, len(common))
        row, place = np.nonzero(letters != wild)
        changed = len(wild) * (1 + letters[row, place].astype(np.int64)) + place
        both = np.concatenate((row, row)), np.concatenate((place, changed))
        shape = (len(sequences), len(wild) * 257)
        columns.append(sparse.csr_matrix((np.ones(2 * len(row), dtype=np.int32), both), shape=shape))
        counts.append(np.bincount(row, minlength=len(sequences)))
    ours, theirs = counts
    found = ours + theirs.min()  # where nothing is shared; never less than the truth
    transposed = columns[1].T.tocsr()
    for start in range(0, len(ours), CHUNK):
        shared = (columns[0][start : start + CHUNK] @ transposed).tocsr()
        apart = theirs[shared.indices] - shared.data
        starts = shared.indptr[:-1]
        has_any = np.flatnonzero(np.diff(shared.indptr))
        if len(has_any):
            best = np.minimum.reduceat(apart, starts[has_any])
            found[start + has_any] = np.minimum(found[start + has_any], ours[start + has_any] + best)
    return found.astype(np.int64)


def by_one_edit(names: Mapping[str, str], others: Iterable[Record]) -> dict[str, Near]:
    """Sequence -> one that it is a copy of or one edit away from, for each of `names` (sequence -> name) with such."""
    gaps: dict[tuple[int, str], list[str]] = {}
    shorter: dict[str, list[str]] = {}
    for sequence in names:
        for place, rest in _without_one(sequence):
            gaps.setdefault((place, rest), []).append(sequence)
            shorter.setdefault(rest, []).append(sequence)
    found: dict[str, Near] = {}
    for other in others:
        own = other.sequence
        rests = list(_without_one(own)) if len(own) <= LONGEST_PEPTIDE + 1 else []
        substituted = chain.from_iterable(gaps.get(key, ()) for key in rests)
        deleted = (rest for _, rest in rests if rest in names)
        for sequence in chain(substituted, shorter.get(own, ()), deleted):
            identity = 1.0 if sequence == own else round(1 - 1 / max(len(sequence), len(own)), 3)
            if sequence not in found or identity > found[sequence].identity:
                found[sequence] = Near(names[sequence], other.name, identity)
    return found


def _without_one(sequence: str) -> Iterable[tuple[int, str]]:
    return ((place, sequence[:place] + sequence[place + 1 :]) for place in range(len(sequence)))


def _letters(sequences: Collection[str], length: int) -> Letters:
    return np.frombuffer("".join(sequences).encode(), dtype=np.uint8).reshape(len(sequences), length)
