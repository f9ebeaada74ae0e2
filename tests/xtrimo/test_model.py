"""The GLM against a forward pass written out in numpy, and the laws of its initial weights."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from xtrimo.attention import attend
from xtrimo.config import PRESETS, GLMConfig
from xtrimo.errors import ConfigError
from xtrimo.model import GLM, draw_weight

BOTH = pytest.mark.parametrize("layout", ["1d", "2d"])
ERF = np.vectorize(math.erf)
ROW = [(6, 6), (9, 4), (5, 0), (1, 0), (7, 1), (4, 3)]  # (length, prefix) of each segment


def config_of(layout: str = "2d", **changes) -> GLMConfig:
    shape = dict(num_layers=3, hidden_size=24, num_heads=3, ffn_size=20, rotary=layout)
    return GLMConfig(**{**shape, "objectives": ("mlm",), **changes})


def random_weights(model: GLM, seed: int = 0) -> GLM:
    """Weights far from their initial values: with zero biases and unit norms half of the arithmetic would not show."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.state_dict().items():
        noise = torch.randn(weight.shape, generator=generator)
        weight.copy_(1 + 0.3 * noise if "norm.weight" in name else 0.3 * noise)
    return model


def packed(row: list[tuple[int, int]], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, positions and segments of a random row; a target's second position counts from 1, as the GLM's does."""
    generator = torch.Generator().manual_seed(seed)
    segments, positions, start = [], [], 0
    for length, prefix in row:
        segments.append([start, length, prefix])
        source = max(prefix, 1)
        positions += [[i, 0] if i < source else [source - 1, i - source + 1] for i in range(length)]
        start += length
    tokens = torch.randint(1, 37, (start,), generator=generator)
    return tokens, torch.tensor(positions), torch.tensor(segments)


def alone(tokens: Tensor, positions: Tensor, segments: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Each segment of a row as a row of its own."""
    return [(tokens[s : s + n], positions[s : s + n], torch.tensor([[0, n, p]])) for s, n, p in segments.tolist()]


# ---- the reference: one protein, double precision, loops where the layout matters


def layer_norm(x: np.ndarray, w: dict[str, np.ndarray], name: str) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x: np.ndarray, w: dict[str, np.ndarray], name: str) -> np.ndarray:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def rotate_half(x: np.ndarray, position: np.ndarray) -> np.ndarray:
    """x cos + cat(-x2, x1) sin with emb = cat(freqs, freqs), over the last axis of (token, width)."""
    width = x.shape[-1]
    freqs = position[:, None] / 10000.0 ** (np.arange(0, width, 2) / width)
    emb = np.concatenate([freqs, freqs], axis=-1)
    x1, x2 = x[:, : width // 2], x[:, width // 2 :]
    return x * np.cos(emb) + np.concatenate([-x2, x1], axis=-1) * np.sin(emb)


def reference(model: GLM, tokens: Tensor, positions: Tensor, prefix: int) -> list[np.ndarray]:
    """[embedding, output of each block, final norm, logits] of one protein."""
    config = model.config
    w = {name: weight.double().numpy() for name, weight in model.state_dict().items()}
    length, width = len(tokens), config.hidden_size // config.num_heads
    alpha = (2 * config.num_layers) ** 0.5
    chain, span = positions.numpy().T
    hidden = w["embedding.weight"][tokens.numpy()]
    out = [hidden]
    for layer in range(config.num_layers):
        name = f"blocks.{layer}"
        h = layer_norm(hidden, w, f"{name}.attention_norm")
        rows = linear(h, w, f"{name}.attention.qkv")
        mixed = np.zeros((length, config.hidden_size))
        for head in range(config.num_heads):
            of_head = rows[:, head * 3 * width : (head + 1) * 3 * width]
            q, k, v = of_head[:, :width], of_head[:, width : 2 * width], of_head[:, 2 * width :]
            if config.rotary == "1d":
                q, k = rotate_half(q, chain), rotate_half(k, chain)
            else:
                half = width // 2
                q, k = (
                    np.concatenate([rotate_half(x[:, :half], chain), rotate_half(x[:, half:], span)], axis=-1)
                    for x in (q, k)
                )
            for i in range(length):
                keys = [j for j in range(length) if j < prefix or j <= i]
                scores = np.exp(k[keys] @ q[i] / math.sqrt(width))
                mixed[i, head * width : (head + 1) * width] = scores / scores.sum() @ v[keys]
        y = alpha * h + linear(mixed, w, f"{name}.attention.dense")
        h2 = layer_norm(y, w, f"{name}.mlp_norm")
        first, second = np.split(linear(h2, w, f"{name}.mlp.up"), 2, axis=-1)
        gelu = second * 0.5 * (1 + ERF(second / math.sqrt(2)))
        hidden = alpha * h2 + linear(first * gelu, w, f"{name}.mlp.down")
        out.append(hidden)
    final = layer_norm(hidden, w, "final_norm")
    return [*out, final, final @ w["output.weight"].T]


@BOTH
def test_forward_equals_the_written_out_pass(layout):
    model = random_weights(GLM(config_of(layout)))
    row = packed(ROW)
    got = model(*row).detach().numpy()
    segments = zip(alone(*row), ROW, strict=True)
    want = np.concatenate([reference(model, tokens, at, prefix)[-1] for (tokens, at, _), (_, prefix) in segments])
    assert np.abs(want).max() > 1  # the comparison below means something
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


@BOTH
def test_fresh_model_equals_the_written_out_pass(layout):
    model = GLM(config_of(layout), seed=5)
    tokens, positions, segments = packed([(12, 5)])
    got = model(tokens, positions, segments).detach().numpy()
    np.testing.assert_allclose(got, reference(model, tokens, positions, 5)[-1], rtol=0, atol=1e-5)


@BOTH
def test_packed_equals_one_at_a_time(layout):
    """Logits and the gradient of every weight."""
    model = random_weights(GLM(config_of(layout)))
    row = packed(ROW)
    logits = model(*row)
    apart = [model(*segment) for segment in alone(*row)]
    torch.testing.assert_close(logits, torch.cat(apart), rtol=0, atol=1e-5)
    names, weights = zip(*model.named_parameters(), strict=True)
    together = torch.autograd.grad(logits.log_softmax(-1)[:, 7].mean(), weights)
    summed = torch.autograd.grad(torch.cat(apart).log_softmax(-1)[:, 7].mean(), weights)
    for name, a, b in zip(names, together, summed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_causal_tokens_do_not_see_what_follows_and_mlm_tokens_do():
    model = random_weights(GLM(config_of()))
    tokens, positions, _ = packed([(10, 0)])
    changed = tokens.clone()
    changed[7] = tokens[7] % 36 + 1
    for prefix, first_changed in ((0, 7), (1, 7), (8, 0), (10, 0)):
        segments = torch.tensor([[0, 10, prefix]])
        moved = (model(tokens, positions, segments) != model(changed, positions, segments)).any(-1)
        assert not moved[:first_changed].any() and moved[first_changed:].all(), prefix


def test_hidden_layers_convention():
    """0 is the embedding, i the raw output of block i, -1 the final norm's output, which the output layer reads."""
    model = random_weights(GLM(config_of()))
    tokens, positions, segments = packed([(8, 3)])

    def mix(_: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, segments)

    want = reference(model, tokens, positions, 3)
    last = model.config.num_layers
    for asked, index in ((0, 0), (1, 1), (last - 1, last - 1), (last, last + 1), (-1, last + 1), (-2, last - 1)):
        (got,) = model.hidden(tokens, positions, mix, layers=(asked,))
        np.testing.assert_allclose(got.detach().numpy(), want[index], rtol=0, atol=1e-5, err_msg=f"layer {asked}")
    several = model.hidden(tokens, positions, mix, layers=(-1, 0, 2, -1))
    assert len(several) == 4 and torch.equal(several[0], several[3])
    np.testing.assert_allclose(several[2].detach().numpy(), want[2], rtol=0, atol=1e-5)
    assert torch.equal(model.output(several[0]), model(tokens, positions, segments))


@pytest.mark.parametrize("layers", [(4,), (-5,), (0, 99)])
def test_layers_that_do_not_exist_are_refused(layers):
    model = GLM(config_of())
    tokens, positions, _ = packed([(4, 4)])
    with pytest.raises(ConfigError, match="layers"):
        model.hidden(tokens, positions, lambda _, q, k, v: v, layers=layers)


def test_attend_is_told_the_layer():
    model = GLM(config_of())
    tokens, positions, _ = packed([(4, 4)])
    layers = []
    model.hidden(tokens, positions, lambda layer, q, k, v: (layers.append(layer), v)[1])
    assert layers == [0, 1, 2]


def test_input_gradient_scales_the_embedding_gradient_alone():
    model = random_weights(GLM(config_of()))
    tokens, positions, segments = packed([(8, 3)])

    def gradients(scale: float) -> tuple[Tensor, dict[str, Tensor]]:
        (x,) = model.hidden(
            tokens, positions, lambda _, q, k, v: attend(q, k, v, segments), layers=(-1,), input_gradient=scale
        )
        grads = torch.autograd.grad(x.square().mean(dim=0)[0], list(model.parameters()), allow_unused=True)
        return x.detach(), dict(zip((name for name, _ in model.named_parameters()), grads, strict=True))

    (whole_x, whole), (tenth_x, tenth) = gradients(1.0), gradients(0.1)
    torch.testing.assert_close(tenth_x, whole_x, rtol=0, atol=1e-6)
    assert whole.pop("output.weight") is None and tenth.pop("output.weight") is None
    torch.testing.assert_close(tenth.pop("embedding.weight"), 0.1 * whole.pop("embedding.weight"), rtol=1e-4, atol=1e-7)
    for name in whole:
        torch.testing.assert_close(tenth[name], whole[name], rtol=1e-4, atol=1e-6)


# ---- initial weights (Xavier-normal: std = gain * sqrt(2 / (fan_in + fan_out)))

DRAWN = GLMConfig(num_layers=8, hidden_size=256, num_heads=4, ffn_size=704)
GAIN = 16**-0.5  # beta of 8 layers
SQUARE, FFN = (2 / (256 + 256)) ** 0.5, (2 / (256 + 704)) ** 0.5


@pytest.fixture(scope="module")
def fresh() -> dict[str, Tensor]:
    return GLM(DRAWN, seed=3).state_dict()


def per_head(qkv: Tensor) -> Tensor:
    return qkv.view(4, 3, 64, 256)


STD: dict[str, tuple[str, Callable[[Tensor], Tensor], float]] = {
    "query": ("blocks.2.attention.qkv.weight", lambda w: per_head(w)[:, 0], SQUARE),
    "key": ("blocks.2.attention.qkv.weight", lambda w: per_head(w)[:, 1], SQUARE),
    "value": ("blocks.2.attention.qkv.weight", lambda w: per_head(w)[:, 2], GAIN * SQUARE),
    "attention output": ("blocks.0.attention.dense.weight", lambda w: w, GAIN * SQUARE),
    "up, value half": ("blocks.7.mlp.up.weight", lambda w: w[:704], GAIN * FFN),
    "up, gate half": ("blocks.7.mlp.up.weight", lambda w: w[704:], GAIN * FFN),
    "down": ("blocks.7.mlp.down.weight", lambda w: w, GAIN * FFN),
    "embedding": ("embedding.weight", lambda w: w, 0.02),
    "output": ("output.weight", lambda w: w, 0.02),
}


@pytest.mark.parametrize("part", STD)
def test_standard_deviations(fresh, part):
    name, rows, std = STD[part]
    drawn = rows(fresh[name])
    error = std / math.sqrt(2 * drawn.numel())  # of an estimated standard deviation
    assert drawn.std().item() == pytest.approx(std, abs=5 * error)
    assert drawn.mean().item() == pytest.approx(0, abs=5 * std / math.sqrt(drawn.numel()))


def test_biases_are_zero_and_norms_are_one(fresh):
    kinds = {"bias": 0, "norm": 0, "drawn": 0}
    for name, weight in fresh.items():
        if name.endswith(".bias"):
            kinds["bias"] += 1
            assert (weight == 0).all(), name
        elif "norm.weight" in name:
            kinds["norm"] += 1
            assert (weight == 1).all(), name
        else:
            kinds["drawn"] += 1
            assert weight.std() > 0, name
    assert kinds == {"bias": 6 * 8 + 1, "norm": 2 * 8 + 1, "drawn": 4 * 8 + 2}


def test_same_seed_same_weights(fresh):
    again, other = GLM(DRAWN, seed=3).state_dict(), GLM(DRAWN, seed=4).state_dict()
    for name, weight in fresh.items():
        assert torch.equal(weight, again[name])
        assert weight.dim() < 2 or (weight != other[name]).float().mean() > 0.99, name


def test_seed_is_all_that_matters():
    """The global random state changes no weight, and drawing leaves that state alone."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = GLM(config_of(), seed=0).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = GLM(config_of(), seed=0).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_every_weight_has_its_own_stream(fresh):
    drawn = {name: weight.flatten()[:32768] for name, weight in fresh.items() if weight.std() > 0}
    for (name, a), (other, b) in itertools.combinations(drawn.items(), 2):
        correlation = torch.corrcoef(torch.stack([a, b]))[0, 1].abs()
        assert correlation < 0.04, (name, other)  # seven standard errors


def test_a_weight_can_be_drawn_alone(fresh):
    """What a rank of a parallel job does."""
    for name, weight in fresh.items():
        assert torch.equal(draw_weight(name, tuple(weight.shape), DRAWN, 3), weight)


# ---- counting


@pytest.mark.parametrize(
    "config",
    [config_of("1d"), config_of("2d"), config_of(num_layers=1, ffn_size=7, vocab_size=64), *PRESETS.values()],
    ids=["1d", "2d", "odd", *PRESETS],
)
def test_num_params_counts_the_weights(config):
    with torch.device("meta"):
        model = GLM(config, seed=None)
    assert sum(weight.numel() for weight in model.state_dict().values()) == config.num_params
    assert len(list(model.parameters())) == len(model.state_dict())


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [("1b", 4.837), ("3b", 11.338), ("7b", 29.003), ("10b", 42.744)],
)
def test_published_shapes_fill_the_published_fp32_files(name, gigabytes):
    assert 4 * PRESETS[f"proteinglm-{name}"].num_params / 1e9 == pytest.approx(gigabytes, abs=1e-3)


def test_flops_per_token_counts_the_matrix_products():
    """Attention by two plain products here: torch's counter has no formula for the CPU flash kernel."""
    length, config = 48, config_of()
    tokens, positions, _ = packed([(length, length)])

    def plain(_: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        return ((q @ k.transpose(1, 2)).softmax(-1) @ v).transpose(0, 1)

    model = GLM(config)
    with FlopCounterMode(display=False) as counter:
        model.output(model.hidden(tokens, positions, plain)[-1])
    assert counter.get_total_flops() == length * config.flops_per_token(float(length))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(dtype):
    model = GLM(config_of(initializer_std=1.0))
    row = packed(ROW)
    exact = model(*row)
    half = model.to(dtype)(*row)
    assert half.dtype == model.dtype == dtype
    error = (half.float() - exact).norm() / exact.norm()
    assert error < 0.03
