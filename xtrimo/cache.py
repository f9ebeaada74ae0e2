"""Keys and values of the tokens read so far, so that generation computes each token once.

A Row holds those of one sequence being written, in memory laid out once for all it can hold. What reads it stands in
for packed attention, as `GLM.hidden(tokens, positions, attend)` takes it:

    Reading.attend   several new tokens a row, of many rows end to end: a start, or tokens proposed to be checked
    Writing.attend   one new token a row, of many rows

Rows have lengths of their own, nothing is padded and no mask is formed. A row depends on its own tokens alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from xtrimo import attention
from xtrimo.attention import Heads
from xtrimo.config import GLMConfig

Rows = Float[Tensor, "row head width"]
Kept = Float[Tensor, "2 head token width"]
"""Keys and values of a row, in one layer."""


class Row:
    """Keys and values of one sequence. `length` is the number of tokens it holds; to go back is to set it.

    Args:
        capacity: most tokens that it can hold.
        dtype: as they are kept, that of the model.
    """

    def __init__(self, config: GLMConfig, capacity: int, dtype: torch.dtype, device: torch.device | str) -> None:
        # zeros is lazy on a CPU: memory that no token was written to is never touched
        shape = (config.num_layers, 2, config.num_heads, capacity, config.head_dim)
        self.kept = torch.zeros(shape, dtype=dtype, device=device)
        self.layers = self.kept.unbind()
        self.length = 0

    @property
    def capacity(self) -> int:
        """Most tokens that it can hold."""
        return self.kept.shape[3]

    def copy(self, other: "Row", num_tokens: int) -> None:
        """Hold the first tokens of another row."""
        self.kept[:, :, :, :num_tokens] = other.kept[:, :, :, :num_tokens]
        self.length = num_tokens


def bytes_per_token(config: GLMConfig, dtype: torch.dtype) -> int:
    """Memory of a row for each token that it holds.

    >>> bytes_per_token(PRESETS["glm-150m"], torch.bfloat16)
    61440
    """
    return 2 * config.num_layers * config.hidden_size * dtype.itemsize


class Part(NamedTuple):
    """New tokens of one row, and which of all its tokens everyone sees."""

    row: Row
    num_tokens: int
    prefix: int


class Reading:
    """Attention of several new tokens a row, laid end to end; a row may hold tokens already, and they are seen."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts

    def attend(self, layer: int, q: Heads, k: Heads, v: Heads) -> Heads:
        """An `Attend` for GLM.hidden; tokens beyond those of the rows are answered with zeros."""
        out = torch.zeros_like(q)
        first = 0
        for row, num_tokens, prefix in self.parts:
            new, before = slice(first, first + num_tokens), row.length
            keys, values = row.layers[layer][:, :, : before + num_tokens].transpose(1, 2)  # each (token, head, width)
            keys[before:], values[before:] = k[new], v[new]
            seen = torch.tensor([[0, before + num_tokens, prefix]])
            out[new] = attention.attend(q[new], keys.to(q.dtype), values.to(q.dtype), seen, before)
            first += num_tokens
            if layer == len(row.layers) - 1:  # every layer writes the same places; the last one ends the step
                row.length += num_tokens
        return out


class Writing:
    """Attention of one new token a row: token i of a step is appended to rows[i], and sees all of it.

    Each row is a few products of its own, in fp32 whatever is kept. The flash kernel is slower for a single query, in
    half precision thrice, and rows padded to the longest cost what the padding does.
    """

    def __init__(self, rows: Sequence[Row] = ()) -> None:
        self.rows = rows
        self._exact: list[Kept | None] = []
        self._scratch = torch.empty(0)
        self._unused = torch.empty(())

    def attend(self, layer: int, q: Rows, k: Rows, v: Rows) -> Rows:
        """An `Attend` for GLM.hidden; tokens beyond those of the rows are answered with zeros."""
        if layer == 0:
            self._lay_out()
        q = q.to(torch.promote_types(q.dtype, torch.float32))
        new = torch.stack((k, v), dim=1)  # (row, keys or values, head, width)
        scale = q.shape[-1] ** -0.5
        mixed = []
        queries = q.unsqueeze(2).unbind()  # each (head, 1, width)
        for row, exact, token, query in zip(self.rows, self._exact, new.unbind(), queries, strict=False):
            kept = row.layers[layer]
            kept.select(2, row.length).copy_(token)
            kept = kept.narrow(2, 0, row.length + 1)
            keys, values = (kept if exact is None else exact.copy_(kept)).unbind()
            scores = torch.baddbmm(self._unused, query, keys.transpose(1, 2), beta=0, alpha=scale)
            mixed.append(torch.bmm(scores.softmax(-1), values))
            if layer == len(row.layers) - 1:  # every layer writes the same places; the last one ends the step
                row.length += 1
        mixed += [torch.zeros_like(mixed[0])] * (len(q) - len(mixed))
        return torch.stack(mixed).squeeze(2).to(v.dtype)

    def _lay_out(self) -> None:
        """Where half-precision rows are copied to in fp32: all to one place, one after the other."""
        most = max(row.capacity for row in self.rows) * self.rows[0].kept[0, :, :, 0].numel()
        if len(self._scratch) < most:
            self._scratch = torch.empty(most, device=self.rows[0].kept.device)
        self._exact = []
        for row in self.rows:
            shape = row.layers[0].narrow(2, 0, row.length + 1).shape
            is_half = row.kept.dtype.itemsize < 4
            self._exact.append(self._scratch[: shape.numel()].view(shape) if is_half else None)
