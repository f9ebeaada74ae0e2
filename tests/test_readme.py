"""The README's commands, run as a reader would: in order, in one folder, with less data and fewer steps."""

import csv
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import h5py
import pytest

from xtrimo.__main__ import VERBS
from xtrimo.fasta import read_fasta, write_fasta

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
NUM_PROTEINS = 80
pytestmark = pytest.mark.timeout(900)  # the first test pays for all blocks
SMALLER = {
    "--steps 500": "--steps 3 --valid-tokens 1000",
    "--num 16": "--num 16 --max-length 40",
    "--steps 300": "--steps 2 --preset fold-tiny --valid-chains 1",
}


def run(kind: str, code: str, folder: Path) -> str:
    """Standard output of a block, run in `folder`."""
    for large, small in SMALLER.items():
        code = code.replace(large, small)
    command = ["bash", "-euc", code] if kind == "bash" else [sys.executable, "-c", code]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ | {"PATH": path})
    assert done.returncode == 0, f"{code}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every block has run; python7.txt holds what block 7, in Python, said."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "examples").mkdir()
    (folder / "tests").symlink_to(ROOT / "tests")
    records = itertools.islice(read_fasta(ROOT / "examples/proteins.fasta.gz"), NUM_PROTEINS)
    write_fasta(folder / "examples/proteins.fasta.gz", records)
    for number, (kind, code) in enumerate(BLOCKS):
        if kind in ("bash", "python"):
            (folder / f"{kind}{number}.txt").write_text(run(kind, code, folder))
    return folder


def test_every_block_is_run_or_a_make_target() -> None:
    assert [kind for kind, _ in BLOCKS] == ["console", "bash", "bash", "python", "console", "bash", "bash", "python"]
    targets = re.findall(r"^make (\w+)", BLOCKS[0][1], flags=re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    assert targets == ["demo", "test"] and all(f"\n{target}:" in makefile for target in targets)
    assert all(large in README for large in SMALLER)


def test_understand(folder: Path) -> None:
    rows = list(csv.DictReader((folder / "scores.csv").open()))
    with h5py.File(folder / "embeddings.h5") as embeddings:
        assert len(rows) == len(embeddings) == NUM_PROTEINS
        assert all(dataset.shape == (128,) for dataset in embeddings.values())


def test_weights_from_elsewhere(folder: Path) -> None:
    assert re.fullmatch(r"pseudo perplexity 1\.\d\d\n", (folder / "python3.txt").read_text())


def test_fold(folder: Path) -> None:
    scores = json.loads((folder / "structures/scores.json").read_text())
    assert len(scores) == 16 == len(list((folder / "structures").glob("s*.cif")))
    (said,) = folder.glob("bash6.txt")
    assert "untrained" in said.read_text() and "1.000" in said.read_text()


def test_design(folder: Path) -> None:
    assert len(list(read_fasta(folder / "new.fasta"))) == 16
    free = [record.sequence for record in read_fasta(folder / "free.fasta")]
    assert all(s.startswith("MKT") and 83 <= len(s) <= 123 and "C" not in s for s in free) and len(free) == 8
    filled = [record.sequence for record in read_fasta(folder / "filled.fasta")]
    redesigned = [record.sequence for record in read_fasta(folder / "redesigned.fasta")]
    for before, after in zip(filled, redesigned, strict=True):
        assert re.fullmatch("MKTAYIAK[A-Z]{8,20}GGHKRQ", before)
        assert (after[:2], after[5:8], after[9:]) == (before[:2], before[5:8], before[9:])


def test_python(folder: Path) -> None:
    *proteins, shape = (folder / "python7.txt").read_text().splitlines()
    assert [line.split()[0] for line in proteins] == ["s0001", "s0002", "s0003", "s0004"]
    assert shape == "(22, 128)"


def test_links() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


@pytest.mark.parametrize("line", re.findall(r"^\|.*\|$", README, flags=re.MULTILINE)[2:])
def test_results_name_the_file_that_gives_them(line: str) -> None:
    commands = re.findall(r"(python -m|python|make|xtrimo) ([\w./-]+)", line.split("|")[-2])  # the last column
    assert commands, line
    for program, what in commands:
        if program == "python -m":
            assert (ROOT / f"{what.replace('.', '/')}.py").exists(), line
        elif program == "python":
            assert (ROOT / what).exists(), line
        else:
            assert what in (VERBS if program == "xtrimo" else ("demo", "test")), line
