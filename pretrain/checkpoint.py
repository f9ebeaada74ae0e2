"""Training checkpoints: megatron's sharded `torch_dist` format, one folder a step, visible only when complete.

    run/checkpoints/step-00000100/     model and optimizer, sharded

A checkpoint is written beside its final name and renamed by one rank after all have finished, so a killed save leaves
nothing that a restart would read. Batches and the learning rate are functions of the step, so neither random state nor
schedule is saved. The format's metadata is a pickle: load only checkpoints you trust, and share model directories
(`xtrimo export`), which hold none.
"""

import json
import queue
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.serialization import get_default_save_sharded_strategy
from megatron.core.dist_checkpointing.strategies import filesystem_async
from torch.distributed.checkpoint.api import CheckpointException

from pretrain.parallel import is_main_rank
from pretrain.trainer import Trainer
from xtrimo.errors import CheckpointError

_STEP = re.compile(r"step-(\d{8})")
# The distributed optimizer's state is saved in the shape of the parameters, so that other layouts can read it.
_METADATA = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": False,
    "chained_optim_avoid_prefix": True,
}
# A synchronous save needs no manager process; megatron would spawn one that imports the main program again.
filesystem_async._results_queue = queue.Queue()


def steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints in a folder, ascending."""
    found = (_STEP.fullmatch(path.name) for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted(int(match.group(1)) for match in found if match)


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:08}"


def save(trainer: Trainer, folder: Path, step: int, facts: Mapping[str, Any]) -> None:
    """Save what training needs to go on after `step` steps, then drop all but the newest checkpoints.

    Args:
        facts: what a run must share to go on from here; `load` compares them.
    """
    target = path_of(folder, step)
    work = folder / f".{target.name}.tmp"
    if is_main_rank():
        for leftover in folder.glob(".step-*.tmp"):  # of a save or a removal that was killed
            shutil.rmtree(leftover)
        work.mkdir(parents=True)
    dist.barrier()
    strategy = get_default_save_sharded_strategy()
    dist_checkpointing.save(_state(trainer, loading=False), str(work), strategy, content_metadata=_METADATA)
    dist.barrier()
    if is_main_rank():
        (work / "facts.json").write_text(json.dumps({"step": step, "config": facts}))
        shutil.rmtree(target, ignore_errors=True)
        work.rename(target)
        for old in steps(folder)[: -trainer.config.keep]:
            path_of(folder, old).rename(work)  # so that a kill leaves no half of it in sight
            shutil.rmtree(work)
    dist.barrier()


def load(trainer: Trainer, folder: Path, facts: Mapping[str, Any]) -> int:
    """Load the newest checkpoint of a folder; the number of steps done, 0 when there is none.

    Raises:
        CheckpointError: when the checkpoint belongs to a run with other settings, naming them, has more steps than
            the run is to have, or cannot be read.
    """
    done = steps(folder)
    if not done:
        return 0
    path = path_of(folder, done[-1])
    saved = json.loads((path / "facts.json").read_text())["config"]
    changed = [f"{name}: saved {saved[name]}, asked {facts[name]}" for name in saved if saved[name] != facts.get(name)]
    if changed:
        raise CheckpointError(
            f"{path} was trained with other settings; repeat them, or choose a new run folder: " + "; ".join(changed)
        )
    if done[-1] > trainer.config.steps:
        raise CheckpointError(
            f"{path} has done {done[-1]} steps, the run is to have {trainer.config.steps}; ask for more, or choose"
            " a new run folder"
        )
    try:
        state: dict[str, Any] = dist_checkpointing.load(_state(trainer, loading=True), str(path))
    except (Exception, CheckpointException) as error:  # what a damaged file leads to; the latter is no Exception
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}), as when a file of it was cut; remove it to go on from the"
            " one before"
        ) from error
    trainer.core.load_state_dict(state["model"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.scheduler.step(done[-1])  # its state is the step; so a longer run may go on from a shorter one
    return done[-1]


def _state(trainer: Trainer, *, loading: bool) -> dict[str, Any]:
    model = trainer.core.sharded_state_dict(metadata=dict(_METADATA))
    optimizer = trainer.optimizer.sharded_state_dict(dict(model), is_loading=loading, metadata=dict(_METADATA))
    return {"model": model, "optimizer": optimizer}
