"""The layouts for inference against the plain model, and eight-bit products against numpy."""

import copy
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from generate import sample
from xtrimo.attention import within
from xtrimo.backbone import Backbone
from xtrimo.checkpoint import save
from xtrimo.embedding_file import main as embed_main
from xtrimo.errors import ConfigError
from xtrimo.int8 import Int8GEGLU, Int8Linear
from xtrimo.model import GEGLU, GLM
from xtrimo.precision_loss import PrecisionLoss
from xtrimo.prepacking import MOST_LOST, PrepackedGLM, prepack, prepack_int8
from xtrimo.quantization import quantize_rows
from xtrimo.rope import rotary
from xtrimo.testing import toy_config, toy_sequences

PROTEINS = toy_sequences(5, seed=3, min_length=20)
GENERATIVE = dict(rotary="1d", objectives=("causal",), directions=("forward",), control_words=())


def states(model: Backbone, sequence: str) -> list[torch.Tensor]:
    """After every block, and the logits."""
    example = model.tokenize(sequence)
    segments = torch.tensor([[0, len(example.tokens), example.prefix]])
    with torch.inference_mode():
        tokens, positions = torch.from_numpy(example.tokens).long(), torch.from_numpy(example.positions).long()
        hidden = model.hidden(tokens, positions, within(segments), layers=tuple(range(model.num_layers + 1)))
        return [*hidden, model.logits(hidden[-1])]


def uneven(model: GLM) -> GLM:
    """Fresh biases are zero, norms one, products small: a mistake in them would not show."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(weight))) * 0.3)
        for weight in model.blocks.parameters():
            weight.mul_(2 if weight.dim() == 2 else 1)
    return model


@pytest.fixture(params=[{}, GENERATIVE], ids=["mixed", "causal"])
def model(request: pytest.FixtureRequest) -> GLM:
    return uneven(GLM(toy_config(**request.param)).eval())


def test_prepacked_fp32_is_the_plain_model(model: GLM) -> None:
    expected = [states(model, sequence) for sequence in PROTEINS]
    packed = prepack(model)
    assert isinstance(packed, PrepackedGLM) and not packed.training
    for sequence, plain in zip(PROTEINS, expected, strict=True):
        for mine, theirs in zip(states(packed, sequence), plain, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_the_plain_model_stays_as_it_was(model: GLM) -> None:
    before, names = states(model, PROTEINS[0]), list(model.state_dict())
    packed = prepack(model)
    assert prepack(packed) is packed
    assert list(model.state_dict()) == names and all(weight.requires_grad for weight in model.parameters())
    for a, b in zip(before, states(model, PROTEINS[0]), strict=True):
        assert torch.equal(a, b)


def test_a_prepacked_model_cannot_be_saved_cast_or_trained(model: GLM, tmp_path: Path) -> None:
    save(model, tmp_path / "model")
    packed = prepack(model)
    with pytest.raises(ConfigError, match="cannot be saved"):
        save(packed, tmp_path / "model")
    for cast in (lambda: packed.to(torch.bfloat16), packed.double):
        with pytest.raises(ConfigError, match="stays as it is"):
            cast()
    assert not any(weight.requires_grad for weight in packed.parameters())
    x, attend = torch.zeros(3, 64, requires_grad=True), within(torch.tensor([[0, 3, 3]]))
    with pytest.raises(ConfigError, match="no gradients"):
        packed.blocks[0](x, rotary(torch.zeros(3, 2).long(), model.config, x.dtype), attend, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_prepacked_model_generates(model: GLM, dtype: torch.dtype) -> None:
    model.to(dtype)
    mine, theirs = (sample(m, num=3, max_length=12, seed=1) for m in (prepack(model), model))
    assert [s.name for s in mine] == [s.name for s in theirs]
    if dtype == torch.float32:
        assert [s.sequence for s in mine] == [s.sequence for s in theirs]


def test_prepacked_bf16_is_closer_to_fp32_than_plain_bf16() -> None:
    model = GLM(toy_config(num_layers=12)).eval()  # deep and freshly drawn: most of the error is the stream's
    half = copy.deepcopy(model).to(torch.bfloat16)
    packed = prepack(copy.deepcopy(half))
    exact, plain, kept = (torch.cat([states(m, s)[-2].float() for s in PROTEINS]) for m in (model, half, packed))
    assert states(packed, PROTEINS[0])[-2].dtype == torch.float32
    error, plain_error = ((x - exact).norm() / exact.norm() for x in (kept, plain))
    assert error < 0.5 * plain_error and error < 0.005


def test_what_has_no_layout_stays_plain() -> None:
    model = GLM(toy_config()).to(torch.float64)
    assert isinstance(prepack(model).blocks[0].mlp, GEGLU)
    with pytest.raises(ConfigError, match="plain fp32 or bf16 weights on the CPU"):
        prepack_int8(model, PROTEINS)


def by_hand(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Both sides rounded to 255 levels a row, multiplied in whole numbers."""
    x_scale, weight_scale = (np.abs(m).max(1, keepdims=True) / 127 for m in (x, weight))
    whole = np.rint(x / x_scale).astype(np.int64) @ np.rint(weight / weight_scale).astype(np.int64).T
    return whole * x_scale * weight_scale.T + bias


