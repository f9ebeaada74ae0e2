"""Saves that are killed, or have no room on the disk: the run ends with the reason, and goes on from the one before.

Kills are SIGKILL, given by the process to itself at a stage of the save; test_checkpoint_files.py kills at every single
file operation. Disks are small file systems in memory, really full.
"""

import errno
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pretrain import checkpoint, checkpoint_writing
from pretrain.checkpoint_files import path_of, steps
from tests.pretrain.toy_runs import toy_run
from xtrimo.errors import CheckpointError
from xtrimo.testing import run_distributed

TP2 = dict(tensor_degree=2)


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def then_die(module: object, name: str) -> None:
    """Let a function do its work once more."""
    work = getattr(module, name)
    setattr(module, name, lambda *args, **kwargs: (work(*args, **kwargs), die()))


def remove_half(folder: Path, ignore_errors: bool = False) -> None:
    for path in sorted(folder.iterdir())[::2]:
        path.unlink()
    die()


STAGES: dict[str, Callable[[], object]] = {
    "before data": lambda: setattr(checkpoint_writing, "_write_file", die),
    "after data": lambda: setattr(checkpoint_writing.ShardedSave, "finish", die),
    "before the rename": lambda: setattr(checkpoint, "publish", die),
    "after the rename": lambda: then_die(checkpoint, "publish"),
    "while pruning": lambda: setattr(shutil, "rmtree", remove_half),
}


def save_and_die(rank: int, folder: Path, stage: str, victim: int, beside: bool) -> None:
    with toy_run(folder, TP2 if victim else {}, async_save=beside) as run:
        for step in (1, 2):
            run.train(step - 1, step)
            run.checkpoints.save(step, {})
        run.train(2, 3)
        run.checkpoints.finish()
        if rank == victim:
            STAGES[stage]()
        run.checkpoints.save(3, {})
        run.checkpoints.finish()


def go_on(rank: int, folder: Path, layout: dict) -> tuple[int, list[int], list[str]]:
    """The step of the checkpoint that is found, then what is there after two more."""
    with toy_run(folder, layout) as run:
        found, _ = run.checkpoints.load()
        run.train(found, 4)
        run.checkpoints.save(4, {})
        run.train(4, 5)
        run.checkpoints.save(5, {})
        return found, steps(folder), sorted(path.name for path in folder.iterdir())


def found_in(rank: int, folder: Path, layout: dict) -> int:
    with toy_run(folder, layout) as run:
        return run.checkpoints.load()[0]


@pytest.mark.parametrize(("stage", "beside"), [*((stage, False) for stage in STAGES), ("before the rename", True)])
def test_killed_at_a_stage_the_next_run_finds_the_newest_whole_checkpoint(tmp_path, stage, beside):
    with pytest.raises(RuntimeError, match="rank 0 ended with exit code -9"):
        run_distributed(save_and_die, 1, tmp_path, stage, 0, beside)
    assert list(tmp_path.glob(".step-*.tmp")) != [] or stage == "after the rename"
    newest = 3 if stage in ("after the rename", "while pruning") else 2
    names = ["step-00000004", "step-00000005"]
    assert run_distributed(go_on, 1, tmp_path, {}) == [(newest, [4, 5], names)]


def test_one_of_two_ranks_killed_while_it_writes(tmp_path):
    with pytest.raises(RuntimeError, match="rank 1 ended with exit code -9"):
        run_distributed(save_and_die, 2, tmp_path, "before data", 1, False)
    assert run_distributed(found_in, 2, tmp_path, TP2) == [2, 2]


def wait_for(*paths: Path) -> None:
    while not all(path.exists() for path in paths):
        time.sleep(0.01)


