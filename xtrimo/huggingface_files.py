"""Directories of Hugging Face transformers that hold a GLM: read without transformers, and their card.

The weights keep our names, under `glm.`; `config.json` holds the GLMConfig under `glm`. So a GLM crosses over and back
bit by bit. What writes such a directory is in huggingface.py.
"""

import json
from pathlib import Path

import torch

from xtrimo import hub, names
from xtrimo.checkpoint import CONFIG, card, filled, read_stated
from xtrimo.config import GLMConfig
from xtrimo.errors import CheckpointError
from xtrimo.model import GLM
from xtrimo.published import STATED, check_files, read_weights

MODEL_TYPE, PREFIX, README = "xtrimo", "glm.", "README.md"


def weight_names(config: GLMConfig) -> dict[str, str]:
    """Our name of each weight -> the one in the files.

    >>> from xtrimo.testing import toy_config
    >>> weight_names(toy_config())["blocks.0.attention.qkv.weight"]
    'glm.blocks.0.attention.qkv.weight'
    """
    return {name: PREFIX + name for name in names.pairs(config, "published")}


def load(directory: Path, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> GLM:
    """The GLM of a directory, ready for inference (eval mode). Weights are memory-mapped and cast one at a time.

    Raises:
        CheckpointError: a missing or unreadable file, a head beside the GLM, or weights that do not fit the config.
    """
    config = read_config(directory)
    if (path := directory / STATED).is_file():
        stated = read_stated(path)
        if stated.config != config:
            raise CheckpointError(f"{path} is of another model than {CONFIG}; remove it if that was changed on purpose")
        check_files(directory, stated)
    if heads := sorted(name for name, _ in read_weights(directory) if not name.startswith(PREFIX)):
        raise CheckpointError(
            f"{directory} holds more than a GLM: {', '.join(heads[:10])}, a head that transformers trained. Load it by"
            " an AutoModel; its attribute `glm` is the GLM, which xtrimo.checkpoint.save writes as a model directory"
        )
    return filled(config, read_weights(directory), directory, names=weight_names(config), device=device, dtype=dtype)


def read_config(directory: Path) -> GLMConfig:
    """The config of the GLM of a directory.

    Raises:
        CheckpointError: no such config.
    """
    path = directory / CONFIG
    try:
        content = json.loads(path.read_text("utf-8"))
        if not isinstance(content, dict) or content.get("model_type") != MODEL_TYPE:
            raise ValueError(f"its model_type is not {MODEL_TYPE}")
        return GLMConfig.from_dict(content["glm"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:  # also ConfigError
        raise CheckpointError(f"{path} is not that of a GLM of transformers: {error!r}") from error


def card_of(config: GLMConfig, notes: str = "") -> str:
    """The README.md of a directory: the licence for the Hub, then our card."""
    return hub.card_head(config.licence) + card(config, notes)
