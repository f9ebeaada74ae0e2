"""The parts of an output: what a kill leaves, processes and shards, work of other settings, names in HDF5."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from xtrimo import embedding_file, embedding_parts
from xtrimo.checkpoint import save
from xtrimo.embedding_parts import Part, cut, read_embeddings
from xtrimo.errors import XtrimoError
from xtrimo.fasta import Record, write_fasta
from xtrimo.model import GLM
from xtrimo.testing import killed, toy_config, toy_sequences

RECORDS = [Record(f"p{i}", sequence) for i, sequence in enumerate(toy_sequences(30, min_length=5, max_length=40))]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    save(GLM(toy_config(num_layers=2, max_length=64)), tmp_path / "model")
    write_fasta(tmp_path / "many.fasta", RECORDS)
    write_fasta(tmp_path / "in.fasta", RECORDS[:4])
    return tmp_path


def run(work: Path, *flags: str, fasta: str = "many.fasta") -> None:
    embedding_file.main([str(work / fasta), str(work / "out.h5"), "--model", str(work / "model"), *flags])


def test_parts_are_cut_by_residues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_parts, "PART_RESIDUES", 10)
    assert cut([4, 5, 1, 30, 3]) == [Part(0, 0, 3, 10), Part(1, 3, 1, 30), Part(2, 4, 1, 3)]
    assert cut([10]) == [Part(0, 0, 1, 10)] and cut([]) == []


def test_records_of_one_name_have_names_of_their_own(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "names.h5", "w") as file:
        made = []
        for name in ("a", "a", "a#5", "a", "a", "a", "a", ".x.", "", ".."):
            made.append(embedding_parts._free_name(file, name))
            file.create_group(made[-1])
        assert made[:6] == ["a", "a#2", "a#5", "a#3", "a#6", "a#7"] and len(set(made)) == 10


def test_names_are_not_counted_through() -> None:
    looked = []

    class Crowded(h5py.File):
        def __init__(self) -> None:
            pass

        def __contains__(self, name: str) -> bool:
            looked.append(name)
            return name == "b" or int(name[2:]) < 1_000_000

    assert embedding_parts._free_name(Crowded(), "b") == "b#1000000" and len(looked) < 50


def content(out: Path) -> list[tuple[str, bytes]]:
    return [(name, states.tobytes()) for name, states in read_embeddings(out)]


@pytest.fixture
def expected(work: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bytes]]:
    """What an unbroken run writes, and then nothing in the way of another; parts are small."""
    monkeypatch.setattr(embedding_parts, "PART_RESIDUES", 150)
    run(work)
    unbroken = content(work / "out.h5")
    assert [name for name, _ in unbroken] == [record.name for record in RECORDS]
    (work / "out.h5").unlink()
    return unbroken


def left_over(work: Path) -> list[str]:
    return sorted(path.name for path in work.iterdir() if path.name not in ("model", "in.fasta", "many.fasta"))


def killed_at(step: int, run: Callable[[], object]) -> bool:
    """In a fork, die of SIGKILL at the `step`-th touch of the disk; False if it got through."""

    def arm() -> None:
        touched = 0

        def or_die(touch: Callable[..., object]) -> Callable[..., object]:
            def touching(*args: object, **kwargs: object) -> object:
                nonlocal touched
                touched += 1
                if touched == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return touch(*args, **kwargs)

            return touching

        os.replace, os.fsync, os.rmdir = or_die(os.replace), or_die(os.fsync), or_die(os.rmdir)
        embedding_parts._add = or_die(embedding_parts._add)

    return killed(arm, run)


def test_killed_anywhere_the_same_command_continues(work: Path, expected: list[tuple[str, bytes]]) -> None:
    step = 1
    while killed_at(step, lambda: run(work)):
        out = work / "out.h5"
        assert not out.exists() or content(out) == expected  # whole, or not there
        run(work)
        assert content(out) == expected, step
        assert left_over(work) == ["out.h5"]
        out.unlink()
        step += 1 if step < 8 or step > 44 else 3 if step < 20 else 7  # parts are alike, and records of the merge
    assert step > 30


def start(work: Path, *flags: str, residues: int = 150) -> "subprocess.Popen[bytes]":
    code = "import sys, time; from xtrimo import embedding_parts as e, embedding_file as f, model"
    code += f"; e.PART_RESIDUES = {residues}"
    code += "; hidden = model.GLM.hidden; slowly = lambda *a, **b: time.sleep(0.1) or hidden(*a, **b)"
    code += "; model.GLM.hidden = slowly"
    args = [str(work / "many.fasta"), str(work / "out.h5"), "--model", str(work / "model"), *flags]
    return subprocess.Popen([sys.executable, "-c", f"{code}; f.main(sys.argv[1:])", *args], start_new_session=True)


def test_killed_with_its_processes_at_work_it_continues(work: Path, expected: list[tuple[str, bytes]]) -> None:
    parts = work / ".out.h5.parts"
    process = start(work, "--processes", "2", "--row-tokens", "40")
    deadline = time.monotonic() + 60
    while len(list(parts.glob("0*.h5"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()  # the parent alone, which no child can prevent
    process.wait()
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)  # its children end by themselves, before their work does
            time.sleep(0.01)
    found = {path.name for path in parts.glob("0*.h5")}
    assert 2 <= len(found) < len(cut(len(record.sequence) for record in RECORDS))
    run(work, "--processes", "2")
    assert [name for name, _ in content(work / "out.h5")] == [name for name, _ in expected]
    for (_, states), (_, unbroken) in zip(content(work / "out.h5"), expected, strict=True):
        np.testing.assert_allclose(np.frombuffer(states, np.float32), np.frombuffer(unbroken, np.float32), atol=1e-5)
    time.sleep(0.1)
    assert left_over(work) == ["out.h5"]


def test_an_idle_worker_ends_with_its_killed_parent(work: Path) -> None:
    """One part for two processes; the one that gets none must not wait for ever."""
    process = start(work, "--processes", "2", "--row-tokens", "40", residues=10**6)
    deadline = time.monotonic() + 60
    while not list(work.glob(".out.h5.parts/000000.h5.*")) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    process.wait()
    began = time.monotonic()
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < began + 10:
            os.killpg(process.pid, 0)
            time.sleep(0.01)
    assert not (work / "out.h5").exists()


def test_the_same_command_started_twice_ends_well_twice(work: Path, expected: list[tuple[str, bytes]]) -> None:
    """The slower one loses its folder in the middle of a part, at its end, or before it puts the parts together."""
    write, merge, missing = (getattr(embedding_parts.Parts, name) for name in ("write", "merge", "missing"))

    def overtaken(name: str, at: int) -> None:
        calls = 0

        def late(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                with pytest.MonkeyPatch.context() as original:
                    for own, function in (("write", write), ("merge", merge), ("missing", missing)):
                        original.setattr(embedding_parts.Parts, own, function)
                    run(work)
            return {"write": write, "merge": merge, "missing": missing}[name](*args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(embedding_parts.Parts, name, late)
            run(work)
        assert calls >= at
        assert content(work / "out.h5") == expected and left_over(work) == ["out.h5"], (name, at)
        (work / "out.h5").unlink()

    for name, at in (("write", 1), ("write", 3), ("missing", 1), ("missing", 2), ("merge", 1)):
        overtaken(name, at)


def test_the_folder_goes_without_the_lock(work: Path, expected, monkeypatch: pytest.MonkeyPatch) -> None:
    """On NFS a folder cannot be removed while a file of it is open."""
    remove = shutil.rmtree

    def as_on_nfs(path: Path, ignore_errors: bool = False) -> None:
        opened = [os.readlink(handle) for handle in Path("/proc/self/fd").iterdir() if handle.is_symlink()]
        if any(handle.removesuffix(" (deleted)").startswith(f"{path}/") for handle in opened):
            if ignore_errors:
                return
            raise OSError(errno.ENOTEMPTY, "Directory not empty")
        remove(path, ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", as_on_nfs)
    run(work)
    assert content(work / "out.h5") == expected and left_over(work) == ["out.h5"]


def test_only_what_is_old_counts_as_left_by_the_dead(work: Path) -> None:
    folder = work / ".out.h5.parts"
    folder.mkdir()
    store = embedding_parts.Parts(work / "out.h5", {"pooling": "none"})
    fresh, old = folder / "000000.h5.0123.tmp", folder / "000000.h5.4567.tmp"
    for path in (fresh, old):  # of any machine, whose processes nobody can ask for here
        path.touch()
    os.utime(old, (time.time() - 4000, time.time() - 4000))
    store.open()
    assert fresh.exists() and not old.exists()
    with store._appearing(folder / "a") as one, store._appearing(folder / "a") as other:
        assert one != other  # by one process, or by two of one number on two machines
        one.touch()
        other.touch()


def test_processes_and_shards_write_the_same(work: Path, expected: list[tuple[str, bytes]]) -> None:
    out = work / "out.h5"
    run(work, "--processes", "3")
    assert content(out) == expected
    out.unlink()
    for index in (2, 3, 1):
        assert not out.exists()
        run(work, "--shard", f"{index}/3")
    assert content(out) == expected and left_over(work) == ["out.h5"]
    before = out.stat().st_mtime_ns
    run(work, "--shard", "2/3")  # a job that is queued again
    assert out.stat().st_mtime_ns == before and left_over(work) == ["out.h5"]


def test_shards_that_end_together_merge_once(work: Path, expected: list[tuple[str, bytes]], monkeypatch) -> None:
    for index in (1, 2):
        run(work, "--shard", f"{index}/3")
    saved = embedding_parts.Parts.merge
    children, called = [], []

    def merge_in_three(*args) -> None:
        called.extend(args)
        for _ in range(3):
            if (child := os.fork()) == 0:
                status = 1
                try:
                    saved(*args)
                    status = 0
                finally:
                    os._exit(status)
            children.append(child)

    monkeypatch.setattr(embedding_parts.Parts, "merge", merge_in_three)
    run(work, "--shard", "3/3")
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    saved(*called)  # as one does that comes late, when the folder is gone
    assert content(work / "out.h5") == expected and left_over(work) == ["out.h5"]


def test_parts_of_other_work_are_refused(work: Path, expected: list[tuple[str, bytes]]) -> None:
    run(work, "--shard", "1/2")
    for flags, said in (
        (("--pooling", "mean"), "pooling none, now mean"),
        (("--dtype", "f16"), "dtype float32, now float16"),
        (("--precision", "bf16"), "precision fp32, now bf16"),
    ):
        with pytest.raises(XtrimoError, match=f"unfinished work of other settings .*{said}.* remove the folder"):
            run(work, *flags)
    with pytest.raises(XtrimoError, match="input_hash"):
        run(work, fasta="in.fasta")
    run(work, "--shard", "2/2", "--row-tokens", "64")  # changes no state
    assert [name for name, _ in content(work / "out.h5")] == [name for name, _ in expected]
    run(work, "--pooling", "mean")  # a finished output is replaced
    with h5py.File(work / "out.h5") as file:
        assert file.attrs["pooling"] == "mean"


def test_an_error_in_a_worker_is_the_error_of_the_run(work: Path, expected, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GLM, "hidden", lambda *_, **__: torch.empty(1 << 60))
    with pytest.raises(XtrimoError, match=r"^p\d+: its .* tokens do not fit"):
        run(work, "--processes", "2")
    monkeypatch.setattr(GLM, "hidden", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(XtrimoError, match="a worker process was killed"):
        run(work, "--processes", "2")
    monkeypatch.undo()


def test_a_full_disk_is_named_and_work_goes_on_after(
    work: Path, expected: list[tuple[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = 0

    def full(_: int) -> None:
        nonlocal synced
        synced += 1
        if synced > 6:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(XtrimoError, match="out.h5 cannot be written: No space left.*same command goes on"):
            run(work)
    run(work)
    assert content(work / "out.h5") == expected and left_over(work) == ["out.h5"]
