"""Batches left out: which batch each step gets, and which checkpoints are of that history."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain import skipping
from pretrain.config import FaultConfig
from pretrain.skipping import Skips, merged
from xtrimo.errors import CheckpointError, ConfigError

RANGES = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 8)).map(lambda x: (x[0], x[0] + x[1])), max_size=6)


@pytest.fixture(autouse=True)
def main_rank(monkeypatch):
    monkeypatch.setattr(skipping, "is_main_rank", lambda: True)
    monkeypatch.setattr(skipping, "on_main_rank", lambda work: work())


@given(RANGES)
def test_steps_take_the_batches_that_are_left(tmp_path_factory, ranges):
    skips = Skips(tmp_path_factory.mktemp("run"))
    skips.add(ranges)
    left_out = {batch for first, last in ranges for batch in range(first, last + 1)}
    expected = [batch for batch in range(200) if batch not in left_out][:100]
    assert [skips.batch(step) for step in range(100)] == expected
    assert {b for first, last in merged(ranges) for b in range(first, last + 1)} == left_out


@given(RANGES, RANGES, st.integers(0, 60))
def test_a_checkpoint_agrees_iff_its_batches_are_still_the_run_s(tmp_path_factory, before, later, step):
    skips = Skips(tmp_path_factory.mktemp("run"))
    skips.add(before)
    progress = {"step": step, "history": skips.history(step)}
    seen = [skips.batch(i) for i in range(step)]
    skips.add(later)
    assert skips.agree_with(progress) == (seen == [skips.batch(i) for i in range(step)])


def test_a_restart_leaves_out_the_same(tmp_path: Path):
    first = Skips(tmp_path / "run", ("2-3",))
    first.add([(7, 7)])
    assert Skips(tmp_path / "run").ranges == []  # not before it is known that there is something to go on from
    first.keep()
    again = Skips(tmp_path / "run", ("2-3",))
    assert again.ranges == [(2, 3), (7, 7)]
    assert [again.batch(step) for step in range(6)] == [0, 1, 4, 5, 6, 8]
    assert [path.name for path in (tmp_path / "run").iterdir()] == [skipping.FILE]


def test_nothing_left_out_leaves_no_file(tmp_path: Path):
    assert Skips(tmp_path / "run").batch(5) == 5 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["5", "5-", "-5", "7-5", "a-b"])
def test_a_range_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="must be FIRST-LAST, such as 115800-116100"):
        FaultConfig(skip_batches=(text,))


def test_a_damaged_file_says_what_to_write(tmp_path: Path):
    (tmp_path / skipping.FILE).write_text("[[1,")
    with pytest.raises(CheckpointError, match=r"left_out.json was cut or altered; write \[\[FIRST, LAST\], ...\]"):
        Skips(tmp_path)
