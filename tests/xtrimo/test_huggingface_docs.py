"""The commands and the code of docs/huggingface.md, run as a reader would, on a model of random weights."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import torch

from tests.xtrimo.test_huggingface import toy
from xtrimo.__main__ import main
from xtrimo.backbone import load
from xtrimo.checkpoint import save
from xtrimo.errors import CheckpointError
from xtrimo.huggingface_tokenizer import build_tokenizer

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/huggingface.md").read_text()
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all blocks have run, one after the other."""
    folder = tmp_path_factory.mktemp("docs")
    save(toy(), folder / "models/first")
    names: dict[str, object] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for kind, code in BLOCKS:
            if kind == "bash":
                for line in code.splitlines():
                    program, *args = shlex.split(line)
                    assert program == "xtrimo" and main(args) == 0, line
            elif "import Dataset" not in code or importlib.util.find_spec("datasets"):
                exec(compile(code, "docs/huggingface.md", "exec"), names)
    return folder


def test_blocks(folder: Path) -> None:
    assert len(BLOCKS) == 5
    ours, theirs = load(folder / "models/first"), load(folder / "models/first-hf")
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    with pytest.raises(CheckpointError, match="a head that transformers trained"):
        load(folder / "models/solubility-hf")


def test_prompts_of_the_table() -> None:
    table = PAGE.partition("| prompt | what is written |")[2].partition("\n\n")[0]
    prompts = [row.split("`")[1] for row in table.splitlines()[2:]]
    tokenizer = build_tokenizer(toy().config)
    assert len(prompts) == 4
    for prompt in prompts:
        ids = tokenizer(prompt, add_special_tokens=False).input_ids
        assert tokenizer.unk_token_id not in ids and tokenizer.decode(ids) == prompt


def test_links() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert target.startswith("http") or (ROOT / "docs" / target).exists(), target
