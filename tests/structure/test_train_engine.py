"""`train-fold` asked to stop, and on DeepSpeed's engine."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from structure.config import PRESETS
from structure.train import train_fold
from tests.structure.models import SMALL
from tests.structure.test_train import FEW, make_archive, metrics, options
from xtrimo import __main__ as cli
from xtrimo import mmseqs
from xtrimo.testing import run_distributed
from xtrimo.training_config import EngineOptions


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "fold-tiny", replace(SMALL, structure_dropout=0.0))
    monkeypatch.setattr(mmseqs, "is_installed", lambda: False)


def test_asked_to_stop_it_says_so_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through main: status 75 and STOPPED, then 0 and DONE, with the results of a run that nobody asked."""
    archive = make_archive(tmp_path / "chains.npz")
    for name in ("whole", "asked"):
        asked = ["train-fold", "--data", str(archive), "--model", "none", "--out", str(tmp_path / name), *FEW]
        if name == "asked":
            (tmp_path / "asked/training").mkdir(parents=True)
            (tmp_path / "asked/training/STOP").touch()
            assert cli.main(asked) == 75
            assert "asked to stop (STOP), saved after step 1 of 4" in capsys.readouterr().err
            assert {path.name for path in (tmp_path / "asked/training").iterdir()} >= {"STOPPED", "training.pt"}
            assert not (tmp_path / "asked/training/STOP").exists() and not (tmp_path / "asked/model").exists()
        assert cli.main(asked) == 0 and (tmp_path / name / "training/DONE").exists()
    whole, again = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "asked"))
    assert whole == again


def ranked(rank: int, data: Path, out: Path, engine: EngineOptions) -> dict[str, Any]:
    return train_fold(options(data, out, average=0.5, engine=engine))


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="the extra deepspeed is not installed")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("zero", [2, 3])
def test_deepspeed_learns_what_torch_does(tmp_path: Path, zero: Any) -> None:
    archive = make_archive(tmp_path / "chains.npz")
    engines = {"torch": EngineOptions(), "zero": EngineOptions(name="deepspeed", zero=zero)}
    results = {
        name: run_distributed(ranked, 2, archive, tmp_path / name, engine, timeout=280.0)[0]
        for name, engine in engines.items()
    }
    for split, value in (("train", "loss"), ("valid", "figure")):
        ours, theirs = ([line[value] for line in metrics(tmp_path / name, split)] for name in ("zero", "torch"))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    found = [result["test"]["trained"]["lddt"]["value"] for result in results.values()]
    assert found[0] == pytest.approx(found[1], abs=1e-3)
