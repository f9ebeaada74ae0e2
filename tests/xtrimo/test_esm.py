"""ESM-2, ESM-1b and ESM C in packed rows against transformers' own forward, one protein at a time."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import EsmcConfig, EsmcForMaskedLM, EsmConfig, EsmForMaskedLM
from transformers.models.esm.configuration_esm import get_default_vocab_list
from transformers.models.esm.tokenization_esm import EsmTokenizer
from transformers.models.esmc.tokenization_esmc import EsmcTokenizer

from xtrimo import esm
from xtrimo.attention import within
from xtrimo.backbone import Backbone, Limited
from xtrimo.embedding import embed
from xtrimo.embedding_file import fingerprint
from xtrimo.errors import CheckpointError, MissingExtraError, SequenceError
from xtrimo.model import GLM
from xtrimo.objectives import Example
from xtrimo.packing import Row, pack
from xtrimo.testing import Largest, toy_config, toy_sequences
from xtrimo.tokens import RESIDUES

ROOT = Path(__file__).resolve().parents[2]
SMALL = dict(hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96)
ESM_2 = dict(
    vocab_size=33, mask_token_id=32, pad_token_id=1, position_embedding_type="rotary", token_dropout=True,
    emb_layer_norm_before=False, layer_norm_eps=1e-5,
)  # fmt: skip
FAMILIES: dict[str, Callable[[], Any]] = {
    "esm-2": lambda: EsmForMaskedLM(EsmConfig(**SMALL, **ESM_2)),
    "esm-2 without token dropout": lambda: EsmForMaskedLM(EsmConfig(**SMALL, **{**ESM_2, "token_dropout": False})),
    "esm-1b": lambda: EsmForMaskedLM(
        EsmConfig(**SMALL, **{**ESM_2, "position_embedding_type": "absolute", "emb_layer_norm_before": True})
    ),
    "esm-c": lambda: EsmcForMaskedLM(EsmcConfig(**SMALL)),
}


def drawn(make: Callable[[], Any]) -> Any:
    """A model with weights wide enough that every one of them, and every key of each softmax, counts."""
    torch.manual_seed(0)
    model = make().eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(std=0.1).add_(1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0)
    return model


@pytest.fixture(scope="module", params=FAMILIES)
def theirs_at(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """transformers' model, and the directory that it saved itself to."""
    directory = tmp_path_factory.mktemp("model")
    model = drawn(FAMILIES[request.param])
    model.save_pretrained(directory)
    return model, directory


@pytest.fixture
def esm2(tmp_path: Path) -> Path:
    """A directory of an ESM-2, to be broken."""
    drawn(FAMILIES["esm-2"]).save_pretrained(tmp_path / "esm2")
    return tmp_path / "esm2"


def examples(model: Backbone) -> list[Example]:
    """Proteins of several lengths; half of them with masks, a share of their own each."""
    written = [model.tokenize(sequence) for sequence in (*toy_sequences(5), "M")]
    for i, example in enumerate(written[::2]):
        example.tokens[2 : 4 + 3 * i] = model.mask
    return written


def read(model: Backbone, row: Row) -> tuple[list[Tensor], Tensor]:
    """States after every layer, and logits, of a packed row."""
    tokens, positions, segments = (torch.from_numpy(x) for x in (row.tokens, row.positions, row.segments))
    with torch.inference_mode():
        states = model.hidden(tokens, positions, within(segments), layers=tuple(range(model.num_layers + 1)))
        return states, model.logits(states[-1])


def one_by_one(model: Any, proteins: list[Example]) -> tuple[list[Tensor], Tensor]:
    """The same from transformers' forward."""
    with torch.inference_mode():
        out = [model(torch.from_numpy(p.tokens).long()[None], output_hidden_states=True) for p in proteins]
    states = [torch.cat([o.hidden_states[layer][0] for o in out]) for layer in range(len(out[0].hidden_states))]
    return states, torch.cat([o.logits[0] for o in out])


