"""The example's pairs by hand, and the whole of it on made proteins."""

import json
from pathlib import Path

import pytest

from examples import reward_curves as example
from heads.answers import Predictions
from heads.metrics import evaluate
from heads.rows import Row
from tests.heads.generated import made_dataset
from tests.heads.test_finetune import csv_file
from xtrimo import checkpoint
from xtrimo.errors import DataError
from xtrimo.model import GLM
from xtrimo.testing import toy_config


def ends(pair: Row) -> tuple[str, str]:
    return pair.sequence, pair.second


def test_pairs_of_few() -> None:
    values = dict(zip("ACDEFGH", (3.0, 1.0, 2.0, 2.0, 5.0, 4.0, 0.0), strict=True))
    rows = [Row(sequence=letter, label=value) for letter, value in values.items()]
    once = example.paired(rows, 100, 0)
    assert 2 <= len(once) <= 3 and len({s for pair in once for s in (pair.sequence, pair.second)}) == 2 * len(once)
    every = example.paired(rows, 20, 0, again=True)
    assert {frozenset((pair.sequence, pair.second)) for pair in every} == {
        frozenset((a, b)) for a in values for b in values if values[a] > values[b]
    }  # all 21 but that of equals
    assert len(every) == 20 and all(values[pair.sequence] > values[pair.second] and pair.label == 1 for pair in every)
    assert [ends(pair) for pair in every[: len(once)]] == [ends(pair) for pair in once]


def test_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = csv_file(made_dataset("sequence", "regression", num=96), tmp_path / "made.csv")
    checkpoint.save(GLM(toy_config(), seed=0), tmp_path / "model")
    asked = [str(table), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--epochs", "4"]
    assert example.main([*asked, "--pairs", "8", "60"]) == 0
    points = json.loads((tmp_path / "out/reward_curves.json").read_text())["points"]
    assert [(point["pairs"], point["proteins"] <= 2 * point["pairs"]) for point in points] == [(8, True), (60, True)]
    said = Predictions.load(tmp_path / "out/60/predictions.npz")
    assert points[1]["figures"]["order"]["value"] == evaluate("order", said).value and len(said.truth) == 24
    page = (tmp_path / "out/reward_curves.md").read_text()
    assert f"| 60 | {points[1]['proteins']} |" in page and "24 pairs of proteins" in page
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"reward_curves.png", "calibration.png"}
    floors = json.loads((tmp_path / "out/60/results.json").read_text())["baselines"]
    assert points[1]["floor"]["value"] == floors["composition"]["value"]
    with pytest.raises(DataError, match="96 proteins to train on and 48 to test make .* pairs; ask for fewer"):
        example.main([*asked, "--pairs", "5000"])
