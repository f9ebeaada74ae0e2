"""The commands and the code of docs/convert.md and docs/quantize.md, run as a reader would, on random weights."""

import re
import shlex
from pathlib import Path

import pytest

from xtrimo.__main__ import main
from xtrimo.checkpoint import save
from xtrimo.fasta import Record, write_fasta
from xtrimo.model import GLM
from xtrimo.testing import toy_config, toy_sequences

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("convert.md", "quantize.md")


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_code(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(GLM(toy_config()), tmp_path / "models/first")
    write_fasta(tmp_path / "in.fasta", [Record(f"p{i}", s) for i, s in enumerate(toy_sequences(4, min_length=30))])
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / page).read_text()
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 2
    for kind, code in blocks:
        if kind == "python":
            exec(compile(code, page, "exec"), {})
            continue
        for line in code.splitlines():
            program, *args = shlex.split(line)
            assert program == "xtrimo" and main(args) == 0, line


@pytest.mark.parametrize("page", PAGES)
def test_links(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "docs" / page).read_text()):
        assert target.startswith("http") or (ROOT / "docs" / target).exists(), target
