"""Changes of a protein, in the words of the field.

    A123G                             A at position 123 becomes G
    K23del            K23_L25del      residues go
    K23_L24insGS                      residues come in between two neighbours
    K23delinsGS       K23_L25delinsG  residues come in place of others
    A123G:K45C                        both in one protein

These are HGVS's words for proteins (den Dunnen et al. 2016, doi:10.1002/humu.22981) with one-letter residues, joined as
ProteinGym does. Positions count from 1, in the protein as it was before any of the changes. Each letter that is named
has to stand there, so that a list numbered otherwise is found out. Nothing stands before the first residue to insert
behind it: M1delinsGSM puts GS in front.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from xtrimo.errors import DataError
from xtrimo.tokens import RESIDUES

FORMS = "A123G, K23del, K23_L25del, K23_L24insGS or K23_L25delinsG, joined by ':'"
_SUBSTITUTION = re.compile(r"([A-Z])(\d+)([A-Z])")
_CHANGE = re.compile(
    r"(?P<first>[A-Z])(?P<start>-?\d+)"
    r"(?:(?P<letter>[A-Z])|(?:_(?P<last>[A-Z])(?P<end>-?\d+))?(?:del|(?P<kind>delins|ins)(?P<new>[A-Z]+)))"
)


@dataclass(frozen=True, slots=True)
class Mutation:
    """Residues in place of others: of a substitution one in place of one."""

    wild: str
    """Those that go; none of an insertion."""
    position: int
    """Of the first that goes, from 1; of an insertion, of the residue that it stands before."""
    mutant: str
    """Those that come; none of a deletion."""

    @property
    def is_substitution(self) -> bool:
        """Whether one residue comes for one."""
        return len(self.wild) == len(self.mutant) == 1


def substitutions(text: str) -> tuple[Mutation, ...] | None:
    """A variant such as A123G:K45C, before anything is known of its protein; None where it is not written so."""
    found = [_SUBSTITUTION.fullmatch(word) for word in text.split(":")]
    return tuple(Mutation(m[1], int(m[2]), m[3]) for m in found if m) if all(found) else None


def read_mutations(text: str, sequence: str, *, offset: int = 0, name: str = "mutations") -> tuple[Mutation, ...]:
    """A variant of `sequence`, checked against it.

    Args:
        text: such as A123G:K45_L46insGS.
        offset: what the text counts too much: 23 where it calls the first residue 24.
        name: for errors.

    >>> read_mutations("K2G:V3_L4insGS", "MKVL")
    (Mutation(wild='K', position=2, mutant='G'), Mutation(wild='', position=4, mutant='GS'))

    Raises:
        DataError: a word that is none, another residue at a position, or one that is changed twice.
    """
    found: list[Mutation] = []
    for word in text.strip().split(":"):
        match = _CHANGE.fullmatch(word)
        if match is None:
            raise DataError(f"{name}: {word!r} is no mutation; expected such as {FORMS}")
        found += _changes(match, sequence, offset, f"{name}: {word}")
    mutated(sequence, found, name=f"{name}: {text.strip()}")
    return tuple(found)


def mutated(sequence: str, mutations: Sequence[Mutation], *, name: str = "mutations") -> str:
    """`sequence` with all of them done.

    Raises:
        DataError: another residue at a position, one that is changed twice, or nothing left.
    """
    pieces: list[str] = []
    done, inserted = 0, 0
    for m in sorted(mutations, key=lambda m: (m.position, len(m.wild))):
        start = m.position - 1
        _check(sequence, m.wild, m.position, 0, name)
        if start < done or inserted == m.position > 0 and not m.wild:
            raise DataError(f"{name}: position {m.position} is changed twice; write one change for it")
        inserted = inserted if m.wild else m.position
        pieces += (sequence[done:start], m.mutant)
        done = start + len(m.wild)
    whole = "".join((*pieces, sequence[done:]))
    if not whole:
        raise DataError(f"{name}: no residue of {len(sequence)} is left; delete fewer")
    return whole


def _changes(match: "re.Match[str]", sequence: str, offset: int, name: str) -> list[Mutation]:
    """One word: as substitutions where as many residues come as go."""
    start = int(match["start"]) - offset
    end = int(match["end"]) - offset if match["end"] else start
    _check(sequence, match["first"], start, offset, name)
    if match["last"]:
        _check(sequence, match["last"], end, offset, name)
    new = match["letter"] or match["new"] or ""
    if wrong := sorted(set(new) - set(RESIDUES)):
        raise DataError(f"{name}: {', '.join(wrong)} is no residue; expected letters of {RESIDUES}")
    if match["kind"] == "ins":
        if end != start + 1:
            raise DataError(
                f"{name}: an insertion names the two neighbours that it comes between, such as K23_L24insGS"
            )
        return [Mutation("", end, new)]
    if end < start:
        raise DataError(f"{name}: ends before it starts; expected the lower position first")
    wild = sequence[start - 1 : end]
    if len(new) == len(wild):
        return [Mutation(old, start + i, letter) for i, (old, letter) in enumerate(zip(wild, new, strict=True))]
    return [Mutation(wild, start, new)]


def _check(sequence: str, wild: str, position: int, offset: int, name: str) -> None:
    """Whether `wild` stands at `position`, from 1; an insertion may also stand behind the last residue."""
    start, length = position - 1, len(sequence)
    if 0 <= start <= length and sequence[start : start + len(wild)] == wild:
        return
    there = sequence[start : start + len(wild)] if 0 <= start < length else ""
    by_offset = f" (residue {position} by the offset {offset})" if offset else ""
    raise DataError(
        f"{name}: expected {wild or 'a residue'} at position {position + offset}{by_offset} of {length} residues, there"
        f" is {there or 'none'}; positions count from 1"
    )
