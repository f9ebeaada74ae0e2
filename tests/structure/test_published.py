"""ESMFold as transformers has it, with random weights: our answers are those of transformers."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from structure import fold, load_fold
from structure.openfold import EsmConfig, EsmFoldConfig, EsmForProteinFolding, constants
from structure.prediction import Prediction
from structure.published import is_esmfold
from xtrimo.chains import ATOMS
from xtrimo.errors import CheckpointError, ConfigError
from xtrimo.esm import VOCABULARY

SEQUENCES = ["MKVLAGDE", "ACDEFGHIKLMNPQRSTVWYX" * 2]
TRUNK: dict[str, Any] = dict(
    num_blocks=2, sequence_state_dim=64, pairwise_state_dim=32, sequence_head_width=16, pairwise_head_width=16,
    max_recycles=3, structure_module=dict(sequence_dim=48, pairwise_dim=16, num_blocks=3, num_heads_ipa=3,
    resnet_dim=32, ipa_dim=8),
)  # fmt: skip


def esmfold() -> EsmForProteinFolding:
    """A small one whose every weight matters."""
    config = EsmConfig(
        vocab_size=33, mask_token_id=32, pad_token_id=1, hidden_size=32, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=64, position_embedding_type="rotary", token_dropout=True, max_position_embeddings=1026,
        is_folding_model=True, emb_layer_norm_before=False, layer_norm_eps=1e-5, vocab_list=[*VOCABULARY],
        esmfold_config=EsmFoldConfig(fp16_esm=False, lddt_head_hid_dim=24, trunk=TRUNK),
    )  # fmt: skip
    torch.manual_seed(0)
    model = EsmForProteinFolding(config).eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=0.5 / weight.shape[-1] ** 0.5)
    nn.init.normal_(model.esm_s_combine)
    return model


@pytest.fixture(scope="module")
def theirs() -> EsmForProteinFolding:
    return esmfold()


@pytest.fixture
def directory(theirs: EsmForProteinFolding, tmp_path: Path) -> Path:
    theirs.save_pretrained(tmp_path / "esmfold")
    return tmp_path / "esmfold"


def expected(theirs: EsmForProteinFolding, sequence: str, num_recycles: int | None) -> dict[str, np.ndarray]:
    """What transformers says, its atoms under their names."""
    aatype = torch.tensor([[constants.restype_order_with_x[letter] for letter in sequence]])
    with torch.no_grad():
        said = theirs(aatype, num_recycles=num_recycles)
    atoms = np.full((len(sequence), 37, 3), np.nan, np.float32)
    for row, letter in enumerate(sequence):
        names = constants.restype_name_to_atom14_names[constants.restype_1to3.get(letter, "UNK")]
        for slot, name in enumerate(names):
            if name:
                atoms[row, ATOMS.index(name)] = said.positions[-1, 0, row, slot]
    return {
        "atoms": atoms, "atom_plddt": 100 * said.plddt[0].numpy(), "ptm": said.ptm.numpy(),
        "pae_ang": said.predicted_aligned_error[0].numpy(),
    }  # fmt: skip


def compare(found: Prediction, said: dict[str, np.ndarray]) -> None:
    known = np.isfinite(said["atoms"]).all(-1)
    assert np.array_equal(found.exists[known.any(1)], known[known.any(1)]), "of X it places no atom, we a backbone"
    assert np.abs(found.atoms[known] - said["atoms"][known]).max() <= 1e-4
    assert np.ptp(found.atoms[known]) > 10
    assert np.abs(found.atom_plddt[known] - said["atom_plddt"][known]).max() <= 1e-3
    assert np.abs(found.plddt - said["atom_plddt"][:, ATOMS.index("CA")]).max() <= 1e-3
    assert np.abs(found.pae_ang - said["pae_ang"]).max() <= 1e-4
    assert abs(found.ptm - said["ptm"]) <= 1e-6


@pytest.mark.parametrize("num_recycles", [None, 0, 2])
def test_it_folds_as_transformers_does(num_recycles: int | None, theirs: EsmForProteinFolding, directory: Path) -> None:
    """Theirs counts passes where it is asked for none: three, which are two recycles."""
    pipeline = load_fold(directory)
    assert pipeline.name == "esmfold" and pipeline.model.config.max_recycles == 2
    for sequence in SEQUENCES:
        (found,) = fold(pipeline, [sequence], num_recycles=num_recycles)
        compare(found, expected(theirs, sequence, num_recycles))
        assert found.num_recycles == (2 if num_recycles is None else num_recycles)


def test_half_precision_is_read_as_fp32(tmp_path: Path) -> None:
    half = esmfold().half()
    half.save_pretrained(tmp_path / "half")
    half.float()
    (found,) = fold(tmp_path / "half", SEQUENCES[:1], num_recycles=0)
    compare(found, expected(half, SEQUENCES[0], 0))


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        ("esmfold_config", "bypass_lm", True), ("esmfold_config", "embed_aa", False),
        ("trunk", "position_bins", 16), ("structure_module", "num_v_points", 4), ("structure_module", "num_angles", 5),
        ("structure_module", "trans_scale_factor", 1),
    ],
)  # fmt: skip
def test_another_kind_is_refused(place: str, name: str, value: object, directory: Path) -> None:
    content = json.loads((directory / "config.json").read_text())
    fold_part = content["esmfold_config"]
    {"esmfold_config": fold_part, "trunk": fold_part["trunk"],
     "structure_module": fold_part["trunk"]["structure_module"]}[place][name] = value  # fmt: skip
    (directory / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=rf"another kind: {name} {value} \(expected"):
        load_fold(directory)


@pytest.mark.parametrize("lost", ["trunk.blocks.1.mlp_pair.mlp.3.weight", "esm.encoder.layer.0.output.dense.bias"])
def test_missing_weights_are_refused(lost: str, directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    del weights[lost]
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"lacks 1 weights of ESMFold, such as {lost}; download it again"):
        load_fold(directory)


def test_a_contact_head_may_be_missing(theirs: EsmForProteinFolding, directory: Path) -> None:
    """The published ESMFold has none."""
    weights = load_file(directory / "model.safetensors")
    assert weights.pop("esm.contact_head.regression.weight") is not None
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    compare(fold(directory, SEQUENCES[:1], num_recycles=0)[0], expected(theirs, SEQUENCES[0], 0))


@pytest.mark.parametrize("change", ["cut", "gone", "shape"])
def test_damaged_weights_are_refused(change: str, directory: Path) -> None:
    path = directory / "model.safetensors"
    if change == "cut":
        os.truncate(path, path.stat().st_size - 1000)
    elif change == "gone":
        path.unlink()
    else:
        weights = load_file(path)
        weights["ptm_head.weight"] = weights["ptm_head.weight"][:10].clone()
        save_file(weights, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"cannot be read as ESMFold \(.*download it again"):
        load_fold(directory)


def test_what_is_esmfold(directory: Path, tmp_path: Path) -> None:
    assert is_esmfold(directory) and not is_esmfold(tmp_path)
    for content in ("{", "[1]", '{"is_folding_model": false}'):
        (tmp_path / "config.json").write_text(content)
        assert not is_esmfold(tmp_path)
    with pytest.raises(ConfigError, match="is ESMFold, which has its language model in it; leave out --lm x"):
        load_fold(directory, lm="x")
