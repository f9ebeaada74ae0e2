"""fair-esm's .pt files: the states and logits of fair-esm itself, and nothing but weights taken from the pickle.

fair-esm runs in a process of its own: its package has the same import name as another one, `esm`, so it lies in a
folder that only this process looks into.
"""

import argparse
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import EsmConfig, EsmForMaskedLM

from xtrimo import esm, info
from xtrimo.attention import within
from xtrimo.embedding import embed
from xtrimo.errors import CheckpointError
from xtrimo.packing import pack
from xtrimo.testing import toy_sequences

FAIR_ESM = Path(__file__).resolve().parents[2] / ".venv" / "fair-esm"
SHAPE = dict(encoder_layers=3, encoder_embed_dim=48, encoder_attention_heads=4, token_dropout=True)
LAYER = "encoder.sentence_encoder.layers"
WRITE_AND_RUN = """
import argparse, sys
import torch
from esm import pretrained
from esm.model.esm2 import ESM2

file, rows, answers = sys.argv[1:]
shape = argparse.Namespace(**SHAPE)
torch.manual_seed(0)
model = ESM2(shape.encoder_layers, shape.encoder_embed_dim, shape.encoder_attention_heads)
weights = {}
for name, weight in model.state_dict().items():
    if "inv_freq" in name:
        weight.mul_(1.25)  # stored frequencies that no formula gives
    else:
        weight.normal_(std=0.1).add_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    if "contact_head" not in name:
        weights[("encoder." if name.startswith("lm_head") else "encoder.sentence_encoder.") + name] = weight
torch.save({"cfg": {"model": shape}, "model": weights}, file)

model, _ = pretrained.load_model_and_alphabet_core("esm2_toy", torch.load(file, weights_only=False))
with torch.no_grad():
    out = [model.eval()(row[None], repr_layers=range(4)) for row in torch.load(rows)]
torch.save([[*(o["representations"][i][0] for i in range(4)), o["logits"][0]] for o in out], answers)
"""


