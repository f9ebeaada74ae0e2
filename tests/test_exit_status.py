"""What `xtrimo` ends with, from real processes: each status that docs/cli.md lists."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from xtrimo.__main__ import main
from xtrimo.checkpoint import save
from xtrimo.fasta import Record, write_fasta
from xtrimo.model import GLM
from xtrimo.testing import toy_config, toy_sequences

ROOT = Path(__file__).parents[1]
COMMAND = str(Path(sys.executable).with_name("xtrimo"))
FINETUNE = "finetune mine.csv --level sequence --target classes --model toy --method lora --epochs 1 --batch-size 8"
FINETUNE += " --out run --no-baselines --no-leaks"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("status")
    save(GLM(toy_config()), folder / "toy")
    sequences = toy_sequences(30, min_length=10)
    write_fasta(folder / "in.fasta", [Record(f"r{number}", sequence) for number, sequence in enumerate(sequences)])
    rows = "".join(f"{sequence},{number % 2}\n" for number, sequence in enumerate(sequences))
    (folder / "mine.csv").write_text(f"sequence,label\n{rows}")
    (folder / "hidden/generate").mkdir(parents=True)
    (folder / "hidden/generate/__init__.py").touch()
    (folder / "letters.fasta").write_text(">r1\nMK7\n")
    return folder


def started(folder: Path, args: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    settings = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run([COMMAND, *args.split()], cwd=folder, env=settings, capture_output=True, text=True)


def status(folder: Path, args: str, monkeypatch: pytest.MonkeyPatch) -> object:
    """Of the command in this process, which spares the imports."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    try:
        return main(args.split())
    except SystemExit as ended:  # of tyro, at flags that it does not understand
        return ended.code


def test_the_page_lists_them() -> None:
    page = (ROOT / "docs/cli.md").read_text()
    table = page.partition("| status | means |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| (\d+) \|", table, flags=re.MULTILINE) == ["0", "1", "2", "75", "130", "141"]


def test_0_is_done(folder: Path) -> None:
    done = started(folder, "score in.fasta --model toy")
    assert done.returncode == 0 and done.stdout.startswith("name,"), done


@pytest.mark.parametrize("args", ["--help", "--version", "info glm-1m", "score --help"])
def test_0_is_an_answer(folder: Path, args: str, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(folder, args, monkeypatch) == 0 and capsys.readouterr().out


def test_1_is_what_doctor_finds_broken(folder: Path) -> None:
    done = started(folder, "doctor", PYTHONPATH=str(folder / "hidden"))
    assert done.returncode == 1
    assert done.stderr == "xtrimo: broken: xtrimo; what to do is said beside each\n"
    assert f"generate is {folder / 'hidden/generate/__init__.py'}" in done.stdout


def test_1_is_a_bug(folder: Path) -> None:
    (folder / "buggy.py").write_text("def main(args): 1 / 0")
    code = (
        "import sys; from xtrimo import __main__ as c; c.VERBS['info'] = c.Verb('buggy:main', ''); sys.exit(c.main())"
    )
    done = subprocess.run([sys.executable, "-c", code, "info"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr and "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ("dock", "'dock'"),
        ("score in.fasta", "--model"),
        ("score in.fasta --model toy --hurry", "--hurry"),
        ("score in.fasta --model nowhere", "nowhere"),
        ("score none.fasta --model toy", "none.fasta"),
        ("score letters.fasta --model toy", "letters.fasta"),
        ("score in.fasta --model toy --out none/scores.csv", "none/scores.csv"),
        ("completion tcsh", "tcsh"),
    ],
)
def test_2_is_what_cannot_be_done_as_asked(
    folder: Path, args: str, named: str, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(folder, args, monkeypatch) == 2
    said = capsys.readouterr()
    assert named in said.err and not said.out


def test_2_is_the_status_of_the_process(folder: Path) -> None:
    assert started(folder, "dock").returncode == started(folder, "completion tcsh").returncode == 2


def test_75_is_a_training_that_goes_on(folder: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "run/training").mkdir(parents=True)
    (folder / "run/training/STOP").touch()
    assert status(folder, FINETUNE, monkeypatch) == os.EX_TEMPFAIL == 75
    assert "asked to stop (STOP)" in capsys.readouterr().err
    assert status(folder, FINETUNE, monkeypatch) == 0


def test_130_is_an_interrupt(folder: Path) -> None:
    args = [COMMAND, "generate", "--model", "toy", "--num", "1000000"]
    with subprocess.Popen(
        args, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # shells switch it off behind &
    ) as process:  # fmt: skip
        assert process.stdout and process.stdout.readline().startswith(">")
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Traceback" not in said, said


def test_141_is_a_reader_that_has_gone(folder: Path) -> None:
    code = f"{COMMAND} generate --model toy --num 1000000 | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 141 and "Traceback" not in done.stderr and done.stdout.startswith(">")
