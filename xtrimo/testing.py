"""What tests of this package and of code built on it need: a toy model, toy proteins, ranks on one machine."""

import gc
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from xtrimo.config import GLMConfig
from xtrimo.tokens import AMINO_ACIDS


def toy_config(**changes: Any) -> GLMConfig:
    """A GLM small enough to train in milliseconds, with every dimension divisible by 4."""
    facts: dict[str, Any] = dict(num_layers=4, hidden_size=64, num_heads=4, ffn_size=128)
    return GLMConfig(**(facts | changes))


def toy_sequences(num: int, *, seed: int = 0, min_length: int = 5, max_length: int = 60) -> list[str]:
    """Random proteins of the 20 amino acids."""
    rng = np.random.default_rng(seed)
    letters = np.array(list(AMINO_ACIDS))
    return ["".join(rng.choice(letters, size=rng.integers(min_length, max_length + 1))) for _ in range(num)]


class Largest(TorchDispatchMode):
    """Within it, records the most elements of any tensor that an operation returns, forward or backward."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return out


GRACE = 1.0  # seconds that ranks get to end by themselves once another has failed, as launchers give them


def run_distributed(fn: Callable[..., Any], world_size: int, *args: Any, timeout: float = 120.0) -> list[Any]:
    """Call `fn(rank, *args)` on `world_size` forked workers joined over gloo; what each rank returned, in rank order.

    The parent imports everything once and starts no process group; workers meet through a file, so no port is taken.

    Raises:
        RuntimeError: for the rank that died without a word, else with the first failing rank's traceback, or when
            `timeout` seconds have passed (all are killed).
    """
    torch.set_num_threads(1)  # threads do not survive a fork
    with tempfile.TemporaryDirectory() as folder:
        context = mp.get_context("fork")
        results = context.SimpleQueue()
        workers = [
            context.Process(target=_worker, args=(fn, rank, world_size, f"{folder}/store", results, args))
            for rank in range(world_size)
        ]
        with _forking():
            for worker in workers:
                worker.start()
        try:
            return _collect(workers, results, world_size, timeout)
        finally:
            for worker in workers:
                worker.join(GRACE)
                worker.kill()
                worker.join()


@contextmanager
def _forking() -> Iterator[None]:
    """Within it, forks inherit objects that their garbage collector leaves alone.

    A process group of this process that lies in a cycle would be taken down in the fork as well, where it waits for
    threads that only this process has, and the fork dies of it.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _collect(workers: list[Any], results: Any, world_size: int, timeout: float) -> list[Any]:
    got: dict[int, Any] = {}
    deadline = time.monotonic() + timeout
    while len(got) < world_size:
        while not results.empty():
            rank, value, failure = results.get()
            if failure:
                raise RuntimeError(_death(workers, failure) + f"rank {rank} failed:\n{failure}")
            got[rank] = value
        dead = [rank for rank, worker in enumerate(workers) if rank not in got and not worker.is_alive()]
        if dead and results.empty():
            raise RuntimeError(f"rank {dead[0]} ended with exit code {workers[dead[0]].exitcode} and no result")
        if time.monotonic() > deadline:
            raise RuntimeError(f"ranks {sorted(set(range(world_size)) - set(got))} gave no result in {timeout} s")
        time.sleep(0.02)
    return [got[rank] for rank in range(world_size)]


def _death(workers: list[Any], failure: str) -> str:
    """The rank that died, where another fails since it lost its connection to a peer: that one is the cause."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + GRACE  # a process that dies closes its connections before its end is known
    while "by peer" in failure and not codes and time.monotonic() < deadline:
        codes = {rank: worker.exitcode for rank, worker in enumerate(workers) if worker.exitcode}
        time.sleep(0.02)
    return "".join(f"rank {rank} ended with exit code {code} and no result; then " for rank, code in codes.items())


def killed(arm: Callable[[], object], run: Callable[[], object]) -> bool:
    """Whether a fork of this process is killed by a signal while it runs; `arm` sets, in the fork, what kills it."""
    with _forking():
        child = os.fork()
        if child == 0:
            status = 1
            try:
                arm()
                run()
                status = 0
            finally:
                os._exit(status)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "it failed, and was not killed"
    return os.WIFSIGNALED(status)


def _worker(
    fn: Callable[..., Any], rank: int, world_size: int, store: str, results: Any, args: tuple[Any, ...]
) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
        value = fn(rank, *args)
        dist.barrier()
        dist.destroy_process_group()
        results.put((rank, value, None))
    except BaseException:  # a failed checkpoint read is no Exception
        results.put((rank, None, traceback.format_exc()))
