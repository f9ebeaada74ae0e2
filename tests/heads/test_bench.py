"""Many tasks with one model: a table, gone on with after a kill."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from heads import bench, finetune
from heads.bench import BenchOptions, bench_tasks
from heads.tasks import task
from tests.heads.generated import made_dataset
from tests.heads.test_finetune import csv_file
from xtrimo import checkpoint
from xtrimo.errors import ConfigError, DataError, XtrimoError
from xtrimo.model import GLM
from xtrimo.testing import toy_config

NAMES = ("solubility", "stability")


@pytest.fixture
def options(tmp_path: Path) -> BenchOptions:
    (tmp_path / "data").mkdir()
    for name, target in zip(NAMES, ("classes", "regression"), strict=True):
        csv_file(made_dataset("sequence", target), tmp_path / "data" / f"{name}.csv")
    checkpoint.save(GLM(toy_config(), seed=5), tmp_path / "model")
    return BenchOptions(
        model=str(tmp_path / "model"), out=tmp_path / "bench", data=tmp_path / "data", tasks=NAMES, epochs=3.0,
        learning_rate=3e-3, max_rows=24, leaks=False,
    )  # fmt: skip


def test_a_table_of_all(options: BenchOptions) -> None:
    lines, failed = bench_tasks(options)
    assert [line.task.name for line in lines] == list(NAMES) and not failed
    for line in lines:
        ours, twin = (json.loads((options.out / line.task.name / kind / "results.json").read_text())
                      for kind in ("model", "twin"))  # fmt: skip
        assert line.twin and line.gain and (line.model.value, line.twin.value) == (ours["value"], twin["value"])
        assert line.gain.value == pytest.approx(ours["value"] - twin["value"])
        assert ours["model_hash"] != twin["model_hash"] and ours["num_test"] == twin["num_test"] == 24
        assert set(line.floors) == {"composition", "nearest"} and not twin["baselines"]
    table = (options.out / "bench.md").read_text()
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")]
    assert len(rows) == 4 and {len(row) for row in rows} == {7}
    assert f"At least as good as every baseline: {sum(bool(line.reaches_floors) for line in lines)} of 2." in table


def test_contacts_have_a_second_line(options: BenchOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """The regression of attention, of the model and of its twin; it counts as no task of its own."""
    made = replace(made_dataset("pair", num=12), task=task("contact_map"))
    monkeypatch.setattr(bench, "read", lambda *_, **__: made)
    (options.data / "contact_map.csv").touch()
    asked = replace(options, tasks=("contact_map",), epochs=1.0)
    (head, regression), failed = bench_tasks(asked)
    assert not failed and (head.way, regression.way) == ("", "regression of attention")
    assert set(head.floors) == {"separation", "letters", "one_hot"} and not regression.floors
    ours, twin = (json.loads((options.out / f"contact_map/{kind}/results.json").read_text())["regression"]
                  for kind in ("model", "twin"))  # fmt: skip
    assert regression.twin and regression.gain
    assert (regression.model.value, regression.twin.value) == (ours["value"], twin["value"])
    assert regression.gain.value == pytest.approx(ours["value"] - twin["value"])
    table = (options.out / "bench.md").read_text()
    assert "| contact_map, regression of attention | precision@L/5 |" in table
    assert "of 1." in table and "of 2." not in table


def test_the_twin_is_the_same_model_drawn_anew(options: BenchOptions) -> None:
    folder = bench.save_twin(options)
    assert folder
    twin = checkpoint.load(folder)
    drawn = GLM(toy_config(), seed=0)
    assert all(bool((a == b).all()) for a, b in zip(twin.parameters(), drawn.parameters(), strict=True))


def test_what_is_done_is_not_done_again(options: BenchOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the third of four runs."""
    fitted: list[Path] = []
    fit = finetune.fit

    def dying(*args: Any, **more: Any) -> Any:
        fitted.append(args[4])
        if len(fitted) == 3:
            raise KeyboardInterrupt
        return fit(*args, **more)

    monkeypatch.setattr(finetune, "fit", dying)
    with pytest.raises(KeyboardInterrupt):
        bench_tasks(options)
    first = (options.out / "solubility/model/results.json").stat().st_mtime_ns
    lines, _ = bench_tasks(options)
    assert len(lines) == 2 and len(fitted) == 5
    assert (options.out / "solubility/model/results.json").stat().st_mtime_ns == first


def test_a_task_that_fails_stops_no_other(options: BenchOptions, capsys: pytest.CaptureFixture[str]) -> None:
    (options.data / "solubility.csv").write_text("seq,label,split\nMKV,7,train\n")
    with pytest.raises(XtrimoError, match="solubility: "):
        bench.main([
            "--model", options.model, "--out", str(options.out), "--data", str(options.data), "--tasks", *NAMES,
            "--epochs", "1", "--no-leaks", "--no-twin", "--no-baselines",
        ])  # fmt: skip
    told = capsys.readouterr().out
    assert "| stability |" in told and "| solubility |" not in told
    assert "Not run: solubility: " in (options.out / "bench.md").read_text()


def test_other_settings_are_refused(options: BenchOptions) -> None:
    bench_tasks(options)
    changed = BenchOptions(**{name: getattr(options, name) for name in options.__slots__} | {"seed": 1})
    _, failed = bench_tasks(changed)
    assert all("other settings" in error for error in failed.values()) and len(failed) == 2


def test_unknown_tasks(options: BenchOptions) -> None:
    with pytest.raises((ConfigError, DataError), match="no task 'solubilty'"):
        bench_tasks(BenchOptions(model=options.model, out=options.out, tasks=("solubilty",)))
