"""The models of transformers against the GLM inside, one protein at a time, and against the training objectives."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from xtrimo import objectives, reading
from xtrimo.config import GLMConfig
from xtrimo.errors import ConfigError, SequenceError
from xtrimo.huggingface_config import XtrimoConfig
from xtrimo.huggingface_generation import XtrimoForCausalLM
from xtrimo.huggingface_model import (
    XtrimoForMaskedLM,
    XtrimoForSequenceClassification,
    XtrimoForTokenClassification,
    XtrimoModel,
)
from xtrimo.huggingface_rows import asked, layout, pack_batch
from xtrimo.huggingface_tokenizer import build_tokenizer
from xtrimo.model import GLM
from xtrimo.objectives import Example, Fragment, ObjectiveConfig, make_example, tagged
from xtrimo.packing import pack
from xtrimo.scoring import score
from xtrimo.testing import toy_config, toy_sequences
from xtrimo.tokens import SOP, Tokenizer, encode_residues

PROTEINS = [*toy_sequences(5), "M"]
ONE_WAY = {"rotary": "1d", "directions": ("forward",), "control_words": ()}


def toy(**changes) -> GLM:
    glm = GLM(toy_config(**changes), seed=1).eval()
    with torch.no_grad():
        glm.output.weight *= 10
    return glm


def alone(glm: GLM, example: Example) -> Tensor:
    """The GLM's own logits of one example."""
    row = pack([example])
    return glm(*(torch.from_numpy(x) for x in (row.tokens, row.positions, row.segments)))


def batch(glm: GLM, texts: list[str], *, side: str = "left", **options):
    return build_tokenizer(glm.config)(texts, padding=True, return_tensors="pt", padding_side=side, **options)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("changes", [{}, {**ONE_WAY, "objectives": ("mlm",)}])
def test_masked_logits_in_a_padded_batch_are_those_of_each_protein(changes, side) -> None:
    glm = toy(**changes)
    inputs = batch(glm, PROTEINS, side=side)
    logits = XtrimoForMaskedLM.from_glm(glm)(**inputs).logits
    for own, mask, protein in zip(logits, inputs.attention_mask.bool(), PROTEINS, strict=True):
        torch.testing.assert_close(own[mask], alone(glm, glm.tokenize(protein)), rtol=1e-6, atol=1e-6)
        assert not own[~mask].any()
    without_mask = XtrimoForMaskedLM.from_glm(glm)(inputs.input_ids).logits  # <pad> is padding all the same
    assert torch.equal(without_mask, logits)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("changes", [{}, {**ONE_WAY, "objectives": ("causal",)}, {"objectives": ("gmask",)}])
