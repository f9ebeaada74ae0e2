"""Ranks that are forks of this process live with what earlier tests have left in it."""

import gc
import os
import signal
import time
from typing import Any

import pytest
import torch.distributed as dist

from xtrimo import testing
from xtrimo.testing import run_distributed


def in_a_cycle() -> list[Any]:
    """A process group that is destroyed, and whose threads only the garbage collector can end."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    cycle: list[Any] = [dist.group.WORLD]
    cycle.append(cycle)
    dist.destroy_process_group()
    return cycle


def collects(rank: int) -> int:
    gc.collect()
    return rank


def test_ranks_collect_garbage_after_a_group_of_ours() -> None:
    group = in_a_cycle()
    gc.disable()
    try:
        del group
        assert run_distributed(collects, 2, timeout=60) == [0, 1]
    finally:
        gc.enable()


def is_killed(rank: int) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def test_a_rank_that_was_killed_is_named_before_the_one_that_misses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    collect = testing._collect

    def collect_late(*args: Any) -> list[Any]:
        time.sleep(1)  # by then rank 0 has told of a lost connection
        return collect(*args)

    monkeypatch.setattr(testing, "_collect", collect_late)
    with pytest.raises(
        RuntimeError, match="(?s)^rank 1 ended with exit code -9 and no result; then rank 0 failed:.*peer"
    ):
        run_distributed(is_killed, 2, timeout=60)
