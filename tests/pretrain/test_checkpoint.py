"""Checkpoints of one layout: what comes back is what was saved, or an error that says why not."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from pretrain import checkpoint_files, checkpoint_writing
from pretrain.checkpoint_files import path_of, steps
from tests.pretrain.reference import STEPS
from tests.pretrain.toy_runs import toy_run
from xtrimo.errors import CheckpointError
from xtrimo.testing import run_distributed

TP2, ZERO = dict(tensor_degree=2), dict(distributed_optimizer=True)


def save_two(rank: int, folder: Path, layout: dict, changes: dict | None = None) -> list[float]:
    """Checkpoints after steps 2 and 3, then the losses to the end."""
    with toy_run(folder, layout, **changes or {}) as run:
        run.train(0, 2)
        run.checkpoints.save(2, {"next": 2})
        run.train(2, 3)
        run.checkpoints.save(3, {"next": 3, "losses": [0.1]})
        return run.train(3, STEPS)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Checkpoints of two tensor ranks, each of which writes files of its own."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    run_distributed(save_two, 2, folder, TP2)
    return folder


@contextmanager
def logged() -> Iterator[list[str]]:
    """What our packages log on this rank."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(f"{record.levelname} {record.getMessage()}")
    logging.getLogger("pretrain").addHandler(handler)
    yield lines
    logging.getLogger("pretrain").removeHandler(handler)


def load_from(rank: int, folder: Path, layout: dict, changes: dict | None = None) -> tuple[int, dict, list[str]]:
    with toy_run(folder, layout, **changes or {}) as run, logged() as lines:
        return *run.checkpoints.load(), lines


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("layout", [{}, ZERO], ids=["plain", "distributed optimizer"])
def test_a_resumed_run_repeats_the_unbroken_one_to_the_bit(tmp_path, layout, precision):
    changes = dict(precision=precision)

    def resume(rank: int) -> tuple[int, dict, list[float]]:
        with toy_run(tmp_path, layout, **changes) as run:
            step, progress = run.checkpoints.load()
            return step, progress, run.train(step, STEPS)

    expected = run_distributed(save_two, 2, tmp_path, layout, changes)
    assert run_distributed(resume, 2) == [(3, {"next": 3, "losses": [0.1]}, losses) for losses in expected]


def test_an_empty_folder_starts_a_run(tmp_path):
    assert run_distributed(load_from, 1, tmp_path / "none", {})[0][:2] == (0, {})


@pytest.mark.parametrize("layout", [{}, ZERO], ids=["plain", "distributed optimizer"])
def test_the_loss_scale_comes_back(tmp_path, layout):
    def lower(rank: int) -> None:
        with toy_run(tmp_path, layout, precision="fp16") as run:
            run.train(0, 1)
            for part in run.trainer.optimizer.chained_optimizers:
                part.grad_scaler._scale.fill_(1024.0)
            run.checkpoints.save(1, {})

    def scale(rank: int) -> float:
        with toy_run(tmp_path, layout, precision="fp16") as run:
            run.checkpoints.load()
            return float(run.trainer.optimizer.get_loss_scale())

    run_distributed(lower, 2)
    assert run_distributed(scale, 2) == [1024.0, 1024.0]


