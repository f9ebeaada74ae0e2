"""AntiBERTy with its real weights: it knows an antibody from another protein, and is what transformers makes of it."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertForMaskedLM

from xtrimo import antiberty
from xtrimo.attention import within
from xtrimo.backbone import Backbone, Limited, attentions
from xtrimo.errors import CheckpointError, MissingExtraError, SequenceError
from xtrimo.objectives import Example
from xtrimo.packing import pack

TRASTUZUMAB_VH = (
    "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYCSR"
    "WGGDGFYAMDYWGQGTLVTVSS"
)
UBIQUITIN = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG"


@pytest.fixture(scope="module")
def model() -> antiberty.AntiBERTy:
    return antiberty.load(antiberty.installed())


def read(model: Backbone, proteins: list[Example], *layers: int) -> list[torch.Tensor]:
    """States of a packed row after the asked layers."""
    row = pack(proteins)
    with torch.inference_mode():
        return model.hidden(
            torch.from_numpy(row.tokens), torch.from_numpy(row.positions), within(torch.from_numpy(row.segments)),
            layers=layers,
        )  # fmt: skip


def masked_accuracy(model: Backbone, sequence: str) -> float:
    """Share of the residues that the model names when each is masked alone."""
    copies, truth = [], model.tokenize(sequence).tokens
    for i in range(len(sequence)):
        copies.append(model.tokenize(sequence))
        copies[-1].tokens[i + 1] = model.mask
    states = torch.cat([read(model, copies[i : i + 16], -1)[0] for i in range(0, len(copies), 16)])
    with torch.inference_mode():
        best = model.logits(states).argmax(-1).view(len(copies), -1)
    return float(np.mean([best[i, i + 1] == truth[i + 1] for i in range(len(sequence))]))


def test_it_names_the_masked_residues_of_an_antibody_and_of_nothing_else(model: antiberty.AntiBERTy) -> None:
    assert masked_accuracy(model, TRASTUZUMAB_VH) >= 0.80
    assert masked_accuracy(model, UBIQUITIN) < 0.25


def test_a_packed_row_is_its_chains_read_by_transformers(model: antiberty.AntiBERTy) -> None:
    assert isinstance(model, Backbone) and not model.training
    theirs = BertForMaskedLM.from_pretrained(antiberty.installed(), attn_implementation="eager").eval()
    chains = [model.tokenize(sequence) for sequence in (TRASTUZUMAB_VH, UBIQUITIN, "M", TRASTUZUMAB_VH[::-1])]
    chains[0].tokens[50:60] = model.mask
    states = read(model, chains, *range(9))
    with torch.inference_mode():
        out = [theirs(torch.from_numpy(c.tokens).long()[None], output_hidden_states=True) for c in chains]
        for layer, state in enumerate(states):
            expected = torch.cat([o.hidden_states[layer][0] for o in out])
            torch.testing.assert_close(state, expected, rtol=1e-5, atol=1e-5)
        logits = torch.cat([o.logits[0] for o in out])
        torch.testing.assert_close(model.logits(states[-1]), logits, rtol=1e-5, atol=2e-5)


def test_shapes_and_words(model: antiberty.AntiBERTy) -> None:
    assert (model.width, model.num_layers, model.num_heads, model.max_length) == (512, 8, 8, 512)
    assert (model.words_around, model.cls, model.mask) == ((1, 1), 0, 4)
    assert model.tokenize("ACY").tokens.tolist() == [2, 5, 6, 24, 3]
    assert model.tokenize("XBUZO").tokens.tolist() == [2, 1, 1, 1, 1, 1, 3]
    assert sum(weight.numel() for weight in model.parameters()) == 25_759_769


def test_a_chain_beyond_the_learned_places_is_refused(model: antiberty.AntiBERTy) -> None:
    assert read(model, [model.tokenize("A" * 510)], -1)[0].shape == (512, 512)
    assert isinstance(model, Limited) and (model.learned_places, model.unknown) == (512, 1)
    with pytest.raises(SequenceError, match=r"^long: 511 residues, and 2 words"):
        attentions(model, "A" * 511, name="long")
    with pytest.raises(SequenceError, match=r"513 tokens.*512 places"):
        read(model, [model.tokenize("A" * 511)], -1)


def test_the_package_is_found_and_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "antiberty", raising=False)  # imported by whoever wants its own code
    antiberty.load(antiberty.installed())
    assert "antiberty" not in sys.modules
    monkeypatch.setattr(antiberty, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install antiberty==0\.1\.3"):
        antiberty.installed()


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A directory whose config is there to be changed."""
    config = (antiberty.installed() / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "pytorch_model.bin").symlink_to(antiberty.installed() / "pytorch_model.bin")
    return tmp_path


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"vocab_size": 30522}, "a BERT of 30522 words"),
        ({"num_hidden_layers": 9}, r"missing bert\.encoder\.layer\.8"),
        ({"num_hidden_layers": 7}, r"unexpected bert\.encoder\.layer\.7"),
        ({"intermediate_size": 1024}, r"has shape .*, the config says \(1024"),
    ],
)
def test_other_weights_are_refused(broken: Path, facts: dict[str, Any], reason: str) -> None:
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | facts))
    with pytest.raises(CheckpointError, match=reason):
        antiberty.load(broken)


def test_another_vocabulary_is_refused(broken: Path) -> None:
    assert antiberty.load(broken).num_layers == 8
    (broken / "vocab.txt").write_text("\n".join(reversed(antiberty.VOCABULARY)))
    with pytest.raises(CheckpointError, match="other words than AntiBERTy"):
        antiberty.load(broken)