def test_a_packed_row_is_its_proteins_read_by_transformers(theirs_at: tuple[Any, Path]) -> None:
    theirs, directory = theirs_at
    model = esm.load(directory)
    assert isinstance(model, Backbone) and not model.training
    proteins = examples(model)
    states, logits = read(model, pack(proteins))
    expected, expected_logits = one_by_one(theirs, proteins)
    assert len(states) == len(expected) == SMALL["num_hidden_layers"] + 1
    for state, other in zip((*states, logits), (*expected, expected_logits), strict=True):
        torch.testing.assert_close(state, other, rtol=1e-5, atol=1e-5)
    # the claim needs something to compare: neither constant over tokens, nor the same in each layer
    assert all(float(state.std(0).min()) > 1e-3 for state in states)


def test_the_fingerprint_is_of_config_and_words_but_not_of_the_place(
    esm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_esm2 = fingerprint(esm.load(esm2))
    shutil.copytree(esm2, tmp_path / "copy")
    content = json.loads((esm2 / "config.json").read_text())
    (tmp_path / "copy" / "config.json").write_text(json.dumps(content | {"architectures": None, "dtype": None}))
    with monkeypatch.context() as patch:
        patch.setattr(transformers.configuration_utils, "__version__", "6.0")
        assert fingerprint(esm.load(tmp_path / "copy")) == of_esm2
    for change in ({"layer_norm_eps": 1e-6}, {"token_dropout": False}, {"max_position_embeddings": 514}):
        (esm2 / "config.json").write_text(json.dumps(content | change))
        assert fingerprint(esm.load(esm2)) != of_esm2, change
    (esm2 / "config.json").write_text(json.dumps(content))
    words = list(esm.VOCABULARY)
    words[4], words[5] = words[5], words[4]
    (esm2 / "vocab.txt").write_text("\n".join(words))
    assert fingerprint(esm.load(esm2)) != of_esm2


def test_embeddings_are_transformers_own(theirs_at: tuple[Any, Path]) -> None:
    theirs, directory = theirs_at
    model = esm.load(directory)
    sequences = toy_sequences(4, seed=1)
    expected, _ = one_by_one(theirs, [model.tokenize(sequence) for sequence in sequences])
    ends = np.cumsum([len(sequence) + 2 for sequence in sequences])
    for got, sequence, end in zip(embed(model, sequences), sequences, ends, strict=True):
        own = expected[-1][end - len(sequence) - 1 : end - 1]  # without <cls> and <eos>
        torch.testing.assert_close(torch.from_numpy(got.hidden), own, rtol=1e-5, atol=1e-5)


def test_no_token_by_token_tensor_exists(theirs_at: tuple[Any, Path]) -> None:
    _, directory = theirs_at
    model = esm.load(directory)
    row = pack([model.tokenize(sequence) for sequence in toy_sequences(40, seed=2)])
    with Largest() as largest:
        read(model, row)
    num_tokens = len(row.tokens)
    assert num_tokens > 1000 and 0 < largest.elements <= num_tokens * SMALL["intermediate_size"] < num_tokens**2


def test_shapes_and_words(theirs_at: tuple[Any, Path]) -> None:
    theirs, directory = theirs_at
    model = esm.load(directory)
    assert (model.width, model.num_layers, model.num_heads) == (48, 3, 4)
    assert (model.words_around, model.cls, model.mask) == ((1, 1), 0, 32)
    assert model.max_length == (2048 if isinstance(theirs, EsmcForMaskedLM) else 1024)
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
    assert len(model.state_dict()) == len(theirs.state_dict())


def test_words_are_those_of_transformers_tokenizers(theirs_at: tuple[Any, Path], tmp_path: Path) -> None:
    theirs, directory = theirs_at
    (tmp_path / "vocab.txt").write_text("\n".join(get_default_vocab_list()))
    tokenizer = EsmcTokenizer() if isinstance(theirs, EsmcForMaskedLM) else EsmTokenizer(tmp_path / "vocab.txt")
    assert esm.load(directory).tokenize(RESIDUES).tokens.tolist() == tokenizer(RESIDUES)["input_ids"]
    copy = tmp_path / "copy"  # now with the tokenizer's own files
    shutil.copytree(directory, copy)
    tokenizer.save_pretrained(copy)
    assert (copy / "vocab.txt").exists() or (copy / "tokenizer.json").exists()
    assert esm.load(copy).tokenize(RESIDUES).tokens.tolist() == tokenizer(RESIDUES)["input_ids"]
    assert tokenizer.mask_token_id == esm.load(copy).mask


def test_the_vocabulary_of_the_directory_is_taken(esm2: Path) -> None:
    order = list(esm.VOCABULARY)
    order[4], order[5] = order[5], order[4]  # L and A
    (esm2 / "vocab.txt").write_text("\n".join(order))
    assert esm.load(esm2).tokenize("LA").tokens.tolist() == [0, 5, 4, 2]
    (esm2 / "vocab.txt").write_text("\n".join(word for word in order if word != "W"))
    with pytest.raises(CheckpointError, match="none of these: W"):
        esm.load(esm2)


def test_a_vocabulary_and_a_config_of_two_models_are_refused(esm2: Path) -> None:
    (esm2 / "vocab.txt").write_text("\n".join((*esm.VOCABULARY[:-1], "?", "<mask>")))
    with pytest.raises(CheckpointError, match="<mask> 33 .* 33 words; they are of two models"):
        esm.load(esm2)


def test_a_bad_letter_names_the_protein(esm2: Path) -> None:
    with pytest.raises(SequenceError, match="P1: position 2 is '1'"):
        esm.load(esm2).tokenize("M1", name="P1")


def test_what_it_says_of_its_limits(theirs_at: tuple[Any, Path]) -> None:
    model = esm.load(theirs_at[1])
    assert isinstance(model, Limited) and not isinstance(GLM(toy_config()), Limited)
    is_learned = getattr(theirs_at[0].config, "position_embedding_type", "rotary") == "absolute"
    assert model.learned_places == (1024 if is_learned else None)
    assert model.unknown not in model.tokenize(RESIDUES).tokens  # it has a word for each


def test_esm1b_ends_where_its_learned_places_do(tmp_path: Path) -> None:
    drawn(FAMILIES["esm-1b"]).save_pretrained(tmp_path)
    model = esm.load(tmp_path)
    states, _ = read(model, pack([model.tokenize("M" * 1022)]))
    assert states[-1].shape == (1024, 48)
    with pytest.raises(SequenceError, match=r"1025 tokens.*1024 places"):
        read(model, pack([model.tokenize("M" * 1023)]))


def test_bf16_keeps_exact_positions(esm2: Path) -> None:
    exact, cast = esm.load(esm2), esm.load(esm2, dtype=torch.bfloat16)
    assert cast.dtype == torch.bfloat16
    assert torch.equal(cast.model.esm.rotary_embeddings.inv_freq, exact.model.esm.rotary_embeddings.inv_freq)
    sequence = toy_sequences(1, min_length=900, max_length=900)
    a, b = (torch.from_numpy(embed(model, sequence)[0].hidden) for model in (exact, cast))
    assert float(torch.cosine_similarity(a, b, dim=-1).min()) > 0.99


def test_stored_precision_is_the_default(esm2: Path) -> None:
    esm.load(esm2, dtype=torch.bfloat16).model.save_pretrained(esm2)
    assert esm.load(esm2).dtype == torch.bfloat16
    assert esm.load(esm2, dtype=torch.float32).dtype == torch.float32


def rewritten(directory: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """The directory with changed weights."""
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def test_weights_that_do_not_fit_are_named(esm2: Path) -> None:
    layer = "esm.encoder.layer."

    def change(weights: dict[str, Tensor]) -> None:
        del weights[f"{layer}0.output.dense.bias"]
        weights[f"{layer}1.output.dense.bias"] = torch.zeros(7)
        weights[f"{layer}2.adapter.weight"] = torch.zeros(7)

    with pytest.raises(CheckpointError) as caught:
        esm.load(rewritten(esm2, change))
    message = str(caught.value)
    assert f"missing {layer}0.output.dense.bias" in message
    assert f"unexpected {layer}2.adapter.weight" in message
    assert f"{layer}1.output.dense.bias has shape (7,), the config says (48,)" in message


def test_only_the_first_ten_are_named(esm2: Path) -> None:
    def change(weights: dict[str, Tensor]) -> None:
        for name in [name for name in weights if ".layer." in name]:
            del weights[name]

    with pytest.raises(CheckpointError) as caught:
        esm.load(rewritten(esm2, change))
    assert str(caught.value).count("missing ") == 10


def test_other_heads_may_be_there_or_not(esm2: Path) -> None:
    def change(weights: dict[str, Tensor]) -> None:
        del weights["esm.contact_head.regression.weight"], weights["esm.contact_head.regression.bias"]
        weights["classifier.weight"], weights["esm.pooler.dense.bias"] = torch.zeros(48), torch.zeros(48)

    before = embed(esm.load(esm2), ["MKV"])[0].hidden
    np.testing.assert_array_equal(embed(esm.load(rewritten(esm2, change)), ["MKV"])[0].hidden, before)


def test_without_a_head_it_embeds_and_predicts_nothing(esm2: Path) -> None:
    def change(weights: dict[str, Tensor]) -> None:
        for name in [name for name in weights if name.startswith("lm_head.")]:
            del weights[name]

    before = embed(esm.load(esm2), ["MKV"])[0].hidden
    model = esm.load(rewritten(esm2, change))
    np.testing.assert_array_equal(embed(model, ["MKV"])[0].hidden, before)
    with pytest.raises(CheckpointError, match="no language model head"):
        model.logits(torch.zeros(1, 48))


def test_half_a_head_is_an_error(esm2: Path) -> None:
    with pytest.raises(CheckpointError, match=r"missing lm_head\.dense\.weight"):
        esm.load(rewritten(esm2, lambda weights: weights.__delitem__("lm_head.dense.weight")))


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"model_type": "bert"}, "this reads \"esm\" and \"esmc\""),
        ({"is_folding_model": True}, "holds ESMFold"),
        ({"is_decoder": True}, "holds a decoder"),
        ({"hidden_size": "wide"}, r"config\.json that can be read.*hidden_size"),
        ({"num_attention_heads": 7}, r"not a multiple of the number of attention heads"),
        ({"position_embedding_type": "relative_key"}, "absolute"),
    ],
)  # fmt: skip
def test_other_models_are_refused(esm2: Path, facts: dict[str, Any], reason: str) -> None:
    config = json.loads((esm2 / "config.json").read_text())
    (esm2 / "config.json").write_text(json.dumps(config | facts))
    with pytest.raises(CheckpointError, match=reason):
        esm.load(esm2)


