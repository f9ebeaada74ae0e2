"""Shapes against the sizes of the published files, counted tensor by tensor; and what a config refuses."""

import json
import math
from typing import Any

import jaxtyping
import pytest

from xtrimo.config import PRESETS, GLMConfig, preset
from xtrimo.errors import ConfigError

OURS = ("glm-1m", "glm-8m", "glm-35m", "glm-150m")


@pytest.fixture
def as_for_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the config's own checks answer: lists and words from a file reach it without the tests' type checks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def tensors(config: GLMConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of each learned tensor of a published checkpoint; `layer.` stands for every layer."""
    h, f, vocab = config.hidden_size, config.ffn_size, config.vocab_size
    return {
        "word_embeddings.weight": (vocab, h),
        "layer.input_layernorm.weight": (h,),
        "layer.input_layernorm.bias": (h,),
        "layer.query_key_value.weight": (3 * h, h),
        "layer.query_key_value.bias": (3 * h,),
        "layer.dense.weight": (h, h),
        "layer.dense.bias": (h,),
        "layer.post_attention_layernorm.weight": (h,),
        "layer.post_attention_layernorm.bias": (h,),
        "layer.dense_h_to_4h.weight": (2 * f, h),
        "layer.dense_h_to_4h.bias": (2 * f,),
        "layer.dense_4h_to_h.weight": (h, f),
        "layer.dense_4h_to_h.bias": (h,),
        "final_layernorm.weight": (h,),
        "final_layernorm.bias": (h,),
        "output_layer.weight": (vocab, h),
    }


def copies(name: str, config: GLMConfig) -> int:
    return config.num_layers if name.startswith("layer.") else 1


@pytest.mark.parametrize("name", PRESETS)
def test_num_params_counts_every_tensor(name: str) -> None:
    config = PRESETS[name]
    count = sum(math.prod(shape) * copies(tensor, config) for tensor, shape in tensors(config).items())
    assert config.num_params == count


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [("proteinglm-1b", 4.837), ("proteinglm-3b", 11.338), ("proteinglm-7b", 29.003), ("proteinglm-10b", 42.744)],
)
def test_published_fp32_files_have_this_size(name: str, gigabytes: float) -> None:
    assert round(PRESETS[name].num_params * 4 / 1e9, 3) == gigabytes


def test_published_100b_files_have_this_size() -> None:
    """Half precision, and the int4 layout: linears at half a byte with a half-precision scale for each output row."""
    config = PRESETS["xtrimopglm-100b"]
    assert round(config.num_params / 1e9, 2) == 100.43
    num_bytes = 0.0
    for name, shape in tensors(config).items():
        quantised = name.startswith("layer.") and len(shape) == 2
        size = math.prod(shape) / 2 + 2 * shape[0] if quantised else 2 * math.prod(shape)
        num_bytes += size * copies(name, config)
    assert num_bytes / 1e9 == pytest.approx(50.24, abs=0.02)


@pytest.mark.parametrize(("name", "millions"), [("glm-1m", 1.2), ("glm-8m", 8.1), ("glm-35m", 37.5), ("glm-150m", 142)])
def test_our_shapes_split_evenly(name: str, millions: float) -> None:
    config = PRESETS[name]
    assert config.num_params / 1e6 == pytest.approx(millions, rel=0.05)
    assert config.head_dim == 64 and config.rotary == "2d"
    assert config.num_layers % 2 == 0 and config.num_heads % 2 == 0 and config.ffn_size % 64 == 0
    assert abs(config.ffn_size - config.hidden_size * 8 / 3) <= 32
    assert config.objectives == ("mlm", "gmask", "smask") and config.prompt_style == "gmask"


def test_published_shapes_have_their_heads() -> None:
    heads = {name: config.head_dim for name, config in PRESETS.items() if name not in OURS}
    assert heads == {
        "proteinglm-1b": 64, "proteinglm-3b": 64, "proteinglm-7b": 128, "proteinglm-10b": 128, "xtrimopglm-100b": 128
    }  # fmt: skip
    assert [round(PRESETS[name].alpha, 3) for name in heads] == [6.928, 8.485, 8.485, 9.695, 12.0]
    assert PRESETS["proteinglm-10b"].prompt_style == "none" and PRESETS["proteinglm-7b"].prompt_style == "gmask"


def test_deepnorm_gains_are_inverse() -> None:
    config = PRESETS["glm-8m"]
    assert config.alpha == math.sqrt(20) and config.alpha * config.beta == pytest.approx(1)


def test_flops_count_each_product() -> None:
    """Twice the weights of every matrix but the embedding, and the two products of attention."""
    config, length = PRESETS["glm-35m"], 300.0
    matrices = {name: shape for name, shape in tensors(config).items() if len(shape) == 2 and "word" not in name}
    weights = sum(math.prod(shape) * copies(name, config) for name, shape in matrices.items())
    attention = config.num_layers * config.num_heads * 2 * (2 * length * config.head_dim)
    assert config.flops_per_token(length) == 2 * weights + attention


@pytest.mark.usefixtures("as_for_users")
@pytest.mark.parametrize("name", PRESETS)
def test_a_config_survives_json(name: str) -> None:
    assert GLMConfig.from_dict(json.loads(json.dumps(PRESETS[name].to_dict()))) == PRESETS[name]


def test_a_config_states_its_prompt_style() -> None:
    fields = PRESETS["glm-1m"].to_dict()
    assert fields["prompt_style"] == "gmask" and PRESETS["proteinglm-1b"].to_dict()["prompt_style"] == "none"
    with pytest.raises(ConfigError, match="prompt_style is 'none'"):
        GLMConfig.from_dict(fields | {"prompt_style": "none"})


SMALL: dict[str, Any] = dict(num_layers=2, hidden_size=64, num_heads=4, ffn_size=64)


@pytest.mark.usefixtures("as_for_users")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(num_layers=0), "num_layers is 0"),
        (dict(ffn_size=-1), "ffn_size is -1"),
        (dict(num_heads=5), "hidden_size 64 is not a multiple of num_heads 5"),
        (dict(num_heads=32), "head_dim 2 is not a multiple of 4, which 2d rotary needs"),
        (dict(num_heads=64, rotary="1d", objectives=("mlm",)), "head_dim 1 is not a multiple of 2"),
        (dict(objectives=()), "must be some of mlm, gmask, smask, causal"),
        (dict(objectives=("mlm", "span")), "must be some of mlm, gmask, smask, causal"),
        (dict(rotary="1d", objectives=("mlm", "gmask")), "one position channel"),
        (dict(rotary="1d", objectives=("smask",)), "one position channel"),
        (dict(control_words=()), "lack <rev>"),
        (dict(quantization="int3"), "quantization is 'int3'; it must be one of none, int4, int8, int8-dynamic"),
        (dict(quantization="int4", ffn_size=63), "hidden_size 64 and ffn_size 63 must be even"),
        (dict(rotary_frequencies=(1.0, 0.1, 0.01)), "must be 4 positive numbers"),  # head_dim 16, two channels
        (dict(rotary_frequencies=(1.0, 0.1, 0.01, 0.0)), "must be 4 positive numbers"),
        (dict(rotary_frequencies=(1.0,) * 4, rotary="1d", objectives=("mlm",)), "must be 8 positive numbers"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GLMConfig(**(SMALL | changes))


@pytest.mark.usefixtures("as_for_users")
def test_fields_of_converted_weights_are_said_only_where_they_differ() -> None:
    """A run that began before there were such fields compares its facts with those of today."""
    plain = GLMConfig(**SMALL)
    assert not plain.converted and not {"rotary_frequencies", "output_bias", "quantization"} & plain.to_dict().keys()
    changes = dict(rotary_frequencies=(1.0, 0.1, 1 / 3, 1e-4), output_bias=True, quantization="int4")
    config = GLMConfig(**SMALL, **changes)
    assert config.converted == changes
    assert GLMConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.num_params == plain.num_params + config.vocab_size


@pytest.mark.parametrize("objective", ["mlm", "causal"])
def test_one_channel_models_may_mask_or_read_on(objective: str) -> None:
    assert GLMConfig(**SMALL, rotary="1d", objectives=(objective,)).rotary == "1d"


def test_an_unknown_preset_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="no preset 'glm-2m'; known: glm-1m, glm-8m, "):
        preset("glm-2m")
    assert preset("glm-1m") is PRESETS["glm-1m"]
