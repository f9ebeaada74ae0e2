"""The commands and the code of docs/mutate.md, run as a reader would, on a model of random weights."""

import csv
import re
import shlex
from pathlib import Path

import pytest
import torch

from tests.xtrimo.test_antibodies import HEAVY
from xtrimo.__main__ import main
from xtrimo.checkpoint import save
from xtrimo.errors import DataError
from xtrimo.fasta import Record, write_fasta
from xtrimo.model import GLM
from xtrimo.mutation import read_mutations
from xtrimo.testing import toy_config

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/mutate.md").read_text()
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all blocks have run."""
    folder = tmp_path_factory.mktemp("docs")
    torch.manual_seed(0)
    save(GLM(toy_config()), folder / "models/first")
    write_fasta(folder / "wild.fasta", [Record("p53", "MKTAYIAK")])
    write_fasta(folder / "antibodies.fasta", [Record("heavy", HEAVY)])
    (folder / "variants.csv").write_text("mutations\nK2G\nY5del\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for kind, code in BLOCKS:
            if kind == "python":
                exec(compile(code, "docs/mutate.md", "exec"), {})
                continue
            for line in code.splitlines():
                program, *args = shlex.split(line)
                assert program == "xtrimo" and main(args) == 0, line
    return folder


def test_commands(folder: Path) -> None:
    counts = {"named/mutations.csv": 4, "listed/mutations.csv": 2, "scanned/p53.csv": 19 * 8, "regions.csv": 8}
    for file, count in counts.items():
        with (folder / file).open() as rows:
            assert len(list(csv.DictReader(rows))) == count, file
    assert (folder / "scanned/p53.png").is_file() and (folder / "scanned/p53.html").is_file()


def test_words_of_the_table() -> None:
    wild = "".join({22: "K", 23: "L", 24: "L", 44: "K", 122: "A"}.get(i, "G") for i in range(130))
    table = PAGE.partition("| written | meaning |")[2].partition("\n\n")[0]
    words = [text for row in table.splitlines()[2:] for text in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert len(words) == 7 and all(read_mutations(word, wild) for word in words)


def test_the_answer_to_a_wrong_letter() -> None:
    with pytest.raises(DataError) as refused:
        read_mutations("A2G", "MKTAYIAK", name="--mutations: p53")
    assert f"    xtrimo: {refused.value}\n" in PAGE


def test_links() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert target.startswith("http") or (ROOT / "docs" / target).exists(), target
