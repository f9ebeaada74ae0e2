"""What a run tells: rich on a terminal, log lines elsewhere, `metrics.jsonl` and TensorBoard in the run folder.

MFU is the model's useful FLOPs (three forward passes a step, attention over each protein by itself, nothing padded)
against the GEMM rate measured on this machine when the run starts, not against a data sheet.
"""

import json
import logging
import math
import statistics
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

from pretrain.config import PretrainConfig
from pretrain.losses import Losses
from pretrain.megatron_config import DTYPES
from pretrain.parallel import device, is_main_rank
from pretrain.trainer import StepResult
from xtrimo.durable import write_text
from xtrimo.log import is_quiet
from xtrimo.training_log import read_metrics

logger = logging.getLogger(__name__)


def gemm_peak(dtype: torch.dtype, size: int = 1024, rounds: int = 20, seconds: float = 1.0) -> float:
    """FLOP/s of the best of several square matrix products on this rank's device, with its number of threads.

    It ends after `rounds` of them, or `seconds`: a CPU may take long over a precision it has no instructions for. There
    processor time counts, so that a busy neighbour lowers the training rate but not what it is held against.
    """
    a, b = (torch.randn(size, size, device=device()).to(dtype) for _ in range(2))
    clock, share = (time.perf_counter, 1) if a.is_cuda else (time.process_time, torch.get_num_threads())
    best, began = math.inf, clock()
    for _ in range(rounds):
        if best < math.inf and clock() - began > seconds:
            break
        start = clock()
        a @ b
        if a.is_cuda:
            torch.cuda.synchronize()
        best = min(best, (clock() - start) / share)
    return 2 * size**3 / best


class Monitor:
    """Collects the steps between two log lines; only the main rank writes. Use as a context."""

    def __init__(self, config: PretrainConfig, done: int) -> None:
        self.config, self.writes = config, is_main_rank()
        self.peak = gemm_peak(DTYPES[config.precision]) * dist.get_world_size()
        self.stepped = 0
        self._read: list[float] = []  # tokens of each step since the last line; validation leaves these alone
        self._sums = {"residues": 0.0, "tokens": 0.0, "flops": 0.0}
        self._since = time.perf_counter()
        self._progress: Any = None
        if self.writes:
            self._open(done)

    def _open(self, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from torch.utils.tensorboard import SummaryWriter

        path = self.config.run / "metrics.jsonl"
        _drop_after(path, done)
        self._metrics = path.open("a")
        self._board = SummaryWriter(str(self.config.run / "tensorboard"), purge_step=done + 1)
        console = Console(stderr=True)
        if console.is_terminal and not is_quiet():
            self._progress = Progress(
                TextColumn("step"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(),
                TextColumn("{task.description}"), console=console,
            )  # fmt: skip
            self._progress.start()
            self._task = self._progress.add_task("", total=self.config.steps, completed=done)

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.writes:
            if self._progress:
                self._progress.stop()
            with suppress(OSError):  # of lines that were said to be lost
                self._metrics.close()
            self._board.close()

    def step(self, step: int, result: StepResult, num_skipped: int = 0) -> None:
        """Take in optimizer step `step` (counted from 1); `num_skipped` steps so far changed nothing."""
        losses = result.losses
        for name, value in zip(self._sums, (losses.num_residues, losses.num_tokens, losses.num_flops), strict=True):
            self._sums[name] += value
        self.stepped += 1
        self._read.append(losses.num_tokens)
        if self._progress:
            self._progress.update(self._task, completed=step, description=f"loss {losses.loss:.4f}")
        if step % self.config.log_every and step != self.config.steps:
            return
        seconds = time.perf_counter() - self._since
        left = (self.config.steps - step) * seconds / self.stepped
        self._write(
            "train", step, losses, loss=losses.loss, gradient_norm=result.gradient_norm, lr=result.learning_rate,
            residues_per_second=self._sums["residues"] / seconds, tokens_per_second=self._sums["tokens"] / seconds,
            step_tokens=statistics.fmean(self._read), mfu=3 * self._sums["flops"] / seconds / self.peak,
            seconds_left=left, num_skipped=num_skipped,
        )  # fmt: skip
        self._read.clear()
        self.restart_clock()

    def validation(self, step: int, losses: Losses) -> None:
        """Take in the held-out losses after `step` steps."""
        if losses.nats:  # the corpus may hold nothing out
            self._write("valid", step, losses)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave the time since the last log line (validation, saving) out of the training rate."""
        self._sums = dict.fromkeys(self._sums, 0.0)
        self.stepped, self._since = 0, time.perf_counter()

    def _write(self, split: str, step: int, losses: Losses, **more: float) -> None:
        if not self.writes:
            return
        per_objective = {f"nats_{name}": nats for name, nats in losses.nats.items()}
        values = {
            **more,
            **per_objective,
            **{f"ppl_{name}": math.exp(min(nats, 700.0)) for name, nats in losses.nats.items()},
        }
        values = {name: value for name, value in values.items() if math.isfinite(value)}  # JSON knows no other
        try:
            self._metrics.write(json.dumps({"split": split, "step": step, "time": time.time(), **values}) + "\n")
            self._metrics.flush()
            for name, value in values.items():
                self._board.add_scalar(f"{split}/{name}", value, step)
        except OSError as error:  # a full disk ends a run when it saves, with what to do; a lost line does not
            logger.error("%s: the metrics of step %d are lost: %s", self.config.run, step, error.strerror)
        shown = {name: value for name, value in values.items() if not name.startswith("ppl_")}
        logger.info("%s step %d: %s", split, step, ", ".join(f"{k} {v:.4g}" for k, v in shown.items()))


def _drop_after(path: Path, step: int) -> None:
    """Remove metrics of steps that a resumed run will do again."""
    kept = [entry for entry in read_metrics(path) if entry["step"] <= step]
    write_text(path, "".join(f"{json.dumps(entry)}\n" for entry in kept))
