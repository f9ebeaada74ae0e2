"""`generate` of transformers: with its cache as without, as the model's law is, and what it refuses."""

import pytest
import torch
from transformers import DynamicCache, StaticCache

from tests.xtrimo.test_huggingface import ONE_WAY, batch, toy
from xtrimo.errors import ConfigError, SequenceError
from xtrimo.huggingface_generation import XtrimoForCausalLM
from xtrimo.huggingface_tokenizer import build_tokenizer
from xtrimo.tokens import AMINO_ACIDS, EOP, EOS

PROMPTS = ["<gmask><sop><eos>", "<gmask><sop><eos>MKV", "MKTAY<gmask><sop>", "<rev><gmask><sop><eos>A"]
GAPS = ["MKT<smask>AYIAK<eos><sop>", "A<smask><eos><sop>W"]
KINDS = [{}, {**ONE_WAY, "objectives": ("causal",)}, {"objectives": ("gmask", "smask")}]


def prompts(glm, texts: list[str]):
    texts = [text for text in texts if glm.config.control_words or "<rev>" not in text]
    return batch(glm, texts, add_special_tokens=False)


@pytest.mark.parametrize("changes", KINDS)
@pytest.mark.parametrize(
    "way", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 3}, {"prompt_lookup_num_tokens": 3}]
)
def test_the_cache_changes_nothing(changes, way) -> None:
    glm = toy(**changes)
    model, inputs = XtrimoForCausalLM.from_glm(glm), prompts(glm, PROMPTS)
    if "prompt_lookup_num_tokens" in way:  # one at a time, as transformers has it
        inputs = {name: x[1:2, -6:] for name, x in inputs.items()}
    written = []
    for use_cache in (True, False):
        if not use_cache and "prompt_lookup_num_tokens" in way:  # which needs one
            way = {}
        torch.manual_seed(3)
        settings = {"do_sample": False, "max_new_tokens": 25, "min_new_tokens": 12} | way
        written.append(model.generate(**inputs, use_cache=use_cache, **settings))
    assert torch.equal(*written)
    assert written[0].shape[1] >= inputs["input_ids"].shape[1] + 12


@pytest.mark.parametrize("changes", KINDS)
def test_logits_of_each_step_are_those_of_the_whole(changes) -> None:
    glm = toy(**changes)
    model, inputs = XtrimoForCausalLM.from_glm(glm), prompts(glm, PROMPTS)
    torch.manual_seed(1)
    out = model.generate(
        **inputs, max_new_tokens=12, min_new_tokens=12, output_logits=True, return_dict_in_generate=True,
        output_hidden_states=True,
    )  # fmt: skip
    length = inputs.input_ids.shape[1]
    mask = torch.cat((inputs.attention_mask, torch.ones(len(inputs.input_ids), 12, dtype=torch.long)), dim=1)
    whole = model(out.sequences, mask, output_hidden_states=True)
    stepwise = torch.stack(out.logits, dim=1)
    torch.testing.assert_close(stepwise, whole.logits[:, length - 1 : -1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.hidden_states[5][2][:, 0], whole.hidden_states[2][:, length + 4], rtol=0, atol=1e-5)


def test_several_words_after_a_cache_see_those_before_them() -> None:
    glm = toy()
    model, inputs = (
        XtrimoForCausalLM.from_glm(glm),
        prompts(glm, ["<gmask><sop><eos>MKTAYIAKQR", "MK<gmask><sop>VLSPAD"]),
    )
    ids, mask = inputs.input_ids, inputs.attention_mask
    cache = DynamicCache(config=model.config)
    model(ids[:, :8], mask[:, :8], past_key_values=cache)
    last = model(**model.prepare_inputs_for_generation(ids, past_key_values=cache, attention_mask=mask))
    whole = model(ids, mask)
    torch.testing.assert_close(last.logits, whole.logits[:, 8:], rtol=1e-5, atol=1e-5)
    assert last.logits.shape[1] == 5 and cache.get_seq_length() == 13


def test_proteins_and_gaps_are_written_in_amino_acids_to_their_end() -> None:
    glm = toy()
    model, tokenizer = XtrimoForCausalLM.from_glm(glm), build_tokenizer(glm.config)
    assert model.generation_config.do_sample
    inputs = prompts(glm, PROMPTS * 5 + GAPS * 5)
    torch.manual_seed(0)
    ids = model.generate(**inputs, max_new_tokens=60)
    new = ids[:, inputs.input_ids.shape[1] :]
    ended = 0
    for row in new.tolist():
        text = tokenizer.decode(row)
        residues = text.split("<")[0]
        assert set(residues) <= set(AMINO_ACIDS)
        assert text[len(residues) :].replace("<pad>", "") in ("", "<eos>", "<eop>")
        ended += EOS in row or EOP in row
    assert ended > 20


def test_a_batch_is_written_as_one_by_one() -> None:
    glm = toy()
    model = XtrimoForCausalLM.from_glm(glm)
    together = prompts(glm, PROMPTS + GAPS)
    ids = model.generate(**together, max_new_tokens=20, do_sample=False)[:, together.input_ids.shape[1] :]
    for row, text in zip(ids, PROMPTS + GAPS, strict=True):
        alone = prompts(glm, [text])
        own = model.generate(**alone, max_new_tokens=20, do_sample=False)[0, alone.input_ids.shape[1] :]
        assert torch.equal(row[: len(own)], own) and not row[len(own) :].any()


def test_what_generation_refuses() -> None:
    glm = toy()
    model = XtrimoForCausalLM.from_glm(glm)
    right = batch(glm, PROMPTS[:2], side="right", add_special_tokens=False)
    with pytest.raises(SequenceError, match="pad left: padding_side='left'"):
        model.generate(**right, max_new_tokens=2)
    inputs = prompts(glm, PROMPTS[1:2])
    with pytest.raises(ConfigError, match="static cache"):
        model(**inputs, past_key_values=StaticCache(config=model.config, max_cache_len=32))
    with pytest.raises(SequenceError, match="row 0 of the batch has no <sop>"):
        model.generate(**prompts(glm, GAPS[:1]), max_new_tokens=2, prefill_chunk_size=4)
    with pytest.raises(ValueError, match="not used by the model: ..inputs_embeds"):
        model.generate(inputs_embeds=torch.zeros(1, 4, 64), max_new_tokens=2)
    with pytest.raises(ConfigError, match="labels ask for whole proteins"):
        model(**inputs, labels=inputs.input_ids, logits_to_keep=1)
    cache = DynamicCache(config=model.config)
    model(**inputs, past_key_values=cache)
    with pytest.raises(ConfigError, match="need places"):
        model(inputs.input_ids[:, -1:], past_key_values=cache)
    with pytest.raises(ConfigError, match="has 2 columns; with the words in the cache expected 7"):
        places = torch.tensor([[[0, 5]]])
        model(inputs.input_ids[:, -1:], torch.ones(1, 2), past_key_values=cache, places=places)
    with pytest.raises(SequenceError, match="no <sop>"):
        model.generate(**batch(glm, ["MKV"], add_special_tokens=False), max_new_tokens=2)
