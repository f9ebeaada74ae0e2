"""Where a protein fits an HMM, and what the HMM holds of its residues there."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from xtrimo.tokens import AMINO_ACIDS


class Match(NamedTuple):
    """A protein on the HMM that scores it best."""

    hmm: Any
    bits: float
    start: int
    end: int
    """Residues start .. end - 1 of the protein are in the envelope of its best domain."""
    columns: Mapping[int, int]
    """Residue -> match column of the HMM, both counted from 0; of all domains."""


def best_match(hmms: Sequence[Any], sequence: str) -> Match | None:
    """Where a protein fits the HMM that gives it the most bits; None without a hit."""
    from pyhmmer.easel import Alphabet, DigitalSequenceBlock, TextSequence
    from pyhmmer.hmmer import hmmsearch

    letters = Alphabet.amino()
    block: Any = DigitalSequenceBlock(letters, [TextSequence(name="protein", sequence=sequence).digitize(letters)])
    queries: Any = hmms
    answers = enumerate(hmmsearch(queries, block, cpus=1, Z=1000))
    found = [(hit.score, number, hit) for number, hits in answers for hit in hits]
    if not found:
        return None
    bits, number, hit = max(found, key=lambda item: item[:2])
    columns: dict[int, int] = {}
    for domain in sorted(hit.domains, key=lambda domain: domain.score):  # the best one has the last word
        columns |= _columns(domain.alignment)
    best = hit.best_domain
    return Match(hmms[number], bits, best.env_from - 1, best.env_to, columns)


def _columns(alignment: Any) -> dict[int, int]:
    """Residue -> match column of one domain, from its two rows of text: a dot is an insertion, a dash a deletion."""
    columns = {}
    residue, column = alignment.target_from - 1, alignment.hmm_from - 1
    for of_hmm, of_target in zip(alignment.hmm_sequence, alignment.target_sequence, strict=True):
        if of_hmm != "." and of_target != "-":
            columns[residue] = column
        residue += of_target != "-"
        column += of_hmm != "."
    return columns


def emissions(protein: str, start: int, length: int, hmms: Sequence[Any]) -> Float[np.ndarray, "place 20"] | None:
    """Log of the chance of each of AMINO_ACIDS in the columns that residues would stand in; None without a hit.

    A residue that the HMM leaves out of the alignment goes as far from the next one inside as it stands in the protein.

    Args:
        protein: with X, all letters at once to an HMM, where residues are hidden.
        start: of these, counted from 0.
        length: how many they are.
        hmms: of them the one that gives the protein the most bits is asked.
    """
    match = best_match(hmms, protein)
    if match is None:
        return None
    columns = []
    for place in range(start, start + length):
        nearest = min(match.columns, key=lambda residue: abs(residue - place))
        column = match.columns[nearest] + place - nearest
        columns.append(min(max(column, 0), match.hmm.M - 1))
    order = [match.hmm.alphabet.symbols.index(letter) for letter in AMINO_ACIDS]
    chances = np.array([match.hmm.match_emissions[column + 1] for column in columns])  # row 0 is before the first
    return np.log(chances[:, order])


def spelled(held: Float[np.ndarray, "place 20"]) -> str:
    """The likeliest letter at each place."""
    return "".join(AMINO_ACIDS[letter] for letter in held.argmax(1))
