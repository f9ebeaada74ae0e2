"""The KV cache against reading the whole sequence again."""

import pytest
import torch

from xtrimo.cache import KVCache
from xtrimo.config import GLMConfig
from xtrimo.model import GLM

SHAPE = dict(num_layers=3, hidden_size=64, num_heads=2, ffn_size=64)
PROMPT = torch.tensor([29, 32, 34, 17, 12])
WRITTEN = torch.tensor([[4, 1, 7, 7, 3], [9, 9, 2, 1, 20], [5, 6, 7, 8, 9], [1, 1, 1, 1, 1]])  # (row, step)


def positions(num_tokens: int, config: GLMConfig) -> torch.Tensor:
    table = torch.zeros(num_tokens, 2, dtype=torch.long)
    table[:, int(config.rotary == "2d")] = torch.arange(num_tokens)
    return table


def again(model: GLM, tokens: torch.Tensor) -> torch.Tensor:
    """Logits at every token of one sequence, without a cache."""
    segments = torch.tensor([[0, len(tokens), 1]])
    with torch.no_grad():
        return model(tokens, positions(len(tokens), model.config), segments)


def step(model: GLM, cache: KVCache, tokens: torch.Tensor) -> torch.Tensor:
    place = positions(cache.length + 1, model.config)[-1].expand(len(tokens), 2)
    with torch.no_grad():
        return model.output(model.hidden(tokens, place, cache.attend)[-1])


def prefilled(model: GLM) -> tuple[KVCache, torch.Tensor]:
    cache = KVCache(model.config, 4, 12, torch.float32, "cpu")
    with torch.no_grad():
        (hidden,) = model.hidden(PROMPT, positions(len(PROMPT), model.config), cache.prefill)
        return cache, model.output(hidden)


@pytest.fixture(params=["1d", "2d"])
def model(request: pytest.FixtureRequest) -> GLM:
    objective = "causal" if request.param == "1d" else "gmask"
    return GLM(GLMConfig(**SHAPE, rotary=request.param, objectives=(objective,)))


def test_cached_is_uncached(model: GLM) -> None:
    cache, logits = prefilled(model)
    torch.testing.assert_close(logits, again(model, PROMPT), atol=1e-5, rtol=0)
    assert cache.length == len(PROMPT)
    expected = torch.stack([again(model, torch.cat((PROMPT, row))) for row in WRITTEN])
    for i in range(WRITTEN.shape[1]):
        torch.testing.assert_close(step(model, cache, WRITTEN[:, i]), expected[:, len(PROMPT) + i], atol=1e-5, rtol=0)
    assert cache.length == len(PROMPT) + WRITTEN.shape[1]


@pytest.mark.parametrize("kept", [[0, 3, 2], [1], [3, 2, 1, 0], [2, 2, 2, 1], [0, 1, 2]])
def test_rows_move(model: GLM, kept: list[int]) -> None:
    cache, _ = prefilled(model)
    for i in range(3):
        step(model, cache, WRITTEN[:, i])
    rows = torch.tensor(kept)
    cache.keep(rows)
    expected = torch.stack([again(model, torch.cat((PROMPT, WRITTEN[row, :5]))) for row in kept])
    for i in (3, 4):
        torch.testing.assert_close(
            step(model, cache, WRITTEN[rows, i]), expected[:, len(PROMPT) + i], atol=1e-5, rtol=0
        )
