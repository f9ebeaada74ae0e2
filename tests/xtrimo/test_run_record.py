"""Records of runs: of a real verb, and of verbs made up here."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from xtrimo import __main__ as cli
from xtrimo import run_record
from xtrimo.checkpoint import save
from xtrimo.errors import DataError, StoppedError
from xtrimo.fasta import Record, write_fasta
from xtrimo.model import GLM
from xtrimo.run_record import Run, Word, record_path, words
from xtrimo.testing import toy_config, toy_sequences


def make(monkeypatch: pytest.MonkeyPatch, write: Any) -> None:
    """Let every verb do `write`."""
    monkeypatch.setattr(cli, "find", lambda name: lambda args: write())


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    save(GLM(toy_config()), tmp_path / "toy")
    write_fasta(tmp_path / "in.fasta", [Record(f"r{i}", own) for i, own in enumerate(toy_sequences(3, min_length=10))])
    return tmp_path


def test_how_a_file_came_about(work: Path) -> None:
    args = ["in.fasta", "--model", "toy", "--out", "s.csv", "--residues=r.csv"]
    assert cli.main(["score", *args, "--quiet"]) == 0
    run = Run.read(work / "s.csv.run.json")
    assert (run.verb, run.args, run.folder, run.out, run.resumed) == ("score", args, str(work), "s.csv", False)
    assert run.command == "xtrimo score in.fasta --model toy --out s.csv --residues=r.csv"
    assert run.inputs.keys() == {"in.fasta", "toy"} and list(run.outputs) == ["s.csv", "r.csv"]
    for facts, name in ((run.inputs["in.fasta"], "in.fasta"), (run.outputs["r.csv"], "r.csv")):
        content = (work / name).read_bytes()
        assert facts == {".": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
    assert run.inputs["toy"].keys() == {path.name for path in (work / "toy").iterdir()}
    assert run.versions.keys() == {"xtrimo", "python", "torch", "numpy"} and run.machine["ranks"] == 1
    assert not (work / "r.csv.run.json").exists(), "one record a run"


def test_it_lies_beside_a_folder_and_tells_of_no_times(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write() -> None:
        (work / "made/deep").mkdir(parents=True)
        for name in ("a.txt", "deep/b.txt", "deep/metrics.jsonl", "deep/events.out.tfevents.1.vm", "of.csv.run.json"):
            (work / "made" / name).write_text(name)

    make(monkeypatch, write)
    assert cli.main(["pretrain", "--out=made"]) == 0
    run = Run.read(work / "made.run.json")
    assert list(run.outputs) == ["made"] and run.outputs["made"].keys() == {"a.txt", "deep/b.txt"}
    assert not (work / "made/run.json").exists()


@pytest.mark.parametrize("begun", ["", "made/part", ".made.parts/1", ".made.unfinished"])
def test_a_resumed_run_says_so(work: Path, monkeypatch: pytest.MonkeyPatch, begun: str) -> None:
    if begun:
        (work / begun).parent.mkdir(exist_ok=True)
        (work / begun).touch()

    def write() -> None:
        (work / "made").mkdir(exist_ok=True)
        (work / "made/whole").touch()

    make(monkeypatch, write)
    cli.main(["finetune", "--out", "made"])
    assert Run.read(work / "made.run.json").resumed == bool(begun)


def test_what_is_done_already_keeps_its_record(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write() -> None:
        (work / "made").mkdir(exist_ok=True)
        (work / "made/whole").write_text("x")  # written again, with the same content

    make(monkeypatch, write)
    cli.main(["pretrain", "--out", "made"])
    first = (work / "made.run.json").read_text()
    cli.main(["pretrain", "--out", "made"])
    assert (work / "made.run.json").read_text() == first
    cli.main(["pretrain", "--out", "made", "--more"])  # by another command
    assert Run.read(work / "made.run.json").resumed


def test_an_output_within_an_input(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (work / "runs").mkdir()
    (work / "runs/results.json").write_text("{}")
    (work / "runs/changing").write_text("1")

    def write() -> None:
        (work / "runs/report").mkdir()
        (work / "runs/report/page.html").write_text("x")
        (work / "runs/changing").write_text("22")
        (work / "runs/other").touch()

    make(monkeypatch, write)
    cli.main(["report", "runs", "--out", "runs/report"])
    run = Run.read(work / "runs/report.run.json")
    assert list(run.outputs) == ["runs/report"] and run.inputs.keys() == {"runs"}
    assert run.inputs["runs"].keys() == {"results.json", "changing"}
    assert run.inputs["runs"]["changing"] == {"bytes": 1, "sha256": None}


@pytest.mark.parametrize("why", ["share", "rank", "stopped", "stopped by a file", "nothing written", "failed"])
def test_no_record(work: Path, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    def write() -> None:
        if why == "nothing written":
            return
        (work / "made").mkdir()
        (work / "made/x").touch()
        if why == "stopped":
            raise StoppedError("saved")
        if why == "stopped by a file":
            (work / "made/STOPPED").touch()
        if why == "failed":
            raise DataError("row 3")

    make(monkeypatch, write)
    if why == "rank":
        monkeypatch.setenv("RANK", "1")
    cli.main(["fold", "--out", "made", *(["--shard", "2/2"] if why == "share" else [])])
    assert not list(work.glob("*.run.json"))


def test_a_record_that_cannot_be_written_hurts_nothing(
    work: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make(monkeypatch, lambda: (work / "x.txt").write_text("x"))
    (work / "x.txt.run.json").mkdir()
    assert cli.main(["info", "--out", "x.txt"]) == 0
    assert "no record of this run" in caplog.text and (work / "x.txt").read_text() == "x"


def test_words_that_no_path_can_be(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(monkeypatch, lambda: (work / "x.txt").write_text("x"))
    assert cli.main(["generate", "--prompt", "M" * 5000, "--seed", "a\0b", "--out", "x.txt"]) == 0
    assert Run.read(work / "x.txt.run.json").inputs == {}


def test_what_is_large_is_named_alone(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_record, "LARGE", 10)
    files = run_record.files_of(work / "in.fasta")
    assert files["."] == {"bytes": (work / "in.fasta").stat().st_size, "sha256": None}


def test_words() -> None:
    found = words(["a", "--reward", "rewards.mine:length", "--cache", "c", "--out", "o", "b", "--cache=d"])
    assert found == [Word(0, "", "a"), Word(2, "--reward", "rewards/mine.py"), Word(6, "--out", "o"), Word(7, "", "b")]


def test_what_is_no_record(tmp_path: Path) -> None:
    for text in ("", "{}", '{"format": 2}', '{"format": 1, "verb": "score"}', "[]"):
        (tmp_path / "x.run.json").write_text(text)
        with pytest.raises(DataError, match="is no record of a run"):
            Run.read(tmp_path / "x.run.json")


def test_where_records_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert record_path(tmp_path / "a.h5") == tmp_path / "a.h5.run.json"
    assert record_path(Path("a/")) == tmp_path / "a.run.json"


def test_the_record_in_an_answer(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make(monkeypatch, lambda: (work / "x.txt").write_text("x"))
    cli.main(["embed", "in.fasta", "x.txt", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert said["outputs"] == ["x.txt"] and said["record"] == str(work / "x.txt.run.json") and said["results"] is None
