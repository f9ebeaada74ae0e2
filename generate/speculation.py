"""Speculative decoding: a small model proposes some choices, the large one judges them all in one pass.

With p the law of the large model and q that of the small one, both after all that decoding does to them, a proposal x
drawn from q is taken with probability min(1, p(x) / q(x)); the first that is not is replaced by a draw from what
max(0, p - q) is in proportion to, and where all were taken p draws one more. What is written then follows p exactly,
whatever the small model is (Leviathan et al. 2023, arXiv:2211.17192, appendix A.1); a poor one only costs time.

One protein at a time, and only where it was measured to be faster: a pass over several tokens must cost little more
than one over a single token, and the small model little in comparison. The random numbers of a protein are keyed by
(seed, number) as the engine's, but used in another order: the proteins differ from the engine's, their law does not.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

from generate.engine import END, Decoding, Processor, Writer, Written, chances, history
from generate.logits import draw
from generate.starts import Start, next_logits
from xtrimo.cache import Part, Reading, Row
from xtrimo.errors import ConfigError
from xtrimo.model import GLM
from xtrimo.tokens import FIRST_RESIDUE

Token = tuple[int, int, int]
"""And its two positions."""


def speculate(
    model: GLM,
    draft: GLM,
    jobs: Iterable[tuple[int, Writer]],
    decoding: Decoding,
    *,
    num_proposed: int = 3,
    processors: Sequence[Processor] = (),
) -> Iterator[Written]:
    """As engine.write, with `draft` proposing; the proteins one after the other. Writers are copied, so must be small.

    Raises:
        ConfigError: guidance, nothing to propose, or models that do not read the same words and positions.
    """
    if decoding.guidance != 1:
        raise ConfigError(f"guidance is {decoding.guidance}; speculation is for 1 (off), write without a draft model")
    if num_proposed < 1:
        raise ConfigError(f"num_proposed is {num_proposed}; it must be at least 1")
    facts = [(m.config.control_words, m.config.rotary, m.config.objectives) for m in (model, draft)]
    if facts[0] != facts[1]:
        raise ConfigError(f"the draft model reads {facts[1]} and the model {facts[0]}; they must be the same")
    for number, writer in jobs:
        yield _Pair(model, draft, number, writer, decoding, processors).write(num_proposed)


class _Reader:
    """One model, and what it has read of the protein."""

    def __init__(self, model: GLM, start: Start, capacity: int) -> None:
        self.model, self.start = model, start
        self.row = Row(model.config, capacity, model.dtype, model.device)
        self.unread: list[Token] = []

    def read(self) -> Float[Tensor, "token vocab"]:
        """What the model says after each token that it had not read; at first, after those of the start."""
        if not self.row.length:
            tokens, positions = self.start.tokens.astype(np.int64), self.start.positions
        else:
            table = np.array(self.unread)
            tokens, positions, self.unread = table[:, 0], table[:, 1:], []
        part = Part(self.row, len(tokens), self.start.prefix)
        return next_logits(self.model, tokens, positions, Reading([part]).attend)


class _Pair:
    """A protein, and the two models that write it."""

    def __init__(
        self, model: GLM, draft: GLM, number: int, writer: Writer, decoding: Decoding, processors: Sequence[Processor]
    ) -> None:
        self.number, self.writer, self.decoding, self.processors = number, writer, decoding, processors
        self.model, self.draft = (_Reader(m, writer.start, writer.capacity) for m in (model, draft))
        self._random = np.random.Generator(np.random.Philox(key=np.array((decoding.seed, number), dtype=np.uint64)))
        self.choices: list[int] = []
        self.nats: list[float] = []
        self.token: Token | None = None

    @torch.inference_mode()
    def write(self, num_proposed: int) -> Written:
        """To its end."""
        said = self.model.read()
        start = torch.from_numpy(self.writer.start.tokens[1:].astype(np.int64))
        start_nats = F.cross_entropy(said[:-1].cpu(), start, reduction="none").numpy()
        self.draft.read()
        law = self._laws(said[-1:], [self.writer])
        self._take(int(draw(law, self._uniform())), said[-1])
        while self.token is not None and self.model.row.length < self.writer.capacity:
            self._round(num_proposed)
        return Written(
            self.number, self.writer, np.array(self.choices, dtype=np.uint8), np.array(self.nats, dtype=np.float32),
            start_nats, self.token is None,
        )  # fmt: skip

    def _round(self, num_proposed: int) -> None:
        """Propose, judge, and go back to what was taken."""
        assert self.token is not None
        known = self.model.row.length
        ahead, tokens = copy.deepcopy(self.writer), [self.token]
        states: list[Writer] = []  # before each choice
        proposed: list[int] = []
        laws: list[Float64[Tensor, "1 choice"]] = []
        self.draft.unread.append(self.token)
        while len(proposed) < num_proposed and known + len(tokens) < self.writer.capacity:
            states.append(copy.deepcopy(ahead))
            laws.append(self._laws(self.draft.read()[-1:], [ahead]))
            proposed.append(int(draw(laws[-1], self._uniform())))
            token = ahead.advance(proposed[-1])
            if token is None:
                break
            tokens.append(token)
            self.draft.unread.append(token)
        if len(tokens) > len(proposed):  # else the last proposal ends it, and nothing follows
            states.append(ahead)
        self.model.unread = tokens
        said = self.model.read()
        num_taken = self._judge(proposed, laws, said, self._laws(said, states))
        self.model.row.length = known + 1 + num_taken
        self.draft.row.length = min(self.draft.row.length, self.model.row.length)
        self.draft.unread = tokens[self.draft.row.length - known : 1 + num_taken]

    def _judge(
        self,
        proposed: Sequence[int],
        laws: Sequence[Float64[Tensor, "1 choice"]],
        said: Float[Tensor, "token vocab"],
        wanted: Float64[Tensor, "token choice"],
    ) -> int:
        """Take proposals as far as they go, and a choice of the model's own; how many were taken and read."""
        for i, (choice, law) in enumerate(zip(proposed, laws, strict=True)):
            p, q = wanted[i], law[0]
            if float(self._uniform()) * float(q[choice]) > float(p[choice]):
                rest = (p - q).clamp_min(0)
                self._take(int(draw(rest[None], self._uniform())), said[i])
                return i
            self._take(choice, said[i])
        if self.token is None:  # the last proposal was the end
            return len(proposed) - 1
        if len(wanted) > len(proposed):
            self._take(int(draw(wanted[-1:], self._uniform())), said[-1])
        return len(proposed)

    def _laws(self, logits: Float[Tensor, "token vocab"], writers: Sequence[Writer]) -> Float64[Tensor, "token choice"]:
        """What each writer's next choice is drawn from."""
        logits = logits[: len(writers)]
        allowed = torch.from_numpy(np.stack([writer.allowed() for writer in writers])).to(logits.device)
        ends = torch.tensor([writer.end for writer in writers], device=logits.device)
        past = None
        if self.processors:
            past = history([np.array(writer.residues, dtype=np.int64) for writer in writers], logits.device)
        return chances(logits, ends, allowed, self.decoding, self.processors, past).cpu()

    def _take(self, choice: int, logits: Float[Tensor, "vocab"]) -> None:
        token = self.writer.end if choice == END else choice + FIRST_RESIDUE
        self.choices.append(choice)
        self.nats.append(float(-logits.log_softmax(0)[token]))
        self.token = self.writer.advance(choice)

    def _uniform(self) -> Float64[Tensor, "1"]:
        """The next random number, in (0, 1]."""
        return torch.tensor([1 - self._random.random()], dtype=torch.float64)
