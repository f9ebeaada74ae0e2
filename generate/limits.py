"""Limits on what a protein is made of: so many of some amino acids at most, by number or by share.

    C=0           no cysteine
    W=2           two tryptophans at most
    AVILMF=40%    at most 40 % of the residues are among these

A limit counts the whole protein, fixed residues included. It holds while the protein is written: a letter is forbidden
as soon as it would leave too little for what the prompt still demands. A share is taken of the shortest protein that
can still come out, so that it holds wherever the protein ends; where the prompt gives no length, little is allowed at
the beginning. Of a protein whose fixed residues exceed a share, the end is forbidden until enough others are written.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor

import numpy as np
from jaxtyping import Bool, Int64

from xtrimo.errors import ConfigError
from xtrimo.tokens import AMINO_ACIDS

_LIMIT = re.compile(r"(?P<letters>[A-Za-z]+)=(?:(?P<most>\d+)|(?P<percent>\d+(?:\.\d+)?)%)", re.ASCII)

Letters = Bool[np.ndarray, "letter"]


@dataclass(frozen=True, slots=True)
class Limit:
    """At most so many residues among `letters`: a number, or a share of the protein's length."""

    letters: str
    """Amino acids, counted together."""
    most: int | None = None
    """Residues."""
    ratio: float | None = None
    """Share of all residues, 0 to 1; in place of `most`."""

    def __post_init__(self) -> None:
        if not self.letters or set(self.letters) - set(AMINO_ACIDS):
            raise ConfigError(f"a limit is on {self.letters!r}; expected amino acids among {AMINO_ACIDS}")
        if (self.most is None) == (self.ratio is None):
            raise ConfigError(f"limit on {self.letters}: give either a number or a share")
        if (self.most is not None and self.most < 0) or (self.ratio is not None and not 0 <= self.ratio <= 1):
            raise ConfigError(f"limit {self}: it must be a number from 0 or a share from 0 to 100 %")

    def allows(self, length: int) -> int:
        """Residues of its letters that a protein of `length` may have."""
        return self.most if self.most is not None else floor((self.ratio or 0.0) * length + 1e-9)

    def __str__(self) -> str:
        return (
            f"{self.letters}={self.most}" if self.most is not None else f"{self.letters}={100 * (self.ratio or 0):g}%"
        )


def parse_limit(text: str) -> Limit:
    """The limit that a text such as C=0 or AVILMF=40% means.

    Raises:
        ConfigError: it cannot be read, or is impossible.
    """
    match = _LIMIT.fullmatch(text)
    if match is None:
        raise ConfigError(f"limit {text!r} cannot be read; expected such as C=0, W=2 or AVILMF=40%")
    letters = "".join(dict.fromkeys(match["letters"].upper()))
    if match["most"]:
        return Limit(letters, most=int(match["most"]))
    return Limit(letters, ratio=float(match["percent"]) / 100)


class Budget:
    """What the limits still allow in one protein.

    Args:
        limits: any number.
        given: residues that stand in the protein from the beginning and are not written.
        demanded: the letters allowed at each residue that will be written in any case, in order of writing.
        longest: residues of the whole protein at most.

    Raises:
        ConfigError: no protein of the prompt keeps the limits.
    """

    def __init__(
        self, limits: Sequence[Limit], given: str, demanded: Bool[np.ndarray, "slot letter"], longest: int
    ) -> None:
        self.limits = tuple(limits)
        shape = (len(self.limits), len(AMINO_ACIDS))
        self._within = np.array([[a in limit.letters for a in AMINO_ACIDS] for limit in limits], bool).reshape(shape)
        self._counts = np.array([sum(map(given.count, limit.letters)) for limit in limits], np.int64)
        inside = ~(demanded[None] & ~self._within[:, None]).any(-1)  # (limit, slot): nothing else may stand there
        self._reserved = np.zeros((len(limits), len(demanded) + 1), np.int64)  # from this slot on
        self._reserved[:, :-1] = inside[:, ::-1].cumsum(1)[:, ::-1]
        self._length, self._written = len(given) + len(demanded), 0  # the shortest that can still come out
        self._next = 0
        self._refuse_the_impossible(demanded, longest)

    def allowed(self, letters: Letters, *, is_demanded: bool) -> Letters:
        """Those of `letters` that may come next."""
        after = self._reserved[:, self._next + is_demanded]
        return letters & ~(self._within & (self._counts + after >= self._most(not is_demanded))[:, None]).any(0)

    def take(self, letter: int, *, is_demanded: bool) -> None:
        """Count a residue that was written."""
        self._counts += self._within[:, letter]
        self._next += is_demanded
        self._length += not is_demanded

    def may_end(self) -> bool:
        """Whether the protein, all that is demanded written, keeps the limits as it is."""
        return bool((self._counts <= self._most(0)).all())

    def _most(self, more: int) -> Int64[np.ndarray, "limit"]:
        return np.array([limit.allows(self._length + more) for limit in self.limits], np.int64)

    def _refuse_the_impossible(self, demanded: Bool[np.ndarray, "slot letter"], longest: int) -> None:
        most = [limit.allows(longest) for limit in self.limits]
        for limit, needed, allows in zip(self.limits, self._counts + self._reserved[:, 0], most, strict=True):
            if needed > allows:
                raise ConfigError(
                    f"limit {limit} allows {allows}, and the prompt demands {needed} residues of {limit.letters};"
                    " raise the limit or change the prompt"
                )
        kinds: Counter[bytes] = Counter(slot.tobytes() for slot in demanded)
        for kind, size in kinds.items():
            letters = np.frombuffer(kind, dtype=bool)
            if letters.sum() > 1 and not (letters & ~self._within.any(0)).any():
                room = sum(m for m, within in zip(most, self._within, strict=True) if (within & letters).any())
                if size > room:
                    named = "".join(a for a, is_in in zip(AMINO_ACIDS, letters, strict=True) if is_in)
                    raise ConfigError(
                        f"the limits allow {room} residues of {named} together, and the prompt demands {size}; raise"
                        " the limits or change the prompt"
                    )
