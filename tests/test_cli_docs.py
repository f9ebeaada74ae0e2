"""The commands of docs/cli.md, run as a reader would, on a model of random weights."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from xtrimo import __main__ as cli
from xtrimo.checkpoint import save
from xtrimo.fasta import Record, read_fasta, write_fasta
from xtrimo.model import GLM
from xtrimo.testing import toy_config, toy_sequences

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/cli.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
pytestmark = pytest.mark.timeout(900)  # the first test pays for all blocks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all blocks have run, as bash runs them, in a home of its own."""
    folder = tmp_path_factory.mktemp("docs")
    save(GLM(toy_config()), folder / "models/first")
    sequences = toy_sequences(30, min_length=10)
    write_fasta(folder / "proteins.fasta", [Record(f"r{i}", sequence) for i, sequence in enumerate(sequences)])
    write_fasta(folder / "one.fasta", [Record("one", "MKTAYIAK")])
    (folder / "new").mkdir()
    rows = "".join(f"{sequence},{i % 2}\n" for i, sequence in enumerate(sequences))
    (folder / "mine.csv").write_text(f"sequence,label\n{rows}")
    (folder / "runs/mine/training").mkdir(parents=True)
    (folder / "runs/mine/training/STOP").touch()  # so that the loop has to start the training a second time
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    settings = os.environ | {"PATH": path, "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    for code in BLOCKS:
        done = subprocess.run(["bash", "-euc", code], cwd=folder, capture_output=True, text=True, env=settings)
        assert done.returncode == 0, f"{code}\n{done.stderr}"
    return folder


def test_results_are_on_stdout(folder: Path) -> None:
    assert len((folder / "scores.csv").read_text().splitlines()) == 31
    assert len(list(read_fasta(folder / "new.fasta"))) == 4


def test_answers_in_json(folder: Path) -> None:
    facts, mutations, embedded = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("facts", "mutations", "embedded")
    )
    (named,) = re.findall(r"same five names for all verbs: (.*?)\.\s", PAGE, flags=re.DOTALL)
    assert list(facts) == list(mutations) == list(embedded) == [
        name for name in re.findall(r"`(\w+)`", named) if name != "null"
    ]  # fmt: skip
    assert facts["results"]["kind"] == "preset"
    assert [row["mutations"] for row in mutations["results"]["mutations"]] == ["M1A", "K2G"]
    assert embedded["outputs"] == ["one.h5"] and embedded["record"] == str(folder / "one.h5.run.json")
    assert embedded["results"] is None


def test_the_same_again(folder: Path) -> None:
    example = PAGE.partition("> same.txt\n```\n")[2].partition("\n\nA folder is")[0]
    said = [line.strip() for line in example.strip().splitlines()]
    assert (folder / "same.txt").read_text().splitlines() == said
    assert (folder / "new/again.fasta").read_bytes() == (folder / "new/seven.fasta").read_bytes()


def test_the_verbs_that_take_a_seed() -> None:
    (listed,) = re.findall(r"`--seed` decides chance: (.*?);", PAGE, flags=re.DOTALL)
    flags = (ROOT / "tests/golden/flags.txt").read_text()
    assert set(re.findall(r"`([\w-]+)`", listed)) == set(re.findall(r"^(\S+) --seed INT$", flags, flags=re.MULTILINE))


def test_doctor(folder: Path) -> None:
    rows = json.loads((folder / "doctor.json").read_text())
    example = re.findall(r"^    (?:ok|note|broken) +(\S+)", PAGE, flags=re.MULTILINE)
    assert len(example) >= 2 and set(example) <= {row["name"] for row in rows}


def test_completion(folder: Path) -> None:
    for file in (
        ".local/share/bash-completion/completions/xtrimo",
        ".zfunc/_xtrimo",
        ".config/fish/completions/xtrimo.fish",
    ):
        assert "finetune-generator" in (folder / file).read_text()


def test_the_loop_goes_on_after_75(folder: Path) -> None:
    assert (folder / "runs/mine/training/DONE").exists() and (folder / "runs/mine/results.json").exists()


def test_variables() -> None:
    assert all(f"`{name}" in PAGE for name in cli.ENVIRONMENT)
    for name in re.findall(r"^\| `([A-Z_]+)=?", PAGE, flags=re.MULTILINE):
        assert name.startswith("HF_") or name in ("OMP_NUM_THREADS", "TMPDIR") or name in Path(cli.__file__).read_text()


def test_links() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