def test_a_directory_without_files_is_refused(esm2: Path) -> None:
    weights = esm2 / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="weights cannot be read"):
        esm.load(esm2)
    weights.unlink()
    with pytest.raises(CheckpointError, match="weights cannot be read"):
        esm.load(esm2)
    (esm2 / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        esm.load(esm2)


class Harmful:
    """A pickle that writes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_is_opened_without_running_it(esm2: Path, tmp_path: Path) -> None:
    (esm2 / "model.safetensors").unlink()
    torch.save({"esm.x": torch.zeros(1), "code": Harmful(tmp_path / "ran")}, esm2 / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="weights cannot be read"):
        esm.load(esm2)
    assert not (tmp_path / "ran").exists()
    torch.load(esm2 / "pytorch_model.bin", weights_only=False)  # it would have
    assert (tmp_path / "ran").exists()


def test_loading_is_silent(esm2: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rewritten(esm2, lambda weights: weights.__setitem__("classifier.weight", torch.zeros(48)))
    capfd.readouterr()
    esm.load(esm2)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.modules['transformers'] = None",
        "import sys; sys.modules['huggingface_hub'] = None",
        "from transformers import modeling_utils; from huggingface_hub import errors; del errors.StrictDataclassError",
    ],
    ids=["no transformers", "no huggingface_hub", "an older huggingface_hub"],
)
def test_without_what_it_needs_the_extra_is_named(code: str) -> None:
    code += "; import xtrimo.esm"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert MissingExtraError.__name__ in done.stderr and "pip install 'xtrimo[esm]'" in done.stderr


def test_the_pinned_transformers_is_tested() -> None:
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert f"transformers=={transformers.__version__}" in pins
