"""The three namings of the weights, and the row orders that megatron needs, against attention written out by hand."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from xtrimo.config import PRESETS, GLMConfig
from xtrimo.model import GLM
from xtrimo.names import TABLE, from_megatron, pairs, state_to_megatron, to_megatron

BOTH = pytest.mark.parametrize("layout", ["1d", "2d"])
HEADS, WIDTH, FFN = 3, 8, 10
HIDDEN = HEADS * WIDTH


def config_of(layout: str) -> GLMConfig:
    return GLMConfig(
        num_layers=2, hidden_size=HIDDEN, num_heads=HEADS, ffn_size=FFN, rotary=layout, objectives=("mlm",)
    )


def random_state(config: GLMConfig) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(w.shape, generator=generator) for name, w in GLM(config).state_dict().items()}


def published_shapes(config: GLMConfig) -> dict[str, tuple[int, ...]]:
    """Weights of a published ProteinGLM checkpoint, without the rotary buffers."""
    h, f = config.hidden_size, config.ffn_size
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.embedding.word_embeddings.weight": (128, h),
        "transformer.encoder.final_layernorm.weight": (h,),
        "transformer.encoder.final_layernorm.bias": (h,),
        "transformer.output_layer.weight": (128, h),
    }
    for i in range(config.num_layers):
        for name, *shape in (
            ("input_layernorm.weight", h),
            ("input_layernorm.bias", h),
            ("self_attention.query_key_value.weight", 3 * h, h),
            ("self_attention.query_key_value.bias", 3 * h),
            ("self_attention.dense.weight", h, h),
            ("self_attention.dense.bias", h),
            ("post_attention_layernorm.weight", h),
            ("post_attention_layernorm.bias", h),
            ("mlp.dense_h_to_4h.weight", 2 * f, h),
            ("mlp.dense_h_to_4h.bias", 2 * f),
            ("mlp.dense_4h_to_h.weight", h, f),
            ("mlp.dense_4h_to_h.bias", h),
        ):
            shapes[f"transformer.encoder.layers.{i}.{name}"] = tuple(shape)
    return shapes


MEGATRON = {
    "embedding.word_embeddings.weight",
    "decoder.final_layernorm.weight",
    "decoder.final_layernorm.bias",
    "output_layer.weight",
    *(
        f"decoder.layers.{i}.{name}.{end}"
        for i in (0, 1)
        for name in (
            "input_layernorm",
            "self_attention.linear_qkv",
            "self_attention.linear_proj",
            "pre_mlp_layernorm",
            "mlp.linear_fc1",
            "mlp.linear_fc2",
        )
        for end in ("weight", "bias")
    ),
}


def test_table_covers_every_weight_both_ways():
    config = config_of("2d")
    state = random_state(config)
    published, megatron = pairs(config, "published"), pairs(config, "megatron")
    assert published.keys() == megatron.keys() == state.keys()
    assert {theirs: tuple(state[ours].shape) for ours, theirs in published.items()} == published_shapes(config)
    assert set(megatron.values()) == MEGATRON
    assert len(set(megatron.values())) == len(state)  # no two weights meet in one name
    assert len({row.ours for row in TABLE}) == len({row.published for row in TABLE}) == len(TABLE) == 9


@pytest.mark.parametrize(
    ("preset", "keys"),
    [("proteinglm-1b", 316), ("proteinglm-3b", 472), ("proteinglm-7b", 472), ("proteinglm-10b", 615)],
)
def test_number_of_published_keys(preset, keys):
    """A published checkpoint also stores each layer's rotary frequencies, which we compute."""
    config = PRESETS[preset]
    assert len(pairs(config, "published")) + config.num_layers == keys


def test_names_of_a_bias_and_of_packed_weights():
    plain = config_of("2d")
    biased = replace(plain, output_bias=True)
    for theirs, name in (("published", "transformer.output_layer.bias"), ("megatron", "output_layer.bias")):
        assert pairs(biased, theirs).items() - pairs(plain, theirs).items() == {("output.bias", name)}
    packed = pairs(replace(plain, quantization="int4"), "published")
    scales = {name for name in packed.values() if name.endswith("_scale")}
    assert packed.keys() == GLM(replace(plain, quantization="int4"), seed=None).state_dict().keys()
    assert scales == {
        f"transformer.encoder.layers.{i}.{name}.weight_scale"
        for i in (0, 1)
        for name in (
            "self_attention.query_key_value",
            "self_attention.dense",
            "mlp.dense_h_to_4h",
            "mlp.dense_4h_to_h",
        )
    }


@BOTH
def test_round_trip_through_megatron(layout):
    config = config_of(layout)
    state = random_state(config)
    theirs = state_to_megatron(state, config)
    assert theirs.keys() == MEGATRON
    for ours, name in pairs(config, "megatron").items():
        assert torch.equal(from_megatron(ours, theirs[name], config), state[ours]), ours
        assert torch.equal(to_megatron(ours, from_megatron(ours, state[ours], config), config), state[ours]), ours


