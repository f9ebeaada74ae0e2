"""Unigram, bigram and 3-gram models of residues: what a protein model must beat on the same held-out labels.

The context of a label is the true residues just before it in reading direction, whatever the model was shown: these
baselines look through every mask, but never ahead. How the tables are counted and smoothed, xtrimo/trigrams.py says.
Reversed samples have their own counts.

Two kinds of labels are left out, for these models and for any model they are compared with: the closing `<eos>` and
`<eop>`, which are no residues; and the 20 % of the mlm labels that are shown as themselves or as a random word. To copy
what is shown is right half the time there, which alone is worth some 0.14 nats and says nothing about proteins.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, Integer

from pretrain.corpus import Split
from xtrimo.objectives import IGNORE, OBJECTIVES
from xtrimo.packing import Row
from xtrimo.tokens import FIRST_RESIDUE, LAST_RESIDUE, MASK, REV
from xtrimo.trigrams import EDGE, NUM_WORDS, Table, count_trigrams, log_tables

ORDERS = ("unigram", "bigram", "3-gram")
_CHUNK = 10_000  # proteins counted at a time
_MLM, _GMASK, _CAUSAL = (list(OBJECTIVES).index(name) for name in ("mlm", "gmask", "causal"))


@dataclass(frozen=True, slots=True, eq=False)
class ResidueLabels:
    """The residue labels of one segment of a row that are compared, with the truth before each.

    `M K V` as gmask, `<gmask> <sop> <eos> M K V`: tokens 2, 3, 4; residues M, K, V; one_before EDGE, M, K;
    two_before EDGE, EDGE, M.
    """

    tokens: Int64[np.ndarray, "label"]
    """Index in the row of the token that carries the label."""
    residues: Int64[np.ndarray, "label"]
    one_before: Int64[np.ndarray, "label"]
    """The residue before it in reading direction, or EDGE."""
    two_before: Int64[np.ndarray, "label"]
    reverse: bool
    """Whether the segment is read from C to N."""


def residue_labels(row: Row) -> list[ResidueLabels]:
    """The residue labels that are compared of each segment of a row, in the segments' order.

    A window of a longer protein does not tell that it was cut: its first residue counts as the chain's.
    """
    return [_segment_labels(row, start, start + length) for start, length, _ in row.segments.tolist()]


def _segment_labels(row: Row, start: int, end: int) -> ResidueLabels:
    tokens, labels = row.tokens[start:end], row.labels[start:end]
    if row.objectives[start] in (_GMASK, _CAUSAL):
        text = np.append(tokens, labels[-1])  # the label at t is the next token, and the last label closes the text
        place = np.cumsum(_is_residue(text))[:-1]
    else:
        # Filled in, each word stands where its two positions say: part B of smask returns to its <smask> that way.
        order = np.lexsort((row.positions[start:end, 1], row.positions[start:end, 0]))
        text = np.where(labels != IGNORE, labels, tokens)[order]
        place = np.empty_like(order)
        place[order] = np.cumsum(_is_residue(text)) - 1
    chain = np.concatenate(([EDGE, EDGE], text[_is_residue(text)]))
    hidden = (tokens == MASK) | (row.objectives[start] != _MLM)
    asked = np.flatnonzero(_is_residue(labels) & hidden)
    place = place[asked] + 2
    return ResidueLabels(start + asked, labels[asked], chain[place - 1], chain[place - 2], bool(tokens[0] == REV))


def _is_residue(tokens: Integer[np.ndarray, "token"]) -> Bool[np.ndarray, "token"]:
    return (tokens >= FIRST_RESIDUE) & (tokens <= LAST_RESIDUE)


@dataclass(frozen=True, slots=True, eq=False)
class Ngrams:
    """Fitted tables of log-probabilities, nats; of each table the N to C one, then the C to N one."""

    unigram: tuple[Table, Table]
    """[residue]; the two are equal."""
    bigram: tuple[Table, Table]
    """[one_before, residue]"""
    trigram: tuple[Table, Table]
    """[two_before, one_before, residue]"""

    def nats(self, labels: ResidueLabels) -> Float64[np.ndarray, "order label"]:
        """Negative log-probability of each label under each of ORDERS."""
        way = int(labels.reverse)
        return -np.stack(
            [
                self.unigram[way][labels.residues],
                self.bigram[way][labels.one_before, labels.residues],
                self.trigram[way][labels.two_before, labels.one_before, labels.residues],
            ]
        )


def fit_ngrams(split: Split) -> Ngrams:
    """Fit all orders in both directions on every protein of a split, each counted once."""
    counts = np.zeros((2, NUM_WORDS, NUM_WORDS, NUM_WORDS), dtype=np.int64)
    for start in range(0, len(split), _CHUNK):
        proteins = [split[i] for i in range(start, min(start + _CHUNK, len(split)))]
        residues, lengths = np.concatenate(proteins), np.array([len(protein) for protein in proteins])
        counts[0] += count_trigrams(residues, lengths)
        counts[1] += count_trigrams(residues[::-1], lengths[::-1])
    unigrams, bigrams, trigrams = zip(*(log_tables(both) for both in counts), strict=True)
    return Ngrams(unigrams, bigrams, trigrams)
