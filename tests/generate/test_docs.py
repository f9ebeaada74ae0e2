"""The commands and the code of docs/generate.md, run as a reader would, on a model of random weights."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from generate.prompt import parse
from xtrimo.__main__ import main
from xtrimo.checkpoint import save
from xtrimo.fasta import Record, read_fasta, write_fasta
from xtrimo.model import GLM
from xtrimo.testing import toy_config, toy_sequences

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/generate.md").read_text()
BLOCKS = re.findall(r"^```(\w*)(?: file=(\S+))?\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all blocks have run, in order."""
    folder = tmp_path_factory.mktemp("docs")
    model = GLM(toy_config())
    with torch.no_grad():
        model.output.weight *= 10
    save(model, folder / "models/first")
    records = [Record(f"r{i}", s) for i, s in enumerate(toy_sequences(3, min_length=40))]
    write_fasta(folder / "in.fasta.gz", records)
    members = toy_sequences(100, seed=1, min_length=40)
    tagged = [Record(f"f{i}", s, f"family={('globin', 'kinase')[i % 2]}") for i, s in enumerate(members)]
    write_fasta(folder / "families.fasta", tagged)
    (folder / "examples").mkdir()
    (folder / "in.fasta.gz").rename(folder / "examples/proteins.fasta.gz")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        for kind, file, code in BLOCKS:
            if file:
                (folder / file).write_text(code)
            elif kind == "python":
                exec(compile(code, "docs/generate.md", "exec"), {})
            elif kind == "bash":
                for line in code.splitlines():
                    program, *args = shlex.split(line)
                    assert program == "xtrimo" and main(args) == 0, line
    return folder


def test_commands(folder: Path) -> None:
    written = {file: list(read_fasta(folder / file)) for file in re.findall(r"--out (\S+\.fasta)", PAGE)}
    assert {file: len(records) for file, records in written.items()} == {
        "free.fasta": 8, "filled.fasta": 8, "redesigned.fasta": 3, "screened.fasta": 8, "ranked.fasta": 8,
        "globins.fasta": 4, "checked.fasta": 4, "from_ends.fasta": 1,
    }  # fmt: skip
    assert all("screen=my_screen:check:passed" in r.description for r in written["checked.fasta"])
    assert "way=ends" in written["from_ends.fasta"][0].description
    assert not any("C" in r.sequence for r in written["free.fasta"])


def test_prompts_of_the_table_can_be_read() -> None:
    table = PAGE.partition("| prompt | protein |")[2].partition("\n\n")[0]
    prompts = [text for row in table.splitlines()[2:] for text in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert len(prompts) >= 9
    for text in prompts:
        assert parse(str(parse(text))) == parse(text)
    assert parse("MK_AY_K") == parse("MK[1]AY[1]K") and parse("MKT") == parse("MKT[..]")


def test_links() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