@pytest.mark.parametrize("layout", [{}, ZERO], ids=["plain", "distributed optimizer"])
def test_a_run_whose_steps_were_all_skipped_is_saved_too(tmp_path, layout):
    """As under fp16, whose loss scale is found by overflows."""

    def skip(rank: int) -> list[float]:
        with toy_run(tmp_path, layout, precision="fp16") as run:
            run.trainer.scheduler.step(1)
            run.checkpoints.save(1, {})
            return run.train(1, STEPS)

    def resume(rank: int) -> list[float]:
        with toy_run(tmp_path, layout, precision="fp16") as run:
            return run.train(run.checkpoints.load()[0], STEPS)

    expected = run_distributed(skip, 2)
    assert run_distributed(resume, 2) == expected


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("harm", [flip, cut, Path.unlink])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_loaded(saved, tmp_path, harm):
    def load_each(rank: int, folders: list[Path]) -> list[tuple[int, dict, list[str]]]:
        return [load_from(rank, folder, TP2) for folder in folders]

    names = sorted(path.name for path in path_of(saved, 3).iterdir())
    assert names == [
        ".metadata", "__0_0.distcp", "__0_1.distcp", "__1_0.distcp", "__1_1.distcp", "common.pt", "facts.json",
        "metadata.json",
    ]  # fmt: skip
    folders = []
    for name in names:
        folders.append(shutil.copytree(saved, tmp_path / name))
        harm(path_of(folders[-1], 3) / name)
    ranks = run_distributed(load_each, 2, folders)
    for name, (step, progress, lines), (*other, silent) in zip(names, *ranks, strict=True):
        assert [step, progress] == other == [2, {"next": 2}]
        assert silent == []
        [line] = lines
        assert line.startswith("ERROR") and "step-00000003 is passed over, for the one before it" in line
        assert f"{name} " in line


def test_checkpoints_that_are_all_damaged_start_no_run(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "c")
    for step in (2, 3):
        flip(path_of(folder, step) / "__1_0.distcp")
    message = r"no checkpoint to go on from: step-00000003 \(.*__1_0.distcp was altered\), step-00000002 \(.*put one"
    with pytest.raises(RuntimeError, match=message):
        run_distributed(load_from, 2, folder, TP2)


def test_the_ranks_share_the_verification(saved, monkeypatch):
    def files_read(rank: int) -> list[str]:
        read, stamp = [], checkpoint_files.stamp
        monkeypatch.setattr(checkpoint_files, "stamp", lambda path: read.append(path.name) or stamp(path))
        load_from(rank, saved, TP2)
        return read

    small = {".metadata", "common.pt", "metadata.json"}  # which every rank goes on to read
    first, second = ({*names} - small for names in run_distributed(files_read, 2))
    assert len(first) == len(second) == 2 and not first & second


def test_the_run_chooses_among_checkpoints(saved):
    def load(rank: int, before: int) -> tuple[int, list[str]]:
        with toy_run(saved, TP2) as run, logged() as lines:
            return run.checkpoints.load(lambda progress: progress["next"] < before)[0], lines

    step, lines = run_distributed(load, 2, 3)[0]
    assert step == 2
    assert "WARNING" in lines[0] and "step-00000003 is passed over" in lines[0]
    with pytest.raises(RuntimeError, match="no checkpoint to go on from: step-00000003 .it has seen batches"):
        run_distributed(load, 2, 1)


@pytest.mark.parametrize(
    ("layout", "changes", "message"),
    [
        (TP2, dict(steps=2), "step-00000003 has done 3 steps, the run is to have 2; ask for more"),
        (TP2 | ZERO, {}, "distributed_optimizer: saved False, asked True. .*0.16.1 reads neither kind.*Start again"),
    ],
)
def test_what_cannot_be_continued_is_refused(saved, layout, changes, message):
    with pytest.raises(RuntimeError, match=message):
        run_distributed(load_from, 2, saved, layout, changes)


def test_a_plain_optimizer_is_not_given_a_distributed_ones_state(tmp_path):
    run_distributed(save_two, 1, tmp_path, ZERO)
    with pytest.raises(RuntimeError, match="distributed_optimizer: saved True, asked False.*reads neither kind"):
        run_distributed(load_from, 1, tmp_path, {})


def test_the_first_format_loads_unverified(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "c")
    for step in (2, 3):
        facts = json.loads((path_of(folder, step) / "facts.json").read_text())
        (path_of(folder, step) / "facts.json").write_text(json.dumps({"step": step, "config": facts["config"]}))
    step, progress, [line] = run_distributed(load_from, 2, folder, TP2)[0]
    assert (step, progress) == (3, {})
    assert "WARNING" in line and "step-00000003 has no checksums" in line
    shard = path_of(folder, 3) / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(RuntimeError, match="step-00000003 could not be loaded.*it is left as it is"):
        run_distributed(load_from, 2, folder, TP2)  # damaged, or a disk that fails: without checksums none can tell


