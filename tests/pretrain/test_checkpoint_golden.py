"""Checkpoints written once and kept: what a run saved before an upgrade must load after it, in any layout.

`golden/checkpoints.tar.xz` holds a tiny model after 2 steps on two tensor ranks, once with either optimizer;
`golden/checkpoints.json` what each must give: its weights' checksums, and the losses of the next steps.
After a wanted change of the format, from the root: python -m tests.pretrain.test_checkpoint_golden --update
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest

from pretrain.checkpoint_files import checksum, path_of
from pretrain.config import ParallelConfig
from pretrain.export import ExportConfig, export_run, read_weights
from pretrain.model import shard
from tests.pretrain.reference import make_config
from tests.pretrain.toy_runs import toy_run
from xtrimo.config import PRESETS
from xtrimo.errors import CheckpointError
from xtrimo.names import state_to_megatron
from xtrimo.testing import run_distributed, toy_config

ROOT = Path(__file__).parents[2]
ARCHIVE = ROOT / "tests" / "golden" / "checkpoints.tar.xz"
EXPECTED = ARCHIVE.with_name("checkpoints.json")
TINY = toy_config(num_layers=2, hidden_size=16, num_heads=2, ffn_size=32)
TP2, PP2 = dict(tensor_degree=2), dict(pipeline_degree=2)
KINDS = {"plain": {}, "distributed": dict(distributed_optimizer=True)}
SAVED, END = 2, 5


@pytest.fixture(scope="module", autouse=True)
def toy_preset():
    PRESETS["toy"] = TINY
    yield
    del PRESETS["toy"]


@pytest.fixture(scope="module")
def golden(tmp_path_factory) -> Path:
    """The checkpoints of each kind, unpacked."""
    folder = tmp_path_factory.mktemp("golden")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


def expected(kind: str) -> dict:
    return json.loads(EXPECTED.read_text())[kind]


def sums(checkpoint: Path) -> dict[str, str]:
    """Checksums of the plain model's weights."""
    weights = read_weights(checkpoint, TINY)
    return {name: checksum(weight.numpy().tobytes()) for name, weight in weights.items()}


def write(rank: int, folder: Path, kind: str) -> list[float]:
    """Write the checkpoint of a kind; the losses of the steps after it, of which the later ones need the optimizer."""
    with toy_run(folder, TP2 | KINDS[kind]) as run:
        run.train(0, SAVED)
        run.checkpoints.save(SAVED, {"next_batch": SAVED})
        return run.train(SAVED, END)


def load(rank: int, folder: Path, layout: dict) -> tuple[int, dict, list[float]]:
    """Load in a layout; every weight must be the one that torch alone reads."""
    with toy_run(folder, layout, seed=99) as run:
        step, progress = run.checkpoints.load()
        whole = state_to_megatron(read_weights(path_of(folder, SAVED), TINY), run.trainer.config.glm)
        for core in run.trainer.cores:
            for name, weight in core.named_parameters():
                assert weight.equal(shard(name, whole[core.global_name(name)], weight))
        return step, progress, run.train(step, END)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("ranks", "layout"), [(1, {}), (2, TP2), (2, PP2)], ids=["alone", "tp2", "pp2"])
def test_it_loads_and_trains_on_in_any_layout(golden, kind, ranks, layout):
    for step, progress, losses in run_distributed(load, ranks, golden / kind, layout | KINDS[kind]):
        assert (step, progress) == (SAVED, {"next_batch": SAVED})
        np.testing.assert_allclose(losses, expected(kind)["losses"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_torch_alone_reads_its_weights(golden, kind):
    code = (
        "import json, sys; sys.modules['megatron'] = None\n"
        "from pathlib import Path\n"
        "from pretrain.checkpoint_files import checksum\n"
        "from pretrain.export import read_weights\n"
        "from xtrimo.config import GLMConfig\n"
        "weights = read_weights(Path(sys.argv[1]), GLMConfig.from_dict(json.loads(sys.argv[2])))\n"
        "print(json.dumps({name: checksum(weight.numpy().tobytes()) for name, weight in weights.items()}))"
    )
    command = [sys.executable, "-c", code, path_of(golden / kind, SAVED), json.dumps(TINY.to_dict())]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert json.loads(done.stdout) == expected(kind)["weights"], done.stderr


def test_export_refuses_an_altered_bit(golden, tmp_path):
    shutil.copytree(golden / "plain", tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "config.json").write_text(make_config(ParallelConfig()).to_json())
    assert export_run(ExportConfig(run=tmp_path / "run", out=tmp_path / "sound")) == SAVED
    shard = path_of(tmp_path / "run" / "checkpoints", SAVED) / "__1_0.distcp"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CheckpointError, match="step-00000002 cannot be read: __1_0.distcp was altered; choose another"):
        export_run(ExportConfig(run=tmp_path / "run", out=tmp_path / "altered"))
    assert not (tmp_path / "altered").exists()


def test_it_is_small():
    assert ARCHIVE.stat().st_size + EXPECTED.stat().st_size < 500_000


def update() -> None:
    PRESETS["toy"] = TINY
    written = {}
    with tempfile.TemporaryDirectory() as folder, tarfile.open(ARCHIVE, "w:xz") as archive:
        os.chdir(folder)  # a checkpoint's index keeps the path that it was written under
        for kind in KINDS:
            losses, _ = run_distributed(write, 2, Path(kind), kind)
            written[kind] = {"losses": losses, "weights": sums(path_of(Path(kind), SAVED))}
            archive.add(kind)
    EXPECTED.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        sys.exit(__doc__)
    update()
