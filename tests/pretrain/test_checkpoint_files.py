"""Checkpoints as files: what `facts.json` vouches for, and that no kill leaves half of one in sight."""

import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.checkpoint_files import Facts, free_bytes, hidden, path_of, prune, publish, stamp, steps, sweep, verify
from xtrimo.errors import CheckpointError


def write(work: Path, step: int) -> Path:
    """A checkpoint's files, of which the second is large enough to be read in pieces."""
    work.mkdir(parents=True)
    (work / "a.distcp").write_bytes(bytes(range(256)) * step)
    (work / "b.distcp").write_bytes(os.urandom(5_000_000))
    files = {path.name: stamp(path) for path in work.iterdir()}
    Facts(step=step, config={"seed": 1}, progress={"losses": [0.1, float("nan")]}, files=files).write(work)
    return work


def save(folder: Path, step: int, keep: int = 2, keep_every: int = 0) -> None:
    target = path_of(folder, step)
    publish(write(hidden(target), step), target)
    prune(folder, keep, keep_every)


def intact(folder: Path) -> list[int]:
    found = steps(folder)
    for step in found:
        facts = Facts.read(path_of(folder, step))
        assert facts.step == step
        verify(path_of(folder, step), facts.files)
    return found


def test_facts_come_back(tmp_path):
    write(tmp_path / "x", 3)
    facts = Facts.read(tmp_path / "x")
    assert (facts.step, facts.config, facts.progress["losses"][0]) == (3, {"seed": 1}, 0.1)
    assert facts.files["a.distcp"][0] == 768 and set(facts.files) == {"a.distcp", "b.distcp"}


def test_a_flipped_bit_anywhere_in_the_facts_is_seen(tmp_path):
    path = write(tmp_path / "x", 3) / "facts.json"
    sound, facts = path.read_bytes(), repr(Facts.read(tmp_path / "x"))
    for place in range(len(sound)):
        altered = bytearray(sound)
        altered[place] ^= 1 << place % 8
        path.write_bytes(altered)
        try:
            assert repr(Facts.read(tmp_path / "x")) == facts  # white space may change
        except CheckpointError as error:
            assert "facts.json was" in str(error)


@pytest.mark.parametrize("length", [0, 1, 100])
def test_cut_facts_are_refused(tmp_path, length):
    path = write(tmp_path / "x", 3) / "facts.json"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="facts.json was cut or altered"):
        Facts.read(tmp_path / "x")
    path.unlink()
    with pytest.raises(CheckpointError, match="facts.json is missing"):
        Facts.read(tmp_path / "x")


def test_facts_of_the_first_format_have_no_files(tmp_path):
    (tmp_path / "facts.json").write_text('{"step": 900, "config": {"seed": 0}}')
    assert Facts.read(tmp_path) == Facts(step=900, config={"seed": 0}, progress={}, files=None)


def test_damage_is_named(tmp_path):
    folder = write(tmp_path / "x", 3)
    files = Facts.read(folder).files
    large = folder / "b.distcp"
    altered = bytearray(large.read_bytes())
    altered[4_999_999] ^= 4
    large.write_bytes(altered)
    with pytest.raises(CheckpointError, match="^b.distcp was altered$"):
        verify(folder, files)
    large.write_bytes(altered[:10])
    (folder / "a.distcp").unlink()
    with pytest.raises(CheckpointError) as caught:
        verify(folder, files)
    assert sorted(str(caught.value).split(", ")) == [
        "a.distcp is missing",
        "b.distcp has 10 bytes of 5,000,000",
    ]


def test_the_newest_and_the_chosen_steps_are_kept(tmp_path):
    for step in range(10, 80, 10):
        save(tmp_path / "c", step, keep=2, keep_every=30)
    assert intact(tmp_path / "c") == [30, 60, 70]
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"step-00000030", "step-00000060", "step-00000070"}


def test_a_future_that_was_left_goes(tmp_path):
    for step in (10, 20, 30):
        save(tmp_path, step, keep=9, keep_every=10)
    save(tmp_path, 20, keep=1)
    assert intact(tmp_path) == [20]


def test_all_of_it_is_on_the_disk_before_it_comes_into_sight(tmp_path, monkeypatch):
    log, fsync, rename = [], os.fsync, os.rename

    def log_fsync(handle: int) -> None:
        log.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", log_fsync)
    monkeypatch.setattr(os, "rename", lambda *paths, **_: log.append("renamed") or rename(*paths))
    target = path_of(tmp_path / "c", 4)
    work = write(hidden(target), 4)
    publish(work, target)
    before, after = log[: log.index("renamed")], log[log.index("renamed") + 1 :]
    assert sorted(before[:-1]) == ["a.distcp", "b.distcp", "facts.json"] and before[-1] == work.name
    assert after == ["c", tmp_path.name]


def test_names_out_of_sight_are_new(tmp_path):
    assert hidden(path_of(tmp_path, 4)) != hidden(path_of(tmp_path, 4))
    (tmp_path / ".step-00000099.tmp").mkdir()  # the first format's name
    hidden(path_of(tmp_path, 4)).mkdir()
    assert steps(tmp_path) == []
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_free_bytes_need_no_folder(tmp_path):
    assert free_bytes(tmp_path / "a" / "b") == pytest.approx(free_bytes(tmp_path), rel=0.1)


def killed_at(operation: int, run: Callable[[], object]) -> bool:
    """In a fork, die of SIGKILL just before the `operation`-th call that opens or changes a file; False if it ends."""
    child = os.fork()
    if child == 0:
        num_done = 0

        def count(event: str, _: object) -> None:
            nonlocal num_done
            if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"):
                num_done += 1
                if num_done == operation:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        status = 1
        try:
            run()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def test_killed_anywhere_only_whole_checkpoints_are_in_sight(tmp_path):
    save(tmp_path / "start", 10)
    save(tmp_path / "start", 20)
    folder = tmp_path / "c"
    operation, seen, killed = 0, [], True
    while killed:
        operation += 1
        shutil.copytree(tmp_path / "start", folder)
        killed = killed_at(operation, lambda: (sweep(folder), save(folder, 30)))
        seen.append(tuple(intact(folder)))
        save(folder, 30)  # the restarted run gets there
        assert intact(folder) == [20, 30]
        sweep(folder)
        assert len(list(folder.iterdir())) == 2
        shutil.rmtree(folder)
    assert operation > 15
    assert list(dict.fromkeys(seen)) == [(10, 20), (10, 20, 30), (20, 30)]


def test_killed_while_replacing_a_future_the_past_stays(tmp_path):
    for step in (10, 20, 30):
        save(tmp_path / "start", step, keep=3)
    operation, seen, killed = 0, set(), True
    while killed:
        operation += 1
        folder = shutil.copytree(tmp_path / "start", tmp_path / str(operation))
        killed = killed_at(operation, lambda: save(folder, 20, keep=3))  # noqa: B023 (called at once)
        seen.add(tuple(intact(folder)))
    assert seen == {(10, 20, 30), (10, 20), (10,)}  # the newest first, so that none outlives one before it
