"""The command line: quick and light, clear about mistakes, its flags frozen in golden/flags.txt.

After a wanted change of flags: python tests/test_cli.py --update
"""

import contextlib
import io
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from xtrimo import __main__ as cli
from xtrimo.errors import SequenceError, StoppedError

GOLDEN = Path(__file__).parent / "golden" / "flags.txt"
COMMAND = Path(sys.executable).with_name("xtrimo")


def flags(verb: str) -> str:
    """The flags and arguments of a verb with their types, one a line: the first column of its --help."""
    text = io.StringIO()
    os.environ["COLUMNS"] = "100"  # wider, tyro sets two columns
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        cli.find(verb)(["--help"])
    # Into a text buffer tyro draws its boxes with blanks: one column of blank frame, one of margin, then the flag.
    names = re.findall(r"^  (\S.*?)(?:  .*)?$", text.getvalue(), flags=re.MULTILINE)
    assert "-h, --help" in names, text.getvalue()
    return "".join(f"{verb} {name}\n" for name in names)


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path) -> None:
    block = "import sys; sys.modules['megatron'] = None; from xtrimo.__main__ import main; sys.exit(main(sys.argv[1:]))"
    args = ["pretrain", "--corpus", str(tmp_path), "--out", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", block, *args], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "xtrimo: xtrimo pretrain needs megatron, which is not installed; run: pip install 'xtrimo[pretrain]'\n"
    )


def test_an_unusable_path_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    raising(monkeypatch, FileExistsError(17, "File exists", str(tmp_path / "run")))
    assert cli.main(["pretrain"]) == 2
    assert capsys.readouterr().err == f"xtrimo: {tmp_path / 'run'}: File exists\n"


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let every verb raise `error`."""

    def run(args: object) -> None:
        raise error

    monkeypatch.setattr(cli, "find", lambda name: run)


@pytest.mark.parametrize("args", [["--help"], ["dock"], []])
def test_answers_without_torch(args: list[str]) -> None:
    code = f"import sys; from xtrimo.__main__ import main; main({args}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_help_is_immediate() -> None:
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([COMMAND, "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.3


def test_unknown_verb_lists_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["dock"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "'dock'" in captured.err
    assert all(verb in captured.err for verb in cli.VERBS)


def test_expected_errors_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("XTRIMO_DEBUG", raising=False)
    raising(monkeypatch, SequenceError("r1: position 3 is '7'"))
    assert cli.main(["score"]) == 2
    assert capsys.readouterr().err == "xtrimo: r1: position 3 is '7'\n"
    monkeypatch.setenv("XTRIMO_DEBUG", "1")
    with pytest.raises(SequenceError):
        cli.main(["score"])


def test_a_run_that_was_asked_to_stop_tells_scripts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """75 is what mailers take for "try again"."""
    raising(monkeypatch, StoppedError("saved after step 7"))
    assert cli.main(["finetune"]) == os.EX_TEMPFAIL == 75
    assert capsys.readouterr().err == "xtrimo: saved after step 7\n"


def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        cli.main(["score"])


def test_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, KeyboardInterrupt())
    assert cli.main(["score"]) == 130


@pytest.mark.parametrize("args", [["--help"], ["generate", "--help"]])
def test_closed_pipe_is_quiet(args: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([COMMAND, *args], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_missing_package_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "verb_in_need.py").write_text("import not_installed.core")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(cli.VERBS, "pretrain", cli.Verb("verb_in_need:main", "", "pretrain"))
    assert cli.main(["pretrain"]) == 2
    message = capsys.readouterr().err
    assert "needs not_installed," in message and "'xtrimo[pretrain]'" in message


def test_missing_file_of_ours_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.VERBS, "pretrain", cli.Verb("pretrain.no_such_file:main", ""))
    with pytest.raises(ModuleNotFoundError):
        cli.main(["pretrain"])


def test_libraries_are_told_what_they_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in cli.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")  # a user's own setting stays
    cli.main(["--version"])
    assert {name: os.environ[name] for name in cli.ENVIRONMENT} == cli.ENVIRONMENT | {"LRU_CACHE_CAPACITY": "7"}


def test_rows_of_many_lengths_leave_no_kernels_behind() -> None:
    """With oneDNN's own limits this grows by some 250 MB, on a processor for which it has bf16 kernels."""
    code = """
import torch
torch.set_num_threads(1)
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
weight = torch.randn(640, 128, dtype=torch.bfloat16, requires_grad=True)
for length in range(1000, 2001, 5):
    x = torch.randn(length, 128, dtype=torch.bfloat16, requires_grad=True)
    torch.nn.functional.linear(x, weight).sum().backward()
    if length == 1500:
        before = resident()
print((resident() - before) / 1e6)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | cli.ENVIRONMENT, capture_output=True, text=True
    )
    assert float(done.stdout) < 60, done.stderr


@pytest.mark.parametrize("verb", cli.VERBS)
def test_flags_are_frozen(verb: str) -> None:
    now = flags(verb)
    frozen = "".join(line for line in GOLDEN.read_text().splitlines(keepends=True) if line.startswith(f"{verb} "))
    assert now == frozen, "flags changed; if that is wanted: python tests/test_cli.py --update"


def update() -> None:
    GOLDEN.write_text("".join(map(flags, cli.VERBS)))


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        sys.exit(__doc__)
    update()
