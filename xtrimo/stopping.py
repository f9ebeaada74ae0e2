"""Asking a run to stop: it finishes its step, saves, and ends, on all ranks at the same step.

    kill -TERM, kill -USR1     to any rank, as srun passes them on before it ends or preempts a job
    touch FOLDER/STOP          from anywhere; under any launcher (torchrun dies of USR1), also before the first step

The file is removed when it is obeyed. Which of the two ends a run has come to, a script reads from its folder: `DONE`
after the last step, `STOPPED` when the same command is to be started again.
"""

import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
STOP, STOPPED, DONE = "STOP", "STOPPED", "DONE"


class StopRequest:
    """Listens, as a context; for signals on a process' main thread alone, as Python has it.

    Args:
        folder: of the run.
        device: where this rank computes, and so what the ranks' agreement goes over.
        alone: this process runs by itself, though it may be one of several ranks.
    """

    def __init__(self, folder: Path, device: torch.device, *, alone: bool = False) -> None:
        self.folder, self.device, self.why = folder, device, ""
        self.joined = dist.is_initialized() and not alone
        self.writes = not self.joined or dist.get_rank() == 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        if self.writes:
            for name in (STOPPED, DONE):
                (self.folder / name).unlink(missing_ok=True)
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
        if not self.why and self.writes and (self.folder / STOP).exists():
            self.why = STOP
        if not self.joined:
            return bool(self.why)
        flag = torch.tensor([float(bool(self.why))], device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def leave_word(self, finished: bool) -> None:
        """Write which end the run has come to, and drop the request."""
        if self.writes:
            (self.folder / STOP).unlink(missing_ok=True)
            (self.folder / (DONE if finished else STOPPED)).touch()
