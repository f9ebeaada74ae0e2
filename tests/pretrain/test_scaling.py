"""Runs held against compute: tokens counted as they were read, results joined to the right run."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tyro
from scipy.stats import linregress

from pretrain.config import BatchConfig, PretrainConfig
from pretrain.corpus import Corpus
from pretrain.data import Stream
from pretrain.scaling import PUBLISHED, PowerLaw, ScalingConfig, main, read, read_run
from tests.pretrain.runs import flags, make_corpus
from tests.pretrain.runs import train as train_run
from xtrimo.config import PRESETS
from xtrimo.errors import CheckpointError, ConfigError
from xtrimo.tokens import PAD

BATCH = BatchConfig(rows=4, row_length=100)
MODEL = PRESETS["glm-1m"]


def run_folder(folder: Path, lines: list[dict[str, Any]], batch: BatchConfig = BATCH) -> Path:
    folder.mkdir()
    facts = {"model": "glm-1m", "glm": MODEL.to_dict(), "batch": asdict(batch)}
    (folder / "config.json").write_text(json.dumps(facts))
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def train(step: int, **more: float) -> dict[str, Any]:
    return {"split": "train", "step": step, "loss": 3.0, **more}


def valid(step: int, nats: float) -> dict[str, Any]:
    return {"split": "valid", "step": step, "nats_mlm": nats, "nats_gmask": nats + 0.1}


def bench(folder: Path, **figures: float) -> Path:
    for task, value in figures.items():
        (folder / task / "model").mkdir(parents=True)
        result = {"task": task, "metric": "spearman", "value": value}
        (folder / task / "model/results.json").write_text(json.dumps(result))
    return folder


def test_tokens_are_those_that_the_lines_tell(tmp_path: Path) -> None:
    lines = [
        train(10, step_tokens=380.0),
        valid(10, 2.9),
        train(30, step_tokens=390.0),
        valid(20, 2.85),
        valid(30, 2.8),
    ]
    points = read_run(run_folder(tmp_path / "run", lines), "mlm", {}).points
    assert [point.tokens for point in points] == [3800.0, 3800.0 + 10 * 390, 3800.0 + 20 * 390]
    assert [point.nats for point in points] == [2.9, 2.85, 2.8]
    assert points[0].flops == 6 * MODEL.num_params * 3800


def test_lines_without_a_count_are_of_full_rows_the_ramp_included(tmp_path: Path) -> None:
    ramp = BatchConfig(rows=4, row_length=100, start_rows=2, ramp_increment=2, ramp_rows=10)
    run = run_folder(tmp_path / "run", [train(10), valid(10, 2.9)], ramp)
    assert read_run(run, "gmask", {}).points[0].tokens == 100 * (5 * 2 + 5 * 4)


def test_the_law_is_a_line_between_logarithms() -> None:
    exact = PowerLaw.fit([(10.0**n, 8.0 * 10 ** (-0.05 * n)) for n in range(3)])
    assert (exact.a, exact.b) == pytest.approx((8.0, 0.05))
    flops, nats = np.array(PUBLISHED["clm"]).T
    line = linregress(np.log(flops), np.log(nats))
    law = PowerLaw.fit(PUBLISHED["clm"])
    assert (law.b, np.log(law.a)) == pytest.approx((-line.slope, line.intercept))
    assert np.allclose(law.nats(flops), nats, rtol=0.02)  # what it is good for


def test_the_report_ranks_runs_and_joins_their_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = run_folder(tmp_path / "short", [train(10), valid(10, 2.9)])
    long = run_folder(tmp_path / "long", [train(10), train(90), valid(90, 2.7)])
    first = bench(tmp_path / "first", stability=0.4)
    second, third = bench(tmp_path / "second", stability=0.5), bench(tmp_path / "third", kcat=0.2)
    out = tmp_path / "out"
    pairs = [f"{short}={first}", f"{long}={second}", f"{long}={third}"]
    main([str(long), str(short), "--out", str(out), "--abilities", *pairs])
    shown = capsys.readouterr().out
    assert "| task | metric | short (2.900) | long (2.700) |" in shown
    assert "| stability | spearman | 0.400 | 0.500 |" in shown and "| kcat | spearman | - | 0.200 |" in shown
    assert (out / "scaling.md").read_text() == shown[:-1]
    facts = json.loads((out / "scaling.json").read_text())
    assert [run["name"] for run in facts["runs"]] == ["long", "short"] and len(facts["runs"][0]["points"]) == 1
    assert (out / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_the_curve_is_not_asked_where_nothing_was_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = run_folder(tmp_path / "small", [train(10), valid(10, 2.9)])
    tokens = 1e19 / (6 * MODEL.num_params)
    large = run_folder(tmp_path / "large", [train(10, step_tokens=tokens / 10), valid(10, 2.5)])
    main([str(small), str(large), "--out", str(tmp_path / "out")])
    rows = {cells[1].strip(): cells[-2].strip() for line in capsys.readouterr().out.splitlines()
            if len(cells := line.split("|")) > 3}  # fmt: skip
    assert rows["small"] == "-"
    assert float(rows["large"]) == pytest.approx(2.282, abs=0.03)  # what was published there


def test_a_real_run_tells_the_tokens_that_it_read(tmp_path: Path) -> None:
    corpus, run = make_corpus(tmp_path), tmp_path / "run"
    train_run(flags(corpus, run, "--log-every", "3", "--steps", "6"))
    points = read_run(run, "mlm", {}).points
    assert [point.step for point in points] == [4, 6]
    settings = flags(corpus, run, "--log-every", "3", "--steps", "6")
    stream = Stream(Corpus.open(corpus), tyro.cli(PretrainConfig, args=settings))
    lengths = [
        sum(length for start, length, _ in row.segments.tolist() if row.tokens[start] != PAD)
        for step in range(6) for row in stream.step(step)
    ]  # fmt: skip
    assert points[-1].tokens == pytest.approx(sum(lengths))
    assert sum(lengths) < 6 * 2 * 256  # so that full rows would be seen to be wrong


@pytest.mark.parametrize("lines", [[], [train(10)]])
def test_a_run_that_held_nothing_out(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    with pytest.raises(CheckpointError, match="no held-out nats of mlm yet"):
        read_run(run_folder(tmp_path / "run", lines), "mlm", {})


def test_what_is_no_run_or_no_result_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no run folder"):
        read_run(tmp_path, "mlm", {})
    run = run_folder(tmp_path / "run", [train(10), valid(10, 2.9)])
    for pair, said in (
        (f"{run}", "expected RUN=FOLDER"), (f"{tmp_path}={run}", "the run one of"), (f"{run}={run}", "has no TASK"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            read(ScalingConfig(runs=(run,), out=tmp_path, abilities=(pair,)))
