"""The scripts of `xtrimo completion`, in the shells that read them; zsh and fish where they are installed."""

import shutil
import subprocess
from pathlib import Path

import pytest

from xtrimo import __main__ as cli
from xtrimo.completion import all_words, script, words_of

GOLDEN = Path(__file__).parents[1] / "golden" / "flags.txt"
# Words before the cursor, the last of them begun -> what completes it.
CASES = {
    ("xtrimo", "sco"): {"score"},
    ("xtrimo", "score", "--prec"): {"--precision"},
    ("xtrimo", "score", "--precision", ""): {"None", "fp32", "bf16", "int8"},
    ("xtrimo", "score", "--precision", "b"): {"bf16"},
    ("xtrimo", "pretrain", "--batch.row"): {"--batch.row-length", "--batch.rows"},
    ("xtrimo", "corpus", "--no-"): {"--no-force"},
    ("xtrimo", "completion", ""): {"bash", "zsh", "fish"},
    ("xtrimo", "convert", "--to", ""): {"xtrimo", "proteinglm", "hf"},
}
FILES = ("xtrimo", "score", "prot")  # no word: the shell's own files
BASH = """
source "$1"
shift
PATH=/nowhere  # a Tab starts no program
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_xtrimo
printf '%s\\n' "${COMPREPLY[@]}"
"""
# What zsh calls while it completes, without the terminal that it wants for that.
ZSH = """
compdef() { : }
_describe() { print -rl -- ${${(P)2}%%:*} }
_files() { print FILES }
compadd() { shift; print -rl -- $@ }
source $1
shift
words=("$@") CURRENT=$#
PATH=/nowhere
_xtrimo
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("completion")
    words = all_words()
    for shell in ("bash", "zsh", "fish"):
        (folder / shell).write_text(script(shell, words))
    return {file.name: file for file in folder.iterdir()}


def answers(command: list[str]) -> set[str]:
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done
    return set(done.stdout.split("\n")) - {""}


def shell_or_skip(name: str) -> str:
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"{name} is not installed")
    return program


@pytest.mark.parametrize("words", CASES)
def test_bash(words: tuple[str, ...], scripts: dict[str, Path]) -> None:
    assert answers(["bash", "-c", BASH, "bash", str(scripts["bash"]), *words]) == CASES[words]


def test_bash_leaves_files_to_itself(scripts: dict[str, Path]) -> None:
    assert answers(["bash", "-c", BASH, "bash", str(scripts["bash"]), *FILES]) == set()
    (registered,) = answers(["bash", "-c", 'source "$1"; complete -p xtrimo', "bash", str(scripts["bash"])])
    assert "-o default" in registered, "else a Tab completes no file names"


@pytest.mark.parametrize("words", CASES)
def test_zsh(words: tuple[str, ...], scripts: dict[str, Path]) -> None:
    said = answers([shell_or_skip("zsh"), "-fc", ZSH, "zsh", str(scripts["zsh"]), *words])
    assert {word for word in said if word.startswith(words[-1])} == CASES[words]  # zsh itself picks those that fit


def test_zsh_leaves_files_to_itself(scripts: dict[str, Path]) -> None:
    assert answers([shell_or_skip("zsh"), "-fc", ZSH, "zsh", str(scripts["zsh"]), *FILES]) == {"FILES"}


@pytest.mark.parametrize("words", CASES)
def test_fish(words: tuple[str, ...], scripts: dict[str, Path], monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    code = f"source {scripts['fish']}; complete -C '{' '.join(words)}'"
    assert {line.partition("\t")[0] for line in answers([shell_or_skip("fish"), "-c", code])} == CASES[words]


def test_fish_leaves_files_to_itself(scripts: dict[str, Path], monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "proteins.fasta").touch()
    code = f"source {scripts['fish']}; complete -C '{' '.join(FILES)}'"
    assert answers([shell_or_skip("fish"), "-c", code]) == {"proteins.fasta"}


def test_all_flags_of_all_verbs() -> None:
    """Beside the frozen list, read another way."""
    frozen = {name: set[str]() for name in cli.VERBS}
    for line in GOLDEN.read_text().splitlines():
        verb, *words = line.replace(",", "").split()
        if words[0].startswith("-") and words[0].strip("-"):
            frozen[verb] |= {word for word in words if word.startswith("-")}
    for flags in frozen.values():
        flags.update(cli.OF_ALL)
    assert {name: set(verb.flags) for name, verb in all_words().items()} == frozen


def test_values_that_are_not_all_listed_are_not_offered() -> None:
    assert words_of("  --clusters {None}|PATH  A file\n  INT  How many\n") == (["--clusters"], {})


def test_a_verb_whose_package_is_missing_keeps_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "verb_in_need.py").write_text("import not_installed.core")
    monkeypatch.syspath_prepend(tmp_path)
    rows = {"info": cli.VERBS["info"], "pretrain": cli.Verb("verb_in_need:main", "trains", "pretrain")}
    monkeypatch.setattr(cli, "VERBS", rows)
    monkeypatch.setenv("COLUMNS", "40")
    words = all_words()
    assert "--verify" in words["info"].flags and not words["pretrain"].flags
    assert "pretrain" in script("bash", words)
    assert "the flags of pretrain are left out" in caplog.text and "'xtrimo[pretrain]'" in caplog.text
    assert cli.os.environ["COLUMNS"] == "40"
