"""Heads of every level, from rows to results: they learn what is there, and nothing that is not."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from heads import finetune, selection
from heads.answers import Predictions
from heads.finetune import FinetuneOptions, finetune_on
from heads.head_directory import HeadFacts
from heads.rows import Dataset, Row
from tests.heads.generated import made_dataset
from xtrimo import checkpoint
from xtrimo.errors import ConfigError
from xtrimo.model import GLM
from xtrimo.testing import run_distributed, toy_config

# a level, a target, what a probe must reach on the test rows, and what it must not on shuffled labels
CASES = [
    ("sequence", "classes", 0.75, 0.75),
    ("sequence", "regression", 0.85, 0.5),
    ("residue", "classes", 0.98, 0.75),
    ("pair", "classes", 0.6, 0.3),
    ("two_sequences", "regression", 0.85, 0.5),
    ("molecule", "regression", 0.85, 0.5),
]
EPOCHS = {"pair": 8.0}


def options(folder: Path, level: str = "sequence", **changes: Any) -> FinetuneOptions:
    facts: dict[str, Any] = dict(
        task="made", model="toy", out=folder, learning_rate=3e-3, epochs=EPOCHS.get(level, 20.0), patience=0,
        baselines=False, leaks=False,
    )  # fmt: skip
    return FinetuneOptions(**(facts | changes))


def model(**changes: Any) -> GLM:
    return GLM(toy_config(**changes)).eval()


@pytest.mark.parametrize("level, target, least, most", CASES)
def test_a_probe_learns_what_is_there(tmp_path: Path, level: Any, target: Any, least: float, most: float) -> None:
    results = finetune_on(made_dataset(level, target), model(), options(tmp_path / "true", level))
    assert results["value"] > least and results["low"] <= results["value"] <= results["high"]
    shuffled = made_dataset(level, target, shuffled=True)
    assert finetune_on(shuffled, model(), options(tmp_path / "shuffled", level))["value"] < most


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize(
    "level, target", [("sequence", "classes"), ("residue", "classes"), ("two_sequences", "regression")]
)
def test_a_model_is_trained_with_its_head(tmp_path: Path, level: Any, target: Any, method: Any) -> None:
    asked = options(tmp_path, method=method, epochs=6.0, learning_rate=4e-3 if method == "lora" else 2e-3, batch_size=8)
    trained = model()
    results = finetune_on(made_dataset(level, target), trained, asked)
    assert results["value"] > 0.75
    before, after = model().state_dict(), trained.state_dict()
    same = [name for name in before if name in after and torch.equal(before[name], after[name])]
    if method == "lora":  # what peft has renamed is not compared
        assert set(same) == before.keys() & after.keys() and (tmp_path / "adapter/adapter_model.safetensors").exists()
        assert any("lora_B" in name and bool(after[name].any()) for name in after)
    else:
        assert same == ["output.weight"]


@pytest.mark.parametrize("method", ["probe", "lora", "full"])
def test_contacts_are_read_from_attention(tmp_path: Path, method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The maps of the asked layers go into the head, and beside its figure stands that of the regression of all."""
    made = made_dataset("pair", num=24)
    asked = options(tmp_path, "pair", method=method, epochs=1.0, layers=(0, 2, -1), baselines=True)
    results = finetune_on(made, model(), asked)
    assert HeadFacts.read(tmp_path).config.num_maps == 8
    assert set(results["baselines"]) == {"separation", "letters", "one_hot"}
    regression = results["regression"]
    assert regression["low"] <= regression["value"] <= regression["high"]
    assert "of 16 maps; fitted on 20 proteins" in regression["note"] and "chosen on 12 proteins" in regression["note"]
    said = Predictions.load(tmp_path / regression["predictions"])
    np.testing.assert_array_equal(said.truth, Predictions.load(tmp_path / "predictions.npz").truth)


def test_the_regression_is_of_the_model_as_it_comes(tmp_path: Path) -> None:
    made = made_dataset("pair", num=24)
    found = [
        finetune_on(made, model(), options(tmp_path / method, "pair", method=method, epochs=0.5))["regression"]
        for method in ("probe", "full")
    ]  # fmt: skip
    assert found[0] == found[1]


