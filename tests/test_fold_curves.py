"""The example's archives, smaller in larger ones, and its page out of runs of a small model."""

import json
from pathlib import Path

import numpy as np
import pytest

from examples import fold_curves as example
from examples.fold_chains import write_archive
from structure.config import PRESETS
from tests.structure.models import SMALL
from xtrimo import checkpoint
from xtrimo.chains import Chain, read_archive
from xtrimo.errors import DataError
from xtrimo.model import GLM
from xtrimo.testing import toy_config, toy_sequences

SPLITS = [*["train"] * 9, "valid", "test"]
FEW = ["--steps", "4", "--batch-size", "2", "--sizes", "2", "--validate-every", "2"]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    chains = [
        Chain(f"c{number}", sequence, rng.normal(size=(len(sequence), 4, 3)).astype(np.float32))
        for number, sequence in enumerate(toy_sequences(len(SPLITS), seed=1, min_length=30, max_length=40))
    ]
    write_archive(tmp_path / "chains.npz", chains, SPLITS)
    return tmp_path / "chains.npz"


def test_the_page(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "fold-tiny", SMALL)
    models = [tmp_path / "small", tmp_path / "large"]
    for width, folder in zip((16, 32), models, strict=True):
        checkpoint.save(GLM(toy_config(num_layers=1, hidden_size=width, ffn_size=32), seed=0), folder)
    out = tmp_path / "out"
    asked = [str(archive), "--models", *map(str, models), "--out", str(out), *FEW]
    assert example.main(asked) == 0

    names = {num: [chain.name for chain in read_archive(out / f"chains/{num}.npz")] for num in (2, 8)}
    assert set(names[2]) < set(names[8]) and all(found[-2:] == ["c9", "c10"] for found in names.values())
    assert [len(found) for found in names.values()] == [4, 10]

    points = json.loads((out / "fold_curves.json").read_text())
    runs = [("small", 2), ("small", 8), ("amino acids alone", 8), ("small", 8), ("large", 8)]
    assert [(point["model"], point["chains"]) for point in points] == runs
    for point, folder in zip(points, ("small-2", "small-8", "none-8", "small-8", "large-8"), strict=True):
        results = json.loads((out / folder / "results.json").read_text())
        assert point["figures"]["lDDT"] == results["test"]["trained"]["lddt"]["value"] and len(point["valid"]) == 2
        assert results["num_train"] == point["chains"]
    page = (out / "fold_curves.md").read_text()
    assert "| small | 2 | 4 |" in page and "| amino acids alone | 8 | 1 |" in page
    assert (out / "fold_curves.png").exists()

    def no_training(*args: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("structure.train.fit", no_training)
    assert example.main(asked) == 0 and json.loads((out / "fold_curves.json").read_text()) == points


def test_too_few_chains(archive: Path, tmp_path: Path) -> None:
    asked = [str(archive), "--models", "none", "--out", str(tmp_path / "out"), "--steps", "5", "--batch-size", "2"]
    with pytest.raises(DataError, match="9 chains to train on and 2 held out; expected 10 or more"):
        example.main(asked)