def test_states_and_logits_are_fair_esms_own(tmp_path: Path) -> None:
    if not (FAIR_ESM / "esm").is_dir():
        pytest.skip(f"fair-esm is not in {FAIR_ESM}; `make test` puts it there")
    sequences = toy_sequences(4)
    rows = [torch.tensor([0, *map(esm.VOCABULARY.index, sequence), 2]) for sequence in sequences]
    rows[1][3:6], rows[3][2] = 32, 32  # <mask>, another share of each
    torch.save(rows, tmp_path / "rows.pt")
    files = [tmp_path / name for name in ("esm2_toy.pt", "rows.pt", "answers.pt")]
    done = subprocess.run(
        [sys.executable, "-c", WRITE_AND_RUN.replace("SHAPE", repr(SHAPE)), *map(str, files)],
        env={**os.environ, "PYTHONPATH": str(FAIR_ESM)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

    model = esm.load_fair(files[0])
    proteins = [model.tokenize(sequence) for sequence in sequences]
    for protein, row in zip(proteins, rows, strict=True):
        protein.tokens[:] = row.numpy()
    packed = pack(proteins)
    with torch.inference_mode():
        tokens, positions, segments = (torch.from_numpy(x) for x in (packed.tokens, packed.positions, packed.segments))
        states = model.hidden(tokens, positions, within(segments), layers=(0, 1, 2, 3))
        got = (*states, model.logits(states[-1]))
    expected = [torch.cat(parts) for parts in zip(*torch.load(files[2]), strict=True)]
    assert len(got) == len(expected) == 5
    for state, other in zip(got, expected, strict=True):
        torch.testing.assert_close(state, other, rtol=1e-5, atol=1e-5)


def theirs() -> Any:
    """A small ESM-2 of transformers."""
    torch.manual_seed(0)
    config = EsmConfig(
        vocab_size=33, mask_token_id=32, pad_token_id=1, position_embedding_type="rotary", token_dropout=True,
        emb_layer_norm_before=False, layer_norm_eps=1e-5, hidden_size=48, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=192, initializer_range=0.2,
    )  # fmt: skip
    return EsmForMaskedLM(config).eval()


def fair_weights(model: Any) -> dict[str, Tensor]:
    """Its weights as a .pt file has them."""
    replaced = {
        "esm.embeddings.word_embeddings": "encoder.sentence_encoder.embed_tokens",
        "esm.encoder.emb": "encoder.sentence_encoder.emb",
        "esm.encoder.layer.": "encoder.sentence_encoder.layers.",
        "lm_head.": "encoder.lm_head.",
        "lm_head.decoder.": "lm_head.",
        "attention.self.query": "self_attn.q_proj",
        "attention.self.key": "self_attn.k_proj",
        "attention.self.value": "self_attn.v_proj",
        "attention.output.dense": "self_attn.out_proj",
        "attention.LayerNorm": "self_attn_layer_norm",
        ".LayerNorm": ".final_layer_norm",
        "intermediate.dense": "fc1",
        "output.dense": "fc2",
    }
    turn = model.esm.rotary_embeddings.inv_freq
    weights = {f"{LAYER}.{i}.self_attn.rot_emb.inv_freq": turn.clone() for i in range(SHAPE["encoder_layers"])}
    for name, weight in model.state_dict().items():
        if "contact_head" in name or "rotary" in name:
            continue
        for old, new in replaced.items():
            name = name.replace(old, new)
        weights[name] = weight.clone()
    return weights


def written(path: Path, **changes: Any) -> Path:
    """A .pt file with the given changes to its weights; None takes one away."""
    weights = fair_weights(theirs()) | changes
    kept = {name: weight for name, weight in weights.items() if weight is not None}
    torch.save({"cfg": {"model": argparse.Namespace(**SHAPE)}, "model": kept}, path)
    return path


def test_a_file_and_a_directory_of_one_model_agree(tmp_path: Path) -> None:
    theirs().save_pretrained(tmp_path / "esm2")
    expected = embed(esm.load(tmp_path / "esm2"), ["MKV", "LLA"])
    model = esm.load_fair(written(tmp_path / "esm2.pt"))
    assert (model.width, model.num_layers, model.num_heads, model.max_length) == (48, 3, 4, 1024)
    assert not model.training
    for got, other in zip(embed(model, ["MKV", "LLA"]), expected, strict=True):
        assert (got.hidden == other.hidden).all()


def test_info(tmp_path: Path) -> None:
    facts = dict(info.facts(str(written(tmp_path / "esm2.pt"))))
    assert (facts["kind"], facts["of"], facts["licence"]) == ("model file", "ESM-2", "MIT")
    assert (facts["num_hidden_layers"], facts["hidden_size"], facts["num_attention_heads"]) == ("3", "48", "4")
    assert facts["dtype"] == "float32" and facts["source"] == "fair-esm"
    assert facts["bytes"].startswith(f"{(tmp_path / 'esm2.pt').stat().st_size:,} ")
    (tmp_path / "esm2.pt").write_bytes(b">a\nMKV\n")
    with pytest.raises(CheckpointError, match=r"esm2\.pt cannot be read"):
        dict(info.facts(str(tmp_path / "esm2.pt")))


def test_half_precision_stays_unless_cast(tmp_path: Path) -> None:
    halves = {name: weight.half() for name, weight in fair_weights(theirs()).items()}
    path = written(tmp_path / "esm2.pt", **halves)
    assert esm.load_fair(path).dtype == torch.float16
    assert esm.load_fair(path, dtype=torch.float32).dtype == torch.float32


def test_bf16_keeps_exact_positions(tmp_path: Path) -> None:
    model = esm.load_fair(written(tmp_path / "esm2.pt"), dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert torch.equal(model.model.esm.rotary_embeddings.inv_freq, theirs().esm.rotary_embeddings.inv_freq)


def test_an_old_style_file_loads(tmp_path: Path) -> None:
    content = {"cfg": {"model": argparse.Namespace(**SHAPE)}, "model": fair_weights(theirs())}
    torch.save(content, tmp_path / "esm2.pt", _use_new_zipfile_serialization=False)
    assert esm.load_fair(tmp_path / "esm2.pt").num_layers == 3


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({f"{LAYER}.0.adapter{i}.weight": torch.zeros(1) for i in range(12)}, "12 weights that no ESM-2 has"),
        ({f"{LAYER}.1.fc1.bias": None}, r"missing esm\.encoder\.layer\.1\.intermediate\.dense\.bias"),
        ({f"{LAYER}.1.fc1.bias": torch.zeros(7)}, r"has shape \(7,\), the config says \(192,\)"),
        ({f"{LAYER}.{i}.self_attn.rot_emb.inv_freq": None for i in range(3)}, r"missing .*inv_freq"),
        ({f"{LAYER}.7.fc1.bias": torch.zeros(192)}, r"unexpected esm\.encoder\.layer\.7"),
        ({"encoder.lm_head.weight": torch.zeros(33, 48)}, r"lm_head\.weight is not embed_tokens\.weight"),
        ({"encoder.sentence_encoder.embed_tokens.weight": None}, r"no embed_tokens\.weight"),
        (
            {f"{LAYER}.{i}.self_attn.rot_emb.inv_freq": torch.full((6,), float(i)) for i in range(3)},
            "differ in their rotary frequencies",
        ),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_named(tmp_path: Path, changes: dict[str, Tensor], reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason) as caught:
        esm.load_fair(written(tmp_path / "esm2.pt", **changes))
    assert str(caught.value).count("adapter") in (0, 10)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"args": argparse.Namespace(arch="roberta_large"), "model": {}}, "roberta_large model.*reads ESM-2"),
        ({"cfg": {"model": argparse.Namespace(encoder_layers=3)}, "model": {}}, "encoder_embed_dim"),
        ({"cfg": {"model": argparse.Namespace(**SHAPE | {"encoder_layers": "three"})}, "model": {}}, "got str"),
        ({"cfg": {"model": argparse.Namespace(**SHAPE)}, "model": {"encoder.lm_head.bias": 3}}, "lm_head.bias"),
        ({"model": {}}, "'cfg'"),
        ({"state": {}}, "no file of fair-esm"),
        ([1], "no file of fair-esm"),
    ],
)  # fmt: skip
def test_other_files_are_refused(tmp_path: Path, content: Any, reason: str) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=reason):
        esm.load_fair(tmp_path / "other.pt")


def test_a_file_that_is_cut_or_not_there_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "esm2.pt")
    path.write_bytes(path.read_bytes()[:5000])
    for file in (path, tmp_path / "none.pt"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            esm.load_fair(file)


class Harmful:
    """A pickle that writes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("is_zip", [True, False])
def test_nothing_in_a_file_is_run(tmp_path: Path, is_zip: bool) -> None:
    ran = tmp_path / "ran"
    content = {"model": {}, "cfg": {"model": argparse.Namespace(**SHAPE, code=Harmful(ran))}}
    torch.save(content, tmp_path / "bad.pt", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(CheckpointError, match=r"holds more than tensors, containers and argparse\.Namespace"):
        esm.load_fair(tmp_path / "bad.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(CheckpointError, match=r"holds more than"):
        esm.load_fair(tmp_path / "pickle.pt")
    assert not ran.exists()
    torch.load(tmp_path / "bad.pt", weights_only=False)  # it would have
    assert ran.exists()
