"""Asking a run to stop: it finishes its step, saves, and ends as if it were done, on all ranks at the same step.

    kill -TERM, kill -USR1     to any rank, as srun passes them on before it ends or preempts a job
    touch RUN/STOP             from anywhere; under any launcher (torchrun dies of USR1), also before the first step

The file is removed when it is obeyed. Which of the two ends a run has come to, a script reads from its folder: `DONE`
after the last step, `STOPPED` when the same command is to be started again.
"""

import signal
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

from pretrain.parallel import device, is_main_rank

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
STOP, STOPPED, DONE = "STOP", "STOPPED", "DONE"


class StopRequest:
    """Listens, as a context; must be entered on the main thread of each rank."""

    def __init__(self, run: Path) -> None:
        self.run, self.why = run, ""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        if is_main_rank():
            for name in (STOPPED, DONE):
                (self.run / name).unlink(missing_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.why = signal.Signals(number).name

    def heard(self) -> bool:
        """Whether any rank was asked to stop; the same answer on all of them."""
        if not self.why and is_main_rank() and (self.run / STOP).exists():
            self.why = STOP
        flag = torch.tensor([float(bool(self.why))], device=device())
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def leave_word(self, finished: bool) -> None:
        """Write which end the run has come to, and drop the request."""
        if is_main_rank():
            (self.run / STOP).unlink(missing_ok=True)
            (self.run / (DONE if finished else STOPPED)).touch()
