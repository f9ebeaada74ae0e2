"""What the model reads before it writes, and the rows of the cache that hold it.

Starts of any lengths are read end to end in one packed row, none padded. One that some row holds already is copied from
there: rows only grow at their end, so that the same start is read once for all the proteins that begin with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int, Int32, UInt8
from torch import Tensor

from xtrimo.attention import Attend
from xtrimo.batch import ROW_TOKENS
from xtrimo.cache import Part, Reading, Row
from xtrimo.model import GLM

# Matrix products round differently where there are fewer rows than a tile of 4; from there on a row's result is bitwise
# the same whatever rows are beside it. So in fp32 the model reads a multiple of 4 tokens, the surplus ones for nothing.
_TILE = 4
_CAPACITY_STEP = 64  # tokens: rows of nearly the same size can take each other's place


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """What the model reads at once, before the first choice; the logits of its last token choose first."""

    tokens: UInt8[np.ndarray, "token"]
    """At least one."""
    positions: Int32[np.ndarray, "token 2"]
    """Place in the chain, and place in the target."""
    prefix: int
    """The first `prefix` tokens are seen by all; token q sees k iff k < prefix or k <= q."""


class Said(NamedTuple):
    """What the model says after a start, and of it."""

    logits: Float[Tensor, "vocab"]
    nats: Float32[np.ndarray, "said"]


class Rows:
    """The rows of the cache, and which start each begins with."""

    def __init__(self, model: GLM) -> None:
        self.model = model
        self.free: list[Row] = []
        self._starts: dict[Row, bytes] = {}
        self._said: dict[bytes, Said] = {}

    @torch.inference_mode()
    def begin(self, starts: Sequence[tuple[Start, int]]) -> list[tuple[Row, Said]]:
        """For each (start, capacity) a row that holds the start, and what the model says."""
        begun: list[tuple[Row, bytes]] = []
        unread: dict[bytes, tuple[Start, Row]] = {}
        alike: list[tuple[Row, bytes]] = []
        for start, capacity in starts:
            key = b"".join((start.tokens.tobytes(), start.positions.tobytes(), start.prefix.to_bytes(4)))
            row = self._take(key, capacity)
            known = (other for other, held in self._starts.items() if held == key)
            holder = row if self._starts.get(row) == key else next(known, None)
            self._starts[row] = key
            if holder is None:
                unread[key] = (start, row)
            elif key in unread:
                alike.append((row, key))
            elif holder is not row:
                row.copy(holder, len(start.tokens))
            row.length = len(start.tokens) if key not in unread else 0
            begun.append((row, key))
        self._read(unread)
        for row, key in alike:
            start, holder = unread[key]
            row.copy(holder, len(start.tokens))
        held = set(self._starts.values())
        self._said = {key: said for key, said in self._said.items() if key in held}
        return [(row, self._said[key]) for row, key in begun]

    def _take(self, key: bytes, capacity: int) -> Row:
        """A free row, best one that holds the start; or a new one, in the place of a free one that is too small."""
        fitting = [row for row in self.free if row.capacity >= capacity]
        if fitting:
            row = next((row for row in fitting if self._starts[row] == key), fitting[-1])
            self.free.remove(row)
            return row
        if self.free:
            del self._starts[self.free.pop()]
        capacity += -capacity % _CAPACITY_STEP
        return Row(self.model.config, capacity, self.model.dtype, self.model.device)

    def _read(self, unread: dict[bytes, tuple[Start, Row]]) -> None:
        """Read starts into their rows, end to end, about ROW_TOKENS tokens at a time."""
        waiting = list(unread.items())
        while waiting:
            ends = np.cumsum([len(start.tokens) for _, (start, _) in waiting])
            num = max(1, int(np.searchsorted(ends, ROW_TOKENS, side="right")))
            group, waiting = waiting[:num], waiting[num:]
            parts = [Part(row, len(start.tokens), start.prefix) for _, (start, row) in group]
            tokens = np.concatenate([start.tokens for _, (start, _) in group]).astype(np.int64)
            positions = np.concatenate([start.positions for _, (start, _) in group])
            logits = next_logits(self.model, tokens, positions, Reading(parts).attend)
            nats = F.cross_entropy(logits[:-1], torch.from_numpy(tokens[1:]).to(logits.device), reduction="none")
            for (key, _), end, (_, length, _) in zip(group, ends.tolist(), parts, strict=False):
                self._said[key] = Said(logits[end - 1].clone(), nats[end - length : end - 1].cpu().numpy())


def next_logits(
    model: GLM, tokens: Int[np.ndarray, "token"], positions: Int[np.ndarray, "token 2"], attend: Attend
) -> Float[Tensor, "token vocab"]:
    """Of each token; in fp32 bitwise the same whatever the other tokens are."""
    num_tokens = len(tokens)
    if model.dtype == torch.float32 and (surplus := -num_tokens % _TILE):
        tokens = np.append(tokens, np.repeat(tokens[:1], surplus))
        positions = np.append(positions, np.repeat(positions[:1], surplus, axis=0), axis=0)
    ids, places = (torch.from_numpy(x).to(model.device) for x in (tokens, positions))
    return model.logits(model.hidden(ids, places, attend)[-1]).float()[:num_tokens]
