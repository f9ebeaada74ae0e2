"""How new proteins are: identity to the nearest training protein, and how many clusters they make.

Identity to a training protein is the share of a protein's own residues that are identical in the best local alignment
with it: 1 for a copy, or a piece of one; 0 where nothing aligns. A cluster is a protein and all those that align to it
over 80 % of either with at least so much identity, here of the aligned residues.

Copies and pieces of training proteins are looked for first, letter by letter, so that no aligner can miss them.
mmseqs2 does the rest where it is installed. It needs words of its own: of pieces with one residue changed, among 2,000
proteins of 300 residues, it finds all from 14 residues on, half at 12 and none at 10. It passes over words that a
protein has again and again, so repetitive and very short proteins are clustered by the way that follows.

Without it, a protein is aligned (BLOSUM62, gaps 11 and 1) with the few others whose 3-mers are most like its own, and
clusters are made greedily, longest protein first: each joins the first cluster that it fits, or makes one. A far
relative may then be missed that mmseqs2 finds; copies and near copies are not.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Float64, Int64

from xtrimo import mmseqs
from xtrimo.alignment import align
from xtrimo.tokens import LAST_RESIDUE, encode_residues

Method = Literal["mmseqs2", "3-mers and alignment"]
COVERAGE = 0.8
NUM_ALIGNED = 5  # the most alike by 3-mers
SHORTEST = 14  # residues that mmseqs2 needs
_CHUNK = 256  # proteins
_K = 3
_WORD = 6  # of mmseqs2, residues


def best_method() -> Method:
    """mmseqs2 where it is installed."""
    return "mmseqs2" if mmseqs.is_installed() else "3-mers and alignment"


def nearest_identity(
    sequences: Sequence[str], training: Sequence[str], method: Method
) -> Float64[np.ndarray, "protein"]:
    """Of each protein the identity to the training protein nearest to it.

    Raises:
        XtrimoError: mmseqs2 that is not installed, or fails.
    """
    text = "\n".join(training)
    nearest = np.array([float(sequence in text) for sequence in sequences])
    others = np.flatnonzero(nearest == 0).tolist()
    asked = [sequences[number] for number in others]
    if not asked or not training:
        return nearest
    if method == "mmseqs2":
        # what is aligned at all has an E-value below 0.001; 100 alignments are enough to hold the nearest
        options = ("-a", "-s", "7.5", "--max-seqs", "100", "--mask", "0")  # without -a it says 0 identical residues
        for asked_number, _, (identical,) in mmseqs.find_similar(asked, training, ("nident",), options):
            number = others[asked_number]
            nearest[number] = max(nearest[number], int(identical) / len(sequences[number]))
        return nearest
    for number, likest in zip(others, _most_alike(_three_mers(asked), _three_mers(training)), strict=True):
        matches = (align(sequences[number], training[other]) for other in likest)
        nearest[number] = max((m.identical for m in matches), default=0) / len(sequences[number])
    return nearest


def clusters(sequences: Sequence[str], identity: float, method: Method) -> Int64[np.ndarray, "protein"]:
    """Of each protein the number of the one that stands for its cluster.

    Raises:
        XtrimoError: mmseqs2 that is not installed, or fails.
    """
    if method != "mmseqs2":
        return _aligned_clusters(sequences, identity)
    poor = np.array([_is_poor(sequence) for sequence in sequences], dtype=bool)
    chosen = np.arange(len(sequences), dtype=np.int64)
    for places, cluster in ((np.flatnonzero(~poor), mmseqs.cluster), (np.flatnonzero(poor), _aligned_clusters)):
        if len(places):
            chosen[places] = places[cluster([sequences[i] for i in places.tolist()], identity, COVERAGE)]
    return chosen


def _is_poor(sequence: str) -> bool:
    """Whether mmseqs2 finds few words in it or none."""
    num = len(sequence) - _WORD + 1
    return len(sequence) < SHORTEST or len({sequence[i : i + _WORD] for i in range(num)}) < num / 2


def _aligned_clusters(
    sequences: Sequence[str], identity: float, coverage: float = COVERAGE
) -> Int64[np.ndarray, "protein"]:
    three_mers = _three_mers(sequences)
    alike = three_mers @ three_mers.T
    chosen = np.arange(len(sequences), dtype=np.int64)
    heads: list[int] = []
    for number in sorted(range(len(sequences)), key=lambda i: -len(sequences[i])):
        likest = sorted((head for head in heads if alike[number, head] > 0), key=lambda head: -alike[number, head])
        for head in likest[:NUM_ALIGNED]:
            match = align(sequences[number], sequences[head])
            if match.identity >= identity and min(match.covered) >= coverage:
                chosen[number] = head
                break
        else:
            heads.append(number)
    return chosen


def cluster_shares(chosen: Int64[np.ndarray, "protein"]) -> Float64[np.ndarray, "protein"]:
    """1 / size of each protein's cluster. Their sum is the number of clusters, their mean clusters a protein."""
    return 1 / np.bincount(chosen)[chosen]


def _most_alike(own: Any, known: Any) -> Iterator[Int64[np.ndarray, "_"]]:
    """Of each row the few rows of `known` that have the most in common with it; those without anything are left out."""
    for start in range(0, own.shape[0], _CHUNK):
        alike: Float32[np.ndarray, "row other"] = (own[start : start + _CHUNK] @ known.T).toarray()
        for row in alike:
            likest = np.argsort(-row, kind="stable")[:NUM_ALIGNED]
            yield likest[row[likest] > 0]


def _three_mers(sequences: Sequence[str]) -> Any:
    """A sparse matrix, a row for each protein: its different 3-mers, the row of length 1."""
    from scipy.sparse import csr_matrix

    size = LAST_RESIDUE + 1
    words = []
    for sequence in sequences:
        letters = encode_residues(sequence).astype(np.int64)
        windows = np.lib.stride_tricks.sliding_window_view(letters, min(_K, len(letters)))
        words.append(np.unique(windows @ size ** np.arange(windows.shape[1])))
    sizes = np.array([len(own) for own in words], dtype=np.int64)
    values = np.repeat(1 / np.sqrt(sizes), sizes).astype(np.float32)
    starts = np.concatenate(([0], np.cumsum(sizes)))
    return csr_matrix((values, np.concatenate(words), starts), shape=(len(sequences), size**_K))