def hold_writers(gate: Path) -> None:
    """Let the writers that this rank forks from now on wait for a file."""
    write = checkpoint_writing._write_file

    def wait(*args):
        while not gate.exists():
            time.sleep(0.01)
        return write(*args)

    checkpoint_writing._write_file = wait


def save_beside(rank: int, folder: Path, layout: dict, gate: Path) -> None:
    """What `save_two` saves, but while training goes on."""
    with toy_run(folder, layout, async_save=True) as run:
        if rank == 0:  # its writers alone are slow: the other's must wait to be seen
            hold_writers(gate)
        run.train(0, 2)
        run.checkpoints.save(2, {"next": 2})
        run.train(2, 3)
        run.checkpoints.poll()
        assert steps(folder) == []
        gate.touch()
        run.checkpoints.save(3, {"next": 3, "losses": [0.1]})
        assert steps(folder) == [2]  # the second save finished the first
        run.train(3, STEPS)
        while steps(folder) == [2]:
            run.checkpoints.poll()
        assert steps(folder) == [2, 3]
        run.checkpoints.finish()


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, whole."""
    from torch.distributed.checkpoint import FileSystemReader, load
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    entries = FileSystemReader(checkpoint).read_metadata().state_dict_metadata.items()
    whole = {
        k: torch.empty(v.size, dtype=v.properties.dtype) for k, v in entries if isinstance(v, TensorStorageMetadata)
    }
    load(whole, storage_reader=FileSystemReader(checkpoint), no_dist=True)
    return whole


@pytest.mark.filterwarnings("ignore:torch.distributed is")
@pytest.mark.parametrize("layout", [TP2, ZERO], ids=["tp2", "dp2 distopt"])
def test_a_save_beside_the_training_is_the_same(tmp_path, layout):
    run_distributed(save_two, 2, tmp_path / "at once", layout)
    run_distributed(save_beside, 2, tmp_path / "beside", layout, tmp_path / "gate")
    for step in (2, 3):
        expected, got = (tensors(path_of(tmp_path / name, step)) for name in ("at once", "beside"))
        assert expected.keys() == got.keys() and len(got) > 40
        assert all(torch.equal(expected[name], got[name]) for name in expected)
        common = [torch.load(path_of(tmp_path / name, step) / "common.pt") for name in ("at once", "beside")]
        assert common[0] == common[1]


def lose_writer(rank: int, folder: Path, gate: Path) -> tuple[str, list[str], list[int]]:
    """Rank 1's writer is killed; what each rank is told, what is left, and that a later save succeeds."""
    with toy_run(folder, TP2, async_save=True) as run:
        run.checkpoints.save(1, {})
        run.checkpoints.finish()
        hold_writers(gate)
        run.checkpoints.save(2, {})
        [call] = run.checkpoints._queue.async_calls
        if rank == 1:
            os.kill(call.async_caller.process.pid, signal.SIGKILL)
        else:
            gate.touch()
        with pytest.raises(CheckpointError) as caught:
            while True:
                run.checkpoints.poll()
        left = sorted(path.name for path in folder.iterdir())
        run.checkpoints.save(3, {})
        run.checkpoints.finish()
        return str(caught.value), left, steps(folder)


def test_a_writer_that_is_killed_is_reported_by_every_rank(tmp_path):
    for message, left, found in run_distributed(lose_writer, 2, tmp_path / "c", tmp_path / "gate"):
        assert "checkpoint of step 2 was not saved: rank 1: the writer of shards left no report" in message
        assert "What was saved before is untouched" in message
        assert left == ["step-00000001"]
        assert found == [1, 3]


def test_without_psutil_the_error_comes_before_the_hang(tmp_path):
    code = (
        "import sys; sys.modules['psutil'] = None\n"
        "from pathlib import Path\n"
        "from pretrain.checkpoint import Checkpoints\n"
        f"Checkpoints(None, Path({str(tmp_path)!r}), {{}})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "MissingExtraError: saving checkpoints needs psutil; run: pip install 'xtrimo[pretrain]'" in done.stderr
