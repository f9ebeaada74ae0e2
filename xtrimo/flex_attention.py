"""Attention over a packed row on CUDA: torch's FlexAttention, told which blocks of the scores hold anything.

Under the rule of attention.py query q sees one interval of keys, [lows[q], highs[q]): from the start of its segment to
the end of the prefix, or to itself where that is later. Along a row neither border ever falls, so the blocks of keys
that a block of queries a .. b-1 needs are known from four numbers, and no mask is built to find them:

    seen by some of its queries      [lows[a], highs[b-1])
    seen by every one of them        [lows[b-1], highs[a])      "full" blocks, which the kernel does not mask

Blocks that are seen but not full are masked token by token, by the two borders themselves. A table of block numbers has
as many columns as its fullest row needs: a row of T tokens of short proteins takes O(T) memory in all, a single protein
as long as the row (T / 128)^2 block numbers.

Not yet run on a GPU. Tested on the CPU: the tables and the mask against the rule, outputs and gradients of the traced
FlexAttention against the flash kernel's, and torch's compiled CPU kernel on these tables.
"""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from xtrimo.attention import require_tiling

BLOCK = 128
"""Queries and keys of a block; the kernel's own default."""
ROWS_KEPT = 8
"""Rows whose masks are kept: as many as a pipeline has under way between a forward pass and its recomputation."""


def attend_by_flex(
    q: Float[Tensor, "query head width"],
    k: Float[Tensor, "token head width"],
    v: Float[Tensor, "token head width"],
    segments: Int[Tensor, "segment 3"],
    first: int = 0,
) -> Float[Tensor, "query head width"]:
    """`attention.attend` through the compiled kernel, which asks for a head width of at least 16.

    The first call compiles it for rows of any length. The layers of a model share a row's mask, so that the segments,
    which lie on the CPU, are read and the mask moved to the device once a row.
    """
    rows = segments.to("cpu", torch.int64).numpy().tobytes()
    mask = _kept_mask(rows, first, len(q), len(k), q.device)
    query, key, value = (x.transpose(0, 1)[None] for x in (q, k, v))  # (1, head, token, width); views
    # the kernel for short queries would want tables as wide as the row
    mixed: Tensor = _kernel()(query, key, value, block_mask=mask, kernel_options={"FORCE_USE_FLEX_ATTENTION": True})
    return mixed[0].transpose(0, 1)


@cache
def _kernel() -> Callable[..., Any]:
    # Rows differ in length, and each length would be compiled. Uncompiled, FlexAttention builds the token x token
    # scores; with fullgraph torch raises before it falls back to that. For sizes that are 1 or happen to be equal it
    # compiles anew, and the ninth time, by anyone in the process, would be an error: hence a limit out of reach.
    compiled = torch.compile(flex_attention, dynamic=True, fullgraph=True)
    patient: Callable[..., Any] = torch._dynamo.config.patch(recompile_limit=64)(compiled)
    return patient


@lru_cache(maxsize=ROWS_KEPT)
def _kept_mask(rows: bytes, first: int, num_queries: int, num_tokens: int, device: torch.device) -> BlockMask:
    # Keyed by content: recomputation and pipelines hand the segments on as another tensor.
    segments = torch.frombuffer(bytearray(rows), dtype=torch.int64).view(-1, 3)
    return row_mask(segments, first, num_queries, num_tokens, device=device)


