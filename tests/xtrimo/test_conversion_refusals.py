"""What convert refuses, what a digest notices, and what a kill leaves: nothing."""

import fcntl
import json
import os
import shutil
import signal
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.xtrimo.random_models import random_model, same
from xtrimo import checkpoint, conversion, layouts
from xtrimo.backbone import load
from xtrimo.conversion import convert, main, parse_size
from xtrimo.errors import CheckpointError, ConfigError, XtrimoError
from xtrimo.testing import killed

pytestmark = pytest.mark.usefixtures("as_for_users")


# ---- refusals


def test_what_the_published_network_cannot_be(tmp_path):
    for changes, words in (
        (dict(output_bias=True), "no bias in its output"),
        (dict(objectives=("smask",)), "smask alone"),
    ):
        checkpoint.save(random_model(**changes), tmp_path / words)
        with pytest.raises(ConfigError, match=words):
            convert(tmp_path / words, tmp_path / "b", to="proteinglm")
    assert not (tmp_path / "b").exists()


def test_what_the_published_code_does_not_know_is_said(ours, tmp_path, caplog):
    with caplog.at_level("INFO"):
        convert(ours, tmp_path / "b", to="proteinglm")
    assert "objective smask, direction reverse, control word <rev>" in caplog.text and "xtrimo.json" in caplog.text
    (tmp_path / "b/xtrimo.json").unlink()
    config = load(tmp_path / "b").config
    assert (config.objectives, config.directions, config.control_words) == (("mlm", "gmask"), ("forward",), ())


@pytest.mark.parametrize("there", ["file", "folder", "link", "model"])
def test_an_output_that_is_there_is_refused(ours, tmp_path, there):
    out = tmp_path / "out"
    {"file": out.touch, "folder": out.mkdir, "link": lambda: out.symlink_to("nowhere"),
     "model": lambda: shutil.copytree(ours, out)}[there]()  # fmt: skip
    with pytest.raises(ConfigError, match="is there already"):
        convert(ours, out)
    with pytest.raises(ConfigError, match="is there already"):
        main([str(tmp_path / "no_model"), str(out)])


