"""Each of the eighteen tasks from end to end on 64 rows: read, finetune, evaluate, predict.

Rows are real where the sets are at hand, a random 64 of the proteins that are not long; else they are made up, with the
same columns and kinds of labels. Nothing is learned in so few steps: what is asked is that every part fits the task.
"""

import csv
import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heads import evaluation, finetune, prediction
from heads.answers import Predictions
from heads.metrics import METRICS
from heads.rows import Row, read
from heads.tasks import TASKS, Task
from tests.heads.generated import made_table
from xtrimo import checkpoint
from xtrimo.fasta import CHAIN_BREAK
from xtrimo.model import GLM
from xtrimo.testing import toy_config

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "tasks"
NUM_ROWS, LONGEST, LONGEST_PAIR = 64, 300, 70
SHARES = {"train": 40, "valid": 12, "test": 12}
LOWEST = {"mcc": -1.0, "spearman": -1.0, "pearson": -1.0}
PREDICTED = {  # the columns of a table of predictions
    "pair": ["name", "first", "second", "probability"],
    "residue": ["name", "prediction"],
    "regression": ["name", "prediction", "low", "high"],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "model"
    checkpoint.save(GLM(toy_config(num_layers=2, max_length=512), seed=0), folder)
    return folder


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """mmseqs takes seconds to start, whatever the rows, and intervals need not be exact."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("xtrimo.intervals.DRAWS", 100)


def real_table(task: Task, folder: Path) -> Path:
    """64 rows of the set, drawn at random within each split."""
    with gzip.open(DATA / f"{task.name}.csv.gz", "rt") as file:
        header, *rows = csv.reader(file)
    place, split = header.index(task.columns.sequence), header.index(task.columns.split)
    longest = LONGEST_PAIR if task.level == "pair" else LONGEST
    rng, chosen = np.random.default_rng(0), list[list[str]]()
    for name, num in SHARES.items():
        mine = [row for row in rows if row[split] == name and len(row[place]) <= longest]
        chosen += [mine[i] for i in rng.choice(len(mine), num, replace=False)]
    if task.level == "pair":
        (folder / "structures").symlink_to(DATA.parent / "structures")
    with (folder / f"{task.name}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *chosen])
    return folder / f"{task.name}.csv"


def table(task: Task, folder: Path) -> Path:
    return (real_table if (DATA / f"{task.name}.csv.gz").exists() else made_table)(task, folder)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_from_end_to_end(name: str, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    which, run = TASKS[name], tmp_path / "run"
    dataset = read(table(which, tmp_path), which)
    assert sum(len(rows) for rows in dataset.splits.values()) == NUM_ROWS and not dataset.left_out
    finetune.main([name, "--data", str(tmp_path), "--model", str(model), "--out", str(run), "--epochs", "1"])
    assert f"{name}: {which.metric} " in capsys.readouterr().out
    results = json.loads((run / "results.json").read_text())
    check_results(results, which, dataset.classes, len(dataset.train), len(dataset.test))
    check_predictions(Predictions.load(run / "predictions.npz"), which, dataset.test, len(dataset.classes))

    evaluation.main([str(run), "--data", str(tmp_path), "--out", str(tmp_path / "again"), "--no-leaks"])
    assert f"* {METRICS[which.metric].title}" in capsys.readouterr().out
    again = json.loads((tmp_path / "again/results.json").read_text())
    assert again["value"] == pytest.approx(results["value"], abs=0.01)
    assert (again["metric"], again["classes"]) == (which.metric, list(dataset.classes))

    check_table(predicted(tmp_path, which, dataset.test[:3]), which, dataset.classes, dataset.test[:3])


def check_results(
    results: dict[str, Any], which: Task, classes: tuple[str, ...], num_train: int, num_test: int
) -> None:
    assert (results["task"], results["metric"], results["classes"]) == (which.name, which.metric, list(classes))
    assert (results["num_train"], results["num_test"]) == (num_train, num_test)
    assert (len(classes) == 0) == (which.target == "regression") and (not which.classes or classes == which.classes)
    least = LOWEST.get(which.metric, 0.0)
    for figure in (results, *results["baselines"].values()):
        assert math.isfinite(figure["value"]) and least <= figure["low"] <= figure["value"] <= figure["high"] <= 1
    assert results["baselines"] and results["leaks"]["overlaps"][0]["num_proteins"] > 0


def check_predictions(said: Predictions, which: Task, rows: tuple[Row, ...], num_classes: int) -> None:
    lengths = np.array([len(row.sequence) for row in rows])
    assert said.length.tolist() == lengths.tolist()
    power = {"residue": 1, "pair": 2}.get(which.level, 0)
    assert len(said.truth) == len(said.prediction) == (lengths**power).sum()
    assert np.isfinite(said.prediction).all()
    if which.target == "classes" and which.level != "pair":
        assert said.prediction.shape[1] == num_classes and set(said.truth) <= {-1, *range(num_classes)}
        np.testing.assert_allclose(said.prediction.sum(1), 1, atol=1e-4)
    elif which.level == "pair":
        assert set(said.truth) <= {-1, 0, 1} and (said.truth == 1).any()
    else:
        np.testing.assert_allclose(said.truth, [row.label for row in rows])


def predicted(folder: Path, which: Task, rows: tuple[Row, ...]) -> list[list[str]]:
    """What `predict` writes of these proteins."""
    both = which.level == "two_sequences"
    chains = [row.sequence + (CHAIN_BREAK + row.second if both else "") for row in rows]
    (folder / "in.fasta").write_text("".join(f">p{i}\n{chain}\n" for i, chain in enumerate(chains)))
    molecule = ["--molecule", rows[0].second] if which.level == "molecule" else []
    prediction.main([str(folder / "in.fasta"), str(folder / "out.csv"), "--head", str(folder / "run"), *molecule])
    with (folder / "out.csv").open() as file:
        return list(csv.reader(file))


def check_table(lines: list[list[str]], which: Task, classes: tuple[str, ...], rows: tuple[Row, ...]) -> None:
    header, *lines = lines
    kind = which.level if which.level in PREDICTED else which.target
    assert header == PREDICTED.get(kind, ["name", "prediction", *(f"p_{word}" for word in classes)])
    lengths = [len(row.sequence) for row in rows]
    if which.level == "pair":
        assert [line[0] for line in lines] == [f"p{i}" for i, length in enumerate(lengths) for _ in range(length)]
        assert all(0 <= float(line[3]) <= 1 and int(line[2]) - int(line[1]) >= 6 for line in lines)
        return
    assert [line[0] for line in lines] == [f"p{i}" for i in range(len(rows))]
    if which.level == "residue":
        assert [len(line[1]) for line in lines] == lengths and set("".join(line[1] for line in lines)) <= set(classes)
    elif which.target == "regression":
        assert all(math.isfinite(float(cell)) for line in lines for cell in line[1:])
    else:
        assert {line[1] for line in lines} <= set(classes)
        assert all(sum(map(float, line[2:])) == pytest.approx(1, abs=0.001 * len(classes)) for line in lines)


@pytest.mark.parametrize("name", TASKS)
def test_made_up_rows_are_of_the_same_kinds(name: str, tmp_path: Path) -> None:
    """What stands for the real rows where they are not at hand."""
    which = TASKS[name]
    made = read(made_table(which, tmp_path), which)
    assert sum(len(rows) for rows in made.splits.values()) == NUM_ROWS and not made.left_out
    if (DATA / f"{name}.csv.gz").exists():
        folder = tmp_path / "real"
        folder.mkdir()
        real = read(real_table(which, folder), which)
        assert type(made.test[0].label) is type(real.test[0].label)
        assert bool(made.test[0].second) == bool(real.test[0].second)
        with made_table(which, tmp_path).open() as ours, (folder / f"{name}.csv").open() as theirs:
            assert set(next(csv.reader(ours))) == set(next(csv.reader(theirs)))
