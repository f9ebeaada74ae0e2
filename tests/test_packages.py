"""The five packages resolve inside this checkout from any directory, and the base install needs none of the extras."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("xtrimo", "pretrain", "heads", "structure", "generate")
WHERE = f"import {', '.join(PACKAGES)}\nfor p in ({', '.join(PACKAGES)}): print(p.__file__)"
OF_OUR_OWN = """
import sys
import xtrimo
from xtrimo.checkpoint import save
from xtrimo.model import GLM
from xtrimo.testing import toy_config
save(GLM(toy_config()), "toy")
xtrimo.embed(xtrimo.load("toy"), ["MKV"])
print(sorted({"transformers", "megatron", "huggingface_hub"} & sys.modules.keys()))
"""
WITHOUT_EXTRAS = """
import sys
for name in ("megatron", "transformers", "deepspeed"):
    sys.modules[name] = None  # importing it raises ModuleNotFoundError
import xtrimo
xtrimo.load, xtrimo.embed, xtrimo.score
from generate import sample
"""


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A working directory with empty folders that carry two of our names."""
    (tmp_path / "structure").mkdir()
    (tmp_path / "generate").mkdir()
    return tmp_path


def python(*args: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, *args], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_packages_resolve_here_from_elsewhere(elsewhere: Path) -> None:
    files = python("-c", WHERE, cwd=elsewhere).split()
    assert files == [str(ROOT / package / "__init__.py") for package in PACKAGES]


def test_the_command_runs_from_elsewhere(elsewhere: Path) -> None:
    assert "usage: xtrimo" in python("-m", "xtrimo", "--help", cwd=elsewhere)
    assert "--prompt" in python("-m", "xtrimo", "generate", "--help", cwd=elsewhere)


def test_the_command_ignores_a_module_of_the_users(elsewhere: Path) -> None:
    (elsewhere / "generate").rmdir()
    (elsewhere / "generate.py").write_text("raise SystemExit('the wrong generate')")
    assert "--prompt" in python("-m", "xtrimo", "generate", "--help", cwd=elsewhere)


def test_base_install_needs_no_extra(elsewhere: Path) -> None:
    python("-c", WITHOUT_EXTRAS, cwd=elsewhere)


def test_a_model_of_our_own_is_read_without_what_others_need(elsewhere: Path) -> None:
    assert python("-c", OF_OUR_OWN, cwd=elsewhere).strip() == "[]"
