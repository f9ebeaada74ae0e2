"""What of a pretrained model is trained on: nothing, adapters (LoRA), or all of it, slower the deeper it lies.

LoRA (Hu et al. 2021, arXiv:2106.09685) is `peft`'s, put beside every linear layer of the blocks: in a GLM the published
query_key_value, dense, dense_h_to_4h and dense_4h_to_h. Rank and alpha 16 are those of xTrimoPGLM's heads.
"""

import re
from collections.abc import Callable, Mapping
from copy import copy
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from xtrimo.errors import CheckpointError, ConfigError

Method = Literal["probe", "lora", "full"]
ADAPTER, ADAPTER_WEIGHTS, BACKBONE_WEIGHTS = "adapter", "adapter_model.safetensors", "backbone.safetensors"


def blocks_of(backbone: nn.Module) -> nn.ModuleList:
    """The transformer blocks, in order: ours as a list, those of others behind a method."""
    found = backbone.blocks
    blocks = found if isinstance(found, nn.ModuleList) else found()  # type: ignore[operator]
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def adapt(backbone: nn.Module, method: Method, *, rank: int = 16, alpha: int = 16, seed: int = 0) -> None:
    """Make ready what the method trains; all else asks for no gradient.

    Raises:
        ConfigError: LoRA for a model without plain linear layers, such as a quantized one.
    """
    backbone.requires_grad_(method == "full")
    if method == "lora":
        from peft import LoraConfig, inject_adapter_in_model

        ours = {id(module) for module in blocks_of(backbone).modules() if isinstance(module, nn.Linear)}
        names = [name for name, module in backbone.named_modules() if id(module) in ours]
        if not names:
            raise ConfigError("lora needs linear layers, and the blocks of this model have none (is it quantized?)")
        ends = sorted({re.split(r"\.\d+\.", name)[-1] for name in names})  # after the number of the block
        config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, bias="none", target_modules=ends)
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            inject_adapter_in_model(config, backbone)


def merge(backbone: nn.Module) -> None:
    """Add the adapters to the weights beside them, and be a model without adapters again."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(backbone.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            parent, _, own = name.rpartition(".")
            setattr(backbone.get_submodule(parent), own, layer.get_base_layer())
    if hasattr(backbone, "peft_config"):
        del backbone.peft_config


def freeze_unused(module: nn.Module, run: Callable[[], torch.Tensor]) -> None:
    """Let what has no part in the outcome of `run` (output layer, later blocks) ask for no gradient."""
    module.zero_grad()
    run().sum().backward()
    for weight in module.parameters():
        if weight.requires_grad and weight.grad is None:
            weight.requires_grad_(False)
    module.zero_grad()


def shares_by_depth(backbone: nn.Module, decay: float) -> dict[str, float]:
    """The share of the learning rate of each weight: decay^i of what is i blocks below the top, the embedding lowest.

    >>> from xtrimo.testing import toy_config
    >>> from xtrimo.model import GLM
    >>> shares = shares_by_depth(GLM(toy_config(num_layers=2)), 0.5)
    >>> [shares[name] for name in ("final_norm.bias", "blocks.1.mlp.up.bias", "blocks.0.mlp.up.bias")]
    [1.0, 1.0, 0.5]
    >>> shares["embedding.weight"]
    0.25
    """
    blocks = blocks_of(backbone)
    depth = {id(weight): number for number, block in enumerate(blocks, start=1) for weight in block.parameters()}
    return {
        name: decay ** (len(blocks) - depth.get(id(weight), 0 if weight.ndim > 1 else len(blocks)))
        for name, weight in backbone.named_parameters()
    }


def save_adapted(backbone: nn.Module, method: Method, folder: Path) -> None:
    """Write what was trained of the backbone: an adapter as peft reads it, or the weights themselves."""
    if method == "lora":
        from peft import get_peft_model_state_dict

        config: Any = copy(backbone.peft_config["default"])  # type: ignore[index]
        config.target_modules = sorted(config.target_modules)  # a set, whose order is another in each process
        config.save_pretrained(folder / ADAPTER)
        save_file(_whole(get_peft_model_state_dict(backbone)), folder / ADAPTER / ADAPTER_WEIGHTS)
    if method == "full":
        trained = {name: weight for name, weight in backbone.named_parameters() if weight.requires_grad}
        save_file(_whole(trained), folder / BACKBONE_WEIGHTS)


def load_adapted(backbone: nn.Module, method: Method, folder: Path) -> None:
    """Give a backbone what `save_adapted` wrote.

    Raises:
        CheckpointError: a file that is missing or does not fit.
    """
    try:
        if method == "lora":
            from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

            inject_adapter_in_model(LoraConfig.from_pretrained(str(folder / ADAPTER)), backbone)
            result = set_peft_model_state_dict(backbone, load_file(folder / ADAPTER / ADAPTER_WEIGHTS))
            if result.unexpected_keys:
                raise ValueError(f"unexpected weights {result.unexpected_keys[:3]}")
        if method == "full":
            own = dict(backbone.named_parameters())
            with torch.no_grad():
                for name, weight in load_file(folder / BACKBONE_WEIGHTS).items():
                    own[name].copy_(weight)
    except (OSError, SafetensorError, TypeError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: the weights cannot be read: {error}") from error
    backbone.requires_grad_(False)


def _whole(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
