"""What a training run tells: a bar on a terminal, `metrics.jsonl`, TensorBoard's files where that is installed."""

import importlib.util
import json
import logging
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed as dist

from xtrimo.command import progress_bar
from xtrimo.durable import write_text

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step did."""

    loss: float
    """Sum of the items' losses over the weight of the sum."""
    gradient_norm: float
    """Before clipping."""
    rate: float
    """Learning rate."""


class Monitor:
    """Writes metrics on the main rank: `metrics.jsonl`, TensorBoard, a bar on a terminal, else the log."""

    def __init__(self, folder: Path, steps: int, done: int, log_every: int) -> None:
        self.steps, self.log_every, self.since = steps, log_every, time.monotonic()
        self.writes = not dist.is_initialized() or dist.get_rank() == 0
        self.board: Any = None
        if not self.writes:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / METRICS
        kept = [line for line in read_metrics(path) if line["step"] <= done]  # the rest is done again
        write_text(path, "".join(f"{json.dumps(line)}\n" for line in kept))
        self.file = path.open("a")
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)
        self.bar = progress_bar()
        self.task = self.bar.add_task("training", total=steps, completed=done)

    def __enter__(self) -> "Monitor":
        if self.writes:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.writes:
            self.bar.stop()
            self.file.close()
            if self.board:
                self.board.close()

    def step(self, step: int, result: StepResult) -> None:
        """Take in a step, counted from 1."""
        if self.writes:
            self.bar.update(self.task, completed=step, description=f"loss {result.loss:.4f}")
            if step % self.log_every == 0 or step == self.steps:
                self._write("train", step, **asdict(result), seconds=time.monotonic() - self.since)

    def validation(self, step: int, figure: float) -> None:
        """Take in a validation figure after so many steps."""
        if self.writes:
            self._write("valid", step, figure=figure)

    def _write(self, split: str, step: int, **values: float) -> None:
        finite = {name: value for name, value in values.items() if math.isfinite(value)}  # JSON knows no other
        self.file.write(json.dumps({"split": split, "step": step, **finite}) + "\n")
        self.file.flush()
        for name, value in finite.items() if self.board else ():
            self.board.add_scalar(f"{split}/{name}", value, step)
        logger.debug("%s step %d: %s", split, step, finite)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, without one that a kill has cut; none where there is no file."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
