"""What may come next while a protein is written: residue by residue, and when it may end.

A protein is written in stretches: one from a prompt to the end, or one for each gap. A stretch demands some residues,
and may take more until it ends.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from generate.engine import CHOICES, END
from generate.limits import Budget
from generate.prompt import Fixed, Gap, Piece, drawn_lengths
from xtrimo.errors import ConfigError, SequenceError
from xtrimo.tokens import AMINO_ACIDS

Allowed = Bool[np.ndarray, "choice"]

_ONLY_END = np.arange(len(CHOICES)) == END


class Stretch:
    """Residues written one after the other, and when they may end.

    Args:
        demanded: the letters of each residue that is written in any case.
        further: those of residues that may follow.
        longest: residues at most; None for any number.
    """

    def __init__(
        self, demanded: Bool[np.ndarray, "slot letter"], further: Bool[np.ndarray, "letter"], longest: int | None
    ) -> None:
        self.demanded, self.further, self.longest = demanded, further, longest
        self._demanded = np.pad(demanded, ((0, 0), (0, 1)))  # with no END
        self._further = np.append(further, True)

    def allowed(self, length: int) -> Allowed:
        """What may follow so many residues; not to be written to."""
        if length < len(self.demanded):
            return self._demanded[length]
        return _ONLY_END if length == self.longest else self._further


class Course:
    """The way through the stretches of one protein: what may come next, and what has been written.

    Args:
        stretches: in order of writing.
        budget: of the limits.
        spare: residues that all stretches together may have beyond those demanded; None for as many as each can take.
    """

    def __init__(self, stretches: Sequence[Stretch], budget: Budget, spare: int | None = None) -> None:
        self.stretches, self.budget, self._spare = stretches, budget, spare
        self.number = 0
        """Of the stretch being written; as many as there are stretches at the end."""
        self.written: list[list[int]] = [[] for _ in stretches]
        """The letters of each stretch, 0 to 19."""

    def allowed(self) -> Allowed:
        """The letters that may come next, and END where the stretch may end."""
        stretch, length = self.stretches[self.number], len(self.written[self.number])
        plain = _ONLY_END if self._has_all(stretch, length) else stretch.allowed(length)
        if not self.budget.limits:
            return plain
        out, is_demanded = plain.copy(), length < len(stretch.demanded)
        out[:END] = self.budget.allowed(plain[:END], is_demanded=is_demanded)
        if self.number + 1 == len(self.stretches):
            out[END] &= self.budget.may_end()
        if not out.any():
            raise ConfigError(
                f"after {length} residues the limits allow nothing more, and more must follow; raise them, and give a"
                " length where they are shares"
            )
        return out

    def take(self, choice: int) -> bool:
        """Write it; whether the stretch has ended, by END or as it can only end."""
        stretch, written = self.stretches[self.number], self.written[self.number]
        if choice == END:
            self.number += 1
            return True
        is_demanded = len(written) < len(stretch.demanded)
        if self.budget.limits:
            self.budget.take(choice, is_demanded=is_demanded)
        if self._spare is not None:
            self._spare -= not is_demanded
        written.append(choice)
        return False

    @property
    def is_full(self) -> bool:
        """Whether the stretch is as long as it can be."""
        stretch, length = self.stretches[self.number], len(self.written[self.number])
        return length == stretch.longest or self._has_all(stretch, length)

    def _has_all(self, stretch: Stretch, length: int) -> bool:
        """Whether nothing is left to spare, and what the stretch demands is written."""
        return self._spare == 0 and length >= len(stretch.demanded)


def stretch_of(pieces: Sequence[Piece], rng: np.random.Generator, spare: int | None = None) -> Stretch:
    """Pieces written in this order, the end of the last one left to the model; each range before it gets a length.

    Args:
        pieces: only the last may be open.
        rng: draws the lengths.
        spare: residues that these may take together beyond the least; see drawn_lengths.

    Raises:
        SequenceError: a fixed residue is none of the 20 amino acids.
    """
    masks: list[Bool[np.ndarray, "_ letter"]] = []
    lengths = iter(drawn_lengths([piece for piece in pieces[:-1] if isinstance(piece, Gap)], rng, spare))
    further, more = np.zeros(END, dtype=bool), 0
    for number, piece in enumerate(pieces, start=1):
        if isinstance(piece, Fixed):
            if unknown := set(piece.residues) - set(AMINO_ACIDS):
                raise SequenceError(
                    f"{piece.residues} holds {', '.join(sorted(unknown))}, which is never written: residues after a"
                    " gap are forced one by one where this model writes from left to right; name the amino acid"
                )
            masks.append(np.eye(END, dtype=bool)[letters_of(piece.residues)])
            continue
        letters = np.array([letter in piece.letters for letter in AMINO_ACIDS])
        length = next(lengths) if number < len(pieces) else piece.shortest
        if number == len(pieces) and not piece.is_exact:
            further, more = letters, -1 if piece.longest is None else piece.longest - piece.shortest
        masks.append(np.repeat(letters[None], length, axis=0))
    demanded = np.concatenate(masks)
    return Stretch(demanded, further, None if more < 0 else len(demanded) + more)


def letters_of(residues: str) -> list[int]:
    """Numbers 0 to 19 of the amino acids; X, B, U, Z, O have none and are left out."""
    return [AMINO_ACIDS.index(letter) for letter in residues if letter in AMINO_ACIDS]


def text_of(letters: Sequence[int]) -> str:
    return "".join(AMINO_ACIDS[letter] for letter in letters)
