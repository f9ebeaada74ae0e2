"""The rows of the cache against reading the whole sequences again."""

import numpy as np
import pytest
import torch

from xtrimo.cache import Part, Reading, Row, Writing, bytes_per_token
from xtrimo.config import GLMConfig
from xtrimo.model import GLM
from xtrimo.stepping import prepack_to_generate

SHAPE = dict(num_layers=3, hidden_size=64, num_heads=2, ffn_size=64)
TEXTS = [torch.from_numpy(np.random.default_rng(n).integers(1, 21, size=n)) for n in (4, 9, 5, 30)]


def positions(num_tokens: int, config: GLMConfig, first: int = 0) -> torch.Tensor:
    table = torch.zeros(num_tokens, 2, dtype=torch.long)
    table[:, int(config.rotary == "2d")] = torch.arange(first, first + num_tokens)
    return table


def again(model: GLM, tokens: torch.Tensor, prefix: int) -> torch.Tensor:
    """Logits at every token of one sequence, without a cache."""
    with torch.no_grad():
        return model(tokens, positions(len(tokens), model.config), torch.tensor([[0, len(tokens), prefix]]))


def read(model: GLM, rows: list[Row], texts: list[torch.Tensor], prefix: int, surplus: int = 0) -> list[torch.Tensor]:
    """Logits of new tokens of several rows, read end to end."""
    places = [positions(len(text), model.config, row.length) for row, text in zip(rows, texts, strict=True)]
    parts = [Part(row, len(text), prefix) for row, text in zip(rows, texts, strict=True)]
    tokens = torch.cat([*texts, torch.ones(surplus).long()])
    where = torch.cat([*places, positions(surplus, model.config)])
    with torch.inference_mode():
        logits = model.logits(model.hidden(tokens, where, Reading(parts).attend)[-1]).float()
    return list(logits.split([*map(len, texts), surplus])[: len(texts)])


def write(model: GLM, writing: Writing, tokens: list[int], surplus: int = 0) -> torch.Tensor:
    where = torch.cat([positions(1, model.config, row.length) for row in writing.rows] * (1 + surplus))
    with torch.inference_mode():
        states = model.hidden(torch.tensor(tokens * (1 + surplus)), where, writing.attend)[-1]
        return model.logits(states).float()[: len(tokens)]


def rows_of(model: GLM, num: int) -> list[Row]:
    return [Row(model.config, 64, model.dtype, "cpu") for _ in range(num)]


@pytest.fixture(params=["1d", "2d", "stepping"])
def model(request: pytest.FixtureRequest) -> GLM:
    rotary = "1d" if request.param == "1d" else "2d"
    model = GLM(GLMConfig(**SHAPE, rotary=rotary, objectives=("causal",) if rotary == "1d" else ("gmask",)))
    return prepack_to_generate(model) if request.param == "stepping" else model


@pytest.mark.parametrize("prefix", [0, 3])
def test_cached_is_uncached(model: GLM, prefix: int) -> None:
    starts = [text[: max(3, len(text) // 2)] for text in TEXTS]
    rows = rows_of(model, len(TEXTS))
    for got in (read(model, rows, starts, prefix), read(model, rows_of(model, 4), starts, prefix, surplus=2)):
        for logits, start in zip(got, starts, strict=True):
            torch.testing.assert_close(logits, again(model, start, prefix), atol=1e-5, rtol=0)
    writing = Writing(rows)
    for step in range(5):
        more = [7, step, 3, 20 - step]
        got = write(model, writing, more, surplus=step % 2)
        starts = [torch.cat((start, torch.tensor([token]))) for start, token in zip(starts, more, strict=True)]
        assert [row.length for row in rows] == list(map(len, starts))
        for logits, start in zip(got, starts, strict=True):
            torch.testing.assert_close(logits, again(model, start, prefix)[-1], atol=1e-5, rtol=0)
    writing.rows = rows[2:0:-1]  # some of them, in another order
    for logits, start in zip(write(model, writing, [9, 9]), starts[2:0:-1], strict=True):
        whole = torch.cat((start, torch.tensor([9])))
        torch.testing.assert_close(logits, again(model, whole, prefix)[-1], atol=1e-5, rtol=0)


def test_a_row_goes_back(model: GLM) -> None:
    rows, prefix = rows_of(model, 2), 3
    read(model, rows, [TEXTS[3][:10], TEXTS[1][:5]], prefix)
    read(model, rows, [torch.tensor([1, 2, 3, 4]), torch.tensor([5, 6])], prefix)
    rows[0].length, rows[1].length = 11, 5
    new = [torch.tensor([8, 9]), torch.tensor([4, 4, 4])]
    got = read(model, rows, new, prefix)
    texts = [torch.cat((TEXTS[3][:10], torch.tensor([1, 8, 9]))), torch.cat((TEXTS[1][:5], torch.tensor([4, 4, 4])))]
    for logits, text, more in zip(got, texts, new, strict=True):
        torch.testing.assert_close(logits, again(model, text, prefix)[-len(more) :], atol=1e-5, rtol=0)


def test_a_row_takes_over_anothers_start(model: GLM) -> None:
    one, other = rows_of(model, 2)
    read(model, [one], [TEXTS[3]], 3)
    read(model, [other], [TEXTS[1]], 3)
    other.copy(one, 12)
    (logits,) = read(model, [other], [torch.tensor([2, 2])], 3)
    text = torch.cat((TEXTS[3][:12], torch.tensor([2, 2])))
    torch.testing.assert_close(logits, again(model, text, 3)[-2:], atol=1e-5, rtol=0)


def test_half_precision_is_near_and_mixes_in_fp32() -> None:
    config = GLMConfig(**SHAPE)
    row, exact = Row(config, 8, torch.bfloat16, "cpu"), Row(config, 8, torch.float32, "cpu")
    generator = torch.Generator().manual_seed(0)
    writing, expecting = Writing([row]), Writing([exact])
    for _ in range(5):
        for layer in range(3):
            q, k, v = (torch.randn(1, 2, 32, generator=generator).bfloat16() for _ in range(3))
            got, expected = writing.attend(layer, q, k, v), expecting.attend(layer, q, k, v)
            assert torch.equal(got, expected)  # what is kept is half precision already
    assert row.length == exact.length == 5 and got.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_per_token(dtype: torch.dtype) -> None:
    row = Row(GLMConfig(**SHAPE), 48, dtype, "cpu")
    assert bytes_per_token(GLMConfig(**SHAPE), dtype) * row.capacity == row.kept.nbytes
