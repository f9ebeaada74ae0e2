"""What a protein to be written must look like: fixed residues and gaps, as one line of text.

    prompt  := tag* piece*
    tag     := <name=value>            for models trained with tags
    piece   := MKT                     residues, kept as they are
             | [5]  [8..20]            a gap: so many residues, or so many at least and at most
             | [8..]  [..20]  [..]     open at one end; a gap without an upper end comes first or last
             | [5:AVI]  [8..20:^CM]    of these amino acids alone, or of all but these
             | _                       the same as [1]

    (empty)             any protein
    [120..160]          any protein of 120 to 160 residues
    MKT                 begins with MKT: short for MKT[..]
    [..]GGH             ends with GGH
    MKT[8..20]GGH[5]    all of it is fixed but the gaps
    [30..40]GGH[..]     a motif at a chosen distance from the start

What stands before and after the last piece is the protein's end, except after residues without any gap, which the model
goes on from. `[0]` is nothing; it closes a text that has no gap: `MKT[0]` is MKT and no more.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NoReturn

import numpy as np

from xtrimo.errors import ConfigError, SequenceError
from xtrimo.tokens import AMINO_ACIDS, RESIDUES

_TAG = re.compile(r"<([A-Za-z][\w-]*)=([^<>=\s]+)>")
_PIECE = re.compile(rf"(?P<residues>[{RESIDUES}]+)|(?P<single>_)|\[(?P<gap>[^\[\]]*)\]", re.IGNORECASE | re.ASCII)
_GAP = re.compile(
    r"(?P<shortest>\d*)(?P<range>\.\.(?P<longest>\d*))?(?::(?P<but>\^?)(?P<letters>[A-Za-z]*))?", re.ASCII
)
_POSITIONS = re.compile(r"(?P<first>\d+)(?:-(?P<last>\d+))?(?P<gap>\[[^\[\]]*\])?", re.ASCII)
_FORMS = "residues (MKT), a gap ([5], [8..20], [8..], [5:AVI], [5:^C] or _), or in front a tag <name=value>"


@dataclass(frozen=True, slots=True)
class Fixed:
    """Residues that are kept."""

    residues: str
    """Of the 20 amino acids and X, B, U, Z, O; in upper case."""

    def __post_init__(self) -> None:
        if not self.residues or set(self.residues) - set(RESIDUES):
            raise SequenceError(f"fixed residues are {self.residues!r}; expected one or more of {RESIDUES}")

    def __str__(self) -> str:
        return self.residues


@dataclass(frozen=True, slots=True)
class Gap:
    """Residues to be written. Impossible values raise ConfigError."""

    shortest: int
    """Residues at least."""
    longest: int | None
    """Residues at most; None for as many as the model likes."""
    letters: str = AMINO_ACIDS
    """The amino acids allowed, in the order of AMINO_ACIDS whatever the order given."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "letters", "".join(letter for letter in AMINO_ACIDS if letter in self.letters))
        if not self.letters:
            raise ConfigError("a gap allows no amino acid; name at least one of " + AMINO_ACIDS)
        if self.shortest < 0 or (self.longest is not None and self.longest < self.shortest):
            raise ConfigError(
                f"a gap of {self.shortest} to {self.longest} residues is impossible; the second number must be the"
                " larger one"
            )

    @property
    def is_exact(self) -> bool:
        """Whether its length is known."""
        return self.shortest == self.longest

    def __str__(self) -> str:
        others = "".join(letter for letter in AMINO_ACIDS if letter not in self.letters)
        which = "" if not others else f":^{others}" if len(others) < len(self.letters) else f":{self.letters}"
        if self.is_exact:
            return "_" if (self.shortest, which) == (1, "") else f"[{self.shortest}{which}]"
        return f"[{self.shortest or ''}..{'' if self.longest is None else self.longest}{which}]"


