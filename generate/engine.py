"""Many proteins written at once by one GLM: each has a slot, one token a step; a slot that ends is refilled at once.

What is written, in which order and under which rules, a Writer knows: a small state machine that says which choices are
allowed and, told what was chosen, which token the model reads next. The engine knows none of that. It reads the start
of each protein, keeps the keys and values (xtrimo/cache.py), turns logits into choices and counts nats.

A protein depends on its writer, its number and the seed alone: rows never influence each other, and in fp32 a protein
is bitwise the same whatever the slots, the order and the company. Its random numbers are a stream keyed by (seed,
number), one a step, whatever the precision; a forced step spends one too.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import inf
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Float64, Int, UInt8
from torch import Tensor

from generate.logits import distribution, draw
from generate.starts import Rows, Start, next_logits
from xtrimo.cache import Row, Writing
from xtrimo.errors import ConfigError
from xtrimo.model import GLM
from xtrimo.tokens import AMINO_ACIDS, FIRST_RESIDUE

CHOICES = (*AMINO_ACIDS, "<end>")
"""What a step chooses from: the amino acids, token ids 1 to 20 in this order, and an end, whose token a writer has."""
END = len(AMINO_ACIDS)
"""The choice that ends a protein or a span."""

_DRAWN_AHEAD = 64

_Logits = tuple[Float[Tensor, "row vocab"], Float[Tensor, "row vocab"]]


@runtime_checkable
class Writer(Protocol):
    """One protein being written. It is asked `allowed`, told `advance`, in turn, until `advance` says None."""

    @property
    def start(self) -> Start:
        """What is read first."""

    @property
    def unconditioned(self) -> Start | None:
        """The start without what guidance is to stress; None where nothing guides.

        Both then read the same tokens at the same positions.
        """

    @property
    def capacity(self) -> int:
        """Most tokens that the model reads for it, the longer start included: capacity - len(start) + 1 choices."""

    @property
    def end(self) -> int:
        """The token that END stands for: EOS or EOP."""

    @property
    def residues(self) -> Sequence[int]:
        """Amino acids of the protein so far as choices 0..19, in order of writing, only ever appended to.

        Processors see them; it may begin with those that were given.
        """

    def allowed(self) -> Bool[np.ndarray, "choice"]:
        """What may come next, at least one; exactly one is forced, and neither drawn nor processed."""

    def advance(self, choice: int) -> tuple[int, int, int] | None:
        """Take the choice; the token to read next and its two positions, or None where the writing has ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoding:
    """From logits to a choice. Impossible values raise ConfigError."""

    temperature: float = 1.0
    """Divides the logits; 0 always takes the likeliest."""
    top_k: int = 0
    """Draw from so many of the likeliest residues; 0 from all."""
    top_p: float = 1.0
    """Draw from the fewest likeliest residues that reach this probability together; 1 draws from all."""
    min_p: float = 0.0
    """Leave out residues below this share of the likeliest one's probability."""
    guidance: float = 1.0
    """u + guidance (c - u) of the logits with (c) and without (u) the condition; 1 is off."""
    seed: int = 0
    """Of the random streams."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed is {self.seed}; it must be at least 0 and below 2**63")
        if not 0 <= self.temperature < inf:
            raise ConfigError(
                f"temperature is {self.temperature}; it must be 0 (likeliest residue) or above, and finite"
            )
        if self.top_k < 0:
            raise ConfigError(f"top_k is {self.top_k}; it must be at least 1, or 0 for all")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if not 0 <= self.min_p < 1:
            raise ConfigError(f"min_p is {self.min_p}; it must be at least 0 and below 1")
        if not 0 <= self.guidance < inf:
            raise ConfigError(f"guidance is {self.guidance}; it must be at least 0 and finite; 1 is off")


class History(NamedTuple):
    """What the rows have written so far."""

    residues: Int[Tensor, "row step"]
    """Choices 0..19, then END up to the longest row."""
    lengths: Int[Tensor, "row"]


Processor = Callable[[Float[Tensor, "row choice"], History], Float[Tensor, "row choice"]]
"""Logits to logits, a pure function whose row i looks at row i alone; -inf forbids, and is never to be lifted."""


@dataclass(frozen=True, slots=True, eq=False)
class Written:
    """A protein that has ended."""

    number: int
    """Its job's, which keys its random stream."""
    writer: Writer
    """As it ended."""
    choices: UInt8[np.ndarray, "step"]
    nats: Float32[np.ndarray, "step"]
    """Of each choice at temperature 1 over the whole vocabulary, forced ones too."""
    start_nats: Float32[np.ndarray, "said"]
    """Of start.tokens[1:], each at the token before it; those that a prefix shows ahead mean nothing."""
    finished: bool
    """Whether the writer ended; if not, it was cut where `capacity` tokens had been read."""


