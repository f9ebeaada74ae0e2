"""What a model says of every substitution of a protein: a deep mutational scan without a bench.

Of the methods of variants.py, masked-marginals takes a pass for each residue and serves its nineteen substitutions at
once, wild-type-marginals takes one pass for the whole protein; a likelihood reads each of the mutated proteins.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from xtrimo.backbone import Backbone
from xtrimo.likelihood import Reading
from xtrimo.mutation import Mutation
from xtrimo.tokens import AMINO_ACIDS
from xtrimo.variants import Method, score_variants, usual_method

LETTERS = "AVILMFYWGPCSTNQHKRDE"
"""Rows of the map: like by like."""


class Substitution(NamedTuple):
    """One cell of the map."""

    mutation: str
    """Such as A123G, numbered as the user does."""
    position: int
    wild: str
    mutant: str
    score: float
    """Nats; above 0 the model likes it better than the wild type."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scan:
    """Scores of every substitution of a protein."""

    name: str
    sequence: str
    scores: Float64[np.ndarray, "length letter"]
    """Nats, letters as in LETTERS; 0 for the wild type's own, NaN where that is none of the twenty."""
    method: Method
    offset: int = 0
    """Number of the first residue, less 1."""

    def substitutions(self) -> Iterator[Substitution]:
        """All of them, by position and letter."""
        for place, (wild, own) in enumerate(zip(self.sequence, self.scores.tolist(), strict=True)):
            position = place + 1 + self.offset
            if wild in LETTERS:
                for letter, score in zip(LETTERS, own, strict=True):
                    if letter != wild:
                        yield Substitution(f"{wild}{position}{letter}", position, wild, letter, score)


def scan(
    model: Backbone,
    sequence: str,
    *,
    method: Method | None = None,
    direction: Reading | None = None,
    offset: int = 0,
    name: str = "wild type",
) -> Scan:
    """Every substitution of every residue, by one of the twenty amino acids.

    Args:
        method: by default `quick_method`.
        direction: of a likelihood; by default all that the model was trained in.
        offset: added to the positions of the answer: 23 calls the first residue 24.
        name: for errors.

    Raises:
        ConfigError: a method that the model does not allow.
        SequenceError: a letter that is no residue.
    """
    method = method or quick_method(model)
    cells = [
        (place, column, Mutation(wild, place + 1, letter))
        for place, wild in enumerate(sequence)
        if wild in AMINO_ACIDS
        for column, letter in enumerate(LETTERS)
        if letter != wild
    ]
    found = score_variants(model, sequence, [(m,) for *_, m in cells], method=method, direction=direction, name=name)
    scores = np.full((len(sequence), len(LETTERS)), np.nan)
    scores[[wild in AMINO_ACIDS for wild in sequence]] = 0.0
    scores[[place for place, *_ in cells], [column for _, column, _ in cells]] = found
    return Scan(name=name, sequence=sequence, scores=scores, method=method, offset=offset)


def quick_method(model: Backbone) -> Method:
    """masked-marginals of a model that fills masks, else what it has."""
    return "masked-marginals" if model.mask is not None else usual_method(model, [])
