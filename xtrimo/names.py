"""One table of weight names: ours <-> the published ProteinGLM checkpoints <-> megatron's, and how the rows differ.

Values are the same everywhere but for two row orders that megatron-core needs:

- rotary: megatron turns the pairs (i, i + w/2) of the whole head. In a 2-D head [a b|c d] the pairs are (a, b) and
  (c, d), so query and key rows go over as [a c|b d]; attention scores do not change under a common permutation.
- GEGLU: megatron gates with the first half of the up-projection, the published weights (and ours) with the second.

Published norms, linears and the output layer cross over as they are.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from xtrimo.config import GLMConfig
from xtrimo.rope import num_channels


class Name(NamedTuple):
    """One row: a weight's name in each world; `{i}` is the layer."""

    ours: str
    published: str
    megatron: str


TABLE = (
    Name("embedding", "transformer.embedding.word_embeddings", "embedding.word_embeddings"),
    *(
        Name(
            f"blocks.{{i}}.{ours}", f"transformer.encoder.layers.{{i}}.{published}", f"decoder.layers.{{i}}.{megatron}"
        )
        for ours, published, megatron in (
            ("attention_norm", "input_layernorm", "input_layernorm"),
            ("attention.qkv", "self_attention.query_key_value", "self_attention.linear_qkv"),
            ("attention.dense", "self_attention.dense", "self_attention.linear_proj"),
            ("mlp_norm", "post_attention_layernorm", "pre_mlp_layernorm"),
            ("mlp.up", "mlp.dense_h_to_4h", "mlp.linear_fc1"),
            ("mlp.down", "mlp.dense_4h_to_h", "mlp.linear_fc2"),
        )
    ),
    Name("final_norm", "transformer.encoder.final_layernorm", "decoder.final_layernorm"),
    Name("output", "transformer.output_layer", "output_layer"),
)
PER_BLOCK = "{i}"


def pairs(config: GLMConfig, theirs: Literal["published", "megatron"]) -> dict[str, str]:
    """Our full weight name -> the name in `theirs` ("published" or "megatron"), for every weight of the model."""
    out = {}
    for row in TABLE:
        for i in range(config.num_layers) if PER_BLOCK in row.ours else (0,):
            for end in _ends(row.ours, config):
                out[f"{row.ours.format(i=i)}.{end}"] = f"{getattr(row, theirs).format(i=i)}.{end}"
    return out


def _ends(ours: str, config: GLMConfig) -> tuple[str, ...]:
    """What a layer keeps under its name."""
    if ours == "embedding" or (ours == "output" and not config.output_bias):
        return ("weight",)
    is_packed = config.quantization != "none" and PER_BLOCK in ours and not ours.endswith("_norm")
    return ("weight", "weight_scale", "bias") if is_packed else ("weight", "bias")


def _pair_order(config: GLMConfig) -> Tensor:
    """Row order of one head that takes our rotary pairs to megatron's; the identity in 1-D."""
    channels = num_channels(config)
    return torch.arange(config.head_dim).view(channels, 2, -1).transpose(0, 1).flatten()


def _reorder_qk(weight: Tensor, config: GLMConfig, order: Tensor) -> Tensor:
    heads = weight.unflatten(0, (config.num_heads, 3, config.head_dim)).clone()
    heads[:, :2] = heads[:, :2, order]
    return heads.flatten(0, 2)


def to_megatron(name: str, weight: Tensor, config: GLMConfig) -> Tensor:
    """Our weight `name` with its rows in megatron's order; the whole weight, before any sharding."""
    if ".attention.qkv." in name:
        return _reorder_qk(weight, config, _pair_order(config))
    if ".mlp.up." in name:
        return torch.cat(weight.chunk(2)[::-1])
    return weight


def from_megatron(name: str, weight: Tensor, config: GLMConfig) -> Tensor:
    """The inverse of `to_megatron`; `name` is ours, `weight` whole."""
    if ".attention.qkv." in name:
        return _reorder_qk(weight, config, _pair_order(config).argsort())
    return to_megatron(name, weight, config)  # swapping halves twice is the identity


def state_to_megatron(state: Mapping[str, Tensor], config: GLMConfig) -> dict[str, Tensor]:
    """A plain model's state under megatron's names, with global layer numbers, un-sharded."""
    return {theirs: to_megatron(ours, state[ours], config) for ours, theirs in pairs(config, "megatron").items()}
