"""A trained head, loaded again: the same predictions, as a table, and every metric of an evaluation."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from heads import evaluation, prediction
from heads.answers import Predictions
from heads.finetune import FinetuneOptions, finetune_on
from heads.head_directory import HeadFacts
from heads.rows import Dataset
from tests.heads.generated import made_dataset
from tests.heads.test_finetune import csv_file
from xtrimo import checkpoint
from xtrimo.errors import CheckpointError, ConfigError, SequenceError
from xtrimo.model import GLM
from xtrimo.testing import toy_config

MAX_LENGTH = 40


def trained(folder: Path, level: Any, target: Any, method: Any = "probe") -> Dataset:
    """A head in folder/run on the model in folder/model."""
    model = GLM(toy_config(max_length=MAX_LENGTH), seed=0)
    checkpoint.save(model, folder / "model")
    made = made_dataset(level, target)
    few = replace(made, train=made.train[:16], valid=made.valid[:8], test=made.test[:8])
    finetune_on(few, model.eval(), FinetuneOptions(
        task="made", model=str(folder / "model"), method=method, out=folder / "run", epochs=2.0, learning_rate=3e-3,
        baselines=False, leaks=False,
    ))  # fmt: skip
    return few


def predict(folder: Path, records: list[tuple[str, str]], *more: str) -> list[list[str]]:
    fasta = folder / "in.fasta"
    fasta.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in records))
    prediction.main([str(fasta), str(folder / "out.csv"), "--head", str(folder / "run"), *more])
    return list(csv.reader((folder / "out.csv").open()))


@pytest.mark.parametrize("method", ["probe", "lora", "full"])
def test_classes(tmp_path: Path, method: Any) -> None:
    made = trained(tmp_path, "sequence", "classes", method)
    head, *lines = predict(tmp_path, [(row.name, row.sequence) for row in made.test])
    assert head == ["name", "prediction", "p_0", "p_1"]
    said = Predictions.load(tmp_path / "run/predictions.npz").prediction
    assert [line[0] for line in lines] == [row.name for row in made.test]
    assert [int(line[1]) for line in lines] == said.argmax(1).tolist()
    np.testing.assert_allclose([[float(x) for x in line[2:]] for line in lines], said, atol=1e-4)


def test_values_with_intervals(tmp_path: Path) -> None:
    made = trained(tmp_path, "sequence", "regression")
    head, *lines = predict(tmp_path, [(row.name, row.sequence) for row in made.test])
    assert head == ["name", "prediction", "low", "high"]
    values = np.array([[float(x) for x in line[1:]] for line in lines])
    said = Predictions.load(tmp_path / "run/predictions.npz").prediction
    np.testing.assert_allclose(values[:, 0], said, rtol=1e-4)
    low, high = HeadFacts.read(tmp_path / "run").residuals or (0, 0)
    np.testing.assert_allclose(values[:, 1:] - values[:, :1], [[low, high]] * len(said), atol=1e-4)


def test_residues_are_letters(tmp_path: Path) -> None:
    made = trained(tmp_path, "residue", "classes")
    long = "AD" * MAX_LENGTH
    *lines, last = predict(tmp_path, [*((row.name, row.sequence) for row in made.test), ("long", long)])[1:]
    said = Predictions.load(tmp_path / "run/predictions.npz").prediction.argmax(1)
    assert "".join(line[1] for line in lines) == "".join(map(str, said))
    read = MAX_LENGTH - 1
    assert set(last[1][:read]) <= {"0", "1"} and last[1][read:] == "-" * (len(long) - read)


@pytest.mark.parametrize("method", ["probe", "lora"])
def test_contacts_are_pairs(tmp_path: Path, method: Any) -> None:
    """By the attention maps of the live model, which in a probe's training came from a file."""
    made = trained(tmp_path, "pair", "classes", method)
    assert HeadFacts.read(tmp_path / "run").config.num_maps == 4
    row = made.test[0]
    head, *lines = predict(tmp_path, [(row.name, row.sequence)])
    assert head == ["name", "first", "second", "probability"] and len(lines) == len(row.sequence)
    size = len(row.sequence)
    said = Predictions.load(tmp_path / "run/predictions.npz").prediction[: size**2].reshape(size, size)
    pairs = [(int(i) - 1, int(j) - 1) for _, i, j, _ in lines]
    assert all(j - i >= 6 for i, j in pairs) and len(set(pairs)) == size
    np.testing.assert_allclose([said[pair] for pair in pairs], [float(line[3]) for line in lines], atol=2e-3)
    rest = [said[i, j] for i in range(size) for j in range(i + 6, size) if (i, j) not in pairs]
    assert max(rest) <= min(float(line[3]) for line in lines) + 2e-3


def test_two_proteins_in_a_record(tmp_path: Path) -> None:
    made = trained(tmp_path, "two_sequences", "regression")
    records = [(row.name, f"{row.sequence}:{row.second}") for row in made.test]
    lines = predict(tmp_path, records)[1:]
    said = Predictions.load(tmp_path / "run/predictions.npz").prediction
    np.testing.assert_allclose([float(line[1]) for line in lines], said, atol=2e-3)
    with pytest.raises(SequenceError, match="1 chains; this head reads 2"):
        predict(tmp_path, [("one", "MKVLAAIV")])
    assert not list(tmp_path.glob(".*partial*"))


