"""Attention maps of any backbone, against those that transformers gives for ESM-2."""

from pathlib import Path

import numpy as np
import torch
from transformers import EsmConfig, EsmForMaskedLM

from xtrimo import esm
from xtrimo.attention import within
from xtrimo.backbone import attentions
from xtrimo.model import GLM
from xtrimo.testing import toy_config, toy_sequences


def test_maps_of_esm2_are_transformers_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = EsmConfig(
        vocab_size=33, mask_token_id=32, pad_token_id=1, position_embedding_type="rotary", token_dropout=True,
        emb_layer_norm_before=False, layer_norm_eps=1e-5, hidden_size=48, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=96, initializer_range=0.3,
    )  # fmt: skip
    theirs = EsmForMaskedLM(config).eval()
    theirs.save_pretrained(tmp_path)
    theirs.set_attn_implementation("eager")
    model = esm.load(tmp_path)
    (sequence,) = toy_sequences(1, min_length=30)
    with torch.inference_mode():
        tokens = torch.from_numpy(model.tokenize(sequence).tokens).long()[None]
        expected = torch.stack(theirs(tokens, output_attentions=True).attentions)[:, 0, :, 1:-1, 1:-1]
    maps = attentions(model, sequence)
    assert maps.shape == (3, 4, len(sequence), len(sequence)) and maps.dtype == np.float32
    np.testing.assert_allclose(maps, expected.numpy(), atol=1e-5)
    assert maps.max() > 0.2  # far from uniform
    sums = maps.sum(-1)
    assert (sums <= 1 + 1e-6).all() and (sums < 0.999).any()  # the rest goes to <cls> and <eos>
    np.testing.assert_array_equal(attentions(model, sequence + "*"), maps)  # a stop codon is no residue


def test_a_model_that_writes_from_left_to_right_looks_back_alone() -> None:
    maps = attentions(GLM(toy_config(objectives=("gmask",))), "MKVLAAGLL")
    assert maps.shape == (4, 4, 9, 9)
    assert not np.triu(maps, k=1).any()
    assert (np.tril(maps) > 0).sum() == 4 * 4 * 45
    both_ways = attentions(GLM(toy_config(objectives=("mlm",))), "MKVLAAGLL")
    assert (both_ways > 0).all()


def test_the_recorded_values_are_those_the_model_reads() -> None:
    model = GLM(toy_config(objectives=("gmask",)))
    example = model.tokenize("MKVLAAGLL")
    tokens, positions = (torch.from_numpy(x).long() for x in (example.tokens, example.positions))
    segments = torch.tensor([[0, len(tokens), example.prefix]])
    seen: list[torch.Tensor] = []

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        scores = (q.transpose(0, 1) @ k.permute(1, 2, 0)) * q.shape[-1] ** -0.5
        future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        future[:, : example.prefix] = False
        seen.append(scores.masked_fill(future, -1e9).softmax(-1))
        return within(segments)(layer, q, k, v)  # the model goes on with the kernel's values

    with torch.inference_mode():
        model.hidden(tokens, positions, attend)
    expected = torch.stack(seen)[:, :, 3:-1, 3:-1].numpy()
    np.testing.assert_allclose(attentions(model, "MKVLAAGLL"), expected, atol=1e-6)
