"""Directories and tokenizers of transformers: the same ids, the same bits, and nothing taken for what it is not."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    pipeline,
)

import xtrimo.huggingface  # noqa: F401 (registers the models)
from tests.xtrimo.test_huggingface import ONE_WAY, PROTEINS, batch, toy
from xtrimo import checkpoint, huggingface_files
from xtrimo.backbone import load
from xtrimo.config import preset
from xtrimo.conversion import convert
from xtrimo.errors import CheckpointError
from xtrimo.huggingface_model import XtrimoForMaskedLM, XtrimoForSequenceClassification
from xtrimo.huggingface_tokenizer import build_tokenizer
from xtrimo.model import GLM
from xtrimo.quantizing import quantized
from xtrimo.testing import toy_config
from xtrimo.tokens import AMINO_ACIDS, CONTROL_WORDS, RESIDUES, Tokenizer

TAGS = (*CONTROL_WORDS, "<family=globin>", "<x>")


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[x], theirs[x]) for x in ours)


@given(st.text(alphabet=RESIDUES + RESIDUES.lower(), min_size=1, max_size=80), st.booleans())
def test_proteins_have_our_ids(protein, has_stop) -> None:
    text = protein + "*" * has_stop
    ours = Tokenizer(TAGS)
    theirs = TOKENIZER(text).input_ids
    assert theirs == ours.encode(text).tolist()
    assert TOKENIZER.decode(theirs) == ours.decode(theirs)
    assert TOKENIZER.decode(theirs, skip_special_tokens=True) == protein.upper()


TOKENIZER = build_tokenizer(toy_config(control_words=TAGS))


@pytest.mark.parametrize(
    "text", ["<gmask><sop><eos>MK", "<rev><gmask><sop><eos>", "mk<mask>v*<eos>", "M<smask>A<eos><sop>KV<eop>", "<x>"]
)
def test_prompts_have_our_ids(text) -> None:
    assert TOKENIZER(text, add_special_tokens=False).input_ids == Tokenizer(TAGS).encode(text, eos=False).tolist()


def test_every_word_is_known_and_special_ones_are_special() -> None:
    words = Tokenizer(TAGS).words
    assert [TOKENIZER.convert_ids_to_tokens(i) for i in range(len(words))] == list(words) and len(TOKENIZER) == 39
    special = {word for word in words if len(word) > 1}
    assert set(TOKENIZER.all_special_tokens) == special
    assert (TOKENIZER.pad_token_id, TOKENIZER.mask_token_id, TOKENIZER.eos_token_id) == (0, 28, 34)
    assert TOKENIZER("J M\n").input_ids == [35, 35, 17, 35, 34]  # <unk> and no error, as in all tokenizers there
    assert TOKENIZER("MK*V*").input_ids == [17, 12, 35, 4, 34]  # only a final stop codon is dropped


def test_a_tokenizer_opens_proteins_as_its_model_reads_them() -> None:
    for changes, side, words in (
        ({}, "left", "MK<eos>"),
        ({"objectives": ("gmask",)}, "left", "<gmask><sop><eos>MK<eos>"),
        ({**ONE_WAY, "objectives": ("mlm",)}, "right", "MK<eos>"),
    ):
        config = toy_config(**changes)
        tokenizer = build_tokenizer(config)
        ids = tokenizer("MK").input_ids
        assert tokenizer.padding_side == side and tokenizer.decode(ids) == words
        assert ids == GLM(config).tokenize("MK").tokens.tolist()


def test_a_tokenizer_is_read_without_this_package(tmp_path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(again, PreTrainedTokenizerFast) and again.padding_side == "left"
    text = "MK<family=globin>ayi*"
    assert again(text).input_ids == TOKENIZER(text).input_ids
    assert "xtrimo" not in (tmp_path / "tokenizer_config.json").read_text()


def test_saved_and_loaded_by_both_sides(tmp_path) -> None:
    glm = toy(rotary_frequencies=tuple(np.float32([0.7, 0.1, 0.01, 0.003]).tolist()), output_bias=True)
    with torch.no_grad():
        glm.output.bias.normal_()
    XtrimoForMaskedLM.from_glm(glm).save_pretrained(tmp_path / "a")
    assert sorted(load_file(tmp_path / "a/model.safetensors")) == sorted(f"glm.{name}" for name in glm.state_dict())
    inputs = batch(glm, PROTEINS)
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "a")
    assert same_weights(model.glm, glm) and model.glm.config == glm.config and not model.training
    assert torch.equal(model(**inputs).logits, XtrimoForMaskedLM.from_glm(glm)(**inputs).logits)
    again = load(tmp_path / "a")
    assert isinstance(again, GLM) and again.config == glm.config and same_weights(again, glm)
    assert load(tmp_path / "a", dtype=torch.bfloat16).dtype == torch.bfloat16
    for auto in (AutoModel, AutoModelForCausalLM):
        assert same_weights(auto.from_pretrained(tmp_path / "a").glm, glm)
    assert AutoModel.from_pretrained(tmp_path / "a", dtype=torch.bfloat16).glm.dtype == torch.bfloat16


@pytest.mark.parametrize("auto", [AutoModelForSequenceClassification, AutoModelForTokenClassification])
def test_a_head_is_drawn_saved_and_no_part_of_a_glm(auto, tmp_path) -> None:
    glm = toy()
    XtrimoForMaskedLM.from_glm(glm).save_pretrained(tmp_path / "a")
    model = auto.from_pretrained(tmp_path / "a", num_labels=3)
    assert same_weights(model.glm, glm) and 0 < model.classifier.weight.std() < 0.05
    model.save_pretrained(tmp_path / "b")
    again = auto.from_pretrained(tmp_path / "b")
    assert again.config.num_labels == 3 and same_weights(again, model)
    with pytest.raises(CheckpointError, match="classifier.bias, classifier.weight, a head that transformers trained"):
        load(tmp_path / "b")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_converted_there_and_back_bit_by_bit(dtype, tmp_path) -> None:
    glm = toy().to(dtype)
    checkpoint.save(glm, tmp_path / "a", notes="Trained on toys.")
    there = convert(tmp_path / "a", tmp_path / "b", to="hf", max_bytes=200_000)
    assert len(there.files) > 1
    back = convert(tmp_path / "b", tmp_path / "c", to="xtrimo")
    assert back.weights_sha256 == there.weights_sha256
    assert (tmp_path / "c/model.safetensors").read_bytes() == (tmp_path / "a/model.safetensors").read_bytes()
    assert (tmp_path / "c/MODEL_CARD.md").read_text() == (tmp_path / "a/MODEL_CARD.md").read_text()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    assert same_weights(model.glm, glm) and model.glm.dtype == dtype
    assert model.generation_config.suppress_tokens and model.generation_config.do_sample
    assert json.loads((tmp_path / "b/config.json").read_text())["architectures"] == ["XtrimoForMaskedLM"]
    assert AutoTokenizer.from_pretrained(tmp_path / "b")("MK").input_ids == [17, 12, 34]


@pytest.mark.parametrize("quantization", ["int4", "int8", "int8-dynamic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantized_models_go_over(quantization, dtype, tmp_path) -> None:
    glm = quantized(toy().to(dtype), quantization)
    checkpoint.save(glm, tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b", to="hf")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "b")
    assert same_weights(model.glm, glm)
    dtypes = [{name: x.dtype for name, x in one.state_dict().items()} for one in (model.glm, glm)]
    assert dtypes[0] == dtypes[1]
    inputs = batch(glm, PROTEINS)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, XtrimoForMaskedLM.from_glm(glm)(**inputs).logits)


def test_the_licence_goes_along(tmp_path) -> None:
    config = toy_config(**ONE_WAY, objectives=("causal",), licence="CC-BY-NC-4.0", source="a toy")
    checkpoint.save(GLM(config), tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b", to="hf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    model.save_pretrained(tmp_path / "c")
    for name in "bc":
        assert (tmp_path / name / "README.md").read_text().startswith("---\nlicense: cc-by-nc-4.0\n---\n")
        assert load(tmp_path / name).config == config


@pytest.mark.parametrize("objectives", [("mlm",), ("causal",)])
def test_published_shapes_go_over(objectives, tmp_path) -> None:
    shape = preset("proteinglm-1b" if objectives == ("mlm",) else "proteinglm-7b").to_dict()
    small = {"num_layers": 2, "hidden_size": 64, "num_heads": 4, "ffn_size": 171}
    glm = GLM(type(toy_config()).from_dict(shape | small), seed=3)
    checkpoint.save(glm, tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "p", to="proteinglm")
    convert(tmp_path / "p", tmp_path / "h", to="hf")
    auto = AutoModelForMaskedLM if objectives == ("mlm",) else AutoModelForCausalLM
    assert same_weights(auto.from_pretrained(tmp_path / "h").glm, glm)


def test_weights_that_are_not_there_are_not_drawn(tmp_path) -> None:
    XtrimoForMaskedLM.from_glm(toy()).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["glm.blocks.2.mlp.up.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"no weight of shape \(256, 64\) for a _Linear of the GLM"):
        AutoModelForMaskedLM.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="missing glm.blocks.2.mlp.up.weight"):
        load(tmp_path)


def test_what_was_changed_is_told(tmp_path) -> None:
    checkpoint.save(toy(), tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b", to="hf")
    shutil.copytree(tmp_path / "b", tmp_path / "altered")
    weights = bytearray((tmp_path / "b/model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "altered/model.safetensors").write_bytes(weights)
    with pytest.raises(CheckpointError, match="altered: its SHA-256 is not the one in xtrimo.json"):
        load(tmp_path / "altered")
    content = json.loads((tmp_path / "b/config.json").read_text())
    content["glm"]["max_length"] = 77
    (tmp_path / "b/config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="is of another model than config.json"):
        load(tmp_path / "b")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "altered")
    model.save_pretrained(tmp_path / "altered")  # what was stated of the old files goes
    assert same_weights(load(tmp_path / "altered"), model.glm)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model_type": "xtrimo"}', '{"model_type": "xtrimo", "glm": 3}'])
def test_a_config_that_is_none(content, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match="is not that of a GLM of transformers"):
        huggingface_files.read_config(tmp_path)


def test_pipelines(tmp_path) -> None:
    glm = toy()
    checkpoint.save(glm, tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b", to="hf")
    fill = pipeline("fill-mask", model=str(tmp_path / "b"))
    found = fill("MKT<mask>YIA", targets=list(AMINO_ACIDS), top_k=3)
    inputs = batch(glm, ["MKT<mask>YIA"])
    beliefs = XtrimoForMaskedLM.from_glm(glm)(**inputs).logits[0, 3].softmax(-1)
    best = beliefs[1:21].topk(3)
    assert [x["token"] for x in found] == (best.indices + 1).tolist()
    assert [x["score"] for x in found] == pytest.approx(best.values.tolist(), abs=1e-6)
    assert [x["sequence"] for x in found] == [f"MKT{x['token_str']}YIA" for x in found]
    write = pipeline("text-generation", model=str(tmp_path / "b"))
    (written,) = write("<gmask><sop><eos>MKV", max_new_tokens=8, return_full_text=False)
    assert set(written["generated_text"]) <= set(AMINO_ACIDS)
    XtrimoForSequenceClassification.from_glm(glm, num_labels=2).save_pretrained(tmp_path / "c")
    judge = pipeline("text-classification", model=str(tmp_path / "c"), tokenizer=str(tmp_path / "b"))
    one_by_one = [judge(x)[0]["score"] for x in PROTEINS]
    assert [x["score"] for x in judge(PROTEINS, batch_size=6)] == pytest.approx(one_by_one, abs=1e-6)
