"""The CUDA path as far as a CPU can tell: the block mask against the rule, FlexAttention against the flash kernel."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import flex_attention as torch_flex
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from xtrimo import flex_attention
from xtrimo.attention import attend
from xtrimo.errors import XtrimoError
from xtrimo.flex_attention import attend_by_flex, row_mask
from xtrimo.testing import Largest


def tile(lengths_and_prefixes: list[tuple[int, int]]) -> Tensor:
    """Segments [start, length, prefix] that follow each other from 0."""
    lengths, prefixes = torch.tensor(lengths_and_prefixes).unbind(1)
    return torch.stack([lengths.cumsum(0) - lengths, lengths, prefixes], dim=1)


def proteins(num_tokens: int) -> Tensor:
    """A row of short segments of all kinds."""
    lengths = torch.randint(50, 600, (num_tokens // 50,), generator=torch.Generator().manual_seed(0))
    lengths = lengths[: int((lengths.cumsum(0) < num_tokens).sum())].tolist()
    lengths.append(num_tokens - sum(lengths))
    return tile([(length, (length, length // 2, 0)[i % 3]) for i, length in enumerate(lengths)])


def seen(segments: Tensor) -> Tensor:
    """The rule itself: [q, k] is true iff q and k share a segment and (k < prefix or k <= q), counted inside it."""
    total = int(segments[:, 1].sum())
    out = torch.zeros(total, total, dtype=torch.bool)
    for start, length, prefix in segments.tolist():
        for q in range(length):
            for k in range(length):
                out[start + q, start + k] = k < prefix or k <= q
    return out


def listed(counts: Tensor, numbers: Tensor, num_blocks: int) -> Tensor:
    """A table of block numbers as a bool matrix; each row's numbers rise, and lie among the `num_blocks`."""
    out = torch.zeros(counts.shape[-1], num_blocks, dtype=torch.bool)
    assert numbers.min() >= 0 and numbers.max() < num_blocks
    for row, count in enumerate(counts[0, 0].tolist()):
        mine = numbers[0, 0, row, :count].tolist()
        assert mine == sorted(set(mine))
        out[row, mine] = True
    return out


def matrices(mask: BlockMask) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(partial, full) blocks by query block x key block, as the forward kernel and as the backward one read them."""
    num_queries, num_keys = (-(-size // block) for size, block in zip(mask.seq_lengths, mask.BLOCK_SIZE, strict=True))
    return (
        listed(mask.kv_num_blocks, mask.kv_indices, num_keys),
        listed(mask.full_kv_num_blocks, mask.full_kv_indices, num_keys),
        listed(mask.q_num_blocks, mask.q_indices, num_queries).T,
        listed(mask.full_q_num_blocks, mask.full_q_indices, num_queries).T,
    )


def as_used(mask: BlockMask, partial: Tensor, full: Tensor) -> Tensor:
    """What the kernel lets each query see: full blocks unmasked, partial ones under the mask, others not at all."""
    (num_queries, num_tokens), (block, _) = mask.seq_lengths, mask.BLOCK_SIZE
    q, k = torch.arange(num_queries)[:, None], torch.arange(num_tokens)[None, :]
    under = mask.mask_mod(torch.tensor(0), torch.tensor(0), q, k)
    q, k = q // block, k // block
    return full[q, k] | (partial[q, k] & under)


ANY_ROW = st.lists(
    st.integers(1, 25).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n + 1))), min_size=1, max_size=6
)


@settings(max_examples=150, deadline=None)
@given(row=ANY_ROW, block=st.sampled_from([1, 3, 4, 8, 16, 128]), data=st.data())
def test_the_block_mask_is_the_rule(row, block, data):
    """On any chunk of any row; and the blocks are those that torch finds by evaluating the mask everywhere."""
    segments = tile(row)
    total = int(segments[:, 1].sum())
    first = data.draw(st.integers(0, total - 1))
    num_queries = data.draw(st.integers(1, total - first))
    mask = row_mask(segments, first, num_queries, total, block=block)
    partial, full, partial_by_key, full_by_key = matrices(mask)
    assert torch.equal(partial, partial_by_key) and torch.equal(full, full_by_key) and not (partial & full).any()
    assert torch.equal(as_used(mask, partial, full), seen(segments)[first : first + num_queries])
    theirs = create_block_mask(mask.mask_mod, None, None, num_queries, total, device="cpu", BLOCK_SIZE=block)
    for ours, reference in zip((partial, full), matrices(theirs), strict=False):
        assert torch.equal(ours, reference)


def test_queries_beyond_the_chunk_see_nothing():
    """The kernel evaluates the mask for whole blocks of them, whatever lies in memory beyond the last."""
    mask = row_mask(tile([(5, 5), (9, 0)]), 2, 10, 14, block=4)
    for query in range(10, 12):
        assert not any(mask.mask_mod(None, None, torch.tensor(query), torch.tensor(key)) for key in range(16))


@pytest.mark.parametrize("num_tokens", [16_384, 131_072])
def test_a_row_of_short_proteins_costs_memory_for_its_tokens(num_tokens):
    with Largest() as largest:
        mask = row_mask(proteins(num_tokens), 0, num_tokens, num_tokens)
    assert largest.elements == num_tokens
    tables = [getattr(mask, name) for name in BlockMask._TENSOR_ATTRS]
    assert sum(table.numel() for table in tables if table is not None) < num_tokens / 2


def test_one_protein_as_long_as_the_row_costs_a_table_of_blocks():
    num_tokens = 16_384
    with Largest() as largest:
        row_mask(tile([(num_tokens, num_tokens)]), 0, num_tokens, num_tokens)
    assert largest.elements == max(num_tokens, (num_tokens // 128) ** 2)


ALONE = "XTRIMO_TEST_ALONE"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounterWithBackend]:
    """The kernel as on CUDA, traced forward and backward down to torch's own operators; counts the compilations."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)  # refuses gradients on a CPU
    flex_attention._kernel.cache_clear()
    with torch._dynamo.config.patch(recompile_limit=1):  # as if others had used up torch's own limit
        yield counter
    flex_attention._kernel.cache_clear()


