"""Packed attention against a dense masked softmax in double precision; no token x token tensor ever exists."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xtrimo.attention import attend, blocks
from xtrimo.config import GLMConfig
from xtrimo.errors import XtrimoError
from xtrimo.model import GLM
from xtrimo.testing import Largest

KINDS = {
    "causal": [(6, 0)],
    "prefix 1": [(6, 1)],
    "prefix 2": [(6, 2)],
    "prefix in the middle": [(9, 4)],
    "all but the last": [(7, 6)],
    "both directions": [(7, 7)],
    "prefix beyond the end": [(3, 9)],
    "one token": [(1, 0)],
    "one token, prefix 1": [(1, 1)],
    "two tokens": [(2, 1), (2, 2), (2, 0)],
    "a row of all": [(5, 5), (1, 1), (8, 3), (1, 0), (6, 0), (4, 3), (2, 1), (3, 3)],
}


def tile(lengths_and_prefixes: list[tuple[int, int]]) -> Tensor:
    """Segments [start, length, prefix] that follow each other from 0."""
    rows, start = [], 0
    for length, prefix in lengths_and_prefixes:
        rows.append([start, length, prefix])
        start += length
    return torch.tensor(rows)


def seen(segments: Tensor) -> Tensor:
    """The rule itself: [q, k] is true iff q and k share a segment and (k < prefix or k <= q), counted inside it."""
    total = int(segments[:, 1].sum())
    out = torch.zeros(total, total, dtype=torch.bool)
    for start, length, prefix in segments.tolist():
        k = torch.arange(length)
        for q in range(length):
            out[start + q, start : start + length] = (k < prefix) | (k <= q)
    return out


def dense(q: Tensor, k: Tensor, v: Tensor, segments: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(width)) v in double precision with the whole mask written out."""
    q, k, v = q.double(), k.double(), v.double()
    scores = torch.einsum("qhw,khw->hqk", q, k) / q.shape[-1] ** 0.5
    weights = scores.masked_fill(~seen(segments), float("-inf")).softmax(-1)
    return torch.einsum("hqk,khw->qhw", weights, v)


def draw(total: int, seed: int = 0, heads: int = 2, width: int = 16, scale: float = 1.0) -> list[Tensor]:
    """q, k, v and a gradient for the output; q, k, v are leaves."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v, out = (torch.randn(total, heads, width, generator=generator) for _ in range(4))
    return [(q * scale).requires_grad_(), k.requires_grad_(), v.requires_grad_(), out]


def compare(segments: Tensor, inputs: list[Tensor], atol: float) -> None:
    q, k, v, grad = inputs
    got, want = attend(q, k, v, segments), dense(q, k, v, segments)
    assert got.shape == v.shape and got.dtype == v.dtype
    torch.testing.assert_close(got.double(), want, rtol=0, atol=atol)
    theirs = torch.autograd.grad(want, (q, k, v), grad.double())
    for name, ours, reference in zip("qkv", torch.autograd.grad(got, (q, k, v), grad), theirs, strict=True):
        torch.testing.assert_close(ours, reference, rtol=0, atol=atol, msg=lambda m, name=name: f"grad of {name}: {m}")


@pytest.mark.parametrize("kind", KINDS)
def test_equals_dense_softmax(kind):
    segments = tile(KINDS[kind])
    compare(segments, draw(int(segments[:, 1].sum())), atol=1e-5)


ANY_ROW = st.lists(
    st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n + 1))), min_size=1, max_size=6
)


@settings(max_examples=40, deadline=None)
@given(row=ANY_ROW, seed=st.integers(0, 1000))
def test_equals_dense_softmax_on_any_row(row, seed):
    segments = tile(row)
    compare(segments, draw(int(segments[:, 1].sum()), seed, width=8), atol=1e-5)


def attend_by_chunks(borders: list[int], q: Tensor, k: Tensor, v: Tensor, segments: Tensor) -> Tensor:
    """The row's output from chunks of queries, as context-parallel ranks would compute it."""
    return torch.cat([attend(q[a:b], k, v, segments, first=a) for a, b in pairwise(borders)])


