"""The share of a verb's work that is done by one task of a job array, as its flag --shard says it: I/N.

Tasks know nothing of each other. Each writes what is its own, looks then whether all is there, and if so puts it
together: that is the one that ends last, or two that end at once and write the same.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from xtrimo.errors import ConfigError

T = TypeVar("T")


class Shard(NamedTuple):
    """One of several shares."""

    place: int
    """From 0."""
    num: int

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """Every num-th of all items, so that shares are alike where items grow.

        >>> Shard(1, 3).of("abcdefgh")
        'beh'
        """
        return items[self.place :: self.num]

    def name_in(self, stem: str) -> str:
        """What this share's own file is called.

        >>> Shard(1, 3).name_in("scores")
        'scores.2-of-3'
        """
        return f"{stem}.{self.place + 1}-of-{self.num}"

    @property
    def siblings(self) -> list["Shard"]:
        """All shares, this one among them."""
        return [Shard(index, self.num) for index in range(self.num)]


WHOLE = Shard(0, 1)


def parse_shard(text: str) -> Shard:
    """A share as it is written, 3/8 for the third of eight.

    Raises:
        ConfigError: it is none.
    """
    index, _, num = text.partition("/")
    if not (index.isdecimal() and num.isdecimal() and 1 <= int(index) <= int(num)):
        raise ConfigError(f"shard {text!r}: expected I/N with 1 <= I <= N, such as 3/8")
    return Shard(int(index) - 1, int(num))
