"""Watches the losses of a run: steps without a finite gradient, and spikes above the running median."""

import logging
import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

from pretrain.config import PretrainConfig
from pretrain.trainer import StepResult
from xtrimo.errors import TrainingError

logger = logging.getLogger(__name__)


class Guard:
    """The memory of the last steps. It is part of a checkpoint, so a resumed run judges as the unbroken one does."""

    def __init__(self, config: PretrainConfig, progress: Mapping[str, Any]) -> None:
        self.config, self.fault = config, config.fault
        self.recent: deque[float] = deque(progress.get("recent_losses", ()), maxlen=config.fault.spike_window)
        self.num_skipped: int = progress.get("num_skipped", 0)
        """Steps of the run that were skipped."""
        self.skipped: list[tuple[int, int]] = [(step, batch) for step, batch in progress.get("skipped", ())]
        """(step, batch) of those skipped in a row up to now."""

    def progress(self, step: int) -> dict[str, Any]:
        """What a checkpoint of the state after `step` keeps of it; steps skipped since then left that state alone."""
        skipped = [place for place in self.skipped if place[0] <= step]
        since = len(self.skipped) - len(skipped)
        return {"recent_losses": list(self.recent), "num_skipped": self.num_skipped - since, "skipped": skipped}

    def is_spike(self, step: int, batch: int, result: StepResult) -> bool:
        """Take in step `step` (counted from 1); whether its loss is a spike. Skipped steps are counted apart."""
        loss = result.losses.loss
        if result.skipped:
            self._skip(step, batch, result)
            return False
        self.skipped = []
        full = len(self.recent) == self.fault.spike_window
        median = statistics.median(self.recent) if full else math.inf
        self.recent.append(loss)
        if loss <= median + self.fault.spike_nats:
            return False
        logger.warning("step %d: the loss spiked to %.4f, over a median of %.4f; batch %d", step, loss, median, batch)
        return True

    def _skip(self, step: int, batch: int, result: StepResult) -> None:
        self.num_skipped += 1
        self.skipped.append((step, batch))
        logger.warning(
            "step %d: skipped, the gradient is not finite (loss %.4g); %s; %d in a row",
            step, result.losses.loss, self.name(batch, result), len(self.skipped),
        )  # fmt: skip

    def name(self, batch: int, result: StepResult) -> str:
        """The place of a bad batch in the stream of data, by which it can be drawn again."""
        rows = result.bad_rows
        places = ", ".join(f"(seed {self.config.seed}, step {batch}, row {row})" for row in rows[:4])
        more = f" and {len(rows) - 4} more" if rows[4:] else ""
        return places + more if rows else f"(seed {self.config.seed}, step {batch}), every row with a finite loss"

    @property
    def is_lost(self) -> bool:
        """Whether so many steps were skipped in a row that going on is vain."""
        return len(self.skipped) >= self.fault.max_skipped

    def lost(self, result: StepResult, kept: int) -> TrainingError:
        """The error to end with, the run being saved as it was after step `kept`."""
        (_, first), (step, last) = self.skipped[0], self.skipped[-1]
        return TrainingError(
            f"step {step}: {len(self.skipped)} steps in a row had no finite gradient, the last one on batch"
            f" {self.name(last, result)}. The run is saved as it was after step {kept}: start it again if the machine"
            f" was to blame, leave the batches out with --fault.skip-batches {first}-{last}, or train with a lower"
            " learning rate in a new run folder"
        )
