"""Ranks that are forks of this process live with what earlier tests have left in it."""

import gc
from typing import Any

import torch.distributed as dist

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
