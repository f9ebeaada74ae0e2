"""Our ESMFold block is that of transformers: the same update and gradients of the same weights."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from transformers.models.esm.configuration_esm import TrunkConfig
from transformers.models.esm.modeling_esmfold import EsmFoldTriangularSelfAttentionBlock

from structure import triangle
from structure.folding_block import FoldingBlock
from structure.published import packed_block
from structure.trunk import in_bf16, pair_mask

WIDTH, PAIR, HEADS, PAIR_HEADS = 64, 32, 4, 2


def blocks(seed: int = 0) -> tuple[nn.Module, FoldingBlock]:
    """Theirs, every weight of which matters, and ours with the same."""
    torch.manual_seed(seed)
    theirs = EsmFoldTriangularSelfAttentionBlock(
        TrunkConfig(
            sequence_state_dim=WIDTH, pairwise_state_dim=PAIR, sequence_head_width=WIDTH // HEADS,
            pairwise_head_width=PAIR // PAIR_HEADS,
        )
    ).eval()  # fmt: skip
    for weight in theirs.parameters():
        nn.init.normal_(weight, std=weight.shape[-1] ** -0.5 if weight.ndim > 1 else 0.5)
    ours = FoldingBlock(WIDTH, PAIR, HEADS, PAIR_HEADS).eval()
    ours.load_state_dict(packed_block(theirs.state_dict()))
    return theirs, ours


def inputs(length: int, padding: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Single, pair and mask of two proteins, the second with padding."""
    mask = torch.ones(2, length)
    mask[1, length - padding :] = 0
    return torch.randn(2, length, WIDTH), torch.randn(2, length, length, PAIR), mask


def relative(found: Tensor, expected: Tensor, before: Tensor) -> float:
    """Error of an update, as a share of it."""
    return float((found - expected).norm() / (expected - before).norm())


def assert_equal(found: Tensor, expected: Tensor, before: Tensor, mask: Tensor) -> None:
    real = mask.bool()
    assert relative(found[real].detach(), expected[real].detach(), before[real]) <= 1e-6
    assert (found - expected)[real].abs().max() <= 1e-5 * (expected - before)[real].abs().max()


@pytest.fixture(params=[True, False], ids=["gradients", "inference"])
def with_gradients(request: pytest.FixtureRequest) -> Iterator[None]:
    with torch.set_grad_enabled(request.param):
        yield


@pytest.mark.usefixtures("with_gradients")
@pytest.mark.parametrize(("length", "padding"), [(1, 0), (17, 0), (33, 9), (40, 7)])
def test_the_update_is_that_of_transformers(length: int, padding: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triangle, "CACHED_PAIRS", 200)  # several parts
    theirs, ours = blocks()
    single, pair, mask = inputs(length, padding)
    expected = theirs(single, pair, mask=mask)
    found = ours(single, pair.clone(), mask, pair_mask(mask))
    assert_equal(found[0], expected[0], single, mask)
    assert_equal(found[1], expected[1], pair, pair_mask(mask))


def test_gradients_are_those_of_transformers() -> None:
    theirs, ours = blocks()
    single, pair, mask = inputs(19, 5)
    weights = torch.randn(2, 19, 19, PAIR) * pair_mask(mask)[..., None], torch.randn(2, 19, WIDTH) * mask[..., None]
    leaves = []
    for block in (theirs, ours):
        s, z = single.clone().requires_grad_(), pair.clone().requires_grad_()
        out = block(s, z, mask=mask) if block is theirs else ours(s, z, mask, pair_mask(mask))
        ((out[1] * weights[0]).sum() + (out[0] * weights[1]).sum()).backward()
        leaves.append((s.grad, z.grad))
    for found, expected in zip(*reversed(leaves), strict=True):
        assert (found - expected).norm() <= 1e-6 * expected.norm()
    expected = packed_block({name: weight.grad for name, weight in theirs.named_parameters()})
    gradients = {name: weight.grad for name, weight in ours.named_parameters()}
    assert gradients.keys() == expected.keys()
    for (
        name,
        gradient,
    ) in gradients.items():  # a constant added to the bias of pairs changes nothing: 0 but for rounding
        assert (gradient - expected[name]).norm() <= 1e-5 * max(expected[name].norm(), 1), name


@pytest.mark.parametrize("length", [33, 70, 129])
def test_chunks_change_no_bit(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _, ours = blocks()
    single, pair, mask = inputs(length)
    single, pair, mask = single[:1], pair[:1], mask[:1]
    with torch.no_grad():
        whole = ours(single, pair.clone(), mask, pair_mask(mask), length)
        monkeypatch.setattr(triangle, "CACHED_PAIRS", 1 << 30)
        for chunk in (None, 1, 7, 64):
            given = pair.clone()
            found = ours(single, given, mask, pair_mask(mask), chunk)
            assert found[1] is given, "without gradients, the pairs are updated in place"
            assert torch.equal(found[0], whole[0]) and torch.equal(found[1], whole[1]), chunk


def test_bf16_is_near() -> None:
    """Products in bf16; pairs, residues and norms stay in fp32."""
    theirs, ours = blocks()
    single, pair, mask = inputs(40)
    with torch.no_grad():
        expected = theirs(single, pair, mask=mask)
        holder = nn.Module()
        holder.blocks = nn.ModuleList([ours])
        in_bf16(holder)
        found = ours(single, pair.clone(), mask, pair_mask(mask))
    assert found[0].dtype == found[1].dtype == torch.float32
    assert ours.outgoing.norm_out.weight.dtype == torch.float32
    errors = relative(found[0], expected[0], single), relative(found[1], expected[1], pair)
    assert all(1e-4 < error <= 6e-3 for error in errors), errors


def test_dropout_drops_whole_rows_and_columns() -> None:
    torch.manual_seed(0)
    for dim in (1, 2):
        dropped = triangle.SharedDropout(0.5, dim)(torch.ones(2, 9, 9, 8))
        assert torch.equal(dropped, dropped.select(dim, 0).unsqueeze(dim).expand_as(dropped))
        assert 0.3 < (dropped == 0).float().mean() < 0.7 and set(dropped.unique().tolist()) == {0.0, 2.0}
    assert triangle.SharedDropout(0.5, 1).eval()(torch.ones(2, 3, 3, 1)).all()


def test_dropout_changes_training_alone() -> None:
    block = FoldingBlock(WIDTH, PAIR, HEADS, PAIR_HEADS, dropout=0.2)
    block.load_state_dict(blocks()[1].state_dict())
    single, pair, mask = inputs(9)
    drawn = [block.train()(single, pair, mask, pair_mask(mask))[1] for _ in range(2)]
    assert not torch.allclose(*drawn)
    expected = blocks()[1](single, pair, mask, pair_mask(mask))[1]
    assert torch.equal(block.eval()(single, pair, mask, pair_mask(mask))[1], expected)
