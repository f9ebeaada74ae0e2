"""Training checkpoints: saved at once or beside the training, verified on the way back, pruned; by all ranks as one.

A checkpoint is a folder in megatron's sharded `torch_dist` format, which every layout can read, with `facts.json`: the
step, what a run must share to go on from it, where the loop was, and a checksum of every file. Batches and the learning
rate are functions of the step, so neither random state nor schedule is saved.

The format's metadata is a pickle: load only checkpoints you trust, and share model directories (`xtrimo export`), which
hold none.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue
from megatron.core.dist_checkpointing.strategies.filesystem_async import HAVE_PSUTIL

from pretrain.agreement import RankError, on_main_rank, together
from pretrain.checkpoint_files import Facts, Stamp, free_bytes, hidden, path_of, prune, publish, steps, sweep, verify
from pretrain.checkpoint_writing import ShardedSave
from pretrain.parallel import is_main_rank
from pretrain.trainer import Trainer
from xtrimo.errors import CheckpointError, MissingExtraError

logger = logging.getLogger(__name__)

# The distributed optimizer's state is saved in the shape of the parameters, so that other layouts can read it.
METADATA = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": False,
    "chained_optim_avoid_prefix": True,
}
_CROSSED = (
    ". Whether the optimizer is distributed cannot be changed in a run: megatron-core 0.16.1 reads neither kind of"
    " optimizer state into the other. Start again with or without --parallel.distributed-optimizer, as it was"
)


class Checkpoints:
    """The checkpoints of one run. Every method is collective: all ranks call it, and what fails on one raises on all.

    Args:
        facts: what a run must share to go on from a checkpoint; `load` compares them.

    Raises:
        MissingExtraError: without psutil, for which megatron's writers wait for ever.
    """

    def __init__(self, trainer: Trainer, folder: Path, facts: Mapping[str, Any]) -> None:
        if not HAVE_PSUTIL:
            raise MissingExtraError("saving checkpoints needs psutil; run: pip install 'xtrimo[pretrain]'")
        self.trainer, self.folder = trainer, folder
        self.facts: dict[str, Any] = json.loads(json.dumps(facts))  # as they come back from a file
        self._queue = AsyncCallsQueue()

    def save(self, step: int, progress: Mapping[str, Any]) -> None:
        """Save what training needs to go on after `step` steps; with `async_save` this only starts it.

        Args:
            progress: where the loop is, in JSON's types; `load` gives it back.

        Raises:
            CheckpointError: when this save, or one still under way, failed. What was saved before is untouched.
        """
        self.finish()
        work = self.folder / on_main_rank(lambda: hidden(path_of(self.folder, step)).name)
        with self._removed_on_failure(step, work):
            on_main_rank(partial(self._make, work))
            together(partial(_check_shared, work))
            save = ShardedSave(work, self.trainer.sharded_state(METADATA, loading=False), METADATA)
        with self._removed_on_failure(step, work, save.num_bytes):
            on_main_rank(partial(self._check_room, save.num_bytes))
            request = save.request()
            request.add_finalize_fn(partial(self._complete, save, step, dict(progress)))
            if self.trainer.config.async_save:
                together(partial(self._queue.schedule_async_request, request))
                return
        request.execute_sync()

    def poll(self) -> None:
        """Bring a save that all ranks have finished into sight; cheap enough for every step.

        Raises:
            CheckpointError: when that save failed.
        """
        self._queue.maybe_finalize_async_calls(blocking=False)

    def finish(self) -> None:
        """Wait for the save under way, if there is one.

        Raises:
            CheckpointError: when that save failed.
        """
        self._queue.maybe_finalize_async_calls(blocking=True)

    def load(self, usable: Callable[[Mapping[str, Any]], bool] = lambda _: True) -> tuple[int, dict[str, Any]]:
        """Load the newest checkpoint that is intact and usable, and say which newer ones are passed over, and why.

        Args:
            usable: says of a checkpoint's progress whether to go on from there; the same on all ranks.

        Returns:
            Steps done and progress; (0, {}) when the folder has no checkpoint at all.

        Raises:
            CheckpointError: when the run has other settings than a checkpoint, naming them, or is to have fewer steps;
                or when there are checkpoints, but none to go on from.
        """
        passed = []
        for step in reversed(on_main_rank(partial(steps, self.folder))):
            path = path_of(self.folder, step)
            try:
                facts = together(partial(Facts.read, path))
                self._check_run(path, facts)
                if usable(facts.progress):
                    self._restore(path, facts)
                    return step, facts.progress
                reason, level = "it has seen batches that are to be left out", logging.WARNING
            except RankError as error:
                if not error.foreseen:  # the disk, the memory, a bug: not the checkpoint's fault, so none to pass over
                    raise CheckpointError(f"{path} could not be loaded: {error}; it is left as it is") from error
                reason, level = f"damaged: {error}", logging.ERROR
            passed.append(f"{path.name} ({reason})")
            if is_main_rank():
                logger.log(level, "%s is passed over, for the one before it: %s", path, reason)
        if passed:
            raise CheckpointError(
                f"{self.folder} has no checkpoint to go on from: {', '.join(passed)}; put one that is sound there, or"
                " choose a new run folder"
            )
        return 0, {}

    def _make(self, work: Path) -> None:
        sweep(self.folder)
        work.mkdir(parents=True)

    def _check_room(self, num_bytes: int) -> None:
        if num_bytes > free_bytes(self.folder):
            raise CheckpointError("too little room")

    def _complete(self, save: ShardedSave, step: int, progress: dict[str, Any]) -> None:
        """Bring a save into sight whose shards all ranks have written."""
        with self._removed_on_failure(step, save.folder, save.num_bytes):
            facts = Facts(step=step, config=self.facts, progress=progress, files=save.finish())
            on_main_rank(partial(self._publish, save.folder, facts))

    def _publish(self, work: Path, facts: Facts) -> None:
        facts.write(work)
        publish(work, path_of(self.folder, facts.step))
        prune(self.folder, self.trainer.config.keep, self.trainer.config.keep_every)

    @contextmanager
    def _removed_on_failure(self, step: int, work: Path, num_bytes: int | None = None) -> Iterator[None]:
        try:
            yield
        except RankError as error:
            free = on_main_rank(partial(free_bytes, self.folder))
            on_main_rank(partial(shutil.rmtree, work, ignore_errors=True))
            takes = f"It takes {num_bytes:,} bytes, and {free:,} are free. " if num_bytes else ""
            raise CheckpointError(
                f"{self.folder}: the checkpoint of step {step} was not saved: {error}. {takes}What was saved before is"
                " untouched: make room, or cure what else failed, and start the same command again"
            ) from error

    def _check_run(self, path: Path, facts: Facts) -> None:
        """Refuse to go on from a checkpoint of another run."""
        changed = {name: (value, self.facts.get(name)) for name, value in facts.config.items()}
        changed = {name: (saved, asked) for name, (saved, asked) in changed.items() if saved != asked}
        if changed:
            listed = "; ".join(f"{name}: saved {saved}, asked {asked}" for name, (saved, asked) in changed.items())
            crossed = _CROSSED if "distributed_optimizer" in changed else ""
            raise CheckpointError(
                f"{path} was trained with other settings; repeat them, or choose a new run folder: {listed}{crossed}"
            )
        if facts.step > self.trainer.config.steps:
            raise CheckpointError(
                f"{path} has done {facts.step} steps, the run is to have {self.trainer.config.steps}; ask for more, or"
                " choose a new run folder"
            )

    def _restore(self, path: Path, facts: Facts) -> None:
        if facts.files is not None:
            together(partial(_verify_share, path, facts.files))
        elif is_main_rank():
            logger.warning("%s has no checksums, as an earlier version wrote it: it cannot be verified", path)
        state = self.trainer.sharded_state(METADATA, loading=True)
        loaded = together(partial(dist_checkpointing.load, state, str(path)))
        self.trainer.load_state(loaded, facts.step)


def _check_shared(work: Path) -> None:
    if not work.is_dir():
        raise CheckpointError(f"{work.parent} is not the main rank's; the run folder must be one that all ranks share")


def _verify_share(path: Path, files: Mapping[str, Stamp]) -> None:
    """Check this rank's share of the shards, and the files that every rank reads."""
    shards = sorted((name for name in files if name.endswith(".distcp")), key=lambda name: files[name])
    mine = shards[dist.get_rank() :: dist.get_world_size()]
    verify(path, {name: stamp for name, stamp in files.items() if name in mine or name not in shards})