Piece = Fixed | Gap


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a protein must look like, from N to C. Impossible values raise ConfigError.

    Neighbouring residues are joined, and so are neighbouring gaps of known lengths and the same letters; gaps of no
    residue are dropped. So what means the same is mostly equal. A protein has a residue: `[..20]` alone is `[1..20]`.
    """

    pieces: tuple[Piece, ...]
    """In order; the protein begins and ends with them."""
    tags: tuple[tuple[str, str], ...] = ()
    """(name, value), in the order given."""

    def __post_init__(self) -> None:
        pieces = _joined(self.pieces)
        if len(pieces) == 1 and isinstance(pieces[0], Gap) and pieces[0].longest is not None and not pieces[0].shortest:
            pieces = (replace(pieces[0], shortest=1),)
        object.__setattr__(self, "pieces", pieces)
        is_open = [isinstance(piece, Gap) and piece.longest is None for piece in self.pieces]
        if any(is_open[1:-1]):
            raise ConfigError(
                f"prompt {self}: a gap without an upper end stands between other pieces; only the first or the last"
                " piece can be open: say how long it is at most, such as [8..20]"
            )
        if len(is_open) > 1 and is_open[0] and is_open[-1]:
            raise ConfigError(
                f"prompt {self}: both ends are open, so that nothing says where the rest belongs; say how long one of"
                " them is at most, such as [0..100]"
            )
        if not any(is_open) and not self.shortest and not any(isinstance(piece, Fixed) for piece in self.pieces):
            raise ConfigError("the prompt allows a protein of no residues; ask for at least one, such as [1..20]")

    @property
    def shortest(self) -> int:
        """Residues of the whole protein, at least."""
        return sum(_bounds(piece)[0] for piece in self.pieces)

    @property
    def longest(self) -> int | None:
        """Residues of the whole protein, at most; None where it is open."""
        most = [_bounds(piece)[1] for piece in self.pieces]
        return None if None in most else sum(filter(None, most))

    @property
    def is_exact(self) -> bool:
        """Whether every length is known."""
        return self.shortest == self.longest

    @property
    def tag_words(self) -> tuple[str, ...]:
        """The tags as the model's words."""
        return tuple(f"<{name}={value}>" for name, value in self.tags)

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """Those to be filled, in order."""
        return tuple(piece for piece in self.pieces if isinstance(piece, Gap))

    def drawn(self, rng: np.random.Generator, max_length: int | None = None) -> "Prompt":
        """The same with every length known: each range becomes one of its lengths, see drawn_lengths.

        Args:
            rng: draws the lengths.
            max_length: residues that the protein may have; None for any number.

        Raises:
            ConfigError: a gap is open, or the shortest protein is too long.
        """
        if self.longest is None:
            raise ConfigError(f"prompt {self}: an open gap has no lengths to draw from; say how long it is at most")
        lengths = iter(drawn_lengths(self.gaps, rng, None if max_length is None else max_length - self.shortest))
        pieces: list[Piece] = []
        for piece in self.pieces:
            if isinstance(piece, Gap):
                length = next(lengths)
                piece = replace(piece, shortest=length, longest=length)
            pieces.append(piece)
        return Prompt(tuple(pieces), self.tags)

    def __str__(self) -> str:
        text = "".join(map(str, self.pieces))
        if not self.gaps:
            text += "[0]"
        elif len(self.gaps) == 1 and self.pieces[-1] == Gap(0, None):
            text = text.removesuffix("[..]")
        return "".join(self.tag_words) + text


def parse(text: str) -> Prompt:
    """The prompt that a text means; see the module's grammar. Lower case is folded.

    >>> parse("MKT[8..20]GGH_")
    Prompt(pieces=(Fixed(residues='MKT'), Gap(shortest=8, longest=20, letters='LAGVSERTIDPKQNFYMHWC'), \
Fixed(residues='GGH'), Gap(shortest=1, longest=1, letters='LAGVSERTIDPKQNFYMHWC')), tags=())

    Raises:
        SequenceError: a letter that is no residue, or what is no piece; names its position.
        ConfigError: a prompt that no protein satisfies.
    """
    tags, place = [], 0
    while match := _TAG.match(text, place):
        tags.append((match[1], match[2]))
        place = match.end()
    pieces: list[Piece] = []
    has_gap = False
    while place < len(text):
        match = _PIECE.match(text, place)
        if match is None:
            raise SequenceError(f"prompt: position {place + 1} is {text[place]!r}; expected {_FORMS}")
        if residues := match["residues"]:
            pieces.append(Fixed(residues.upper()))
        else:
            has_gap = True
            pieces.append(Gap(1, 1) if match["single"] else _gap(match["gap"], f"prompt: position {place + 1}"))
        place = match.end()
    return Prompt(tuple(pieces) if has_gap else (*pieces, Gap(0, None)), tuple(tags))


