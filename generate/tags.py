"""Control tags: what the header of a protein says of it, as words that a model reads in front of it.

    >A0ALU7 family=adenylate_kinase go=GO:0004017;GO:0005524 tm=61.5       rules: family, go, tm=45,60, length=100,200
    <family=adenylate_kinase> <go=GO:0004017> <go=GO:0005524> <tm=60..> <length=200..>

A rule is the name of a `name=value` word of the header; several values are set apart by `;`. A rule with edges is for
numbers, and its tags are the bins between these: a number on an edge belongs to the bin above. `length` is the number
of residues. Each tag is one word of the vocabulary, in a row after the model's other control words, and stands in a
prompt as it is written here.
"""

import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import UInt8

from generate.members import fact
from xtrimo.errors import ConfigError, DataError
from xtrimo.fasta import Record
from xtrimo.tokens import PUBLISHED_WORDS, VOCAB_SIZE

_NAME = re.compile(r"[A-Za-z][\w-]*")


@dataclass(frozen=True, slots=True)
class Rule:
    """How a word of the header becomes tags. Impossible values raise ConfigError."""

    name: str
    """Of the word; `length` needs none."""
    edges: tuple[float, ...] = ()
    """Borders of the bins of a number, rising; none for words."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"tag {self.name!r}: expected a name of letters, digits, _ and -, beginning with a letter"
            )
        if not all(map(math.isfinite, self.edges)) or any(a >= b for a, b in pairwise(self.edges)):
            raise ConfigError(f"tag {self.name}: the edges {_text(self.edges)} must be finite and rise")
        if self.name == "length" and not self.edges:
            raise ConfigError("tag length: say where its bins meet, such as length=100,200,400")

    @classmethod
    def parse(cls, text: str) -> "Rule":
        """`family`, or `length=100,200`.

        Raises:
            ConfigError: what is neither.
        """
        name, equals, edges = text.partition("=")
        try:
            numbers = tuple(map(float, edges.split(","))) if equals else ()
        except ValueError:
            raise ConfigError(f"tag {text!r}: {edges!r} are no numbers; expected such as length=100,200") from None
        return cls(name, numbers)

    def words(self, record: Record) -> tuple[str, ...]:
        """The tags of a protein by this rule, none if its header does not say.

        Raises:
            DataError: a value that is no number though the rule has edges, or that cannot be a tag.
        """
        said = str(len(record.sequence)) if self.name == "length" else fact(record, self.name)
        values = [value for value in said.split(";") if value]
        if odd := next((value for value in values if set(value) & set("<>=")), ""):
            raise DataError(f"{record.name}: {self.name} has the value {odd!r}; a tag can hold no < > or =")
        return tuple(f"<{self.name}={self._bin(value, record) if self.edges else value}>" for value in values)

    def _bin(self, value: str, record: Record) -> str:
        try:
            number = float(value)
        except ValueError:
            raise DataError(f"{record.name}: {self.name}={value} is no number, which its bins need") from None
        place = bisect_right(self.edges, number)
        low = _text(self.edges[place - 1 : place]) if place else ""
        return f"{low}..{_text(self.edges[place : place + 1])}"


def _text(edges: Sequence[float]) -> str:
    return ",".join(f"{edge:g}" for edge in edges)


class Tags:
    """The tags that a model knows: words after its other control words.

    Args:
        rules: how headers are read.
        control_words: the model's, those tags that it knows already among them.
        added: new tags, in the order of their rows.
    """

    def __init__(self, rules: Sequence[Rule], control_words: tuple[str, ...], added: tuple[str, ...]) -> None:
        self.rules, self.added = tuple(rules), added
        self.control_words = (*control_words, *added)
        self._ids = {word: len(PUBLISHED_WORDS) + i for i, word in enumerate(self.control_words)}

    @classmethod
    def found(
        cls, rules: Sequence[Rule], control_words: tuple[str, ...], records: Iterable[Record], least: int
    ) -> tuple["Tags", Counter[str]]:
        """Those of some proteins, the most frequent first, and how many proteins have each that is too rare.

        Args:
            least: proteins that have a tag, for it to be learned.

        Raises:
            ConfigError: more than there are free rows, or none.
            DataError: as `Rule.words`.
        """
        counts = Counter(word for record in records for rule in rules for word in set(rule.words(record)))
        known = {word: num for word, num in counts.items() if word in control_words}
        added = [word for word, num in counts.most_common() if num >= least and word not in known]
        room = VOCAB_SIZE - len(PUBLISHED_WORDS) - len(control_words)
        if not added and not known:
            raise ConfigError(
                f"no tag of {', '.join(rule.name for rule in rules)} is had by {least} proteins or more; the headers"
                " must say such as family=NAME, or lower --least"
            )
        if len(added) > room:
            raise ConfigError(
                f"{len(added)} new tags, and the vocabulary has {room} free rows; raise --least above"
                f" {counts[added[room]]}, take fewer of --tags, or fewer edges"
            )
        rare = Counter({word: num for word, num in counts.items() if word not in known and num < least})
        return cls(rules, control_words, tuple(added)), rare

    def ids(self, record: Record) -> UInt8[np.ndarray, "tag"]:
        """The tags of a protein as token ids, each once, in the order of the rows."""
        found = {self._ids[word] for rule in self.rules for word in rule.words(record) if word in self._ids}
        return np.array(sorted(found), dtype=np.uint8)

    @property
    def new_rows(self) -> UInt8[np.ndarray, "tag"]:
        """Token ids of the new ones."""
        return np.array([self._ids[word] for word in self.added], dtype=np.uint8)
