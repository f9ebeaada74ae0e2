"""The file of designs: whole or not there, the same after a kill, sorted, screened, and what is kept until then."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from generate import sampler
from generate.screening import program
from xtrimo.checkpoint import save
from xtrimo.config import GLMConfig
from xtrimo.errors import ConfigError, XtrimoError
from xtrimo.fasta import read_fasta
from xtrimo.model import GLM
from xtrimo.precision_loss import PrecisionLoss

NUM = 12
MODULE = """
import os, time

def slow(sequence):
    with open(os.environ["CALLS"], "a") as file:
        file.write(sequence + "\\n")
    time.sleep(float(os.environ["PAUSE"]))
    return sequence.count("L")

def no_w(sequence):
    return "holds W" if "W" in sequence else None

def never(sequence):
    return "never"

def no_l(logits, history):
    logits = logits.clone()
    logits[:, 0] = float("-inf")
    return logits
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and a module of functions beside it."""
    folder = tmp_path_factory.mktemp("designs")
    model = GLM(GLMConfig(num_layers=2, hidden_size=64, num_heads=2, ffn_size=64))
    with torch.no_grad():
        model.output.weight *= 10
    save(model, folder / "model")
    (folder / "hooks_of_test.py").write_text(MODULE)
    return folder


def command(folder: Path, out: str, *flags: str) -> list[str]:
    verb = [sys.executable, "-m", "xtrimo", "generate", "--model", "model", "--out", out, "--prompt", "[20..25]"]
    return [*verb, *flags]


def environment(folder: Path, calls: str, pause: float) -> dict[str, str]:
    root = str(Path(sampler.__file__).resolve().parents[1])
    return os.environ | {"CALLS": str(folder / calls), "PAUSE": str(pause), "PYTHONPATH": root}


def test_a_killed_run_ends_with_the_bytes_of_an_unbroken_one(folder: Path) -> None:
    out = "out.fasta"
    flags = ["--num", str(NUM), "--batch-size", "3", "--score", "hooks_of_test:slow", "--screen", "hooks_of_test:no_w"]
    whole = subprocess.run(
        command(folder, f"whole_{out}", *flags), cwd=folder, env=environment(folder, f"whole_{out}.calls", 0),
        capture_output=True, text=True,
    )  # fmt: skip
    assert whole.returncode == 0, whole.stderr

    journal, calls = folder / f".{out}.unfinished", folder / f"{out}.calls"
    killed = subprocess.Popen(command(folder, out, *flags), cwd=folder, env=environment(folder, calls.name, 0.3))
    deadline = time.monotonic() + 120
    while not journal.exists() or journal.read_bytes().count(b"\n") < 4:  # settings and three proteins
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (folder / out).exists()
    before = journal.read_bytes().count(b"\n") - 1
    assert 3 <= before < NUM
    with journal.open("ab") as file:
        file.write(b'{"number": 11, "name": "s00\n\0\0\0\n{"number": 11, "na')  # lines that a crash left unfinished

    second = subprocess.run(
        command(folder, out, *flags, "--batch-size", "5"), cwd=folder, env=environment(folder, calls.name, 0),
        capture_output=True, text=True,
    )  # fmt: skip
    assert second.returncode == 0, second.stderr
    assert f"going on after {before} of {NUM}" in second.stderr
    assert (folder / out).read_bytes() == (folder / f"whole_{out}").read_bytes()
    assert not journal.exists()
    scored = calls.read_text().splitlines()
    assert len(scored) - len(set(scored)) <= 1  # what had been scored was not again, but for the one under way

    records = list(read_fasta(folder / out))
    assert all("screen=hooks_of_test:no_w:passed" in r.description and "W" not in r.sequence for r in records)
    scores = [float(r.description.partition("score=")[2].split()[0]) for r in records]
    assert scores == sorted(scores, reverse=True) == [r.sequence.count("L") for r in records]
    refused = NUM - len(records)
    assert (
        0 < refused < NUM and f"let {len(records)} pass and refused {refused}; {refused} for: holds W" in second.stderr
    )


def run(folder: Path, *flags: str) -> None:
    sampler.main(["--model", str(folder / "model"), "--prompt", "[20..25]", "--seed", "1", *flags])


def interrupted(folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> Path:
    """The journal of a run that broke off after its third protein."""
    seen = []

    def stop(self: object, sequence: str) -> None:
        seen.append(sequence)
        if len(seen) > 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("generate.hooks.Hooks.why_refused", stop)
        run(folder, "--num", "8", "--out", str(out), *flags)
    return out.with_name(f".{out.name}.unfinished")


def test_a_journal_of_other_work_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.fasta"
    journal = interrupted(folder, out, monkeypatch)
    kept = journal.read_bytes()
    for flags in (["--temperature", "0.5"], ["--prompt", "[21..25]"], ["--limit", "C=0"], ["--precision", "bf16"]):
        with pytest.raises(XtrimoError, match="unfinished run that differs in (drawing|prompts|model_hash, precision)"):
            run(folder, "--num", "8", "--out", str(out), *flags)
    assert journal.read_bytes() == kept and not out.exists()


def test_no_protein_of_an_earlier_screen_passes_for_one_of_the_new(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = tmp_path / "screen_of_test.py"
    screen.write_text("from generate.screening import program\ncheck = program('true')\n")
    monkeypatch.syspath_prepend(tmp_path)
    flags = ("--screen", "screen_of_test:check")
    out = tmp_path / "out.fasta"
    interrupted(folder, out, monkeypatch, *flags)
    screen.write_text("from generate.screening import program\ncheck = program('false')\n")
    with pytest.raises(XtrimoError, match="unfinished run that differs in screen"):
        run(folder, "--num", "8", "--out", str(out), *flags)
    assert not out.exists()


def test_more_or_fewer_proteins_are_the_same_work(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for num in (10, 2):
        out = tmp_path / f"{num}.fasta.gz"
        interrupted(folder, out, monkeypatch)
        run(folder, "--num", str(num), "--out", str(out))
        assert f"going on after {min(num, 3)} of {num}" in caplog.text
        run(folder, "--num", str(num), "--out", str(tmp_path / "whole.fasta.gz"))
        assert out.read_bytes() == (tmp_path / "whole.fasta.gz").read_bytes()
        assert len(list(read_fasta(out))) == num


def test_killed_twice(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.fasta"
    with interrupted(folder, out, monkeypatch).open("ab") as file:
        file.write(b'{"number": 7, "na')
    journal = interrupted(folder, out, monkeypatch)  # what this one wrote must not hang on to the broken line
    _, *entries = journal.read_bytes().splitlines()
    assert sorted(json.loads(entry)["number"] for entry in entries) == list(range(6))
    run(folder, "--num", "8", "--out", str(out))
    run(folder, "--num", "8", "--out", str(tmp_path / "whole.fasta"))
    assert out.read_bytes() == (tmp_path / "whole.fasta").read_bytes()


def test_two_runs_never_write_one_file(folder: Path, tmp_path: Path) -> None:
    import fcntl

    with (tmp_path / ".out.fasta.unfinished").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(XtrimoError, match="written by another process"):
            run(folder, "--out", str(tmp_path / "out.fasta"))


def test_what_is_refused_leaves_no_residue_behind(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(folder)
    caplog.set_level("INFO")
    lines: list[bytes] = []
    monkeypatch.setattr(
        "generate.output.replacing", lambda out: lines.append((tmp_path / ".o.fasta.unfinished").read_bytes()) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        run(folder, "--num", "3", "--out", str(tmp_path / "o.fasta"), "--screen", "hooks_of_test:never")
    _, *kept = lines[0].splitlines()
    assert sorted(map(json.loads, kept), key=lambda entry: entry["number"]) == [
        {"number": number, "reason": "never"} for number in range(3)
    ]
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    run(folder, "--num", "3", "--out", str(tmp_path / "o.fasta"), "--screen", "hooks_of_test:never")
    assert (tmp_path / "o.fasta").read_text() == ""
    assert "let 0 pass and refused 3; 3 for: never" in caplog.text


def test_stdout_is_ranked_and_screened_too(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(folder)
    flags = ["--num", "9", "--score", "hooks_of_test:slow", "--screen", "hooks_of_test:no_w", "--logits",
             "hooks_of_test:no_l"]  # fmt: skip
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("PAUSE", "0")
    run(folder, *flags, "--out", str(tmp_path / "o.fasta"))
    run(folder, *flags)
    lines = capsys.readouterr().out.splitlines()
    records = list(read_fasta(tmp_path / "o.fasta"))
    assert lines[1::2] == [r.sequence for r in records]
    assert lines[::2] == [f">{r.name} {r.description}" for r in records]
    assert 0 < len(records) < 9 and not any({"W", "L"} & set(r.sequence) for r in records)


@pytest.mark.parametrize(
    ("target", "reason"),
    [("hooks_of_test", "expected module:function"), ("no_such_module:f", "there is no module no_such_module"),
     ("hooks_of_test:no_such", "has no function no_such"), ("hooks_of_test:os", "has no function os")],
)  # fmt: skip
def test_functions_that_are_not_there(folder: Path, target: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match=f"--screen.*{reason}"):
        run(folder, "--screen", target)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_half_precisions(
    folder: Path, precision: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # a model of random weights need not bear int8
    monkeypatch.setattr("xtrimo.prepacking.MOST_LOST", PrecisionLoss(cosine=-1.0, nll_rise=100.0))
    run(folder, "--num", "2", "--precision", precision)
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_int8_is_refused_where_the_model_loses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xtrimo.prepacking.MOST_LOST", PrecisionLoss(cosine=1.1, nll_rise=0.0))
    with pytest.raises(ConfigError, match="does not bear int8"):
        run(folder, "--num", "2", "--precision", "int8")


def test_external_programs_screen(tmp_path: Path) -> None:
    script = tmp_path / "screen.sh"
    script.write_text('read name; read sequence; case "$sequence" in *WW*) echo found WW; exit 1;; *Y*) exit 3;; esac')
    screen = program("bash", str(script))
    assert screen("MKWWG") == "found WW" and screen("MKV") is None
    with pytest.raises(XtrimoError, match="ended with status 3"):
        screen("MKY")
    with pytest.raises(XtrimoError, match="did not run"):
        program("no-such-program-here")("MKV")
    with pytest.raises(XtrimoError, match="did not run"):
        program("sleep", "9", seconds=0.1)("MKV")
    assert program("false")("MKV") == "refused by false"


def test_shares_make_up_the_file_of_one_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In any order, sorted and screened together; a share that is repeated writes nothing twice."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    for name, value in environment(folder, "shares.calls", 0).items():
        monkeypatch.setenv(name, value)
    flags = command(folder, "one.fasta", "--num", str(NUM), "--score", "hooks_of_test:slow",
                    "--screen", "hooks_of_test:no_w")[4:]  # fmt: skip
    sampler.main(flags)
    scored = (folder / "shares.calls").read_text().splitlines()
    flags[flags.index("one.fasta")] = "shares.fasta"
    for share in ("3/3", "1/3", "1/3"):
        sampler.main([*flags, "--shard", share])
        assert not Path("shares.fasta").exists() and Path(".shares.fasta.3-of-3.unfinished").exists()
    with pytest.raises(XtrimoError, match="differs in num"):
        sampler.main([*flags, "--num", "13", "--shard", "1/3"])
    sampler.main([*flags, "--shard", "2/3"])
    assert Path("shares.fasta").read_bytes() == Path("one.fasta").read_bytes()
    assert not list(folder.glob(".shares.fasta*"))
    calls = (folder / "shares.calls").read_text().splitlines()
    assert sorted(calls) == sorted(scored * 2)


def test_shares_are_checked() -> None:
    with pytest.raises(ConfigError, match="shard 1/2 needs an --out"):
        sampler.GenerateOptions(model="model", shard="1/2")
    with pytest.raises(ConfigError, match="shard '0/2': expected I/N"):
        sampler.GenerateOptions(model="model", out=Path("out.fasta"), shard="0/2")
