"""The layout for generation against the plain model, its eight-bit products against numpy."""

import copy

import numpy as np
import pytest
import torch

from tests.xtrimo.test_prepacking import uneven
from xtrimo.attention import within
from xtrimo.errors import ConfigError
from xtrimo.fasta import Record
from xtrimo.model import GEGLU, GLM
from xtrimo.precision_loss import PrecisionLoss, answers
from xtrimo.prepacking import MOST_LOST, prepack
from xtrimo.stepping import FusedGEGLU, Int8Product, StepGLM, prepack_int8_to_generate, prepack_to_generate
from xtrimo.testing import toy_config, toy_sequences

PROTEINS = toy_sequences(5, seed=3, min_length=20)
CAUSAL = dict(rotary="1d", objectives=("causal",), directions=("forward",), control_words=())


def states(model: GLM, sequence: str) -> list[torch.Tensor]:
    """After every block, and the logits."""
    example = model.tokenize(sequence)
    segments = torch.tensor([[0, len(example.tokens), example.prefix]])
    with torch.inference_mode():
        tokens, positions = torch.from_numpy(example.tokens).long(), torch.from_numpy(example.positions).long()
        positions[:, 1] = torch.arange(len(tokens)) % 7  # turns the second channel, where there is one
        hidden = model.hidden(tokens, positions, within(segments), layers=tuple(range(model.num_layers + 1)))
        return [*hidden, model.logits(hidden[-1])]


@pytest.fixture(params=[{}, CAUSAL], ids=["2d", "1d"])
def model(request: pytest.FixtureRequest) -> GLM:
    return uneven(GLM(toy_config(**request.param)).eval())


def test_in_fp32_it_is_the_plain_model(model: GLM) -> None:
    before = copy.deepcopy(model.state_dict())
    step = prepack_to_generate(model)
    assert isinstance(step, StepGLM) and prepack_to_generate(step) is step and prepack(step) is step
    for sequence in PROTEINS:
        for mine, theirs in zip(states(step, sequence), states(model, sequence), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    with pytest.raises(ConfigError, match="cannot be saved"):
        step.state_dict()


@pytest.mark.parametrize("kind", ["bf16", "bf16 few", "int8"])
def test_lower_precisions_are_near(model: GLM, kind: str) -> None:
    exact = [states(model, sequence)[-2] for sequence in PROTEINS]
    half = copy.deepcopy(model).to(torch.bfloat16)
    slots = 1 if kind == "bf16 few" else None
    step = prepack_int8_to_generate(half, PROTEINS)[0] if kind == "int8" else prepack_to_generate(half, slots=slots)
    assert step.dtype == torch.bfloat16 and states(step, PROTEINS[0])[-1].dtype == torch.float32
    for sequence, theirs in zip(PROTEINS, exact, strict=True):
        mine = states(step, sequence)[-2]
        assert (mine - theirs).norm() / theirs.norm() < (0.05 if kind == "int8" else 0.01)
        assert not torch.equal(mine, theirs)


def by_hand(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Both sides rounded to 255 levels a row, multiplied in whole numbers."""
    x_scale, weight_scale = (np.abs(m).max(1, keepdims=True) / 127 for m in (x, weight))
    whole = np.rint(x / x_scale).astype(np.int64) @ np.rint(weight / weight_scale).astype(np.int64).T
    return whole * x_scale * weight_scale.T + bias


def test_int8_product_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((300, 48), (40, 48), (40,)))
    product = Int8Product(weight, bias)
    # a number near the middle between two levels may round either way
    close = np.isclose(product(x).numpy(), by_hand(x.numpy(), weight.numpy(), bias.numpy()), atol=1e-4)
    assert close.mean() > 0.98
    exact = x @ weight.T + bias
    for rows in (product(x), torch.cat([product(row[None]) for row in x])):  # one row alone has levels of its own
        assert (rows - exact).norm() / exact.norm() < 0.015


def test_int8_rows_depend_on_themselves_alone() -> None:
    layer = FusedGEGLU(GLM(toy_config()).blocks[0].mlp, Int8Product)
    x = torch.randn(70, 64, generator=torch.Generator().manual_seed(2))
    x[7] *= 1000
    whole = layer(x)
    assert torch.equal(whole[20:33], layer(x[20:33])) and torch.equal(whole[7:9], layer(x[7:9]))
    assert torch.isfinite(layer(torch.zeros(2, 64))).all() and torch.isfinite(layer(torch.zeros(1, 64))).all()


def test_int8_geglu_is_near() -> None:
    plain = GEGLU(toy_config())
    generator = torch.Generator().manual_seed(1)
    for weight in plain.parameters():
        weight.data = torch.randn(weight.shape, generator=generator)
    x = torch.randn(200, 64, generator=generator)
    exact = plain(x).detach()
    layer = FusedGEGLU(plain, Int8Product)
    for rows in (layer(x), torch.cat([layer(row[None]) for row in x[:20]])):
        assert (rows - exact[: len(rows)]).norm() / exact[: len(rows)].norm() < 0.03


def test_int8_is_judged_as_the_model_writes(model: GLM) -> None:
    step, loss = prepack_int8_to_generate(model, PROTEINS)
    before, after = (
        answers(m, [Record("p", sequence) for sequence in PROTEINS], as_written=True) for m in (model, step)
    )
    assert loss == PrecisionLoss.between(before, after)
    assert len(before.nats) == sum(len(sequence) + 1 for sequence in PROTEINS)  # every residue and the end
    assert MOST_LOST.cosine < loss.cosine < 1
    with pytest.raises(ConfigError, match=r"does not bear int8.*use --precision bf16"):
        prepack_int8_to_generate(model, PROTEINS, bounds=PrecisionLoss(cosine=0.9999999, nll_rise=1.0))
    with pytest.raises(ConfigError, match="none was given"):
        prepack_int8_to_generate(model, [])
    with pytest.raises(ConfigError, match="plain fp32 or bf16 weights"):
        prepack_int8_to_generate(step, PROTEINS)


def test_what_has_no_layout_stays_plain() -> None:
    model = GLM(toy_config()).to(torch.float64)
    assert prepack_to_generate(model) is model
