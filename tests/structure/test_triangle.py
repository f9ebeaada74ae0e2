"""Triangle multiplication against its definition, and the same numbers however the work is cut."""

import pytest
import torch
from torch import Tensor, nn

from structure import triangle
from structure.triangle import PairBlock, Transition, TriangleMultiplication, parts, rows_at_once


def filled(module: nn.Module, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    for weight in module.parameters():
        nn.init.normal_(weight, std=0.3)
    return module


def normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return nn.functional.layer_norm(x, x.shape[-1:], norm.weight, norm.bias)


def by_definition(layer: TriangleMultiplication, z: Tensor, mask: Tensor) -> Tensor:
    """Algorithms 11 and 12, triangle by triangle."""
    x = normed(layer.norm_in, z)
    projected, gated = x @ layer.project_in.weight.T, torch.sigmoid(x @ layer.gate_in.weight.T)
    sides = projected * gated * mask[..., None]
    a, b = sides[..., : layer.width], sides[..., layer.width :]
    found = torch.zeros_like(z)
    length = z.shape[1]
    for i in range(length):
        for j in range(length):
            for k in range(length):
                found[:, i, j] += a[:, i, k] * b[:, j, k] if layer.outgoing else a[:, k, i] * b[:, k, j]
    return z + torch.sigmoid(layer.gate_out(x)) * (normed(layer.norm_out, found) @ layer.project_out.weight.T)


@pytest.mark.parametrize("outgoing", [True, False])
def test_definition(outgoing: bool) -> None:
    layer = filled(TriangleMultiplication(4, outgoing=outgoing).double())
    z, mask = torch.randn(2, 6, 6, 4).double(), torch.ones(2, 6, 6).double()
    mask[1, 4:] = mask[1, :, 4:] = 0
    torch.testing.assert_close(layer(z, mask), by_definition(layer, z, mask), rtol=1e-12, atol=1e-12)


def test_transition_is_a_network_of_each_pair() -> None:
    layer, z = filled(Transition(4)), torch.randn(1, 5, 5, 4)
    expected = z + layer.contract(torch.relu(layer.expand(layer.norm(z))))
    torch.testing.assert_close(layer(z), expected)


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("length", [33, 70])
def test_chunks_change_no_bit(width: int, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does the cache: whole, cut as it asks, and cut finer."""
    block = filled(PairBlock(width))
    z, mask = torch.randn(1, length, length, width), torch.ones(1, length, length)
    calls: list[int] = []

    def counted(size: int, chunk: int) -> object:
        found = list(parts(size, chunk))
        calls.append(len(found))
        return found

    monkeypatch.setattr(triangle, "parts", counted)
    whole = block(z.clone(), mask)
    assert not calls, "with gradients, nothing is cut"
    for cached, chunk, rows in (
        (1 << 30, None, 1 << 20),
        (1000, None, 1000 // length),
        (1 << 30, 7, 7),
        (1 << 30, 1, 1),
    ):
        calls.clear()
        monkeypatch.setattr(triangle, "CACHED_PAIRS", cached)
        given = z.clone()
        with torch.no_grad():
            cut = block(given, mask, chunk)
        assert torch.equal(cut, whole), (cached, chunk)
        assert cut is given, "without gradients, the pairs are updated in place"
        assert calls == [-(-n // rows) for n in (length, width, length) * 2 + (length,)], "the path did not run"


def test_rows_fill_the_cache_and_never_more_than_the_chunk() -> None:
    def rows(length: int, chunk: int | None, batch: int = 1) -> int:
        return rows_at_once(torch.empty(batch, length, length, 1, device="cpu"), chunk)

    assert [rows(256, None), rows(256, 64), rows(256, 7), rows(256, None, 4)] == [16, 16, 7, 4]
    assert [rows(5000, None), rows(1, None)] == [1, 4096]


def test_a_new_block_adds_nothing() -> None:
    z, mask = torch.randn(1, 9, 9, 8), torch.ones(1, 9, 9)
    assert torch.equal(PairBlock(8)(z, mask), z)


def test_padding_adds_nothing() -> None:
    block = filled(PairBlock(8))
    z, mask = torch.randn(1, 12, 12, 8), torch.ones(1, 12, 12)
    small = block(z[:, :9, :9], mask[:, :9, :9])
    assert not torch.allclose(block(z, mask)[:, :9, :9], small, atol=1e-3), "the control does not see the padding"
    mask[:, 9:] = mask[:, :, 9:] = 0
    torch.testing.assert_close(block(z, mask)[:, :9, :9], small, rtol=1e-5, atol=1e-5)


def test_the_fused_kernel_is_called_as_it_is_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no CUDA here: the call alone, with a stand-in of the kernel's documented arguments."""
    layer = filled(TriangleMultiplication(4, outgoing=False))
    z, mask = torch.randn(1, 6, 6, 4), torch.ones(1, 6, 6)

    class Kernel:
        @staticmethod
        def triangle_multiplicative_update(x: Tensor, direction: str, mask: Tensor, eps: float, **w: Tensor) -> Tensor:
            assert set(w) == {f"{name}_{kind}_weight" for name in ("norm", "p", "g") for kind in ("in", "out")} | {
                "norm_in_bias",
                "norm_out_bias",
            }
            normed = nn.functional.layer_norm(x, x.shape[-1:], w["norm_in_weight"], w["norm_in_bias"], eps)
            ab = (normed @ w["g_in_weight"].T).sigmoid() * (normed @ w["p_in_weight"].T) * mask[..., None]
            a, b = ab.chunk(2, dim=-1)
            sums = torch.einsum("bkic,bkjc->bijc" if direction == "incoming" else "bikc,bjkc->bijc", a, b)
            out = nn.functional.layer_norm(sums, x.shape[-1:], w["norm_out_weight"], w["norm_out_bias"], eps)
            return (normed @ w["g_out_weight"].T).sigmoid() * (out @ w["p_out_weight"].T)

    monkeypatch.setattr(triangle, "import_module", lambda name: Kernel)
    torch.testing.assert_close(z + layer._fused(z, mask), layer(z, mask), rtol=1e-5, atol=1e-5)
