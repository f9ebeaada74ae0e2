"""Published ProteinGLM directories (`config.json` + safetensors or torch files) as our GLM, by what their config says.

Structure and names are the published ones (see names.py), so weights cross over as they are. Three things are read off
the files and not assumed: the rotary frequencies, a buffer of each layer, which were computed in the precision the
model was trained in; whether the output layer has a bias; and whether it is there at all, or tied to the embedding.

A config field that would make it another network is refused; `SUPPORTED` lists the values that are ours.

A directory that `xtrimo convert` wrote holds `xtrimo.json` as well: what our own config.json says and the published one
has no field for, such as objectives, control words and digests. Without it the model is read as any other.
"""

import json
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xtrimo import hub, names
from xtrimo.checkpoint import CONFIG, Stated, check_bytes, filled, read_safetensors, read_stated
from xtrimo.config import GLMConfig, Objective, Quantization
from xtrimo.errors import CheckpointError, ConfigError
from xtrimo.model import GLM
from xtrimo.rope import frequencies

MODEL_TYPES = ("proteinglm", "proteinpglm", "xtrimopglm")
CLASS = re.compile(r"(proteinp?|xtrimop)glm(model|for(?P<head>\w+))", re.IGNORECASE)
CAUSAL = {"maskedlm": False, "casuallm": True, "causallm": True}  # "casual" is the published spelling
SUPPORTED: dict[str, Any] = {
    "add_bias_linear": True,
    "add_qkv_bias": True,
    "apply_residual_connection_post_layernorm": True,
    "deepnorm": True,
    "fp32_residual_connection": False,
    "glu_activation": "geglu",
    "head_num": 1,
    "moe": False,
    "multi_query_attention": False,
    "post_layer_norm": True,
    "rmsnorm": False,
    "untie_head": False,
}
"""Fields that shape the network, and the one value of each that this package computes; a missing field has it."""
NEUTRAL: dict[str, Any] = {
    "apply_query_key_layer_scaling": True,
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "hidden_dropout": 0.0,
    "use_pytorch_sdpa": True,
}
"""Fields that decide how the published code computes, not what; as its checkpoints have them."""
OBJECTIVES: dict[tuple[bool, bool], tuple[Objective, ...]] = {
    (False, False): ("mlm",),
    (False, True): ("causal",),
    (True, False): ("mlm", "gmask"),
    (True, True): ("gmask",),
}
"""(two-dimensional rotary, causal) -> what the weights were trained on. The same 100B weights do both."""
BITS: dict[Quantization, int] = {"none": 0, "int4": 4, "int8": 8, "int8-dynamic": 8}
"""What is stored -> the field quantization_bit. That activations are quantized as well, it cannot say."""
STATED = "xtrimo.json"
SHAPE = ("num_layers", "hidden_size", "num_heads", "ffn_size", "rotary", "max_length", "vocab_size", "layer_norm_eps")
"""Fields of ours that both files state."""
TURN = "transformer.encoder.layers.{i}.self_attention.rotary_emb.inv_freq"
HEAD, EMBEDDING = "transformer.output_layer.weight", "transformer.embedding.word_embeddings.weight"
HEAD_BIAS = "transformer.output_layer.bias"