class _Ranges(NamedTuple):
    """For each block of queries (or keys) the blocks of keys (queries) that it meets: [seen_from, seen_to) at all, and
    [full_from, full_to) in full.
    """

    seen_from: Int[Tensor, "block"]
    seen_to: Int[Tensor, "block"]
    full_from: Int[Tensor, "block"]
    full_to: Int[Tensor, "block"]

    def counts(self) -> tuple[Tensor, Tensor]:
        """Number of blocks met in part, number met in full."""
        num_full = (self.full_to - self.full_from).clamp(min=0)
        return self.seen_to - self.seen_from - num_full, num_full

    def transposed(self, num_blocks: int) -> "_Ranges":
        """Read from the other side, which has `num_blocks`: no border ever falls, so the borders passed are counted."""
        blocks = torch.arange(num_blocks)
        seen_to, seen_from, full_to, full_from = (torch.searchsorted(x, blocks, right=True) for x in self)
        return _Ranges(seen_from, seen_to, full_from, full_to)

    def tables(self, width: int, num_blocks: int, device: torch.device | str) -> list[Tensor]:
        """Count and numbers of the partial blocks, count and numbers of the full ones, out of `num_blocks`.

        The kernel's format: numbers rise, and those beyond the count of a row mean nothing.
        """
        num_partial, num_full = self.counts()
        columns = torch.arange(width)
        partial = self.seen_from[:, None] + columns  # with a gap where the full ones are
        partial += (partial >= self.full_from[:, None]) * num_full[:, None]
        full = self.full_from[:, None] + columns
        tables = (num_partial, partial.clamp(max=num_blocks - 1), num_full, full.clamp(max=num_blocks - 1))
        return [table.to(device, torch.int32)[None, None] for table in tables]  # one for all batches and heads


def row_mask(
    segments: Int[Tensor, "segment 3"],
    first: int,
    num_queries: int,
    num_tokens: int,
    *,
    block: int = BLOCK,
    device: torch.device | str = "cpu",
) -> BlockMask:
    """What the queries first .. first + num_queries - 1 of a row of `num_tokens` see, computed on the CPU.

    Raises:
        XtrimoError: if the segments do not tile the row.
    """
    require_tiling(segments, num_tokens)
    lows, highs = _borders(segments, first, num_queries)
    begins = torch.arange(0, num_queries, block)
    ends = (begins + block).clamp(max=num_queries)
    num_keys = -(-num_tokens // block)  # in blocks, rounded up
    is_whole = ends - begins == block  # as in torch's own masks, a block that sticks out of the row is never full
    by_query = _Ranges(
        seen_from=lows[begins] // block,
        seen_to=-(-highs[ends - 1] // block),
        full_from=torch.where(is_whole, -(-lows[ends - 1] // block), num_keys),
        full_to=highs[begins] // block,
    )
    by_key = by_query.transposed(num_keys)
    # One width for all tables, and at least 2: torch compiles anew for a size of 1.
    width = max(2, *(int(count.max()) for count in (*by_query.counts(), *by_key.counts())))
    kv_num_blocks, kv_indices, full_kv_num_blocks, full_kv_indices = by_query.tables(width, num_keys, device)
    q_num_blocks, q_indices, full_q_num_blocks, full_q_indices = by_key.tables(width, len(begins), device)
    # The kernel looks up whole blocks of queries; those beyond the chunk see nothing.
    missing = (0, len(begins) * block - num_queries)
    lows = F.pad(lows, missing, value=num_tokens).to(device, torch.int32)
    highs = F.pad(highs, missing, value=0).to(device, torch.int32)
    return BlockMask(  # its mask is a lambda, which the type checks of tests leave as it is: torch traces it
        (num_queries, num_tokens),
        kv_num_blocks, kv_indices, full_kv_num_blocks, full_kv_indices,
        q_num_blocks, q_indices, full_q_num_blocks, full_q_indices,
        BLOCK_SIZE=(block, block),
        mask_mod=lambda batch, head, query, key: (lows[query] <= key) & (key < highs[query]),
    )  # fmt: skip


def _borders(segments: Int[Tensor, "segment 3"], first: int, num_queries: int) -> tuple[Tensor, Tensor]:
    """For each query of the chunk the first key that it sees, and the first after those."""
    starts, lengths, prefixes = segments.unbind(1)
    prefix_ends = starts + torch.minimum(prefixes, lengths)
    lows, of_prefix = (x.repeat_interleave(lengths)[first : first + num_queries] for x in (starts, prefix_ends))
    return lows, torch.maximum(of_prefix, torch.arange(first, first + num_queries) + 1)
