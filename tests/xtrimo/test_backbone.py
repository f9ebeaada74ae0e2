"""`load` finds out what a path is: by what its files say, whatever it is called."""

import json
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch

from tests.xtrimo.published_reference import random_weights, write
from xtrimo import backbone, checkpoint
from xtrimo.backbone import Backbone, find, load
from xtrimo.command import ModelOptions
from xtrimo.config import GLMConfig
from xtrimo.errors import CheckpointError
from xtrimo.model import GLM


@pytest.fixture(autouse=True)
def _as_for_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only our own checks answer: what a file holds reaches them without the tests' type checks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path, dict[str, Any]]]:
    """What loaders are called with, in their place."""
    calls: list[tuple[str, Path, dict[str, Any]]] = []
    monkeypatch.setattr(
        backbone, "_function", lambda target: lambda place, **options: calls.append((target, place, options))
    )
    return calls


@pytest.mark.parametrize(
    ("content", "loader"),
    [
        ({"format": 1}, "xtrimo.checkpoint:load"),
        ({"model_type": "ProteinGLM"}, "xtrimo.published:load"),
        ({"model_type": "esm", "architectures": ["EsmForMaskedLM"]}, "xtrimo.esm:load"),
        ({"model_type": "esmc"}, "xtrimo.esm:load"),
        ({"model_type": "bert", "architectures": ["AntiBERTy"]}, "xtrimo.antiberty:load"),
    ],
)
def test_the_config_says_what_it_is(tmp_path: Path, called, content, loader) -> None:
    directory = tmp_path / "esm-antiberty-proteinglm"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(content))
    load(directory, device="cpu", dtype=torch.bfloat16)
    assert called == [(loader, directory, {"device": "cpu", "dtype": torch.bfloat16})]


def test_a_fair_file(tmp_path: Path, called) -> None:
    path = tmp_path / "any.pt"
    path.write_bytes(b"")
    load(str(path))
    assert called == [("xtrimo.esm:load_fair", path, {"device": None, "dtype": None})]


def test_the_loaders_exist() -> None:
    targets = [kind.loader for kind in backbone.KINDS] + [backbone.FAIR_FILE, *backbone.PACKAGED.values()]
    root = Path(backbone.__file__).parent
    for target in targets:
        module, _, function = target.partition(":")
        assert f"\ndef {function}(" in (root / f"{module.removeprefix('xtrimo.')}.py").read_text(), target


def test_ours_and_published_are_backbones(tmp_path: Path) -> None:
    config = GLMConfig(num_layers=1, hidden_size=16, num_heads=2, ffn_size=12)
    ours = load(checkpoint.save(GLM(config), tmp_path / "ours"))
    assert isinstance(ours, Backbone) and ours.config == config
    directory = write(tmp_path / "theirs", random_weights(False))
    theirs = ModelOptions(model=str(directory), precision="bf16").load()
    assert isinstance(theirs, Backbone) and theirs.dtype == torch.bfloat16 and theirs.mask is not None


def test_an_unknown_kind_lists_the_known(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "t5", "architectures": ["T5EncoderModel"]}')
    known = "xtrimo, ProteinGLM, Hugging Face, ESM-2, ESM C, AntiBERTy"
    with pytest.raises(CheckpointError, match=rf"'t5'.*T5EncoderModel.*{known}"):
        load(tmp_path)
    for text in ("[]", "{", '{"curriculum": {}}', "{}"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json is not a model config"):
            load(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"it has no config\.json"):
        load(tmp_path)


def test_what_is_neither_path_nor_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("esm2", "runs/a/model", str(tmp_path / "no")):
        with pytest.raises(CheckpointError, match=r"not a model directory.*org/name.*antiberty"):
            find(text)
    Path("weights.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"is a file; expected the directory of a model"):
        find("weights.bin")
    Path("esm2").mkdir()
    assert find("esm2") == Path("esm2")  # a directory comes first