def test_a_molecule_for_all(tmp_path: Path) -> None:
    made = trained(tmp_path, "molecule", "regression")
    row = made.test[0]
    lines = predict(tmp_path, [(row.name, row.sequence)], "--molecule", row.second)[1:]
    said = Predictions.load(tmp_path / "run/predictions.npz").prediction
    assert float(lines[0][1]) == pytest.approx(float(said[0]), rel=1e-4)
    with pytest.raises(ConfigError, match="--molecule"):
        predict(tmp_path, [(row.name, row.sequence)])


def test_another_model_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, "sequence", "classes")
    checkpoint.save(GLM(toy_config(max_length=MAX_LENGTH), seed=1), tmp_path / "other")
    with pytest.raises(CheckpointError, match="other weights"):
        predict(tmp_path, [("a", "MKVLAAIV")], "--model", str(tmp_path / "other"))
    moved = (tmp_path / "model").rename(tmp_path / "moved")
    assert len(predict(tmp_path, [("a", "MKVLAAIV")], "--model", str(moved))) == 2


@pytest.mark.parametrize("file, method", [("head.json", "probe"), ("head.safetensors", "probe"),
                                          ("adapter/adapter_model.safetensors", "lora"),
                                          ("backbone.safetensors", "full")])  # fmt: skip
def test_a_cut_file_is_said(tmp_path: Path, file: str, method: Any) -> None:
    trained(tmp_path, "sequence", "classes", method)
    path = tmp_path / "run" / file
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CheckpointError, match="head.json|head.safetensors|cannot be read"):
        predict(tmp_path, [("a", "MKVLAAIV")])
    path.unlink()
    with pytest.raises(CheckpointError):
        predict(tmp_path, [("a", "MKVLAAIV")])


def test_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = trained(tmp_path, "sequence", "regression")
    table = csv_file(made, tmp_path / "made.csv")
    evaluation.main([str(tmp_path / "run"), "--data", str(table), "--out", str(tmp_path / "again")])
    told = capsys.readouterr().out
    run, again = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("run", "again"))
    assert f"{run['value']:.3f} (" in told and "* Spearman" in told and "Pearson" in told and "leaks" in told
    assert again["value"] == pytest.approx(run["value"], abs=1e-3) and again["num_test"] == 8
    evaluation.main([str(tmp_path / "run"), "--data", str(table), "--every"])
    assert "32 rows" in capsys.readouterr().out


def test_contacts_are_evaluated_by_every_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the paper, more than 6 apart, among them."""
    made = trained(tmp_path, "pair", "classes")
    (tmp_path / "made.csv").touch()
    monkeypatch.setattr(evaluation, "read", lambda *_, **__: made)
    evaluation.main([
        str(tmp_path / "run"), "--data", str(tmp_path / "made.csv"), "--out", str(tmp_path / "again"), "--no-leaks"
    ])  # fmt: skip
    run, again = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("run", "again"))
    said = [Predictions.load(tmp_path / name / "predictions.npz").prediction for name in ("run", "again")]
    np.testing.assert_allclose(*said, atol=5e-3)  # the run read states and maps in half precision
    assert again["value"] == pytest.approx(run["value"], abs=0.02)  # one pair of 56
    assert again["metrics"]["precision@L/5"]["value"] == again["value"]
    assert again["metrics"]["precision@L/5 sep7"]["low"] <= again["metrics"]["precision@L/5 sep7"]["value"]


def test_evaluate_keeps_the_order_of_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file whose only class is the second must not have it taken for the first."""
    made = trained(tmp_path, "sequence", "classes")
    ones = tuple(row for row in made.train if row.label == 1)
    table = csv_file(replace(made, train=(), valid=(), test=ones), tmp_path / "ones.csv")
    evaluation.main([str(tmp_path / "run"), "--data", str(table), "--every", "--out", str(tmp_path / "again")])
    assert Predictions.load(tmp_path / "again/predictions.npz").truth.tolist() == [1] * len(ones)


def test_states_in_bf16(tmp_path: Path) -> None:
    """A probe on states read in bf16 is close to one in fp32."""
    made = made_dataset("sequence", "regression")
    said = {}
    for precision in ("fp32", "bf16"):
        asked = FinetuneOptions(task="made", model="toy", out=tmp_path / precision, epochs=10.0, learning_rate=3e-3,
                                precision=precision, baselines=False, leaks=False)  # fmt: skip
        finetune_on(made, GLM(toy_config()).eval(), asked)
        said[precision] = torch.from_numpy(Predictions.load(tmp_path / precision / "predictions.npz").prediction)
    assert not torch.equal(said["fp32"], said["bf16"])
    assert float(torch.corrcoef(torch.stack([said["fp32"], said["bf16"]]))[0, 1]) > 0.95