def write(
    model: GLM,
    jobs: Iterable[tuple[int, Writer]],
    decoding: Decoding,
    *,
    slots: int,
    processors: Sequence[Processor] = (),
    on_ended: Callable[[int], object] = lambda num: None,
) -> Iterator[Written]:
    """Each job's protein as soon as it has ended, so in no fixed order.

    Args:
        jobs: (number, writer); read only as slots get free.
        slots: proteins written at a time; changes speed and memory, not the proteins.
        processors: applied in order to the logits of what is allowed, before temperature and the cuts of `decoding`.
        on_ended: hears how many have just ended.
    """
    if slots < 1:
        raise ConfigError(f"slots is {slots}; it must be at least 1")
    rows, chooser, reader = Rows(model), _Chooser(decoding, processors), Writing()
    waiting, going = iter(jobs), list[_Going]()
    while True:
        said = [_read_tokens(model, reader, going)] if going else []
        fresh = [_Going(number, writer) for number, writer in islice(waiting, slots - len(going))]
        if fresh:
            said.append(_read_starts(rows, fresh, decoding.guidance != 1))
            going += fresh
        if not going:
            return
        chooser.choose(going, *(torch.cat(logits) for logits in zip(*said, strict=True)))
        ended = [one for one in going if one.token is None]
        going = [one for one in going if one.token is not None]
        for one in ended:
            rows.free += one.rows
        if ended:
            on_ended(len(ended))
        yield from (one.written() for one in ended)


class _Going:
    """A protein being written."""

    def __init__(self, number: int, writer: Writer) -> None:
        self.number, self.writer = number, writer
        self.rows: list[Row] = []
        """Its own, and that of the unconditioned start where there is guidance."""
        self.token: tuple[int, int, int] | None = None
        """To be read next, with its positions; None at the end."""
        self.choices: list[int] = []
        self.nats: list[float] = []
        self.start_nats: Float32[np.ndarray, "said"] = np.zeros(0, dtype=np.float32)
        self.finished = False
        self._history = np.zeros(0, dtype=np.int64)
        self._num_residues = 0

    def uniform(self, seed: int) -> float:
        """The random number of this step, in (0, 1]: open at 0, so that no choice of probability 0 is drawn."""
        step = len(self.choices)
        if not step:
            self._random = np.random.Generator(np.random.Philox(key=np.array((seed, self.number), dtype=np.uint64)))
        if step % _DRAWN_AHEAD == 0:  # a longer stream begins like a shorter one
            self._uniforms: list[float] = (1 - self._random.random(_DRAWN_AHEAD)).tolist()
        return self._uniforms[step % _DRAWN_AHEAD]

    def take(self, choice: int, nats: float) -> None:
        """Write it, and see whether that was the end."""
        self.choices.append(choice)
        self.nats.append(nats)
        self.token = self.writer.advance(choice)
        self.finished = self.token is None
        if self.rows[0].length >= self.writer.capacity:
            self.token = None

    def history(self) -> Int[np.ndarray, "step"]:
        """The residues so far; an array that grows as they do, since a list takes long to convert."""
        new = self.writer.residues[self._num_residues :]
        first, self._num_residues = self._num_residues, self._num_residues + len(new)
        if self._num_residues > len(self._history):
            self._history = np.concatenate((self._history[:first], np.zeros(first + len(new) + 64, dtype=np.int64)))
        self._history[first : self._num_residues] = new
        return self._history[: self._num_residues]

    def written(self) -> Written:
        """As it ended."""
        return Written(
            self.number, self.writer, np.array(self.choices, dtype=np.uint8), np.array(self.nats, dtype=np.float32),
            self.start_nats, self.finished,
        )  # fmt: skip


def _read_starts(rows: Rows, fresh: Sequence[_Going], guided: bool) -> _Logits:
    """Give the new ones their rows; what the model says after their starts."""
    firsts = [(one.writer.start, one.writer.capacity) for one in fresh]
    twins = [one for one in fresh if guided and one.writer.unconditioned is not None]
    seconds = [(one.writer.unconditioned, one.writer.capacity) for one in twins if one.writer.unconditioned]
    begun = rows.begin(firsts + seconds)
    for one, (row, said) in zip(fresh, begun, strict=False):
        one.rows, one.start_nats = [row], said.nats
    for one, (row, _) in zip(twins, begun[len(fresh) :], strict=True):
        one.rows.append(row)
    return _paired(torch.stack([said.logits for _, said in begun]), fresh)


