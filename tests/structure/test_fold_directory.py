"""A folding model as a directory: what was saved is what folds, or an error says what to do."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from structure import fold, load_fold
from structure.fold_directory import (
    CARD,
    CONFIG,
    WEIGHTS,
    FoldFacts,
    Pipeline,
    live_reader,
    read_facts,
    save_fold,
    with_lm,
)
from tests.structure.models import SMALL, TRUNKS, model_of, pipeline
from xtrimo import checkpoint
from xtrimo.embedding_file import fingerprint, fingerprint_of
from xtrimo.errors import CheckpointError, ConfigError
from xtrimo.info import facts
from xtrimo.model import GLM
from xtrimo.testing import toy_config, toy_sequences

SEQUENCES = toy_sequences(2, min_length=12, max_length=20)
LAYERS = (0, 4)


def saved(directory: Path, trunk: str = "trimul", lm: Path | None = None, seed: int = 0) -> Pipeline:
    """A model in a directory, and itself; with `lm`, the toy model there is its language model."""
    model, config, facts = None, replace(TRUNKS[trunk], side_chains=True), FoldFacts(config=SMALL)
    if lm:
        model = GLM(toy_config(), seed=seed).eval()
        checkpoint.save(model, lm)
        config = with_lm(config, model, LAYERS, 4)
        facts = FoldFacts(config=config, lm=str(lm), lm_hash=fingerprint(model), lm_layers=LAYERS)
    whole = pipeline(config) if model is None else Pipeline(
        model=model_of(config), reader=live_reader(model, LAYERS, config), name="toy"
    )  # fmt: skip
    save_fold(directory, whole.model, replace(facts, config=config, training={"data": "chains.npz", "steps": 7}))
    return whole


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("reads", [False, True])
def test_what_was_saved_folds_the_same(trunk: str, reads: bool, tmp_path: Path) -> None:
    expected = fold(saved(tmp_path / "model", trunk, tmp_path / "lm" if reads else None), SEQUENCES)
    for model in (tmp_path / "model", str(tmp_path / "model"), load_fold(tmp_path / "model")):
        for found, each in zip(fold(model, SEQUENCES), expected, strict=True):
            assert np.array_equal(found.atoms, each.atoms) and np.array_equal(found.exists, each.exists)
            assert found.model == tmp_path.name and found.num_recycles == TRUNKS[trunk].max_recycles
    assert not load_fold(tmp_path / "model").model.training


def test_a_model_has_the_name_of_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("run/model", "mine"):
        saved(tmp_path / place)
    monkeypatch.chdir(tmp_path / "run" / "model")
    assert [load_fold(place).name for place in (Path("."), Path("../model"), tmp_path / "mine")] == [
        "run",
        "run",
        "mine",
    ]


def test_its_facts_and_its_card(tmp_path: Path) -> None:
    whole = saved(tmp_path / "model", lm=tmp_path / "lm")
    facts = read_facts(tmp_path / "model")
    assert facts.config == whole.model.config and facts.lm_layers == LAYERS and facts.training["steps"] == 7
    card = (tmp_path / "model" / CARD).read_text()
    for words in (
        "all heavy atoms",
        "Trunk trimul, 2 blocks",
        f"{tmp_path / 'lm'} (layers 0, 4)",
        "* data: chains.npz",
    ):
        assert words in card
    saved(tmp_path / "bare")
    assert "reads amino acids alone" in (tmp_path / "bare" / CARD).read_text()


def broken(directory: Path, change: str) -> None:
    """A directory with something wrong."""
    config, weights = directory / CONFIG, directory / WEIGHTS
    content = json.loads(config.read_text())
    if change == "gone":
        shutil.rmtree(directory)
    elif change == "no config":
        config.unlink()
    elif change == "no json":
        config.write_text("{")
    elif change == "a list":
        config.write_text("[1]")
    elif change == "format":
        config.write_text(json.dumps(content | {"format": "xtrimo-fold-9"}))
    elif change == "field":
        config.write_text(json.dumps(content | {"config": content["config"] | {"num_wings": 2}}))
    elif change == "value":
        config.write_text(json.dumps(content | {"config": content["config"] | {"num_blocks": 0}}))
    elif change == "no weights":
        weights.unlink()
    elif change == "cut weights":
        os.truncate(weights, weights.stat().st_size - 100)
    elif change == "cut header":
        os.truncate(weights, 20)
    else:
        config.write_text(json.dumps(content | {"config": content["config"] | {"pair_width": 16}}))


NO_MODEL = r"is no folding model \(.*`xtrimo train-fold` writes one"
NO_WEIGHTS = r"model\.safetensors cannot be read, or does not fit config\.json \(.*copy the directory again"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("gone", NO_MODEL), ("no config", NO_MODEL), ("no json", NO_MODEL), ("a list", NO_MODEL),
        ("format", "its format is not xtrimo-fold-1.*train-fold"), ("field", "num_wings"),
        ("value", "num_blocks is 0; it must"), ("no weights", NO_WEIGHTS), ("cut weights", NO_WEIGHTS),
        ("cut header", NO_WEIGHTS), ("other shape", f"(?s){NO_WEIGHTS}"),
    ],
)  # fmt: skip
def test_what_is_no_model(change: str, words: str, tmp_path: Path) -> None:
    saved(tmp_path / "model")
    broken(tmp_path / "model", change)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_fold(tmp_path / "model")
    assert str(tmp_path / "model") in str(caught.value)


def test_a_language_model_may_move(tmp_path: Path) -> None:
    expected = fold(saved(tmp_path / "model", lm=tmp_path / "lm"), SEQUENCES)
    (tmp_path / "lm").rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match=r"reads the language model .*lm, which cannot be .*say in --lm where"):
        load_fold(tmp_path / "model")
    found = fold(load_fold(tmp_path / "model", lm=str(tmp_path / "moved")), SEQUENCES)
    assert all(np.array_equal(ours.atoms, theirs.atoms) for ours, theirs in zip(found, expected, strict=True))


def test_another_language_model_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "model", lm=tmp_path / "lm")
    checkpoint.save(GLM(toy_config(), seed=1), tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"trained on .*lm with other weights than .*other has; give .* in --lm"):
        load_fold(tmp_path / "model", lm=str(tmp_path / "other"))
    shutil.rmtree(tmp_path / "lm")
    (tmp_path / "other").rename(tmp_path / "lm")
    with pytest.raises(CheckpointError, match="with other weights than"):
        load_fold(tmp_path / "model")


def test_a_device_that_is_not_here(tmp_path: Path) -> None:
    saved(tmp_path / "model")
    with pytest.raises(ConfigError, match="'nowhere' cannot be used here"):
        load_fold(tmp_path / "model", device="nowhere")


def test_a_language_model_that_nobody_reads_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "model")
    with pytest.raises(ConfigError, match="model reads amino acids alone; leave out --lm esm"):
        load_fold(tmp_path / "model", lm="esm")


def test_info_describes_it(tmp_path: Path) -> None:
    saved(tmp_path / "model", "esmfold", tmp_path / "lm")
    said = dict(facts(str(tmp_path / "model")))
    assert said["of"] == "xtrimo, a folding model" and said["trunk"] == "esmfold" and said["trained: steps"] == "7"
    assert said["language model"] == str(tmp_path / "lm") and said["its layers"] == ", ".join(map(str, LAYERS))
    assert said["bytes"].endswith("in 1 weights file(s)")


def test_bf16_is_of_the_blocks_alone(tmp_path: Path) -> None:
    """And folds the same protein, nearly."""
    save_fold(tmp_path / "m", model_of(SMALL, spread=0.1), FoldFacts(config=SMALL))
    plain, half = load_fold(tmp_path / "m"), load_fold(tmp_path / "m", precision="bf16")
    found = {name: weight.dtype for name, weight in half.model.named_parameters()}
    halved = {name for name, dtype in found.items() if dtype == torch.bfloat16}
    assert halved and all(name.startswith("trunk.blocks.") and "norm" not in name for name in halved)
    assert fingerprint_of(half.model, {}) != fingerprint_of(plain.model, {}), "a folder of structures tells them apart"
    (expected,), (near,) = fold(plain, ["MKVLAGDE"]), fold(half, ["MKVLAGDE"])
    moved = np.abs(near.atoms - expected.atoms)[expected.exists].max()
    assert 0 < moved < 0.5