@BOTH
def test_only_what_must_move_moves_and_inputs_stay(layout):
    config = config_of(layout)
    state = random_state(config)
    before = {name: weight.clone() for name, weight in state.items()}
    moved = {name for name, weight in state.items() if not torch.equal(to_megatron(name, weight, config), weight)}
    kinds = ["mlp.up"] if layout == "1d" else ["mlp.up", "attention.qkv"]
    assert moved == {f"blocks.{i}.{kind}.{end}" for i in (0, 1) for kind in kinds for end in ("weight", "bias")}
    assert all(torch.equal(state[name], before[name]) for name in state)


def test_rows_of_one_head_by_hand():
    """[q0..q7, k0..k7, v0..v7] per head: quarters a b c d of q and k go over as a c b d, v as it is."""
    config = config_of("2d")
    rows = torch.arange(3.0 * HIDDEN)
    got = to_megatron("blocks.0.attention.qkv.bias", rows, config)
    q, k = [0, 1, 4, 5, 2, 3, 6, 7], [8, 9, 12, 13, 10, 11, 14, 15]
    head = q + k + list(range(16, 24))
    assert got.tolist() == [24 * h + row for h in range(HEADS) for row in head]


def split_heads(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(token, head, [q k v], width) of rows grouped per head, megatron's layout with as many groups as heads too."""
    return (x @ weight.T + bias).view(len(x), HEADS, 3, WIDTH)


def turn(x: Tensor, angles: Tensor) -> Tensor:
    """Pairs (i, i + w/2) over the whole last axis; angles (token, w) hold each pair's angle at both its places."""
    first, second = x.chunk(2, dim=-1)
    angles = angles[:, None]
    return x * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()


@BOTH
def test_permuted_rows_under_megatrons_rotation_give_our_scores(layout):
    config = config_of(layout)
    state = {name: weight.double() for name, weight in random_state(config).items()}
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, HIDDEN, generator=generator, dtype=torch.float64)
    chain, span = torch.randint(0, 30, (2, 6), generator=generator)

    def angles_of(position: Tensor, width: int) -> Tensor:
        return position[:, None] / 10000.0 ** (torch.arange(0, width, 2, dtype=torch.float64) / width)

    name = "blocks.1.attention.qkv"
    ours = split_heads(x, state[f"{name}.weight"], state[f"{name}.bias"])
    theirs = split_heads(*(x, *(to_megatron(f"{name}.{e}", state[f"{name}.{e}"], config) for e in ("weight", "bias"))))
    if layout == "1d":
        a = angles_of(chain, WIDTH)
        turned = turn(ours[:, :, 0], torch.cat([a, a], -1)), turn(ours[:, :, 1], torch.cat([a, a], -1))
        whole = torch.cat([a, a], -1)
    else:
        a1, a2 = angles_of(chain, WIDTH // 2), angles_of(span, WIDTH // 2)
        turned = tuple(
            torch.cat([turn(first, torch.cat([a1, a1], -1)), turn(second, torch.cat([a2, a2], -1))], dim=-1)
            for first, second in (ours[:, :, which].chunk(2, dim=-1) for which in (0, 1))
        )
        whole = torch.cat([a1, a2, a1, a2], -1)
    want = torch.einsum("qhw,khw->hqk", *turned)
    got = torch.einsum("qhw,khw->hqk", turn(theirs[:, :, 0], whole), turn(theirs[:, :, 1], whole))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    assert torch.equal(theirs[:, :, 2], ours[:, :, 2])
    unpermuted = torch.einsum("qhw,khw->hqk", turn(ours[:, :, 0], whole), turn(ours[:, :, 1], whole))
    assert layout == "1d" or (unpermuted - want).abs().max() > 1


def test_gated_halves_are_swapped():
    """Megatron multiplies gelu(first half) by the second; published weights and ours gate with the second."""
    config = config_of("2d")
    state = random_state(config)
    x = torch.randn(4, HIDDEN, generator=torch.Generator().manual_seed(1))

    def gelu(z: Tensor) -> Tensor:
        return z * 0.5 * (1 + torch.erf(z / math.sqrt(2)))

    weight, bias = (state[f"blocks.0.mlp.up.{end}"] for end in ("weight", "bias"))
    value, gate = (x @ weight.T + bias).split(FFN, dim=-1)
    fc1 = to_megatron("blocks.0.mlp.up.weight", weight, config)
    fc1_bias = to_megatron("blocks.0.mlp.up.bias", bias, config)
    first, second = (x @ fc1.T + fc1_bias).split(FFN, dim=-1)
    torch.testing.assert_close(gelu(first) * second, value * gelu(gate), rtol=0, atol=1e-5)
