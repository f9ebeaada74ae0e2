"""The commands and the code of docs/folding.md, run as a reader would, on a small model and few steps."""

import re
import shlex
from pathlib import Path

import pytest

from structure.config import PRESETS
from tests.structure.models import FILES, SMALL
from tests.structure.test_train import make_archive, make_lm
from xtrimo import mmseqs
from xtrimo.__main__ import main
from xtrimo.fasta import Record, write_fasta

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/folding.md").read_text()
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
FEW = ["--steps", "2", "--batch-size", "1", "--crop-length", "16"]


def test_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What the page folds with comes from the command that it shows below, so that this one is run first."""
    monkeypatch.setitem(PRESETS, "fold-tiny", SMALL)
    monkeypatch.setattr(mmseqs, "is_installed", lambda: False)
    monkeypatch.chdir(tmp_path)
    make_archive(tmp_path / "chains.npz")
    make_lm(tmp_path / "models/first")
    write_fasta("proteins.fasta", [Record("1A8O", "MKTAYIAKQRQISFVKSHFSRQ")])
    Path("experiments").mkdir()
    Path("experiments/1A8O.cif").symlink_to(FILES / "1A8O.cif")
    commands = [(kind, code) for kind, code in BLOCKS if "train-fold" in code]
    for kind, code in commands + [block for block in BLOCKS if block not in commands]:
        if kind == "python":
            exec(compile(code, "docs/folding.md", "exec"), {})
            continue
        (line,) = code.splitlines()
        program, *args = shlex.split(line)
        assert program == "xtrimo" and main([*args, *(FEW if args[0] == "train-fold" else ())]) == 0, line
    said = capsys.readouterr().out
    assert "(22, 37, 3)" in said and "(10, 37, 3)" in said
    assert {path.name for path in Path("structures").glob("1A8O.*")} == {"1A8O.cif", "1A8O.pdb", "1A8O.pae.json"}
    assert Path("structures/page.html").exists()
    assert len(Path("comparison.csv").read_text().splitlines()) == 2


def test_presets_are_those_of_the_table() -> None:
    assert set(re.findall(r"^\| (fold-\w+) \|", PAGE, flags=re.MULTILINE)) == set(PRESETS)
