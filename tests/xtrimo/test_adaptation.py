"""What of a backbone is trained: adapters that begin as nothing, and rates that fall with depth."""

from pathlib import Path

import pytest
import torch

from xtrimo.adaptation import adapt, freeze_unused, load_adapted, save_adapted, shares_by_depth
from xtrimo.config import GLMConfig
from xtrimo.errors import ConfigError
from xtrimo.model import GLM
from xtrimo.states import LiveStates
from xtrimo.testing import toy_config, toy_sequences

PROTEINS = toy_sequences(3)


def states(model: GLM, layers: tuple[int, ...] = (-1,)) -> torch.Tensor:
    return LiveStates(model, layers, False)(PROTEINS)[0]


def trained(model: GLM) -> set[str]:
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


def test_adapters_are_beside_every_linear_layer_of_the_blocks() -> None:
    model = GLM(toy_config())
    adapt(model, "lora", rank=4, alpha=8)
    layers = [
        f"blocks.{i}.{name}" for i in range(4) for name in ("attention.qkv", "attention.dense", "mlp.up", "mlp.down")
    ]
    assert trained(model) == {f"{layer}.lora_{ab}.default.weight" for layer in layers for ab in "AB"}
    torch.testing.assert_close(states(model), states(GLM(toy_config())), rtol=0, atol=0)


def test_an_adapter_is_a_product_beside_the_weight() -> None:
    """W x + alpha / rank * B A x, as a model whose weights have that added."""
    model, plain = GLM(toy_config()), GLM(toy_config())
    adapt(model, "lora", rank=4, alpha=8)
    state = dict(model.named_parameters())
    with torch.no_grad():
        for name in trained(model):
            state[name].normal_(std=0.1)
        for name, weight in plain.named_parameters():
            ab = [state.get(f"{name.removesuffix('.weight')}.lora_{x}.default.weight") for x in "AB"]
            if name.endswith(".weight") and ab[0] is not None and ab[1] is not None:
                weight += 8 / 4 * ab[1] @ ab[0]
    torch.testing.assert_close(states(model), states(plain), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_is_trained_is_kept(tmp_path: Path, method) -> None:  # type: ignore[no-untyped-def]
    model, again = GLM(toy_config()), GLM(toy_config())
    adapt(model, method)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.02 * torch.randn_like(weight) * weight.requires_grad
    save_adapted(model, method, tmp_path)
    load_adapted(again, method, tmp_path)
    torch.testing.assert_close(states(again), states(model), rtol=0, atol=0)
    assert not trained(again)
    assert not torch.equal(states(again), states(GLM(toy_config())))


def test_what_has_no_part_is_frozen() -> None:
    """A head on the output of block 2: neither later blocks, the final norm nor the output layer."""
    model = GLM(toy_config())
    adapt(model, "full")
    freeze_unused(model, lambda: states(model, (2,)))
    assert {name.partition(".")[0] for name in trained(model)} == {"embedding", "blocks"}
    assert {name.split(".")[1] for name in trained(model) if name.startswith("blocks")} == {"0", "1"}
    assert all(weight.grad is None for weight in model.parameters())


def test_rates_fall_with_depth() -> None:
    shares = shares_by_depth(GLM(toy_config()), 0.5)
    assert [shares[f"blocks.{i}.mlp.up.weight"] for i in range(4)] == [0.125, 0.25, 0.5, 1.0]
    assert (shares["embedding.weight"], shares["final_norm.weight"]) == (0.0625, 1.0)


def test_a_quantized_model_is_refused() -> None:
    config: GLMConfig = toy_config(quantization="int4")
    with pytest.raises(ConfigError, match="quantized"):
        adapt(GLM(config, seed=None), "lora")