@settings(max_examples=100, deadline=None)
@given(row=ANY_ROW, cuts=st.sets(st.integers(1, 71), min_size=1, max_size=3))
def test_chunks_of_queries_make_the_row(row, cuts):
    """2 to 4 chunks, cut anywhere; in double precision, since a cut changes the order of the sums."""
    segments = tile(row)
    total = int(segments[:, 1].sum())
    q, k, v, grad = (x.detach().double().requires_grad_() for x in draw(total, width=8))
    chunked = attend_by_chunks(sorted({0, total, *(cut % total for cut in cuts)}), q, k, v, segments)
    ours = torch.autograd.grad(chunked, (q, k, v), grad)  # autograd adds the gradients of k and v up
    for whole in (attend(q, k, v, segments), dense(q, k, v, segments)):
        torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-12)
        for mine, theirs in zip(ours, torch.autograd.grad(whole, (q, k, v), grad), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("prefix", [0, 1, 33, 300, 599, 600])
def test_chunks_longer_than_the_kernels_tiles(prefix):
    segments = tile([(5, 5), (600, prefix)])
    q, k, v, grad = draw(605, heads=1)
    whole, chunked = attend(q, k, v, segments), attend_by_chunks([0, 3, 250, 400, 605], q, k, v, segments)
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-6)
    theirs, ours = (torch.autograd.grad(out, (q, k, v), grad) for out in (whole, chunked))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_a_chunk_gives_keys_it_does_not_see_no_gradient():
    segments = tile([(6, 6), (9, 4), (5, 0)])
    q, k, v, grad = draw(20)
    attend(q[8:12], k, v, segments, first=8).backward(grad[8:12])
    for x in (k, v):
        assert x.grad.shape == x.shape and x.grad[6:12].abs().min() > 0
        assert not x.grad[:6].any() and not x.grad[12:].any()


@pytest.mark.parametrize("first", [-1, 7])
def test_a_chunk_outside_of_the_row_is_refused(first):
    q, k, v, _ = (x.detach() for x in draw(10))
    with pytest.raises(XtrimoError, match=f"queries {first}..{first + 3} .* row of 10"):
        attend(q[:4], k, v, tile([(10, 10)]), first=first)


@pytest.mark.parametrize("prefix", [0, 1, 33, 300, 599, 600])
def test_segments_longer_than_the_kernels_tiles(prefix):
    segments = tile([(5, 5), (600, prefix)])
    compare(segments, draw(605, heads=1), atol=1e-5)


def test_peaked_scores_do_not_overflow():
    """Scores around +-300: the two halves of a target differ by hundreds of nats when they are merged."""
    segments = tile([(20, 10), (12, 0)])
    q, k, v, _ = draw(32, scale=100.0)
    got = attend(q, k, v, segments)
    torch.testing.assert_close(got.double(), dense(q, k, v, segments), rtol=0, atol=2e-4)
    got.sum().backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v))


@pytest.mark.parametrize("kind", ["causal", "both directions", "a row of all"])
def test_bf16_within_a_bound(kind):
    """Against exact attention of the same bf16 numbers: 2^-6 for values, 2^-4 for gradients of size up to 4."""
    segments = tile(KINDS[kind])
    q, k, v, grad = (x.detach().bfloat16() for x in draw(int(segments[:, 1].sum())))
    for x in (q, k, v):
        x.requires_grad_()
    got, want = attend(q, k, v, segments), dense(q, k, v, segments)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), want, rtol=0, atol=2**-6)
    theirs = torch.autograd.grad(want, (q, k, v), grad.double())
    for ours, reference in zip(torch.autograd.grad(got, (q, k, v), grad), theirs, strict=True):
        torch.testing.assert_close(ours.double(), reference.double(), rtol=0, atol=2**-4)


