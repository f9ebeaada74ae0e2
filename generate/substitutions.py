"""Proteins shown with some residues replaced by alike ones: a model that reads them learns them by heart less easily.

What is asked stays as it is: the true residues, behind and around a context that evolution might have drawn. Shen and
others (2021, Improving generalizability of protein sequence models via data augmentations) found replacements to help.
"""

from dataclasses import replace
from functools import cache

import numpy as np
from jaxtyping import Float64

from xtrimo.objectives import Example
from xtrimo.tokens import AMINO_ACIDS, FIRST_RESIDUE


def substituted(example: Example, most: float, rng: np.random.Generator) -> Example:
    """The example with a share of the residues that it shows replaced; labels stay.

    Args:
        most: the share, of each example's amino acids, is drawn evenly from 0 to this; 0 draws nothing.
    """
    if not most:
        return example
    letters = example.tokens.astype(np.int64) - FIRST_RESIDUE
    is_residue = (letters >= 0) & (letters < len(AMINO_ACIDS))
    places = np.flatnonzero(is_residue & (rng.random(len(letters)) < most * rng.random()))
    tokens = example.tokens.copy()
    below = rng.random((len(places), 1)) > np.cumsum(chances()[letters[places]], axis=1)
    tokens[places] = np.minimum(below.sum(1), len(AMINO_ACIDS) - 1) + FIRST_RESIDUE
    return replace(example, tokens=tokens)


@cache
def chances() -> Float64[np.ndarray, "from to"]:
    """Of each of AMINO_ACIDS, to be replaced by each other: as the odds of BLOSUM62 are, whose unit is half a bit."""
    from Bio.Align import substitution_matrices

    scores = substitution_matrices.load("BLOSUM62")  # type: ignore[no-untyped-call]
    odds = np.array([[2 ** (scores[one][other] / 2) for other in AMINO_ACIDS] for one in AMINO_ACIDS])
    np.fill_diagonal(odds, 0)
    return odds / odds.sum(1, keepdims=True)
