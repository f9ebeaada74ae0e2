"""Attention over a packed row, by one rule: q sees k iff both lie in the same segment and (k < prefix or k <= q).

A segment is (start, length, prefix), with q and k counted inside it. Prefix = length reads in both directions (MLM),
prefix 0 is causal, anything between is a bidirectional source followed by a causal target (GLM). No mask is ever built:
each segment falls apart into rectangles of queries and keys that are either seen in full or lower-triangular,

        keys:  source  target
    source     full    -            one rectangle
    target     full    causal       two rectangles whose softmaxes are merged by their log-sum-exp

and each rectangle is one call of torch's flash kernel for CPUs; other devices go through flex_attention.py. The cost is
the sum of length^2, whatever the row's length.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from xtrimo.errors import XtrimoError

Heads = Float[Tensor, "token head width"]
Queries = Float[Tensor, "query head width"]
Attend = Callable[[int, Heads, Heads, Heads], Heads]
"""(layer, q, k, v) -> mixed values; the model calls it, so that a KV cache can stand in for packed attention."""


_MAX_SCORES = 1 << 22  # held at a time by `_mix_by_products`, 8 MB of bf16


class Block(NamedTuple):
    """Queries of one rectangle row, and the one or two key ranges they see: (start, end, is_causal)."""

    start: int
    end: int
    keys: tuple[tuple[int, int, bool], ...]


def require_tiling(segments: Int[Tensor, "segment 3"], num_tokens: int) -> None:
    """Refuse segments that do not tile a row of `num_tokens` in order.

    Raises:
        XtrimoError: naming the first segment that is out of place.
    """
    done = 0
    for start, length, _ in segments.tolist():
        if start != done or length < 1:  # the kernel would divide by zero, or leave rows undefined
            raise XtrimoError(f"a segment of {length} tokens starts at {start}; expected at least one from {done}")
        done += length
    if done != num_tokens:
        raise XtrimoError(f"the segments end at token {done} of a row of {num_tokens}; they must tile it")


def blocks(segments: Int[Tensor, "segment 3"], first: int, last: int) -> Iterator[Block]:
    """Rectangles of the queries first .. last-1 of a packed row; segments without such a query have none.

    >>> segments = torch.tensor([[0, 4, 4], [4, 5, 3]])
    >>> [tuple(b) for b in blocks(segments, 0, 9)]
    [(0, 4, ((0, 4, False),)), (4, 7, ((4, 7, False),)), (7, 9, ((4, 7, False), (7, 9, True)))]
    >>> [tuple(b) for b in blocks(segments, 2, 8)]
    [(2, 4, ((0, 4, False),)), (4, 7, ((4, 7, False),)), (7, 8, ((4, 7, False), (7, 8, True)))]
    """
    for start, length, prefix in segments.tolist():
        # of a prefix of 1 the one token sees only itself, which is causal
        middle, end = start + (min(prefix, length) if prefix > 1 else 0), start + length
        a, b = max(start, first), min(middle, last)
        if a < b:
            yield Block(a, b, ((start, middle, False),))
        a, b = max(middle, first), min(end, last)
        if a < b:  # what came before the first of these queries is seen by all of them
            before = ((start, a, False),) if start < a else ()
            yield Block(a, b, (*before, (a, b, True)))


def _heads_first(x: Tensor, start: int, end: int) -> Tensor:
    return x[start:end].transpose(0, 1)[None]  # (1, head, token, width), the kernel's layout; a view


def _mix(block: Block, q: Queries, k: Heads, v: Heads) -> tuple[Queries, Float[Tensor, "head query"]]:
    """Outputs of one block's queries `q`, and the log-sum-exp of their scores; k and v are of the whole row."""
    query = _heads_first(q, 0, len(q))
    parts = [
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, _heads_first(k, a, b).to(q.dtype), _heads_first(v, a, b).to(q.dtype), 0.0, causal
        )
        for a, b, causal in block.keys
    ]
    values, total = parts[0]
    if len(parts) == 2:
        other, other_lse = parts[1]
        its_lse, total = total, torch.logaddexp(total, other_lse)
        values = torch.lerp(other, values, (its_lse - total).exp()[..., None])
    return values[0].transpose(0, 1), total[0]


