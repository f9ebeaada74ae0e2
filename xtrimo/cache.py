"""Keys and values of the tokens read so far, so that generation computes each token once.

The cache stands in for packed attention: `GLM.hidden(tokens, positions, cache.attend)` reads one new token a row, where
a row is one sequence being written. All rows hold the same number of tokens, so no mask is ever needed.

    prefill   tokens of ONE prompt, causal; every row receives its keys and values
    attend    token i belongs to row i, is appended to it, and sees all of it
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from xtrimo import attention
from xtrimo.attention import Heads
from xtrimo.config import GLMConfig

Rows = Float[Tensor, "row head width"]


class KVCache:
    """Static, preallocated keys and values. `length` is the number of tokens each row holds.

    Args:
        batch: rows.
        capacity: most tokens a row can hold.
    """

    def __init__(
        self, config: GLMConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        shape = (config.num_layers, batch, config.num_heads, capacity, config.head_dim)
        # zeros is lazy on a CPU: a row that ends early never touches the memory of the tokens it did not write
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    def prefill(self, layer: int, q: Heads, k: Heads, v: Heads) -> Heads:
        """Attention of a prompt that all rows share, from an empty cache. An `Attend` for GLM.hidden."""
        num_tokens = len(q)
        self.keys[layer, :, :, :num_tokens] = k.transpose(0, 1)
        self.values[layer, :, :, :num_tokens] = v.transpose(0, 1)
        self._advance(layer, num_tokens)
        return attention.attend(q, k, v, torch.tensor([[0, num_tokens, 0]]))

    def attend(self, layer: int, q: Rows, k: Rows, v: Rows) -> Rows:
        """Attention of one new token in each of the first len(q) rows. An `Attend` for GLM.hidden."""
        rows, place = len(q), self.length
        keys, values = self.keys[layer, :rows], self.values[layer, :rows]  # each (row, head, capacity, width)
        keys[:, :, place] = k
        values[:, :, place] = v
        end = place + 1
        mixed = F.scaled_dot_product_attention(q[:, :, None], keys[:, :, :end], values[:, :, :end])
        self._advance(layer, 1)
        return mixed[:, :, 0]

    def keep(self, rows: Int[Tensor, "kept"]) -> None:
        """Let row i become what row rows[i] is, for each i; only rows that change are copied."""
        moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]
        for cache in (self.keys, self.values):
            cache[:, moved, :, : self.length] = cache[:, rows[moved], :, : self.length]

    def _advance(self, layer: int, num_tokens: int) -> None:
        if layer == len(self.keys) - 1:  # every layer writes the same places; the last one ends the step
            self.length += num_tokens
