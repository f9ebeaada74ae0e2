"""Published ProteinGLM directories with random weights, and what such a model computes, from the description alone.

Nothing of the package is used here but to run it (`outputs`). The reference works in double precision on whole
matrices, with masks spelled out, one protein at a time.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from xtrimo.attention import within
from xtrimo.model import GLM
from xtrimo.packing import pack, unpack

LAYERS, HEADS, WIDTH, FFN = 3, 3, 8, 10
HIDDEN = HEADS * WIDTH
LETTERS = "LAGVSERTIDPKQNFYMHWCXBUZO"  # ids 1..25
GMASK, SOP, EOS = 29, 32, 34
CONFIG: dict[str, Any] = dict(
    model_type="ProteinGLM", architectures=["ProteinGLMForMaskedLM"], num_layers=LAYERS, hidden_size=HIDDEN,
    num_attention_heads=HEADS, kv_channels=WIDTH, ffn_hidden_size=FFN, padded_vocab_size=128, seq_length=64,
    layernorm_epsilon=1e-5, initializer_range=0.02, rotary_embedding_2d=False, is_causal=False, quantization_bit=0,
    add_bias_linear=True, add_qkv_bias=True, deepnorm=True, apply_residual_connection_post_layernorm=True,
    post_layer_norm=True, glu_activation="geglu", rmsnorm=False, fp32_residual_connection=False,
    multi_query_attention=False, moe=False, untie_head=False, head_num=1, torch_dtype="float32",
    apply_query_key_layer_scaling=True, attention_softmax_in_fp32=True, use_pytorch_sdpa=True,
)  # fmt: skip


def inverse_frequencies(is_2d: bool, dtype: torch.dtype = torch.float32) -> Tensor:
    width = WIDTH // 2 if is_2d else WIDTH
    return 1.0 / (10000 ** (torch.arange(0, width, 2, dtype=dtype) / width))


def random_weights(is_2d: bool, *, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 0.1, around: float = 0.0) -> Tensor:
        return around + scale * torch.randn(shape, generator=generator)

    state = {"transformer.embedding.word_embeddings.weight": draw(128, HIDDEN, scale=1.0)}
    for i in range(LAYERS):
        layer = f"transformer.encoder.layers.{i}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            state[f"{layer}.{name}.weight"] = draw(HIDDEN, around=1.0)
            state[f"{layer}.{name}.bias"] = draw(HIDDEN)
        for name, rows, columns in (
            ("self_attention.query_key_value", 3 * HIDDEN, HIDDEN),
            ("self_attention.dense", HIDDEN, HIDDEN),
            ("mlp.dense_h_to_4h", 2 * FFN, HIDDEN),
            ("mlp.dense_4h_to_h", HIDDEN, FFN),
        ):
            state[f"{layer}.{name}.weight"] = draw(rows, columns, scale=1 / math.sqrt(columns))
            state[f"{layer}.{name}.bias"] = draw(rows)
        state[f"{layer}.self_attention.rotary_emb.inv_freq"] = inverse_frequencies(is_2d)
    state["transformer.encoder.final_layernorm.weight"] = draw(HIDDEN, around=1.0)
    state["transformer.encoder.final_layernorm.bias"] = draw(HIDDEN)
    state["transformer.output_layer.weight"] = draw(128, HIDDEN)
    return state


# ---- the reference


def normed(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def rotate_half(x: Tensor, positions: Tensor, inv_freq: Tensor) -> Tensor:
    """x [token, head, w], pairs (i, i + w/2)."""
    freqs = positions[:, None] * inv_freq
    emb = torch.cat((freqs, freqs), dim=-1)[:, None]
    first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return x * emb.cos() + torch.cat((-second, first), dim=-1) * emb.sin()


def turned(x: Tensor, positions: list[Tensor], inv_freq: Tensor) -> Tensor:
    """One position turns the whole head; two turn a half of it each, by itself."""
    parts = x.chunk(len(positions), dim=-1)
    return torch.cat([rotate_half(part, at, inv_freq) for part, at in zip(parts, positions, strict=True)], dim=-1)


def reference(state: dict[str, Tensor], sequence: str, is_2d: bool, is_causal: bool) -> tuple[Tensor, Tensor]:
    """Final hidden states and logits [token, ...] of one protein with its <eos>, as the model was trained to see it."""
    state = {name: weight.double() for name, weight in state.items()}
    ids = [*([GMASK, SOP, EOS] if is_causal else []), *(1 + LETTERS.index(x) for x in sequence), EOS]
    length = len(ids)
    count, zero = torch.arange(length).double(), torch.zeros(length).double()
    positions = [zero, count] if is_2d and is_causal else [count, zero] if is_2d else [count]
    visible = torch.ones(length, length).tril() if is_causal else torch.ones(length, length)
    alpha = (2 * LAYERS) ** 0.5
    x = state["transformer.embedding.word_embeddings.weight"][torch.tensor(ids)]
    for i in range(LAYERS):
        layer = f"transformer.encoder.layers.{i}"
        inv_freq = state[f"{layer}.self_attention.rotary_emb.inv_freq"]
        h = normed(x, state, f"{layer}.input_layernorm")
        mixed = linear(h, state, f"{layer}.self_attention.query_key_value").view(length, HEADS, 3 * WIDTH)
        q, k, v = mixed.split(WIDTH, dim=-1)
        q, k = turned(q, positions, inv_freq), turned(k, positions, inv_freq)
        scores = torch.einsum("qhw,khw->hqk", q, k) / WIDTH**0.5
        weights = scores.masked_fill(visible == 0, -torch.inf).softmax(dim=-1)
        attended = torch.einsum("hqk,khw->qhw", weights, v).reshape(length, HIDDEN)
        y = alpha * h + linear(attended, state, f"{layer}.self_attention.dense")
        h = normed(y, state, f"{layer}.post_attention_layernorm")
        value, gate = linear(h, state, f"{layer}.mlp.dense_h_to_4h").split(FFN, dim=-1)
        gelu = gate * 0.5 * (1 + torch.erf(gate / 2**0.5))
        x = alpha * h + linear(value * gelu, state, f"{layer}.mlp.dense_4h_to_h")
    hidden = normed(x, state, "transformer.encoder.final_layernorm")
    return hidden, hidden @ state["transformer.output_layer.weight"].T + state.get("transformer.output_layer.bias", 0)


# ---- directories


def write(directory: Path, state: dict[str, Tensor], files: str = "safetensors", **changes: Any) -> Path:
    """A published directory; `files` is its layout."""
    directory.mkdir(parents=True)
    content = {name: value for name, value in {**CONFIG, **changes}.items() if value != "left out"}
    (directory / "config.json").write_text(json.dumps(content))
    kind = files.split()[0]
    stem, put = ("model", save_file) if kind == "safetensors" else ("pytorch_model", torch.save)
    if "shards" not in files:
        put(state, directory / f"{stem}.{kind}")
        return directory
    names = list(state)
    shards = {f"{stem}-{n + 1:05}-of-00003.{kind}": names[n::3] for n in range(3)}
    for file, part in shards.items():
        put({name: state[name] for name in part}, directory / file)
    if "without index" not in files:
        index = {"metadata": {}, "weight_map": {name: file for file, part in shards.items() for name in part}}
        (directory / f"{stem}.{kind}.index.json").write_text(json.dumps(index))
    return directory


def outputs(model: GLM, sequences: list[str]) -> list[tuple[Tensor, Tensor]]:
    """Final hidden states and logits of each sequence, all read in one packed row."""
    row = pack([model.tokenize(sequence) for sequence in sequences])
    tokens, positions, segments = (torch.from_numpy(x) for x in (row.tokens, row.positions, row.segments))
    with torch.inference_mode():
        [hidden] = model.hidden(tokens, positions, within(segments))
        logits = model.logits(hidden)
    parts = (unpack(x.float().numpy(), row.segments) for x in (hidden, logits))
    return [(torch.from_numpy(h).double(), torch.from_numpy(z).double()) for h, z in zip(*parts, strict=True)]