def _mix_by_products(q: Queries, k: Heads, v: Heads, out: Queries) -> None:
    """Outputs of queries that see all keys, by two half-precision products with a softmax between them.

    The flash kernel multiplies in fp32 speed whatever its input, so this is 1.3 times as fast for narrow heads. As many
    heads at a time as keep the scores in the cache, and of a very long protein fewer rows: what is held does not grow.
    """
    num_heads, scale = q.shape[1], q.shape[2] ** -0.5
    num_rows = min(len(q), max(1, _MAX_SCORES // len(k)))
    at_once = max(1, _MAX_SCORES // (num_rows * len(k)))
    q, k, v, out = (x.transpose(0, 1) for x in (q, k, v, out))  # (head, token, width)
    for heads in (slice(h, h + at_once) for h in range(0, num_heads, at_once)):
        keys = k[heads].transpose(1, 2)
        for rows in (slice(r, r + num_rows) for r in range(0, q.shape[1], num_rows)):
            scores = torch.baddbmm(q.new_empty(()), q[heads, rows], keys, beta=0, alpha=scale)
            out[heads, rows] = torch.bmm(torch.softmax(scores, dim=-1, out=scores), v[heads])


class _FlashSegments(torch.autograd.Function):
    """The CPU flash kernel over all rectangles of a row, with one autograd node for the whole row.

    A slice per segment would cost a zero-filled row per segment in its backward. The backward kernel takes the merged
    output and log-sum-exp, which makes the gradient of each rectangle exact (the identity behind ring attention).
    """

    @staticmethod
    def forward(ctx, q, k, v, segments, first):  # type: ignore[no-untyped-def]
        exact = torch.promote_types(q.dtype, torch.float32)  # the kernel's bf16 backward takes twice as long
        dtype, (q, k, v) = q.dtype, (x.to(exact) for x in (q, k, v))
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        lse = torch.empty(q.shape[1], q.shape[0], dtype=exact)  # (head, query)
        ctx.first, ctx.blocks = first, list(blocks(segments, first, first + len(q)))
        for block in ctx.blocks:
            rows = slice(block.start - first, block.end - first)
            out[rows], lse[:, rows] = _mix(block, q[rows], k, v)
        ctx.save_for_backward(*(x.to(dtype) for x in (q, k, v, out)), lse)
        return out.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        *saved, lse = ctx.saved_tensors
        dtype, (grad, q, k, v, out) = grad.dtype, (x.to(lse.dtype) for x in (grad, *saved))
        grads = [x.new_zeros(x.shape) for x in (q, k, v)]
        for block in ctx.blocks:
            rows = (block.start - ctx.first, block.end - ctx.first)
            for a, b, causal in block.keys:
                parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                    _heads_first(grad, *rows), _heads_first(q, *rows), _heads_first(k, a, b), _heads_first(v, a, b),
                    _heads_first(out, *rows), lse[None, :, rows[0] : rows[1]], 0.0, causal,
                )  # fmt: skip
                for total, part, (first, last) in zip(grads, parts, (rows, (a, b), (a, b)), strict=True):
                    total[first:last] += part[0].transpose(0, 1)
        return *(x.to(dtype) for x in grads), None, None


def _read_only(q: Queries, k: Heads, v: Heads, segments: Int[Tensor, "segment 3"], first: int) -> Queries:
    """`attend` where no gradient will be asked for; only half precision has a faster way than the flash kernel."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for block in blocks(segments, first, first + len(q)):
        rows = slice(block.start - first, block.end - first)
        ((a, b, causal), *more) = block.keys
        if causal or more:
            out[rows] = _mix(block, q[rows].float(), k, v)[0]
        else:
            _mix_by_products(q[rows], k[a:b], v[a:b], out[rows])
    return out


def attend(q: Queries, k: Heads, v: Heads, segments: Int[Tensor, "segment 3"], first: int = 0) -> Queries:
    """softmax(q k^T / sqrt(width)) v within each segment, under the rule above.

    A context-parallel rank asks for its chunk of a row: its own queries, the gathered keys and values of the whole row.
    Laid end to end, the outputs of the chunks are the row's; added up, so are their gradients of k and v.

    Args:
        q: the row's tokens first .. first + len(q) - 1; by default all of them.
        k, v: all tokens of the row.
        segments: rows [start, length, prefix] that tile the row in order; on the CPU, wherever the heads are.

    Raises:
        XtrimoError: if the segments do not tile the row, or the queries lie outside of it.
    """
    if not 0 <= first <= len(k) - len(q):
        raise XtrimoError(f"queries {first}..{first + len(q) - 1} are outside of a row of {len(k)} tokens")
    if q.device.type == "cpu":
        require_tiling(segments, len(k))
        if q.dtype == torch.bfloat16 and torch.is_inference_mode_enabled():
            return _read_only(q, k, v, segments, first)
        out: Tensor = _FlashSegments.apply(q, k, v, segments, first)  # type: ignore[no-untyped-call]
        return out
    from xtrimo.flex_attention import attend_by_flex  # compiles kernels, which a CPU does without

    return attend_by_flex(q, k, v, segments, first)


def shares(q: Heads, k: Heads, prefix: int) -> Float[Tensor, "head query key"]:
    """softmax(q k^T / sqrt(width)) of one segment with this prefix, formed in full: for eyes, not for speed."""
    place = torch.arange(len(q), device=q.device)
    seen = (place < prefix) | (place <= place[:, None])
    scores = torch.einsum("qhw,khw->hqk", q.float(), k.float()) / q.shape[-1] ** 0.5
    return scores.masked_fill(~seen, float("-inf")).softmax(-1)


def within(segments: Int[Tensor, "segment 3"]) -> Attend:
    """Attention over the segments of one packed row, as a model calls it."""
    return lambda _, q, k, v: attend(q, k, v, segments)
