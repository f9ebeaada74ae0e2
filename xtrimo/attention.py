"""Attention over a packed row, by one rule: q sees k iff both lie in the same segment and (k < prefix or k <= q).

A segment is (start, length, prefix), with q and k counted inside it. Prefix = length reads in both directions (MLM),
prefix 0 is causal, anything between is a bidirectional source followed by a causal target (GLM). No mask is ever built:
each segment falls apart into rectangles of queries and keys that are either seen in full or lower-triangular,

        keys:  source  target
    source     full    -            one rectangle
    target     full    causal       two rectangles whose softmaxes are merged by their log-sum-exp

and each rectangle is one call of torch's flash kernel. The cost is the sum of length^2, whatever the row's length.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from xtrimo.errors import XtrimoError

Heads = Float[Tensor, "token head width"]
Attend = Callable[[int, Heads, Heads, Heads], Heads]
"""(layer, q, k, v) -> mixed values; the model calls it, so that a KV cache can stand in for packed attention."""


class Block(NamedTuple):
    """Queries of one rectangle row, and the one or two key ranges they see: (start, end, is_causal)."""

    start: int
    end: int
    keys: tuple[tuple[int, int, bool], ...]


def blocks(segments: Int[Tensor, "segment 3"], num_tokens: int) -> Iterator[Block]:
    """Rectangles of a packed row.

    >>> [tuple(b) for b in blocks(torch.tensor([[0, 4, 4], [4, 5, 3]]), 9)]
    [(0, 4, ((0, 4, False),)), (4, 7, ((4, 7, False),)), (7, 9, ((4, 7, False), (7, 9, True)))]

    Raises:
        XtrimoError: if the segments do not tile a row of `num_tokens`.
    """
    done = 0
    for start, length, prefix in segments.tolist():
        if start != done or length < 1:  # the kernel would divide by zero, or leave rows undefined
            raise XtrimoError(f"a segment of {length} tokens starts at {start}; expected at least one from {done}")
        done += length
        end, middle = start + length, start + min(prefix, length)
        if prefix <= 1:  # the first token sees only itself either way
            yield Block(start, end, ((start, end, True),))
            continue
        yield Block(start, middle, ((start, middle, False),))
        if middle < end:
            yield Block(middle, end, ((start, middle, False), (middle, end, True)))
    if done != num_tokens:
        raise XtrimoError(f"the segments end at token {done} of a row of {num_tokens}; they must tile it")


def _heads_first(x: Tensor, start: int, end: int) -> Tensor:
    return x[start:end].transpose(0, 1)[None]  # (1, head, token, width), the kernel's layout; a view


class _FlashSegments(torch.autograd.Function):
    """The CPU flash kernel over all rectangles of a row, with one autograd node for the whole row.

    A slice per segment would cost a zero-filled row per segment in its backward. The backward kernel takes the merged
    output and log-sum-exp, which makes the gradient of each rectangle exact (the identity behind ring attention).
    """

    @staticmethod
    def forward(ctx, q, k, v, segments):  # type: ignore[no-untyped-def]
        exact = torch.promote_types(q.dtype, torch.float32)  # the kernel's bf16 backward takes twice as long
        dtype, (q, k, v) = q.dtype, (x.to(exact) for x in (q, k, v))
        out = torch.empty_like(v, memory_format=torch.contiguous_format)
        lse = torch.empty(q.shape[1], q.shape[0], dtype=exact)  # (head, token)
        ctx.blocks = list(blocks(segments, len(q)))
        for block in ctx.blocks:
            query = _heads_first(q, block.start, block.end)
            parts = [
                torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                    query, _heads_first(k, a, b), _heads_first(v, a, b), 0.0, causal
                )
                for a, b, causal in block.keys
            ]
            values, total = parts[0]
            if len(parts) == 2:
                other, other_lse = parts[1]
                first_lse, total = total, torch.logaddexp(total, other_lse)
                values = torch.lerp(other, values, (first_lse - total).exp()[..., None])
            out[block.start : block.end] = values[0].transpose(0, 1)
            lse[:, block.start : block.end] = total[0]
        ctx.save_for_backward(*(x.to(dtype) for x in (q, k, v, out)), lse)
        return out.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        *saved, lse = ctx.saved_tensors
        dtype, (grad, q, k, v, out) = grad.dtype, (x.to(lse.dtype) for x in (grad, *saved))
        grads = [torch.zeros_like(out) for _ in "qkv"]
        for block in ctx.blocks:
            rows = (block.start, block.end)
            for a, b, causal in block.keys:
                parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                    _heads_first(grad, *rows), _heads_first(q, *rows), _heads_first(k, a, b), _heads_first(v, a, b),
                    _heads_first(out, *rows), lse[None, :, rows[0] : rows[1]], 0.0, causal,
                )  # fmt: skip
                for total, part, (first, last) in zip(grads, parts, (rows, (a, b), (a, b)), strict=True):
                    total[first:last] += part[0].transpose(0, 1)
        return *(x.to(dtype) for x in grads), None


def _attend_by_autograd(q: Heads, k: Heads, v: Heads, segments: Int[Tensor, "segment 3"]) -> Heads:
    """The same through public SDPA, for any device: a target is computed as the tail of the whole causal segment."""
    out = []
    for block in blocks(segments, len(q)):
        start = block.keys[0][0]
        causal = block.keys[-1][2]
        query, key, value = (_heads_first(x, start, block.end) for x in (q, k, v))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        out.append(mixed[0, :, block.start - start :].transpose(0, 1))
    return torch.cat(out)


def attend(q: Heads, k: Heads, v: Heads, segments: Int[Tensor, "segment 3"]) -> Heads:
    """softmax(q k^T / sqrt(width)) v within each segment, under the rule above.

    Args:
        q, k, v: packed heads of one row.
        segments: rows [start, length, prefix] that tile the row in order.

    Raises:
        XtrimoError: if the segments do not tile the row.
    """
    if q.device.type == "cpu":
        out: Tensor = _FlashSegments.apply(q, k, v, segments)  # type: ignore[no-untyped-call]
        return out
    return _attend_by_autograd(q, k, v, segments)
