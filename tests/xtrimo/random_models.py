"""Small models of random weights, of every kind that layouts must hold; and whether two are the same to the bit."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from xtrimo.config import GLMConfig
from xtrimo.model import GLM

SHAPE: dict[str, Any] = dict(
    num_layers=3, hidden_size=24, num_heads=3, ffn_size=10, max_length=64
)  # those of published_reference
ONE_WAY: dict[str, Any] = dict(rotary="1d", directions=("forward",), control_words=())
MODELS: dict[str, dict[str, Any]] = {
    "mixed": dict(licence="CC-BY-4.0", source="a test"),
    "causal": dict(objectives=("causal",), **ONE_WAY),
    "masked": dict(objectives=("mlm",), licence="In-House 7", **ONE_WAY),
    "generates": dict(objectives=("gmask", "smask")),
    "own turns": dict(rotary_frequencies=(1.0, 0.3)),
    "other base": dict(rotary_base=500.0),
}


def random_model(**changes: Any) -> GLM:
    """Random everywhere, so that no two weights of a shape are alike."""
    model, generator = GLM(GLMConfig(**(SHAPE | changes))), torch.Generator().manual_seed(0)
    for weight in model.state_dict().values():
        weight.copy_(torch.randn(weight.shape, generator=generator) / weight.shape[-1] ** 0.5)
    return model.eval()


def tensors(directory: Path) -> dict[str, Tensor]:
    found = [load_file(file) for file in sorted(directory.glob("*.safetensors"))]
    return {name: weight for state in found for name, weight in state.items()}


def same(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    """To the bit: also the sign of zero, and the dtype."""
    return mine.keys() == theirs.keys() and all(
        mine[name].dtype == theirs[name].dtype
        and mine[name].shape == theirs[name].shape
        and torch.equal(mine[name].flatten().view(torch.uint8), theirs[name].flatten().view(torch.uint8))
        for name in mine
    )