def test_logits_of_prompts(changes, side) -> None:
    glm = toy(**changes)
    inputs = batch(glm, [f"<gmask><sop><eos>{x}" for x in PROTEINS], side=side, add_special_tokens=False)
    logits = XtrimoForCausalLM.from_glm(glm)(**inputs).logits
    for own, mask, protein in zip(logits, inputs.attention_mask.bool(), PROTEINS, strict=True):
        expected = alone(glm, reading.prompted(encode_residues(protein), glm.config))
        torch.testing.assert_close(own[mask], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("objective", ["mlm", "gmask", "smask"])
def test_words_are_read_as_each_objective_writes_them(objective) -> None:
    config, rng = toy_config(control_words=("<rev>", "<tag>")), np.random.default_rng(0)
    seen_prefixes = set()
    for protein in toy_sequences(300, seed=2):
        ends = rng.random(2) < 0.7
        fragment = Fragment(encode_residues(protein), has_start=bool(ends[0]), has_end=bool(ends[1]))
        example = make_example(fragment, objective, rng, ObjectiveConfig())
        if objective != "mlm" and rng.random() < 0.3:
            example = tagged(example, np.array([37], dtype=np.uint8))
        opened = example.positions[example.tokens == SOP, 0]
        if (np.diff(opened) < 0).any():  # spans in another order than their gaps, which words alone do not tell
            continue
        found = layout(example.tokens.astype(np.int64), config, name="it")
        np.testing.assert_array_equal(found.positions, example.positions)
        assert found.prefix == example.prefix
        seen_prefixes.add(example.prefix)
    assert len(seen_prefixes) > 20


@pytest.mark.parametrize("name", ["gmask", "causal"])
def test_what_is_asked_is_what_the_objectives_ask(name) -> None:
    config = toy_config() if name == "gmask" else toy_config(**ONE_WAY, objectives=("causal",))
    rng = np.random.default_rng(0)
    settings = ObjectiveConfig(reverse_ratio=0.5 if name == "gmask" else 0.0)
    for protein in toy_sequences(100, seed=3):
        example = make_example(Fragment(encode_residues(protein)), name, rng, settings)
        text = np.append(example.tokens, example.labels[-1]).astype(np.int64)  # the words, up to the last that is said
        ids = torch.from_numpy(np.pad(text, (2, 0)))[None]
        packed = pack_batch(ids, ids != 0, config)
        found = asked(ids, packed, ignore=objectives.IGNORE)[0, 2:-1]
        np.testing.assert_array_equal(found.numpy(), example.labels)


def test_spans_are_asked_but_not_their_sop() -> None:
    ids = torch.from_numpy(Tokenizer().encode("M<smask>A<smask><eos><sop>KV<sop>W", eos=False).astype(np.int64))[None]
    found = asked(ids, pack_batch(ids, ids != 0, toy_config()), ignore=-100)[0]
    assert [(i, Tokenizer().decode([x])) for i, x in enumerate(found.tolist()) if x != -100] == [
        (5, "K"), (6, "V"), (8, "W"),
    ]  # fmt: skip


@pytest.mark.parametrize("changes", [{}, {**ONE_WAY, "objectives": ("causal",)}])
def test_loss_of_generation_is_the_likelihood(changes) -> None:
    glm = toy(**changes)
    inputs = batch(glm, [f"<gmask><sop><eos>{x}<eos>" for x in PROTEINS], add_special_tokens=False)
    loss = XtrimoForCausalLM.from_glm(glm)(**inputs, labels=inputs.input_ids).loss
    scores = score(glm, PROTEINS, method="likelihood", direction="forward")
    expected = sum(x.total_nll for x in scores) / sum(len(x) + 1 for x in PROTEINS)
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_loss_of_masks_counts_labels_alone() -> None:
    glm = toy()
    inputs = batch(glm, ["MK<mask>VL", "A<mask>"])
    labels = torch.full_like(inputs.input_ids, -100)
    labels[0, 2], labels[1, -2] = 7, 4
    labels[1, 0] = 9  # at the padding
    assert not inputs.attention_mask[1, 0]
    loss = XtrimoForMaskedLM.from_glm(glm)(**inputs, labels=labels).loss
    words = Tokenizer(glm.config.control_words)
    own = []
    for text, place, label in (("MK<mask>VL", 2, 7), ("A<mask>", 1, 4)):
        residues = words.encode(text, eos=False)
        own.append(F.cross_entropy(alone(glm, reading.whole(residues))[place], torch.tensor(label)))
    assert loss.item() == pytest.approx(torch.stack(own).mean().item(), abs=1e-6)


def test_gradients_are_those_of_the_glm() -> None:
    inputs = batch(toy(), [f"<gmask><sop><eos>{x}<eos>" for x in PROTEINS], add_special_tokens=False)
    ours, theirs = toy(), toy()
    XtrimoForCausalLM.from_glm(theirs)(**inputs, labels=inputs.input_ids).loss.backward()
    total = 0.0
    for protein in PROTEINS:
        example = reading.prompted(encode_residues(protein), ours.config)
        labels = torch.from_numpy(example.labels).long()
        total = total + F.cross_entropy(alone(ours, example), labels, ignore_index=objectives.IGNORE, reduction="sum")
    (total / sum(len(x) + 1 for x in PROTEINS)).backward()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_states_of_all_layers() -> None:
    glm = toy()
    inputs = batch(glm, PROTEINS)
    out = XtrimoModel.from_glm(glm)(**inputs, output_hidden_states=True)
    assert len(out.hidden_states) == glm.num_layers + 1
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)
    for place, mask in enumerate(inputs.attention_mask.bool()):
        assert torch.equal(out.hidden_states[0][place][mask], glm.embedding(inputs.input_ids[place][mask]))
    (states,) = XtrimoModel.from_glm(glm)(**inputs, return_dict=False)
    assert torch.equal(states, out.last_hidden_state)


def test_a_value_of_each_protein_is_of_its_mean_state() -> None:
    glm = toy()
    model = XtrimoForSequenceClassification.from_glm(glm, num_labels=1)
    inputs = batch(glm, PROTEINS)
    out = model(**inputs, labels=torch.arange(6.0))
    states = XtrimoModel.from_glm(glm)(**inputs).last_hidden_state
    for place, protein in enumerate(PROTEINS):
        mean = states[place][inputs.attention_mask[place].bool()][: len(protein)].mean(0)
        torch.testing.assert_close(out.logits[place], model.classifier(mean), rtol=0, atol=1e-5)
    assert out.loss.item() == pytest.approx(F.mse_loss(out.logits[:, 0], torch.arange(6.0)).item(), rel=1e-5)
    with pytest.raises(SequenceError, match="row 1 of the batch has no residues"):
        model(**batch(glm, ["MKV", "<mask>"]))


