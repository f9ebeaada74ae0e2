"""Runs from their records: of real verbs on a toy model, each in a process of its own, and of verbs made up here."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from xtrimo import __main__ as cli
from xtrimo.checkpoint import save
from xtrimo.errors import ConfigError, DataError
from xtrimo.fasta import Record, write_fasta
from xtrimo.model import GLM
from xtrimo.rerun import again, new_args, places, repeat
from xtrimo.run_record import Run
from xtrimo.testing import toy_config, toy_sequences

COMMAND = str(Path(sys.executable).with_name("xtrimo"))
FINETUNE = "finetune mine.csv --level sequence --target classes --model toy --epochs 1 --batch-size 8 --no-baselines"
FINETUNE += " --no-leaks --out made --method"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    save(GLM(toy_config()), tmp_path / "toy")
    sequences = toy_sequences(30, min_length=10)
    write_fasta(tmp_path / "in.fasta", [Record(f"r{i}", own) for i, own in enumerate(sequences)])
    rows = "".join(f"{own},{i % 2}\n" for i, own in enumerate(sequences))
    (tmp_path / "mine.csv").write_text(f"sequence,label\n{rows}")
    return tmp_path


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "args",
    [
        "embed in.fasta made --model toy",
        "generate --model toy --num 4 --seed 7 --out made",
        f"{FINETUNE} probe",
        f"{FINETUNE} lora",
    ],
)
def test_same_to_the_byte(work: Path, args: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The first run in a process of its own, so that the hash of a word, and the clock, are others."""
    settings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "1"}
    subprocess.run([COMMAND, *args.split(), "--quiet"], check=True, cwd=work, env=settings)
    assert cli.main(["rerun", "made.run.json", "--out", "second", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["results"]
    assert said["same_output"] and not said["changed_inputs"] and not said["unread"] and not said["resumed"]
    assert said["num_files"] == (1 if (work / "made").is_file() else 9)
    assert Run.read(work / "second.run.json").out == str(work / "second")


def made_of(name: str, *more: str) -> None:
    """Write a verb's output as a folder, from an input."""
    Path(name, "deep").mkdir(parents=True)
    Path(name, "a.txt").write_text(Path("in.fasta").read_text())
    Path(name, "deep/b.txt").write_text("b")
    for each in more:
        Path(name, each).write_text(str(time.perf_counter_ns()))


def test_what_is_other_is_named(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "find", lambda name: lambda args: made_of(args[-1], "clock.txt"))
    cli.main(["fold", "in.fasta", "made"])
    write_fasta(work / "in.fasta", [Record("other", "MKTAYIAK")])
    record = json.loads((work / "made.run.json").read_text())
    record["versions"]["torch"] = "1.0"
    record["resumed"] = True
    (work / "made.run.json").write_text(json.dumps(record))
    (work / "elsewhere").mkdir()
    monkeypatch.chdir(work / "elsewhere")
    outcome = repeat(Run.read(work / "made.run.json"))
    assert outcome.changed_inputs == ("in.fasta",) and outcome.other_versions.keys() == {"torch"} and outcome.resumed
    assert outcome.differing == ("made/a.txt", "made/clock.txt") and outcome.num_files == 3
    assert outcome.out == work / "made.again" and outcome.out.is_dir() and Path.cwd() == work / "elsewhere"
    said = outcome.told()
    assert "changed: in.fasta" in said and "torch 1.0 then" in said and "1 of 3 files same; other: made/a.txt" in said
    assert "resumed" in said and "resumed" not in capsys.readouterr().out


def test_the_status_tells_scripts(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(args: Any) -> None:
        print("an answer")
        made_of(args[-1], *(["clock.txt"] if args[0] == "--clock" else []))

    monkeypatch.setattr(cli, "find", lambda name: cli_main if name == "rerun" else write)
    from xtrimo.rerun import main as cli_main

    cli.main(["fold", "--clock", "made"])
    cli.main(["fold", "--none", "plain"])
    capsys.readouterr()
    assert cli.main(["rerun", "plain.run.json", "--out", "new"]) == 0
    assert capsys.readouterr().out == "inputs    same\nversions  same\noutput    same to the byte (2 of 2 files)\n"
    assert Run.read(work / "new.run.json").verb == "fold", "the record is of the run itself"
    assert cli.main(["rerun", "made.run.json"]) == 1
    assert "2 of 3 files same; other: made/clock.txt" in capsys.readouterr().out
    assert cli.main(["rerun", "made.run.json"]) == 2  # it is there


def test_inputs_new_gone_and_unknown(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (work / "data").mkdir()
    for name in ("a", "b", "c"):
        (work / "data" / name).write_text(name)

    def write(args: Any) -> None:
        Path(args[-1]).write_text("x")
        (work / "data/c").write_text("changed while it ran" if args[-1] == "data/made" else "C")

    monkeypatch.setattr(cli, "find", lambda name: write)
    cli.main(["report", "data", "data/made"])
    run = Run.read(work / "data/made.run.json")
    (work / "data/b").unlink()
    (work / "data/d").touch()
    (work / "data/c").write_text("C")  # as large as it was; nobody knows more
    assert repeat(run).changed_inputs == ("data/b", "data/d")


def a_run(**changes: Any) -> Run:
    facts: dict[str, Any] = dict(
        format=1, verb="embed", args=["in.fasta", "./out.h5", "--model", "toy"], folder="/", out="./out.h5",
        resumed=False, command="x", began="", seconds=0.0, versions={}, machine={}, inputs={},
        outputs={"./out.h5": {}},
    )  # fmt: skip
    return Run(**(facts | changes))


@pytest.mark.parametrize(
    ("outputs", "args", "expected"),
    [
        (["o"], ["i", "o", "--model", "toy"], ["i", "/n/new.h5", "--model", "toy"]),
        (["o"], ["--out=o", "i"], ["--out=/n/new.h5", "i"]),
        (["o", "p.png"], ["--out", "o", "--plot", "p.png"], ["--out", "/n/new.h5", "--plot", "/n/new-p.png"]),
        (["mean"], ["i", "mean", "--pooling", "mean"], ["i", "/n/new.h5", "--pooling", "mean"]),
    ],
)
def test_new_words(outputs: list[str], args: list[str], expected: list[str]) -> None:
    run = a_run(args=args, out=outputs[0], outputs={path: {} for path in outputs})
    assert new_args(run, places(run, Path("/n/new.h5"))) == expected


def test_records_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="do not name"):
        new_args(a_run(), {"other.h5": tmp_path})
    with pytest.raises(ConfigError, match="verb 'dock'"):
        repeat(a_run(verb="dock"), tmp_path / "new")


def test_where_it_goes_by_itself(tmp_path: Path) -> None:
    assert again(tmp_path / "a.csv") == tmp_path / "a.again.csv"
    (tmp_path / "v1.5").mkdir()
    assert again(tmp_path / "v1.5") == tmp_path / "v1.5.again"