def opened(sequence: str, positions: str) -> Prompt:
    """A real protein as a prompt: what stands at `positions` becomes gaps.

    Args:
        sequence: residues.
        positions: "10-15,40": places from 1, both ends included; each may be followed by the gap to put there in place
            of one of the same length, as in "10-15[8..20],40[1:AVI]".

    >>> str(opened("MKTAYIAK", "2-4,7"))
    'M[3]YI_K'

    Raises:
        SequenceError: an unknown letter, or an empty sequence.
        ConfigError: positions that cannot be read, lie outside of the protein, or overlap.
    """
    whole = Fixed(sequence.upper()).residues
    spans: list[tuple[int, int, Gap]] = []
    for item in positions.split(","):
        match = _POSITIONS.fullmatch(item.strip())
        if match is None:
            raise ConfigError(f"positions {positions!r}: {item!r} is none; expected such as 10-15,40 or 52-60[5..12]")
        first, last = int(match["first"]), int(match["last"] or match["first"])
        if not 1 <= first <= last <= len(whole):
            raise ConfigError(
                f"positions {positions!r}: {item.strip()} is not in a protein of {len(whole)} residues, counted from 1"
            )
        length = last - first + 1
        gap = _gap(match["gap"][1:-1], f"positions {positions!r}") if match["gap"] else Gap(length, length)
        spans.append((first - 1, last, gap))
    spans.sort(key=lambda span: span[:2])
    pieces: list[Piece] = []
    done = 0
    for start, end, gap in spans:
        if start < done:
            raise ConfigError(f"positions {positions!r}: residue {start + 1} is named twice; name each once")
        if start > done:
            pieces.append(Fixed(whole[done:start]))
        pieces.append(gap)
        done = end
    return Prompt((*pieces, Fixed(whole[done:])) if done < len(whole) else tuple(pieces))


def drawn_lengths(gaps: Sequence[Gap], rng: np.random.Generator, spare: int | None = None) -> list[int]:
    """A length for each gap: all combinations alike likely that need no more than `spare` residues beyond the least.

    Args:
        gaps: none of them open.
        rng: is asked once for each range.
        spare: residues, 0 or more; None for as many as the gaps can take.

    Raises:
        ConfigError: less than 0 to spare.
    """
    more = [(gap.longest or 0) - gap.shortest for gap in gaps]
    if spare is None or spare >= sum(more):
        return [gap.shortest if gap.is_exact else int(rng.integers(gap.shortest, gap.longest, endpoint=True))
                for gap in gaps]  # fmt: skip
    if spare < 0:
        raise ConfigError(f"the prompt demands {-spare} residues more than there is room for; shorten it")
    ways = [np.ones(spare + 1)]  # of a gap, by what is left to spare: in how many ways those behind it can take of it
    for most in more[:0:-1]:
        ways.insert(0, np.array([ways[0][max(0, left - most) : left + 1].sum() for left in range(spare + 1)]))
        ways[0] /= ways[0].max()
    lengths: list[int] = []
    for gap, most, rest in zip(gaps, more, ways, strict=True):
        taken = 0
        if most:
            chances = rest[max(0, spare - most) : spare + 1][::-1]
            taken = int(rng.choice(len(chances), p=chances / chances.sum()))
        lengths.append(gap.shortest + taken)
        spare -= taken
    return lengths


def _gap(text: str, where: str) -> Gap:
    """The gap between these brackets."""

    def refuse(why: str) -> NoReturn:
        raise SequenceError(f"{where}: [{text}] {why}; expected a gap such as [5], [8..20], [8..], [5:AVI] or [5:^C]")

    match = _GAP.fullmatch(text)
    if match is None or not (match["shortest"] or match["range"]):
        refuse("is no gap")
    shortest = int(match["shortest"] or 0)
    longest = shortest if not match["range"] else int(match["longest"]) if match["longest"] else None
    if longest is not None and longest < shortest:
        refuse(f"ends before it begins: {longest} is below {shortest}")
    if match["letters"] is None:
        return Gap(shortest, longest)
    named = set(match["letters"].upper())
    if unknown := named - set(AMINO_ACIDS):
        refuse(f"names {', '.join(sorted(unknown))}, not among the amino acids {AMINO_ACIDS}")
    letters = set(AMINO_ACIDS) - named if match["but"] else named
    if not letters or not named:
        refuse("allows no amino acid" if not letters else "excludes none")
    return Gap(shortest, longest, "".join(letters))


def _bounds(piece: Piece) -> tuple[int, int | None]:
    """Residues of a piece, at least and at most."""
    return (piece.shortest, piece.longest) if isinstance(piece, Gap) else (len(piece.residues),) * 2


def _joined(pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
    """Neighbours that are alike made one, gaps of no residue dropped."""

    def kind(numbered: tuple[int, Piece]) -> object:
        number, piece = numbered
        if isinstance(piece, Fixed):
            return Fixed
        return piece.letters if piece.is_exact else number  # a range is never joined: it is drawn by itself

    joined: list[Piece] = []
    kept = enumerate(piece for piece in pieces if _bounds(piece) != (0, 0))
    for _, group in groupby(kept, kind):
        first, *others = (piece for _, piece in group)
        if not others:
            joined.append(first)
        elif isinstance(first, Fixed):
            joined.append(Fixed("".join(piece.residues for piece in (first, *others) if isinstance(piece, Fixed))))
        else:
            length = sum(_bounds(piece)[0] for piece in (first, *others))
            joined.append(Gap(length, length, first.letters))
    return tuple(joined)
