"""Weights in 4 bits: the published layout byte by byte, and a model of them against the same weights written out."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.xtrimo.published_reference import HIDDEN, LAYERS, outputs, random_weights, reference, write
from xtrimo import checkpoint, published
from xtrimo.errors import CheckpointError, ConfigError
from xtrimo.model import GLM
from xtrimo.quantization import Int4Linear, pack_int4, quantize_int4, unpack_int4
from xtrimo.testing import toy_config, toy_sequences

LINEARS = ("self_attention.query_key_value", "self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")


def packed_by_hand(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bytes, scales and the weights they stand for, one number at a time in Python."""
    scales = [max(abs(x) for x in row) / 7 for row in weight.tolist()]
    scale = torch.tensor(scales).half()
    numbers = [
        [max(-8, min(7, round(x / s))) for x in row] for row, s in zip(weight.tolist(), scale.tolist(), strict=True)
    ]
    rows = []
    for row in numbers:
        row_bytes = [(even % 16) * 16 + odd % 16 for even, odd in zip(row[::2], row[1::2], strict=True)]
        rows.append([byte - 256 if byte > 127 else byte for byte in row_bytes])
    return torch.tensor(rows, dtype=torch.int8), scale, torch.tensor(numbers) * scale.float()[:, None]


def int4_weights(is_2d: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A published int4 checkpoint, in half precision but for the packed bytes; and its weights written out, fp32."""
    packed, full = {}, {}
    for name, weight in random_weights(is_2d).items():
        if any(name.endswith(f"{linear}.weight") for linear in LINEARS):
            packed[name], packed[f"{name}_scale"], full[name] = packed_by_hand(weight)
        else:
            packed[name] = weight.half()
            full[name] = packed[name].float()
    return packed, full


def test_every_byte() -> None:
    """All 256: the upper half is the even column, both in two's complement."""
    packed = torch.arange(-128, 128).to(torch.int8)[None]
    expected = []
    for byte in range(-128, 128):
        upper, lower = (byte % 256) // 16, byte % 16
        expected += [half - 16 if half > 7 else half for half in (upper, lower)]
    values = unpack_int4(packed, torch.tensor([1.0]))
    assert values.tolist() == [[float(x) for x in expected]]
    assert set(expected) == set(range(-8, 8))
    assert torch.equal(pack_int4(values.to(torch.int8)), packed)


def test_scales_are_of_rows_and_products_exact() -> None:
    numbers = torch.randint(-8, 8, (5, 12), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([1.0, 0.5, 3.1, 6e-8, 60000.0]).half()
    packed = pack_int4(numbers)
    assert packed.shape == (5, 6) and packed.dtype == torch.int8
    exact = numbers.double() * scale.double()[:, None]
    assert torch.equal(unpack_int4(packed, scale, torch.float32).double(), exact)
    assert torch.equal(unpack_int4(packed, scale, torch.bfloat16), exact.to(torch.bfloat16))
    assert unpack_int4(packed, scale).dtype == torch.float16


def test_quantize_is_the_published_rule() -> None:
    weight = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    packed, scale = quantize_int4(weight)
    assert torch.equal(packed[3], torch.zeros(5, dtype=torch.int8)) and scale[3] == 0
    kept = [0, 1, 2, 4, 5]
    by_hand, scale_by_hand, _ = packed_by_hand(weight[kept])
    assert torch.equal(packed[kept], by_hand) and torch.equal(scale[kept], scale_by_hand)
    # half a step, and what the scale lost in half precision
    assert ((unpack_int4(packed, scale, torch.float32) - weight).abs() <= 0.51 * scale.float()[:, None]).all()


@pytest.mark.parametrize(("is_2d", "is_causal"), [(True, False), (True, True), (False, False)])
def test_int4_model_is_that_of_its_weights_written_out(tmp_path, is_2d, is_causal) -> None:
    packed, full = int4_weights(is_2d)
    config = dict(rotary_embedding_2d=is_2d, is_causal=is_causal)
    directory = write(tmp_path / "int4", packed, quantization_bit=4, **config)
    model = published.load(directory, dtype=torch.float32)
    assert model.config.quantization == "int4" and model.dtype == torch.float32
    plain = published.load(write(tmp_path / "full", full, **config))
    sequences = toy_sequences(4, seed=3)
    for sequence, mine, theirs in zip(sequences, outputs(model, sequences), outputs(plain, sequences), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)
        torch.testing.assert_close(mine, reference(full, sequence, is_2d, is_causal), rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_round_trip_keeps_every_bit(tmp_path, dtype) -> None:
    packed, _ = int4_weights(True)
    model = published.load(
        write(tmp_path / "int4", packed, "bin", quantization_bit=4, rotary_embedding_2d=True), dtype=dtype
    )
    assert model.dtype == (dtype or torch.float16)
    again = checkpoint.load(checkpoint.save(model, tmp_path / "ours"))
    mine, theirs = model.state_dict(), again.state_dict()
    assert again.config == model.config and mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) and mine[name].dtype == theirs[name].dtype for name in mine)
    kept = packed["transformer.encoder.layers.1.mlp.dense_h_to_4h.weight"]
    assert torch.equal(theirs["blocks.1.mlp.up.weight"], kept)
    scale = packed["transformer.encoder.layers.1.mlp.dense_h_to_4h.weight_scale"]
    assert torch.equal(theirs["blocks.1.mlp.up.weight_scale"], scale)  # whatever the dtype of the rest
    sequences = toy_sequences(2)
    torch.testing.assert_close(outputs(model, sequences), outputs(again, sequences), rtol=0, atol=0)
    assert "| Quantization | int4 |" in (tmp_path / "ours" / "MODEL_CARD.md").read_text()


def test_only_the_four_linears_of_a_block_are_packed() -> None:
    config = toy_config(num_layers=2, quantization="int4")
    model = GLM(config, seed=None)
    packed = [name for name, module in model.named_modules() if isinstance(module, Int4Linear)]
    assert packed == [
        f"blocks.{i}.{name}" for i in (0, 1) for name in ("attention.qkv", "attention.dense", "mlp.up", "mlp.down")
    ]
    weights = sum(buffer.numel() * 2 for name, buffer in model.named_buffers() if name.endswith(".weight"))
    assert weights + sum(weight.numel() for weight in model.parameters()) == config.num_params


def test_gradients_reach_the_input() -> None:
    layer = Int4Linear(4, 3)
    packed, scale = quantize_int4(torch.randn(3, 4))
    layer.load_state_dict({"weight": packed, "weight_scale": scale, "bias": torch.zeros(3)})
    x = torch.randn(2, 4, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, unpack_int4(packed, scale, torch.float32).sum(0).expand(2, 4))


def test_what_does_not_fit_is_refused(tmp_path) -> None:
    packed, full = int4_weights(True)
    with pytest.raises(
        CheckpointError, match=r"missing .*weight_scale|has shape \(72, 24\), the config says \(72, 12\)"
    ):
        published.load(write(tmp_path / "full", full, quantization_bit=4, rotary_embedding_2d=True))
    with pytest.raises(CheckpointError, match="unexpected .*weight_scale|has shape"):
        published.load(write(tmp_path / "packed", packed, rotary_embedding_2d=True))
    name = f"transformer.encoder.layers.{LAYERS - 1}.self_attention.dense.weight"
    floats = {**packed, name: torch.zeros(HIDDEN, HIDDEN // 2)}
    with pytest.raises(CheckpointError, match=f"{name} holds torch.float32, the config says torch.int8"):
        published.load(write(tmp_path / "floats", floats, quantization_bit=4, rotary_embedding_2d=True))
    with pytest.raises(ConfigError, match="must be even"):
        replace(toy_config(quantization="int4"), ffn_size=5)
    with pytest.raises(ConfigError, match="int4 weights cannot be drawn"):
        GLM(toy_config(quantization="int4"))