def test_a_writer_that_outlives_its_run_harms_nothing(tmp_path):
    folder, gate, ends = tmp_path / "c", tmp_path / "gate", [tmp_path / "__0_0.distcp", tmp_path / "__0_1.distcp"]

    def start_and_die(rank: int) -> None:
        write = checkpoint_writing._write_file

        def write_late(transforms, bucket):
            wait_for(gate)
            try:
                return write(transforms, bucket)
            finally:
                (tmp_path / bucket[1]).touch()

        with toy_run(folder, async_save=True) as run:
            run.train(0, 1)
            run.checkpoints.save(1, {})
            run.checkpoints.finish()
            checkpoint_writing._write_file = write_late
            run.checkpoints.save(2, {})
            die()

    def save_again(rank: int) -> int:
        """The step that the orphan is still at; it writes once the shards of the new run are there."""
        finish = checkpoint_writing.ShardedSave.finish

        def finish_late(save):
            stamps = finish(save)
            gate.touch()
            wait_for(*ends)
            return stamps

        with toy_run(folder) as run:
            found, _ = run.checkpoints.load()
            run.train(found, 3)
            checkpoint_writing.ShardedSave.finish = finish_late
            run.checkpoints.save(2, {})
            return found

    with pytest.raises(RuntimeError, match="exit code -9"):
        run_distributed(start_and_die, 1)
    assert len(list(folder.glob(".step-*.tmp"))) == 1
    assert run_distributed(save_again, 1) == [1]
    assert run_distributed(found_in, 1, folder, {}) == [2]


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 9 MB: room for three checkpoints of 2.6 MB."""
    if os.geteuid():
        pytest.skip("mounting a small file system takes root")
    (tmp_path / "disk").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", tmp_path / "disk"], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"mounting a small file system is not permitted: {mounted.stderr.decode()}")
    yield tmp_path / "disk"
    subprocess.run(["umount", "--lazy", tmp_path / "disk"], check=True)


def fill(disk: Path) -> None:
    """Take the last byte."""
    with (disk / "filler").open("ab", buffering=0) as file:
        for size in (65536, 4096, 512, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError as error:
                assert error.errno == errno.ENOSPC


def fill_first(disk: Path, owner: object, name: str) -> None:
    """Fill the disk just before a function does its work."""
    work = getattr(owner, name)
    setattr(owner, name, lambda *args, **kwargs: (fill(disk), work(*args, **kwargs))[1])


FULL: dict[str, Callable[[Path], object]] = {
    "before the save": fill,
    "before what is not sharded": lambda disk: fill_first(disk, checkpoint_writing.ShardedSave, "_write_common"),
    "before the shards": lambda disk: fill_first(disk, checkpoint_writing, "_write_file"),
    "before the index": lambda disk: fill_first(disk, checkpoint_writing.ShardedSave, "_write_index"),
    "before the facts": lambda disk: fill_first(disk, checkpoint.Facts, "write"),
}


def save_on_full_disk(rank: int, disk: Path, stage: str, victim: int, layout: dict, beside: bool) -> tuple[str, list]:
    """What this rank is told, and what is left in the folder."""
    folder = disk / "c"
    with toy_run(folder, layout, keep=9, async_save=beside) as run:
        run.train(0, 1)
        run.checkpoints.save(1, {})
        run.checkpoints.finish()
        run.train(1, 2)
        if rank == victim:
            FULL[stage](disk)
        with pytest.raises(CheckpointError) as caught:
            run.checkpoints.save(2, {})
            run.checkpoints.finish()
        return str(caught.value), sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("ranks", "stage", "victim", "beside"),
    [
        (1, "before the save", 0, False),
        (1, "before the shards", 0, True),
        *((2, stage, 0, False) for stage in FULL),
        (2, "before the shards", 1, False),
        (2, "before the shards", 1, True),
    ],
)
def test_a_full_disk_ends_the_run_on_all_ranks_and_spares_what_was_saved(small_disk, ranks, stage, victim, beside):
    layout = dict(tensor_degree=ranks)
    for message, left in run_distributed(save_on_full_disk, ranks, small_disk, stage, victim, layout, beside):
        assert f"{small_disk / 'c'}: the checkpoint of step 2 was not saved: rank " in message
        assert f" rank {victim}: " in message and ("too little room" in message) == (stage == "before the save")
        assert re.search(r"It takes 2,2\d\d,\d\d\d bytes, and [\d,]+ are free", message)
        assert left == ["step-00000001"]
    (small_disk / "filler").unlink()
    assert run_distributed(found_in, ranks, small_disk / "c", layout) == [1] * ranks


def test_one_rank_that_cannot_write_stops_all(tmp_path):
    def save(rank: int) -> tuple[str, list[str]]:
        def refuse(*_: object) -> None:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")

        with toy_run(tmp_path, TP2) as run:
            run.checkpoints.save(1, {})
            if rank == 1:
                checkpoint_writing._write_file = refuse
            with pytest.raises(CheckpointError) as caught:
                run.checkpoints.save(2, {})
            return str(caught.value), sorted(path.name for path in tmp_path.iterdir())

    for message, left in run_distributed(save, 2):
        assert "step 2 was not saved: rank 1: OSError: [Errno 122] Disk quota exceeded" in message
        assert left == ["step-00000001"]


def test_a_folder_that_a_rank_does_not_share_is_refused(tmp_path):
    def save(rank: int) -> str:
        with toy_run(tmp_path / str(rank), TP2) as run, pytest.raises(CheckpointError) as caught:
            run.checkpoints.save(1, {})
        return str(caught.value)

    for message in run_distributed(save, 2):
        assert "rank 1: " in message and "must be one that all ranks share" in message
    assert not path_of(tmp_path, 1).exists()