def test_a_model_without_maps_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = made_dataset("pair", num=8)
    finetune_on(made, model(), options(tmp_path, "pair", epochs=1.0, layers=(0,)))
    assert HeadFacts.read(tmp_path).config.num_maps == 0
    assert "layers (0,) of toy have no attention maps; the pair head reads states alone" in caplog.text


def looking_at_contacts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the last block's first head look where residues touch, by the rule of the generated data."""
    seen: list[str] = []
    tokenize, hidden = GLM.tokenize, GLM.hidden

    def remembered(self: GLM, sequence: str, *, name: str = "sequence") -> Any:
        seen.append(sequence)
        return tokenize(self, sequence, name=name)

    def told(self: GLM, tokens: Any, positions: Any, attend: Any, **more: Any) -> Any:
        def looking(layer: int, q: Any, k: Any, v: Any) -> Any:
            if layer == 3 and len(q) == len(seen[-1]) + 1:
                q, k = torch.zeros_like(q), torch.zeros_like(k)
                letters = torch.tensor([ord(letter) % 7 for letter in seen[-1]])
                q[:-1, 0, :7] = 20 * torch.nn.functional.one_hot(letters, 7).float()
                k[:-1, 0, :7] = torch.nn.functional.one_hot(-letters % 7, 7).float()
            return attend(layer, q, k, v)

        states = hidden(self, tokens, positions, looking, **more)
        return [torch.zeros_like(state) for state in states]

    monkeypatch.setattr(GLM, "tokenize", remembered)
    monkeypatch.setattr(GLM, "hidden", told)


def test_what_only_attention_tells_is_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """States are zero, and so nothing but maps can tell."""
    looking_at_contacts(monkeypatch)
    made = made_dataset("pair", num=24)
    asked = options(tmp_path / "with", "pair", epochs=6.0, learning_rate=1e-2, batch_size=4)
    knowing = finetune_on(made, model(), asked)["value"]
    blind = finetune_on(made, model(), replace(asked, out=tmp_path / "without", layers=(0,)))["value"]
    assert knowing > 0.85 > 0.4 > blind


@pytest.mark.parametrize("level, target", [case[:2] for case in CASES])
def test_a_head_learns_its_training_rows(tmp_path: Path, level: Any, target: Any) -> None:
    """With shuffled labels (but for maps), of which nothing but the rows themselves tells."""
    made = made_dataset(level, target, num=8, shuffled=level != "pair")
    by_heart = replace(made, valid=(), test=made.train)
    asked = options(tmp_path, method="full", learning_rate=2e-3, epochs=40.0, batch_size=4, pooling="attention")
    assert finetune_on(by_heart, model(), asked)["value"] > 0.85


def test_what_a_run_leaves(tmp_path: Path) -> None:
    made = made_dataset("sequence", "regression")
    results = finetune_on(made, model(), options(tmp_path, baselines=True, leaks=True))
    assert results == json.loads((tmp_path / "results.json").read_text())
    assert {"task", "metric", "value", "low", "high", "num_test", "model", "model_hash", "method", "seed", "data_hash",
            "left_out", "leaks", "baselines", "predictions"} <= results.keys()  # fmt: skip
    assert results["baselines"]["composition"]["value"] > 0.8 and results["leaks"]["overlaps"]
    predictions = Predictions.load(tmp_path / "predictions.npz")
    np.testing.assert_array_equal(predictions.truth, [row.label for row in made.test])
    np.testing.assert_array_equal(predictions.length, [len(row.sequence) for row in made.test])
    facts = HeadFacts.read(tmp_path)
    assert facts.scale and facts.scale.mean == pytest.approx(np.mean([row.label for row in made.train]))
    assert facts.residuals and facts.residuals[0] < 0 < facts.residuals[1]


