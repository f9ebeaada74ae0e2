"""A run of the toy model that a test can stop and go on with: trainer and checkpoints of one rank, in any layout."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pretrain.checkpoint import Checkpoints
from pretrain.config import ParallelConfig
from pretrain.parallel import process_groups
from pretrain.trainer import Trainer
from tests.pretrain.reference import local_rows, make_config


class ToyRun:
    """One rank of a run on the reference's batches."""

    def __init__(self, trainer: Trainer, checkpoints: Checkpoints) -> None:
        self.trainer, self.checkpoints = trainer, checkpoints

    def train(self, first: int, end: int) -> list[float]:
        """The losses of steps first .. end-1."""
        return [self.trainer.step(local_rows(step)).losses.loss for step in range(first, end)]


@contextmanager
def toy_run(folder: Path, layout: dict | None = None, **changes) -> Iterator[ToyRun]:
    """This rank of a new run in a layout (fields of ParallelConfig) whose checkpoints lie in `folder`."""
    config = dataclasses.replace(make_config(ParallelConfig(**layout or {})), **changes)
    facts = {"model": "toy", "distributed_optimizer": config.parallel.distributed_optimizer}
    with process_groups(config):
        trainer = Trainer(config)
        yield ToyRun(trainer, Checkpoints(trainer, folder, facts))