@torch.inference_mode()
def _read_tokens(model: GLM, writing: Writing, going: Sequence[_Going]) -> _Logits:
    """Read the token that each is at; what the model says after it."""
    guided = [one for one in going if len(one.rows) == 2]
    writing.rows = [one.rows[0] for one in going] + [one.rows[1] for one in guided]
    table = np.array([one.token for one in (*going, *guided)])
    return _paired(next_logits(model, table[:, 0], table[:, 1:], writing.attend), going)


def _paired(logits: Float[Tensor, "answer vocab"], going: Sequence[_Going]) -> _Logits:
    """Logits of the proteins, and those without the condition, which where nothing guides are the same."""
    twins = [i for i, one in enumerate(going) if len(one.rows) == 2]
    bare = logits[: len(going)]
    if twins:
        bare = bare.clone()
        bare[twins] = logits[len(going) :]
    return logits[: len(going)], bare


class _Chooser:
    """From logits to choices, for all proteins at once."""

    def __init__(self, decoding: Decoding, processors: Sequence[Processor]) -> None:
        self.decoding, self.processors = decoding, processors

    @torch.inference_mode()
    def choose(
        self, going: Sequence[_Going], logits: Float[Tensor, "row vocab"], bare: Float[Tensor, "row vocab"]
    ) -> None:
        """Let each take its next choice."""
        table = np.stack([one.writer.allowed() for one in going])
        num_allowed = table.sum(axis=1)
        if not num_allowed.all():
            number = going[int(num_allowed.argmin())].number
            raise ConfigError(f"protein {number}: nothing may come next, and nothing may end; loosen what forbids it")
        uniforms = [one.uniform(self.decoding.seed) for one in going]
        ends = torch.tensor([one.writer.end for one in going], device=logits.device)
        choices = table.argmax(axis=1)  # of the forced ones
        if num_allowed.max() > 1:
            drawn = self._draw(going, logits, bare, ends, torch.from_numpy(table), uniforms)
            choices = np.where(num_allowed == 1, choices, drawn)
        chosen = torch.from_numpy(choices).to(logits.device)
        tokens = torch.where(chosen == END, ends, chosen + FIRST_RESIDUE)
        nats = F.cross_entropy(logits, tokens, reduction="none")
        for one, choice, its_nats in zip(going, choices.tolist(), nats.tolist(), strict=True):
            one.take(choice, its_nats)

    def _draw(
        self, going: Sequence[_Going], logits: Float[Tensor, "row vocab"], bare: Float[Tensor, "row vocab"],
        ends: Int[Tensor, "row"], allowed: Bool[Tensor, "row choice"], uniforms: list[float],
    ) -> Int[np.ndarray, "row"]:  # fmt: skip
        if self.decoding.guidance != 1:
            logits = torch.lerp(bare, logits, self.decoding.guidance)
        past = history([one.history() for one in going], logits.device) if self.processors else None
        law = chances(logits, ends, allowed.to(logits.device), self.decoding, self.processors, past)
        return draw(law, torch.tensor(uniforms, dtype=torch.float64, device=logits.device)).cpu().numpy()


def chances(
    logits: Float[Tensor, "row vocab"],
    ends: Int[Tensor, "row"],
    allowed: Bool[Tensor, "row choice"],
    decoding: Decoding,
    processors: Sequence[Processor],
    past: History | None,
) -> Float64[Tensor, "row choice"]:
    """The law that each row's choice is drawn from; `past` is there where there are processors.

    Raises:
        ConfigError: a processor leaves nothing.
    """
    residues = logits[:, FIRST_RESIDUE : FIRST_RESIDUE + END]
    scores = torch.cat((residues, logits.gather(1, ends[:, None])), dim=1).masked_fill_(~allowed, -inf)
    if past is not None:
        bare = scores
        for process in processors:
            scores = process(scores, past)
        is_forced = allowed.sum(dim=1, keepdim=True) == 1
        scores = torch.where(is_forced, bare, scores.masked_fill(~allowed, -inf))
        if not ((scores > -inf).any(dim=1).all() and (scores < inf).all()):
            raise ConfigError(
                "a processor forbids all that may come next, or returns NaN or infinity; it must leave a choice, and"
                " numbers"
            )
    # a protein ends once in hundreds of residues, so that a nucleus over all choices would never let it end
    return distribution(
        scores, decoding.temperature, decoding.top_p, keep=END, top_k=decoding.top_k, min_p=decoding.min_p
    )


def history(rows: Sequence[Int[np.ndarray, "_"]], device: torch.device) -> History:
    """Residues of any numbers as processors see them."""
    lengths = np.array([len(row) for row in rows])
    table = np.full((len(rows), lengths.max()), END)
    for row, residues in zip(table, rows, strict=True):
        row[: len(residues)] = residues
    return History(torch.from_numpy(table).to(device), torch.from_numpy(lengths).to(device))
