"""Which batch a step trains on when some are left out, as the published 100B run left out those of a loss spike.

    skips = Skips(run, ("2-3",))
    [skips.batch(step) for step in range(4)]        # [0, 1, 4, 5]

The batches left out are a set, kept in `run/left_out.json`, and everything follows from it: the batch of each step,
and which checkpoints are of this history. Adding batches that a checkpoint has already seen makes it one of another, so
that training goes back to the newest one from before them. A restart finds the same set and does the same.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pretrain.agreement import on_main_rank
from pretrain.parallel import is_main_rank
from xtrimo.durable import write_text
from xtrimo.errors import CheckpointError

FILE = "left_out.json"
Range = tuple[int, int]
"""First and last batch left out, counted from 0."""


def merged(ranges: Iterable[Range]) -> list[Range]:
    """The same batches as ascending ranges that neither overlap nor touch."""
    out: list[Range] = []
    for first, last in sorted(ranges):
        if out and first <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(last, out[-1][1]))
        else:
            out.append((first, last))
    return out


class Skips:
    """The batches that a run leaves out; every rank of it must make one, since all read what the main rank finds.

    Raises:
        RankError: if the file cannot be read.
    """

    def __init__(self, run: Path, asked: Iterable[str] = ()) -> None:
        self.path = run / FILE
        known = on_main_rank(self._read)
        self.ranges = merged([*known, *(_parse(text) for text in asked)])

    def add(self, ranges: Iterable[Range]) -> None:
        """Leave out these too."""
        self.ranges = merged([*self.ranges, *ranges])

    def keep(self) -> None:
        """Leave them out after every restart, too."""
        if self.ranges and is_main_rank():
            write_text(self.path, json.dumps(self.ranges))

    def _read(self) -> list[Range]:
        try:
            found = json.loads(self.path.read_text()) if self.path.is_file() else []
            return [(first, last) for first, last in found]
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{self.path} was cut or altered; write [[FIRST, LAST], ...] into it") from error

    def batch(self, step: int) -> int:
        """The batch of step `step`, counted from 0."""
        batch = step
        for first, last in self.ranges:
            if batch >= first:
                batch += last - first + 1
        return batch

    def history(self, step: int) -> dict[str, Any]:
        """What a checkpoint after `step` steps has seen: the end of its batches, and those left out before it."""
        end = self.batch(step - 1) + 1 if step else 0
        return {"end": end, "left_out": [[first, last] for first, last in self.ranges if first < end]}

    def agree_with(self, progress: Mapping[str, Any]) -> bool:
        """Whether a checkpoint is of this run's history; one that tells of none is if nothing is left out."""
        history = progress.get("history")
        return history == self.history(progress["step"]) if history else not self.ranges


def _parse(text: str) -> Range:
    first, last = text.split("-")
    return int(first), int(last)