def chunks() -> Iterator[tuple[Tensor, int, int]]:
    """(segments, first, number of queries): whole rows and chunks, below and above one block."""
    rows = [[(40, 40)], [(300, 300), (9, 0), (70, 33)], [(129, 0)], [(700, 350), (1, 1)], [(30, 0)] * 30]
    for segments in map(tile, rows):
        total = int(segments[:, 1].sum())
        yield segments, 0, total
        for a, b in pairwise((0, total // 3, total // 2, total)):
            yield segments, a, b - a


def test_outputs_and_gradients_are_those_of_the_flash_kernel(compiled):
    generator = torch.Generator().manual_seed(0)
    for segments, first, num_queries in chunks():
        total = int(segments[:, 1].sum())
        qkv = torch.randn(total, 2, 3, 16, generator=generator, requires_grad=True)
        q, k, v = qkv.unbind(2)  # strided, as the model's
        q = q[first : first + num_queries]
        grad = torch.randn(num_queries, 2, 16, generator=generator)
        ours, theirs = (f(q, k, v, segments, first) for f in (attend_by_flex, attend))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        gradients = (torch.autograd.grad(out, qkv, grad) for out in (ours, theirs))
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-5)
    assert compiled.frame_count <= 5 or ALONE not in os.environ  # for 20 shapes


def test_few_shapes_are_compiled():
    """In a process of its own: what another test has compiled decides which sizes torch takes for fixed."""
    test = f"{__file__}::{test_outputs_and_gradients_are_those_of_the_flash_kernel.__name__}"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    done = subprocess.run(command, env=os.environ | {ALONE: "1"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(not shutil.which("g++"), reason="torch compiles its CPU kernel with g++")
def test_the_tables_drive_a_compiled_kernel(monkeypatch):
    """torch's for CPUs, which like the one for CUDA computes listed blocks only; it wants tables of full width."""
    kernel = flex_attention._kernel()

    def widened(query: Tensor, key: Tensor, value: Tensor, *, block_mask: BlockMask, kernel_options: dict) -> Tensor:
        missing = (0, -(-key.shape[2] // 128) - block_mask.kv_indices.shape[-1])
        block_mask.kv_indices = F.pad(block_mask.kv_indices, missing)
        block_mask.full_kv_indices = F.pad(block_mask.full_kv_indices, missing)
        return kernel(query, key, value, block_mask=block_mask, kernel_options=kernel_options)

    monkeypatch.setattr(flex_attention, "_kernel", lambda: widened)
    flex_attention._kept_mask.cache_clear()  # widened masks are changed masks
    for segments, first in ((proteins(2000), 300), (tile([(1700, 1700), (500, 200), (900, 0)]), 1000)):
        total = int(segments[:, 1].sum())
        q, k, v = torch.randn(3, total, 2, 16, generator=torch.Generator().manual_seed(1)).unbind()
        q = q[first:-100]
        with torch.no_grad():
            ours, theirs = (f(q, k, v, segments, first) for f in (attend_by_flex, attend))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    flex_attention._kept_mask.cache_clear()


def test_the_layers_of_a_model_share_the_mask(monkeypatch):
    masks = []

    def kernel(query: Tensor, key: Tensor, value: Tensor, *, block_mask: BlockMask, kernel_options: dict) -> Tensor:
        masks.append(block_mask)
        return query

    monkeypatch.setattr(flex_attention, "_kernel", lambda: kernel)
    x = torch.randn(20, 2, 16)
    for segments, first in (([(20, 20)], 0), ([(20, 20)], 0), ([(20, 20)], 5), ([(20, 0)], 0)):
        attend_by_flex(x[first:], x, x, tile(segments), first)  # recomputation hands on another tensor
    assert masks[0] is masks[1] and len(set(map(id, masks))) == 3


def test_heads_beyond_the_cpu_go_to_flex(monkeypatch):
    called = []
    monkeypatch.setattr(flex_attention, "attend_by_flex", lambda q, *rest: called.append(rest[-2:]) or q)
    x, segments = torch.empty(9, 2, 16, device="meta"), tile([(9, 0)])
    attend(x[3:], x, x, segments, first=3)
    assert len(called) == 1 and called[0][0] is segments and called[0][1] == 3


def test_segments_that_do_not_tile_the_row_are_refused():
    x = torch.randn(20, 2, 16)
    with pytest.raises(XtrimoError, match="segments end at token 15"):
        attend_by_flex(x, x, x, tile([(15, 15)]))