def test_no_room_on_the_disk(ours, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda path: usage(10**9, 0, 1_000_000))
    with pytest.raises(ConfigError, match=r"takes 1,0\d\d,\d+ bytes, .* has 1,000,000 free"):
        convert(ours, tmp_path / "deep/out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["ours"]


def test_a_disk_that_fills_up(ours, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(XtrimoError, match=r"out cannot be written \(No space left on device\); nothing of it was kept"):
        convert(ours, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["ours"]


def test_a_copy_that_reads_back_otherwise_never_appears(ours, tmp_path, monkeypatch):
    save_file = checkpoint.save_file

    def failing(state, path, **options):
        save_file({**state, "final_norm.bias": state["final_norm.bias"] + 1e-6}, path, **options)

    monkeypatch.setattr(checkpoint, "save_file", failing)
    with pytest.raises(CheckpointError, match="read back with other weights"):
        convert(ours, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["ours"]


def test_two_at_once(ours, tmp_path):
    (tmp_path / ".out.unfinished").mkdir()
    handle = os.open(tmp_path / ".out.unfinished", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(ConfigError, match="being written by another process"):
        convert(ours, tmp_path / "out")
    os.close(handle)
    convert(ours, tmp_path / "out")


def test_models_of_another_kind(tmp_path):
    with pytest.raises(CheckpointError, match="nothing"):
        convert(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "esm").mkdir()
    (tmp_path / "esm/config.json").write_text('{"model_type": "chatglm"}')
    with pytest.raises(CheckpointError, match="known kinds"):
        convert(tmp_path / "esm", tmp_path / "out")
    with pytest.raises(ConfigError, match="no layout 'onnx'; known: xtrimo, proteinglm"):
        convert(checkpoint.save(random_model(), tmp_path / "m"), tmp_path / "out", to="onnx")


def test_sizes():
    assert [parse_size(text) for text in ("5GB", "500MB", "1.5kB", "80 B")] == [5 * 10**9, 5 * 10**8, 1500, 80]
    for text in ("5", "GB", "-1GB", "0GB", "5TBs", ""):
        with pytest.raises(ConfigError, match="expected a size such as 5GB"):
            parse_size(text)


# ---- digests


def test_altered_copies_are_refused(ours, tmp_path):
    convert(ours, tmp_path / "b", to="proteinglm", max_bytes=9000)
    shard = sorted((tmp_path / "b").glob("*.safetensors"))[1]
    good = shard.read_bytes()
    shard.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=f"{shard.name} was altered: its SHA-256 is not the one in xtrimo.json"):
        load(tmp_path / "b")
    shard.write_bytes(good)
    content = json.loads((tmp_path / "b/config.json").read_text())
    (tmp_path / "b/config.json").write_text(json.dumps({**content, "layernorm_epsilon": 1e-6, "quantization_bit": 8}))
    with pytest.raises(CheckpointError, match=r"do not agree on layer_norm_eps, quantization; .* remove xtrimo.json"):
        load(tmp_path / "b")
    (tmp_path / "b/config.json").write_text(json.dumps(content))
    (tmp_path / "b/model.safetensors").write_bytes(good)
    with pytest.raises(CheckpointError, match=r"holds the weights model.safetensors, xtrimo.json states model-00001"):
        load(tmp_path / "b")


def test_a_stated_digest_is_checked(ours, tmp_path):
    """A file that was made again, with its own digest stated, but not that of the weights."""
    convert(ours, tmp_path / "a")
    path = tmp_path / "a/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "weights_sha256": "0" * 64}))
    with pytest.raises(CheckpointError, match="not those that were stated, 0000"):
        convert(tmp_path / "a", tmp_path / "out")


def test_the_digest_of_weights_depends_on_nothing_else(ours, tmp_path):
    first = convert(ours, tmp_path / "a")
    model = load(ours)
    other = checkpoint.save_state(
        dict(reversed(model.state_dict().items())), replace(model.config, source="elsewhere"), tmp_path / "other"
    )
    assert convert(other, tmp_path / "b", to="proteinglm", max_bytes=3000).weights_sha256 == first.weights_sha256
    model.blocks[0].mlp.up.bias.data[0] = -model.blocks[0].mlp.up.bias.data[0]
    assert convert(checkpoint.save(model, tmp_path / "c"), tmp_path / "d").weights_sha256 != first.weights_sha256


# ---- kills


@pytest.mark.parametrize("where", ["save_file", "describe", "_read_back", "rename"])
def test_a_kill_leaves_nothing_half_valid(ours, tmp_path, monkeypatch, where):
    """The hidden folder is no model until all of it is written, and the next attempt clears it away."""
    out, num_calls = tmp_path / "out", 0

    def kill(*_, **__):
        nonlocal num_calls
        num_calls += 1
        if where != "save_file" or num_calls == 3:  # after two shards
            os.kill(os.getpid(), signal.SIGKILL)
        save_file(*_, **__)

    save_file = checkpoint.save_file

    def arm():
        if where == "describe":
            monkeypatch.setattr(layouts, "XTRIMO", layouts.XTRIMO._replace(describe=kill))
        elif where == "rename":
            monkeypatch.setattr(Path, "rename", kill)
        else:
            monkeypatch.setattr(checkpoint if where == "save_file" else conversion, where, kill)

    assert killed(arm, lambda: convert(ours, out, max_bytes=4000))
    hidden = tmp_path / ".out.unfinished"
    assert not out.exists() and hidden.is_dir()
    if where in ("save_file", "describe"):
        with pytest.raises(CheckpointError, match="not a model directory"):
            load(hidden)
    else:  # whole, but for its name
        assert same(load(hidden).state_dict(), load(ours).state_dict())
    convert(ours, out, max_bytes=9000)
    assert same(load(out).state_dict(), load(ours).state_dict())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["ours", "out"]
    assert {file.name for file in out.glob("*.safetensors")} == set(checkpoint.read_config(out)[1])


# ---- the verb


def test_the_verb(ours, tmp_path, capsys):
    main([str(ours), str(tmp_path / "b"), "--to", "proteinglm", "--dtype", "bf16", "--shard-size", "4kB"])
    facts = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    stated = checkpoint.read_stated(tmp_path / "b/xtrimo.json")
    assert facts["directory"] == str(tmp_path / "b") and facts["licence"] == "Apache-2.0"
    assert facts["weights_sha256"] == stated.weights_sha256 and load(tmp_path / "b").dtype == torch.bfloat16
    assert (
        facts["weights"] == f"{sum(f['bytes'] for f in stated.files.values()):,} bytes in {len(stated.files)} file(s)"
    )
