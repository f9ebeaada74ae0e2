"""The published network: a forward pass written from its description alone, on random weights."""

import pytest
import torch

from tests.xtrimo.published_reference import inverse_frequencies, outputs, random_weights, reference, write
from xtrimo import checkpoint, published
from xtrimo.config import PRESETS
from xtrimo.rope import frequencies
from xtrimo.testing import toy_sequences

KINDS = pytest.mark.parametrize(("is_2d", "is_causal"), [(False, False), (False, True), (True, False), (True, True)])


@KINDS
def test_states_and_logits_of_packed_proteins_are_those_of_each_alone(tmp_path, is_2d, is_causal):
    state = random_weights(is_2d)
    model = published.load(write(tmp_path / "m", state, rotary_embedding_2d=is_2d, is_causal=is_causal))
    sequences = [*toy_sequences(4, seed=1), "M", "LAGVSERTIDPKQNFYMHWCXBUZO"]
    for sequence, (hidden, logits) in zip(sequences, outputs(model, sequences), strict=True):
        expected = reference(state, sequence, is_2d, is_causal)
        torch.testing.assert_close(hidden, expected[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(logits, expected[1], rtol=0, atol=1e-5)
        [(alone, _)] = outputs(model, [sequence])
        torch.testing.assert_close(alone, hidden, rtol=0, atol=1e-5)


@KINDS
def test_bf16_is_near(tmp_path, is_2d, is_causal):
    """Numbers of 8 bits through three blocks: up to 0.06 of a state of size 1, cosine down to 0.9998."""
    state = random_weights(is_2d)
    directory = write(tmp_path / "m", state, rotary_embedding_2d=is_2d, is_causal=is_causal)
    model = published.load(directory, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16 and all(weight.dtype == torch.bfloat16 for weight in model.parameters())
    sequences = toy_sequences(4, seed=1)
    for sequence, (hidden, _) in zip(sequences, outputs(model, sequences), strict=True):
        expected, _ = reference(state, sequence, is_2d, is_causal)
        assert (hidden - expected).abs().max() < 0.1
        assert torch.cosine_similarity(hidden, expected, dim=-1).min() > 0.9995


def test_frequencies_of_the_checkpoint_are_used(tmp_path):
    """As a model trained in bf16 stores them; at fp32 the difference shows."""
    state = random_weights(is_2d=True)
    for name in state:
        if name.endswith("inv_freq"):
            turns = state[name] = inverse_frequencies(is_2d=True, dtype=torch.bfloat16) * torch.tensor(1.1).bfloat16()
    model = published.load(write(tmp_path / "m", state, rotary_embedding_2d=True))
    assert model.config.rotary_frequencies == tuple(turns.float().tolist())
    sequence = toy_sequences(1, seed=2, min_length=50)[0]
    [(hidden, _)] = outputs(model, [sequence])
    expected, _ = reference(state, sequence, True, False)
    torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-5)
    again = checkpoint.load(checkpoint.save(model, tmp_path / "ours"))
    assert again.config == model.config
    torch.testing.assert_close(outputs(again, [sequence])[0][0], hidden, rtol=0, atol=0)
    formula, _ = reference(random_weights(is_2d=True), sequence, True, False)
    assert (formula - expected).abs().max() > 1e-2


@KINDS
def test_frequencies_of_the_formula_go_unsaid(tmp_path, is_2d, is_causal):
    directory = write(tmp_path / "m", random_weights(is_2d), rotary_embedding_2d=is_2d, is_causal=is_causal)
    assert published.load(directory).config.rotary_frequencies is None


@pytest.mark.parametrize("preset", ["proteinglm-1b", "proteinglm-10b", "xtrimopglm-100b"])
def test_formula_is_the_published_one_to_the_bit(preset):
    config = PRESETS[preset]
    width = config.head_dim // (2 if config.rotary == "2d" else 1)
    assert torch.equal(frequencies(config), 1.0 / (10000 ** (torch.arange(0, width, 2, dtype=torch.float32) / width)))


def test_bias_and_tied_output(tmp_path):
    sequence = toy_sequences(1)[0]
    state = random_weights(is_2d=False)
    state["transformer.output_layer.bias"] = torch.linspace(-1, 1, 128)
    model = published.load(write(tmp_path / "bias", state))
    assert model.config.output_bias and model.config.num_params == sum(w.numel() for w in model.parameters())
    torch.testing.assert_close(
        outputs(model, [sequence])[0][1], reference(state, sequence, False, False)[1], rtol=0, atol=1e-5
    )
    again = checkpoint.load(checkpoint.save(model, tmp_path / "ours"))
    assert torch.equal(again.output.bias, state["transformer.output_layer.bias"])

    state = random_weights(is_2d=False)
    del state["transformer.output_layer.weight"]
    model = published.load(write(tmp_path / "tied", state))
    assert torch.equal(model.output.weight, model.embedding.weight)
    assert model.output.weight.data_ptr() != model.embedding.weight.data_ptr()