def test_int8_linear_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((300, 48), (40, 48), (40,)))
    got = Int8Linear(weight, bias)(x)
    np.testing.assert_allclose(got.numpy(), by_hand(x.numpy(), weight.numpy(), bias.numpy()), atol=2e-5)


def test_int8_geglu_by_hand() -> None:
    plain = GEGLU(toy_config())
    generator = torch.Generator().manual_seed(1)
    for weight in plain.parameters():
        weight.data = torch.randn(weight.shape, generator=generator)
    x = torch.randn(200, 64, generator=generator)
    up, up_bias, down, down_bias = (w.detach().numpy() for w in plain.parameters())
    value, gate = np.split(by_hand(x.numpy(), up, up_bias).astype(np.float32), 2, axis=1)
    inner = value * F.gelu(torch.from_numpy(gate)).numpy()
    # an inner number near the middle between two levels may round either way
    np.testing.assert_allclose(Int8GEGLU(plain)(x).numpy(), by_hand(inner, down, down_bias), rtol=1e-2, atol=1e-1)
    exact = plain(x).detach()
    assert (Int8GEGLU(plain)(x) - exact).norm() / exact.norm() < 0.02


def test_a_row_of_int8_depends_on_itself_alone() -> None:
    layer = Int8GEGLU(GLM(toy_config()).blocks[0].mlp)
    x = torch.randn(300, 64, generator=torch.Generator().manual_seed(2))
    x[7] *= 1000
    whole = layer(x)
    assert torch.equal(whole[150:163], layer(x[150:163])) and torch.equal(whole[7:8], layer(x[7:8]))


def test_a_row_of_zeros_stays_one() -> None:
    numbers, scale = quantize_rows(torch.zeros(2, 4))
    assert not numbers.any() and torch.isfinite(scale).all()


def test_int8_is_measured(model: GLM) -> None:
    exact = [states(model, sequence)[-2] for sequence in PROTEINS]
    eight, loss = prepack_int8(model, PROTEINS)
    assert MOST_LOST.cosine < loss.cosine < 1 and abs(loss.nll_rise) < MOST_LOST.nll_rise
    for sequence, theirs in zip(PROTEINS, exact, strict=True):
        assert F.cosine_similarity(states(eight, sequence)[-2], theirs).mean() > 0.995


def test_int8_needs_proteins_to_be_judged_on(model: GLM) -> None:
    with pytest.raises(ConfigError, match="none was given"):
        prepack_int8(model, [])


def test_int8_is_refused_where_it_costs_too_much(model: GLM) -> None:
    with pytest.raises(ConfigError, match=r"does not bear int8.*cosine 0\.999.* use --precision bf16"):
        prepack_int8(model, PROTEINS, bounds=PrecisionLoss(cosine=0.999999, nll_rise=1.0))


def test_the_verbs_take_int8(tmp_path: Path, model: GLM, caplog: pytest.LogCaptureFixture) -> None:
    save(model, tmp_path / "model")
    (tmp_path / "in.fasta").write_text("".join(f">p{i}\n{s}\n" for i, s in enumerate(PROTEINS)))
    files = {}
    with caplog.at_level("INFO"):
        for precision in ("fp32", "int8"):
            out = tmp_path / f"{precision}.h5"
            embed_main([f"{tmp_path}/in.fasta", str(out), "--model", f"{tmp_path}/model", "--precision", precision])
            with h5py.File(out) as file:
                assert file.attrs["precision"] == precision
                files[precision] = {name: file[name][()] for name in file}
    assert "int8 against bf16 on the first proteins: cosine 0.999" in caplog.text
    for name, exact in files["fp32"].items():
        cosine = F.cosine_similarity(*(torch.from_numpy(x) for x in (exact, files["int8"][name])))
        assert 0.99 < cosine.min() < 0.999999