@pytest.mark.parametrize("kind", ["causal", "both directions", "a row of all"])
@pytest.mark.parametrize("most_scores", [1 << 22, 600])
def test_bf16_read_only_within_the_same_bound(kind, most_scores, monkeypatch):
    """Under inference mode by products, all heads at a time or a few rows of one."""
    monkeypatch.setattr("xtrimo.attention._MAX_SCORES", most_scores)
    segments = tile(KINDS[kind])
    total = int(segments[:, 1].sum())
    q, k, v, _ = (x.detach().bfloat16() for x in draw(total, heads=3))
    with torch.inference_mode():
        got = attend(q, k, v, segments)
        chunks = [attend(q[a:b], k, v, segments, a) for a, b in ((0, total // 3), (total // 3, total))]
    want = dense(q, k, v, segments)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), want, rtol=0, atol=2**-6)
    torch.testing.assert_close(torch.cat(chunks).double(), want, rtol=0, atol=2**-6)


def test_strided_inputs_and_gradients():
    """The model hands in slices of one [q, k, v] tensor."""
    segments = tile(KINDS["a row of all"])
    total = int(segments[:, 1].sum())
    qkv = torch.randn(total, 2, 3, 16, generator=torch.Generator().manual_seed(2), requires_grad=True)
    compare(segments, [*qkv.unbind(2), torch.ones(1).expand(total, 2, 16)], atol=1e-5)


def test_segments_do_not_see_each_other():
    """Exactly: other proteins of the row change no bit, not even with NaN in them."""
    segments = tile([(6, 6), (9, 4), (5, 0)])
    q, k, v, _ = (x.detach() for x in draw(20))
    alone = attend(q[6:15], k[6:15], v[6:15], tile([(9, 4)]))
    for x in (q, k, v):
        x[:6] = x[15:] = float("nan")
    assert torch.equal(attend(q, k, v, segments)[6:15], alone)


def test_double_precision():
    segments = tile(KINDS["a row of all"])
    inputs = [x.detach().double().requires_grad_() for x in draw(int(segments[:, 1].sum()))]
    compare(segments, inputs, atol=1e-12)


@pytest.mark.parametrize(
    "segments",
    [
        [[0, 5, 5]],
        [[0, 5, 5], [6, 4, 0]],
        [[0, 5, 5], [4, 6, 0]],
        [[5, 5, 0], [0, 5, 5]],
        [[0, 5, 5], [5, 6, 0]],
        [[0, 5, 5], [5, 0, 0], [5, 5, 0]],
    ],
    ids=["short", "gap", "overlap", "unordered", "long", "empty segment"],
)
def test_segments_that_do_not_tile_the_row_are_refused(segments):
    with pytest.raises(XtrimoError, match="segment"):
        attend(*(x.detach() for x in draw(10)[:3]), torch.tensor(segments))


@settings(max_examples=100, deadline=None)
@given(row=ANY_ROW, data=st.data())
def test_blocks_cover_what_is_seen_exactly_once(row, data):
    segments = tile(row)
    total = int(segments[:, 1].sum())
    first = data.draw(st.integers(0, total))
    last = data.draw(st.integers(first, total))
    times = torch.zeros(total, total, dtype=torch.int64)
    for block in blocks(segments, first, last):
        for start, end, causal in block.keys:
            area = torch.ones(block.end - block.start, end - start, dtype=torch.int64)
            times[block.start : block.end, start:end] += area.tril() if causal else area
    assert torch.equal(times[first:last], seen(segments).long()[first:last])
    assert not times[:first].any() and not times[last:].any()


LONG = 8192
ROWS = {
    "mlm": [(64, 64)] * (LONG // 64),
    "glm": [(64, 20)] * (LONG // 64),
    "causal": [(64, 0)] * (LONG // 64),
}


def test_the_recorder_sees_a_token_by_token_tensor():
    q, k, v, _ = draw(40)
    with Largest() as largest:
        dense(q, k, v, tile([(40, 40)])).sum().backward()
    assert largest.elements >= 40 * 40 * 2


@pytest.mark.parametrize("row", ROWS)
def test_attention_allocates_nothing_larger_than_its_input(row):
    q, k, v, grad = draw(LONG, heads=2, width=8)
    segments = tile(ROWS[row])
    with Largest() as largest:
        attend(q, k, v, segments).backward(grad)
    assert largest.elements == q.numel()


def test_one_long_segment_allocates_nothing_quadratic_inside_the_kernel():
    """The recorder cannot look into a kernel; the profiler counts every allocation, in bytes."""
    q, k, v, grad = draw(2048, heads=1, width=8)
    with torch.profiler.profile(profile_memory=True) as profile:
        attend(q, k, v, tile([(2048, 2048)])).backward(grad)
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert 0 < largest < 2048 * 2048  # a quarter of one fp32 score matrix


@pytest.mark.parametrize("row", ROWS)
def test_model_allocates_nothing_quadratic(row):
    config = GLMConfig(num_layers=2, hidden_size=16, num_heads=2, ffn_size=24)
    model = GLM(config)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 28, (LONG,), generator=generator)
    positions = torch.stack([torch.arange(LONG) % 64, torch.zeros(LONG, dtype=torch.int64)], dim=1)
    with Largest() as largest:
        model(tokens, positions, tile(ROWS[row])).logsumexp(-1).sum().backward()
    assert largest.elements == LONG * config.vocab_size  # the logits are the largest thing there is