def test_a_class_of_each_residue() -> None:
    glm = toy()
    model = XtrimoForTokenClassification.from_glm(glm, num_labels=3)
    inputs = batch(glm, ["MKV", "A"])
    labels = torch.tensor([[0, 2, 1, -100], [1, 1, 0, -100]])  # the second row begins with padding
    out = model(**inputs, labels=labels)
    kept = [(0, 0), (0, 1), (0, 2), (1, 2)]
    expected = F.cross_entropy(torch.stack([out.logits[at] for at in kept]), torch.tensor([labels[at] for at in kept]))
    assert out.loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_fresh_models_follow_the_law_of_the_glm_and_torch_seed() -> None:
    config = XtrimoConfig(glm=toy_config().to_dict())
    torch.manual_seed(5)
    one = XtrimoForMaskedLM(config)
    torch.manual_seed(5)
    again, other = XtrimoForMaskedLM(config), XtrimoForMaskedLM(config)
    weights = [model.glm.blocks[0].mlp.down.weight for model in (one, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    drawn = GLM(toy_config(), seed=0).blocks[0].mlp.down.weight
    assert weights[0].std().item() == pytest.approx(drawn.std().item(), rel=0.05)  # not transformers' 0.02


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("MKV<eos>", "row 0 of the batch has no <sop>, so it is read in both directions"),
        ("<sop>MKV", "has 1 <sop>, and 0 <gmask> or <smask> before the first"),
        ("<gmask><sop>MK<sop>V", "has 2 <sop>, and 1 <gmask>"),
    ],
)
def test_words_that_are_no_prompt_are_refused(text, reason) -> None:
    glm = toy()
    with pytest.raises(SequenceError, match=reason):
        XtrimoForCausalLM.from_glm(glm)(**batch(glm, [text], add_special_tokens=False))


def test_a_model_that_only_writes_reads_no_bare_protein() -> None:
    glm = toy(objectives=("gmask",))
    with pytest.raises(SequenceError, match="only writes; begin with <gmask><sop><eos>"):
        XtrimoModel.from_glm(glm)(**batch(glm, ["MKV"], add_special_tokens=False))
    assert XtrimoModel.from_glm(glm)(**batch(glm, ["MKV"])).last_hidden_state.shape == (1, 7, 64)


def test_a_model_is_asked_only_what_it_was_trained_on() -> None:
    with pytest.raises(ConfigError, match="fills no masks: it was trained on gmask; take AutoModelForCausalLM"):
        XtrimoForMaskedLM.from_glm(toy(objectives=("gmask",)))
    with pytest.raises(ConfigError, match="only fills masks: it was trained on mlm; take AutoModelForMaskedLM"):
        XtrimoForCausalLM.from_glm(toy(**ONE_WAY, objectives=("mlm",)))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"output_attentions": True}, "xtrimo.backbone.attentions"),
        ({"inputs_embeds": torch.zeros(1, 4, 64)}, "give input_ids"),
        ({"position_ids": torch.zeros(1, 4)}, "positions follow from the words"),
        ({"token_type_ids": torch.zeros(1, 4)}, "takes no token_type_ids"),
        ({"attention_mask": torch.ones(1, 1, 4, 4)}, r"has shape \(1, 1, 4, 4\), input_ids \(1, 4\)"),
    ],
)
def test_what_a_glm_has_not_is_refused(options, reason) -> None:
    glm = toy()
    with pytest.raises(ConfigError, match=reason):
        XtrimoForMaskedLM.from_glm(glm)(**{**batch(glm, ["MKV"]), **options})


def test_padding_alone_is_refused_and_the_vocabulary_is_not_resized() -> None:
    model = XtrimoForMaskedLM.from_glm(toy())
    with pytest.raises(SequenceError, match="nothing but padding"):
        model(torch.zeros(2, 3, dtype=torch.int64))
    assert model.resize_token_embeddings(128) is model.get_input_embeddings()
    with pytest.raises(ConfigError, match="128 rows, got 40"):
        model.resize_token_embeddings(40)


def test_a_config_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_heads 5"):
        XtrimoConfig(glm={**toy_config().to_dict(), "num_heads": 5})
    config = XtrimoConfig(glm=toy_config().to_dict(), num_labels=7)
    again = XtrimoConfig.from_dict(config.to_dict())
    assert again.glm_config == toy_config() and again.num_labels == 7
    assert isinstance(XtrimoConfig().glm_config, GLMConfig)


def test_transformers_is_imported_by_who_asks_for_it() -> None:
    code = (
        "import sys, xtrimo, xtrimo.backbone, xtrimo.huggingface_files, xtrimo.huggingface_rows, xtrimo.layouts\n"
        "assert 'transformers' not in sys.modules\n"
        "import xtrimo.huggingface\n"
        "from transformers import AutoConfig, AutoModel\n"
        "assert type(AutoModel.from_config(AutoConfig.for_model('xtrimo'))).__name__ == 'XtrimoModel'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