def test_a_finished_run_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = made_dataset("sequence")
    first = finetune_on(made, model(), options(tmp_path))
    monkeypatch.setattr(finetune, "fit", None)
    assert finetune_on(made, model(), options(tmp_path)) == first


@pytest.mark.parametrize(
    "changes, words", [(dict(seed=1), "seed 0 to 1"), (dict(method="lora"), "method probe to lora")]
)
def test_another_run_in_the_folder_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    finetune_on(made_dataset("sequence"), model(), options(tmp_path, epochs=1.0))
    with pytest.raises(ConfigError, match=words):
        finetune_on(made_dataset("sequence"), model(), options(tmp_path, epochs=1.0, **changes))
    with pytest.raises(ConfigError, match="data_hash"):
        finetune_on(made_dataset("sequence", seed=1), model(), options(tmp_path, epochs=1.0))
    with pytest.raises(ConfigError, match="model_hash"):
        finetune_on(made_dataset("sequence"), model(num_layers=2), options(tmp_path, epochs=1.0))


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import tests.heads.test_finetune as t
from xtrimo import training

save, saves = training._save, []
def dying(*args):
    save(*args)
    saves.append(1)
    if len(saves) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
training._save = dying
t.finetune_on(t.made_dataset("residue"), t.model(), t.options(Path({folder!r}), method={method!r}, epochs=5.0))
"""


@pytest.mark.parametrize("method", ["probe", "lora"])
def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path: Path, method: Any) -> None:
    folder = tmp_path / "killed"
    code = KILLED.format(folder=str(folder), method=method)
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (folder / "results.json").exists()
    made = made_dataset("residue")
    again = finetune_on(made, model(), options(folder, method=method, epochs=5.0))
    whole = finetune_on(made, model(), options(tmp_path / "whole", method=method, epochs=5.0))
    assert again == whole
    ours, theirs = (Predictions.load(path / "predictions.npz") for path in (folder, tmp_path / "whole"))
    np.testing.assert_array_equal(ours.prediction, theirs.prediction)


def rank(_: int, folder: Path) -> float:
    asked = options(folder, method="lora", epochs=3.0)
    value: float = finetune_on(made_dataset("sequence", "regression"), model(), asked)["value"]
    return value


def test_two_ranks_reach_what_one_does(tmp_path: Path) -> None:
    """Dropout, which differs from rank to rank, is left out of this."""
    first, second = run_distributed(rank, 2, tmp_path / "two")
    assert first == pytest.approx(second, abs=1e-6)
    assert first == pytest.approx(rank(0, tmp_path / "one"), abs=0.1)
    assert (tmp_path / "two/head.json").exists()


def test_seeds_differ_and_repeat(tmp_path: Path) -> None:
    def prediction(name: str, seed: int) -> Any:
        finetune_on(made_dataset("sequence"), model(), options(tmp_path / name, epochs=2.0, seed=seed))
        return Predictions.load(tmp_path / name / "predictions.npz").prediction

    np.testing.assert_array_equal(prediction("a", 0), prediction("b", 0))
    assert not np.array_equal(prediction("a", 0), prediction("c", 1))


def test_classes_may_weigh_the_same(tmp_path: Path) -> None:
    """Where one residue in ten is a 1, by chance, a head says 0.1 of each; where classes weigh the same, 0.5."""
    made, rng = made_dataset("residue", num=32), np.random.default_rng(0)
    rare = tuple(replace(row, label=(rng.random(len(row.sequence)) < 0.1).astype(np.int64)) for row in made.train)
    dataset = replace(made, train=rare, valid=(), test=rare)
    ones, total = sum(int(row.label.sum()) for row in rare), sum(len(row.label) for row in rare)
    expected = torch.tensor([total / 2 / (total - ones), total / 2 / ones])
    torch.testing.assert_close(selection.class_weights(dataset), expected)
    said = {}
    for weighed in (False, True):
        finetune_on(dataset, model(), options(tmp_path / str(weighed), epochs=15.0, class_weights=weighed))
        said[weighed] = Predictions.load(tmp_path / str(weighed) / "predictions.npz").prediction[:, 1].mean()
    assert said == pytest.approx({False: 0.1, True: 0.5}, abs=0.1)


def test_long_proteins_are_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = made_dataset("residue", num=16)
    results = finetune_on(made, model(max_length=20), options(tmp_path, epochs=1.0))
    longer = sum(len(row.sequence) > 19 for rows in made.splits.values() for row in rows)
    assert results["num_cut"] == longer > 0 and "cut to the 19 residues" in caplog.text
    assert Predictions.load(tmp_path / "predictions.npz").length.max() == 19


@pytest.mark.parametrize("level", ["sequence", "residue", "pair", "two_sequences"])
def test_cropping_cuts_labels_and_second_proteins(level: Any) -> None:
    made = made_dataset(level, num=8)
    cut = selection.cropped(made, 15)
    assert all(len(row.sequence) <= 15 and len(row.second) <= 15 for row in cut.train)
    for row, whole in zip(cut.train, made.train, strict=True):
        if level == "residue":
            np.testing.assert_array_equal(row.label, whole.label[:15])
        if level == "pair":
            np.testing.assert_array_equal(row.label, whole.label[:15, :15])


def test_batches_are_a_function_of_the_step() -> None:
    rows = [Row(sequence="M", label=0, name=str(i)) for i in range(10)]
    batch = selection.batches(rows, 4, seed=3)
    names = [[row.name for row in batch(step)] for step in range(10)]
    flat = [name for batch_of in names for name in batch_of]
    for epoch in range(4):
        assert sorted(flat[10 * epoch : 10 * epoch + 10], key=int) == [str(i) for i in range(10)]
    assert names == [[row.name for row in selection.batches(rows, 4, seed=3)(step)] for step in range(10)]
    assert flat[:10] != flat[10:20]


def test_fewer_rows() -> None:
    made = made_dataset("sequence")
    few = selection.fewer(made, 10, seed=0)
    assert [len(rows) for rows in few.splits.values()] == [10, 10, 10]
    assert selection.fewer(made, 0, seed=0).train == made.train
    places = [made.train.index(row) for row in few.train]
    assert places == sorted(places) and places != list(range(10))


def test_no_rows_to_test(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="0 to test"):
        finetune_on(replace(made_dataset("sequence"), test=()), model(), options(tmp_path))


def csv_file(dataset: Dataset, path: Path) -> Path:
    lines = [f"{row.sequence},{row.label},{split}" for split, rows in dataset.splits.items() for row in rows]
    path.write_text("\n".join(["seq,label,split", *lines]) + "\n")
    return path


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A nineteenth task: a file and what it is."""
    table = csv_file(made_dataset("sequence", "regression"), tmp_path / "mine.csv")
    checkpoint.save(model(), tmp_path / "model")
    finetune.main([
        str(table), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "run"), "--target", "regression",
        "--metric", "pearson", "--epochs", "20", "--learning-rate", "3e-3", "--no-leaks",
    ])  # fmt: skip
    assert capsys.readouterr().out.startswith("mine: pearson 0.")
    assert json.loads((tmp_path / "run/results.json").read_text())["value"] > 0.85


def test_a_task_without_data(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="solubility"):
        finetune.find_data(tmp_path, "solubility")
    (tmp_path / "solubility.csv.gz").touch()
    assert finetune.find_data(tmp_path, "solubility") == tmp_path / "solubility.csv.gz"
    assert finetune.find_data(tmp_path / "solubility.csv.gz", "other") == tmp_path / "solubility.csv.gz"


def test_values_are_in_the_unit_of_the_data(tmp_path: Path) -> None:
    made = made_dataset("sequence", "regression")
    train, valid, test = (
        tuple(replace(row, label=50 + 100 * row.label) for row in rows) for rows in made.splits.values()
    )
    finetune_on(replace(made, train=train, valid=valid, test=test), model(), options(tmp_path))
    said = Predictions.load(tmp_path / "predictions.npz")
    assert np.abs(said.prediction - said.truth).mean() < 0.5 * said.truth.std()
