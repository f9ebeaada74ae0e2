"""How residues are drawn: the settings that all ways of writing share."""

from dataclasses import dataclass
from typing import Annotated, TypedDict

from tyro.conf import arg

from generate.engine import Decoding, Processor
from generate.limits import Limit, parse_limit
from generate.penalties import complexity_penalty, repetition_penalty
from xtrimo.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawingConfig:
    """How residues are drawn. Impossible values raise ConfigError."""

    num: int = 1
    """Proteins to draw, of each prompt."""
    seed: int = 0
    """Protein i of a seed is always the same one, under the same model and settings."""
    temperature: float = 0.9
    """Divides the logits; 0 always takes the likeliest residue."""
    top_p: float = 0.8
    """Draw from the fewest likeliest residues that reach this probability together; 1 draws from all. The end of the
    protein keeps its own probability."""
    top_k: int = 0
    """Draw from so many of the likeliest residues; 0 from all."""
    min_p: float = 0.0
    """Leave out residues below this share of the likeliest one's probability."""
    guidance: float = 1.0
    """Above 1, stresses what the prompt gives: u + guidance * (c - u) of the logits with (c) and without it (u)."""
    repetition_penalty: float = 0.0
    """Nats off a residue that completes four in a row which the protein has already, for each time it has them."""
    complexity_penalty: float = 0.0
    """Nats off a residue that goes on with a run (AAAA) or a short repeat (GSGSGS), more the longer it is."""
    limit: Annotated[tuple[str, ...] | str, arg(constructor=tuple[str, ...])] = ()
    """What the protein may be made of at most, such as C=0, W=2 or AVILMF=40%."""
    batch_size: int = 32
    """Proteins written at a time; changes speed and memory, not the proteins."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "limit", (self.limit,) if isinstance(self.limit, str) else tuple(self.limit))
        for name in ("num", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        _ = self.decoding, self.penalties, self.limits  # each refuses what it cannot be made of

    @property
    def decoding(self) -> Decoding:
        """As the engine has it."""
        return Decoding(
            temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p,
            guidance=self.guidance, seed=self.seed,
        )  # fmt: skip

    @property
    def penalties(self) -> tuple[Processor, ...]:
        """Those that are not 0."""
        pairs = ((repetition_penalty, self.repetition_penalty), (complexity_penalty, self.complexity_penalty))
        processors = [(nats, make(nats)) for make, nats in pairs]
        return tuple(process for nats, process in processors if nats)

    @property
    def limits(self) -> tuple[Limit, ...]:
        """`limit` as read."""
        return tuple(map(parse_limit, self.limit))


class DrawingSettings(TypedDict, total=False):
    """The fields of DrawingConfig, as keywords of a function."""

    num: int
    seed: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    guidance: float
    repetition_penalty: float
    complexity_penalty: float
    limit: tuple[str, ...] | str
    batch_size: int