def is_published(content: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a ProteinGLM, by its model_type or its class."""
    classes = content.get("architectures") or ()
    return str(content.get("model_type")).lower() in MODEL_TYPES or any(CLASS.fullmatch(str(c)) for c in classes)


def load(directory: Path, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> GLM:
    """Load a published directory, ready for inference (eval mode). Weights are memory-mapped and cast one at a time.

    Raises:
        CheckpointError: a missing or unreadable file, a network that is not ours, or weights that do not fit the
            config (the first ten).
    """
    config = read_config(directory)
    if stated := _stated(directory):
        check_files(directory, stated)
    stored, turns = _survey(directory)
    if turns:
        config = replace(config, rotary_frequencies=_frequencies(turns, config, directory))
    config = replace(config, output_bias=HEAD_BIAS in stored)
    is_tied = HEAD not in stored and EMBEDDING in stored
    weights = _with_head(read_weights(directory)) if is_tied else read_weights(directory)
    ours = ((name, weight) for name, weight in weights if name not in turns)
    published = names.pairs(config, "published")
    return filled(config, ours, directory, names=published, device=device, dtype=dtype)


def read_config(directory: Path) -> GLMConfig:
    """The config of a published directory, but for what only its weights say.

    Raises:
        CheckpointError: no such config, a field that is missing, or one that makes it another network.
    """
    path = directory / CONFIG
    try:
        content = json.loads(path.read_text("utf-8"))
        if not isinstance(content, dict) or not is_published(content):
            raise ValueError("it is not that of a ProteinGLM")
        for name, ours in SUPPORTED.items():
            if content.get(name, ours) != ours:
                raise ValueError(f"{name} is {content[name]!r}; supported is {ours!r}")
        config = _translated(content, directory)
    except KeyError as error:
        raise CheckpointError(f"{path}: the field {error} is missing, which a published ProteinGLM has") from error
    except (OSError, ValueError, TypeError) as error:  # also ConfigError
        raise CheckpointError(f"{path} cannot be used: {error}") from error
    stated = _stated(directory)
    return _agreed(stated.config, config, directory) if stated else config


def _stated(directory: Path) -> Stated | None:
    path = directory / STATED
    return read_stated(path) if path.is_file() else None


def _agreed(stated: GLMConfig, config: GLMConfig, directory: Path) -> GLMConfig:
    """What xtrimo.json says, if it is of the same network as config.json."""
    wrong = [name for name in SHAPE if getattr(stated, name) != getattr(config, name)]
    if BITS[stated.quantization] != BITS[config.quantization]:
        wrong.append("quantization")
    if wrong:
        raise CheckpointError(
            f"{directory}: {STATED} and {CONFIG} do not agree on {', '.join(wrong)}; if the model was changed on"
            f" purpose, remove {STATED}"
        )
    return stated


def check_files(directory: Path, stated: Stated) -> None:
    """Refuse weights that are not those whose digests xtrimo.json states.

    Raises:
        CheckpointError: a file that is missing, cut, altered, or not stated.
    """
    found = {file.name for file in weight_files(directory)}
    if found != stated.files.keys():
        raise CheckpointError(
            f"{directory} holds the weights {', '.join(sorted(found))}, {STATED} states {', '.join(stated.files)}; copy"
            f" it again, or if the model was changed on purpose, remove {STATED}"
        )
    for file, facts in stated.files.items():
        check_bytes(directory / file, facts, STATED)


def _translated(content: Mapping[str, Any], directory: Path) -> GLMConfig:
    hidden, heads, width = content["hidden_size"], content["num_attention_heads"], content["kv_channels"]
    if hidden != heads * width:
        raise ValueError(f"kv_channels is {width}; supported is hidden_size / heads = {hidden} / {heads}")
    bits = content.get("quantization_bit") or 0
    quantization = next((name for name, stored in BITS.items() if stored == bits), None)
    if quantization is None:
        raise ValueError(f"quantization_bit is {bits!r}; supported are {', '.join(map(str, sorted({*BITS.values()})))}")
    stated, source = hub.licence(directory), hub.origin(directory) or "a published ProteinGLM checkpoint"
    has_spans = bool(content["rotary_embedding_2d"])
    return GLMConfig(
        num_layers=content["num_layers"],
        hidden_size=hidden,
        num_heads=heads,
        ffn_size=content["ffn_hidden_size"],
        rotary="2d" if has_spans else "1d",
        objectives=OBJECTIVES[has_spans, _is_causal(content)],
        directions=("forward",),
        max_length=content["seq_length"],
        vocab_size=content["padded_vocab_size"],
        control_words=(),
        layer_norm_eps=content["layernorm_epsilon"],
        initializer_std=content.get("initializer_range", 0.02),
        quantization=quantization,
        licence=stated or hub.PROTEINGLM_LICENCE,
        source=source if stated else f"{source}; no card states its licence, this is the one of the published weights",
    )


def to_published(config: GLMConfig, dtype: torch.dtype) -> dict[str, Any]:
    """The published config.json of a model of ours; `dtype` is that of the weights that are not quantized.

    Raises:
        ConfigError: the published network cannot be this one.
    """
    if config.output_bias:
        raise ConfigError("the published network has no bias in its output layer, and this model has one")
    if not {"mlm", "gmask", "causal"} & {*config.objectives}:
        raise ConfigError(
            f"the published code fills masks or writes from a prompt; this model was trained on"
            f" {', '.join(config.objectives)} alone"
        )
    is_causal = "mlm" not in config.objectives
    return dict(
        model_type="ProteinGLM",
        architectures=["ProteinGLMForCasualLM" if is_causal else "ProteinGLMForMaskedLM"],
        num_layers=config.num_layers, hidden_size=config.hidden_size, num_attention_heads=config.num_heads,
        kv_channels=config.head_dim, ffn_hidden_size=config.ffn_size, padded_vocab_size=config.vocab_size,
        seq_length=config.max_length, layernorm_epsilon=config.layer_norm_eps,
        initializer_range=config.initializer_std, rotary_embedding_2d=config.rotary == "2d", is_causal=is_causal,
        quantization_bit=BITS[config.quantization], torch_dtype=str(dtype).removeprefix("torch."),
        **SUPPORTED, **NEUTRAL,
    )  # fmt: skip


def _is_causal(content: Mapping[str, Any]) -> bool:
    """The field `is_causal`, which turns the same 100B weights from masks to generation; without it the class."""
    if "is_causal" in content:
        return bool(content["is_causal"])
    for name in content.get("architectures") or ():
        match = CLASS.fullmatch(str(name))
        head = (match["head"] or "").lower() if match else ""
        if head in CAUSAL:
            return CAUSAL[head]
    raise KeyError("is_causal")


def _survey(directory: Path) -> tuple[set[str], dict[str, Tensor]]:
    """The names in the files, and the rotary frequencies by name; no weight is read."""
    stored: set[str] = set()
    turns = {}
    pattern = re.compile(re.escape(TURN).replace(r"\{i\}", r"\d+"))
    for name, weight in read_weights(directory):
        stored.add(name)
        if pattern.fullmatch(name):
            turns[name] = weight.float().clone()
    return stored, turns


def _frequencies(turns: Mapping[str, Tensor], config: GLMConfig, directory: Path) -> tuple[float, ...] | None:
    """What every layer turns by; as the config has it, mostly by the formula, when that is the same to the bit."""
    expected = [TURN.format(i=i) for i in range(config.num_layers)]
    wrong = [f"missing {name}" for name in expected if name not in turns]
    wrong += [f"unexpected {name}" for name in turns if name not in expected]
    formula, found = frequencies(config), next(iter(turns.values()))
    for name, turn in turns.items():
        if turn.shape != formula.shape:
            wrong.append(f"{name} has shape {tuple(turn.shape)}, the config says {tuple(formula.shape)}")
        elif not torch.equal(turn, found):
            wrong.append(f"{name} differs from the first layer's, where all must be equal")
    if wrong:
        raise CheckpointError(f"{directory}: the rotary frequencies do not fit {CONFIG}: " + "; ".join(wrong[:10]))
    return config.rotary_frequencies if torch.equal(found, formula) else tuple(found.tolist())


def _with_head(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The embedding once more, as the output layer that is tied to it; a copy, since ours are two weights."""
    for name, weight in weights:
        yield name, weight
        if name == EMBEDDING:
            yield HEAD, weight.clone()


def read_weights(directory: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and memory-mapped tensor of all weights of a directory in one of the layouts of the `transformers` library.

    In this order: one safetensors file; shards by their index; shards without one; the same as torch's zip files, which
    are unpickled with nothing but tensors allowed.

    Raises:
        CheckpointError: no weights, a shard that is missing, or a file that cannot be read.
    """
    for file in weight_files(directory):
        yield from read_file(file)


def weight_files(directory: Path) -> list[Path]:
    """The files that hold the weights of a directory; see `read_weights`."""
    for whole, pattern in (("model.safetensors", "*.safetensors"), ("pytorch_model.bin", "pytorch_model*.bin")):
        index = directory / f"{whole}.index.json"
        if (directory / whole).is_file():
            return [directory / whole]
        if index.is_file():
            return _indexed(index)
        if found := sorted(directory.glob(pattern)):
            return found
    raise CheckpointError(
        f"{directory} has no weights: put model.safetensors there, or all shards *.safetensors, or pytorch_model.bin"
    )


def _indexed(index: Path) -> list[Path]:
    try:
        files = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not an index of weights ({error!r}); download it again") from error
    for file in files:
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(f"{index} names {file!r}; a shard lies beside its index")
        if not (index.parent / file).is_file():
            raise CheckpointError(f"{index.parent / file} is missing, which {index.name} names; download it again")
    return [index.parent / file for file in files]


def read_file(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and memory-mapped tensor of all that is in one weights file.

    Raises:
        CheckpointError: if it cannot be read.
    """
    return read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def _read_torch(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not isinstance(state, Mapping) or not all(isinstance(weight, Tensor) for weight in state.values()):
            raise ValueError("it is no table of tensors")
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"{path} cannot be read as tensors alone ({reason}); look for safetensors files"
        ) from error
    yield from state.items()
