"""Ends a job that hangs, and tells where every rank stood.

A rank that waits for another that will never answer waits for ever. Each rank therefore has a timer, put back after
each step; when it runs out, the stacks of all its threads go to `run/stacks/rank-00000.txt` and the process ends. The
timer is faulthandler's: it runs without the interpreter, so that a thread which never gives it up is seen too. A rank
whose timer is not the first learns of it by an error from its collective; it writes where that met it.
"""

import faulthandler
import traceback
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import torch.distributed as dist

from xtrimo.errors import XtrimoError


class Watchdog:
    """This rank's timer, as a context.

    Args:
        run: the run folder.
        seconds: without a `beat` after which the process ends with status 1; 0 never.
    """

    def __init__(self, run: Path, seconds: float) -> None:
        self.seconds = seconds
        self.path = run / "stacks" / f"rank-{dist.get_rank():05}.txt"

    def __enter__(self) -> "Watchdog":
        if self.seconds:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a")  # after what is told there of an earlier end
            self.beat()
        return self

    def beat(self) -> None:
        """Something was finished: start the time again."""
        if self.seconds:
            faulthandler.dump_traceback_later(self.seconds, exit=True, file=self._file)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.seconds:
            faulthandler.cancel_dump_traceback_later()
            if error is not None and not isinstance(error, XtrimoError):
                self._file.write("".join(traceback.format_exception(error)))
            self._file.close()
            if not self.path.stat().st_size:
                self.path.unlink()
                with suppress(OSError):  # another rank's file is there
                    self.path.parent.rmdir()
