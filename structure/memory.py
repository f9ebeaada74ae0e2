"""How finely the work over pairs is cut, so that a protein fits into memory.

Uncut, a trunk holds some COPIES of the pairs, of `pair_width` numbers each, and triangle attention (`esmfold`) a row
for each pair; in chunks the first is about a third of that, the second only the chunk's, and the results are the same
to the bit. So the chunk follows from the memory that is free, and after an out-of-memory error it is halved; a protein
that does not fit with a chunk of 1 is refused.
"""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from structure.config import FoldConfig
from xtrimo.batch import is_memory_short
from xtrimo.errors import ConfigError, MemoryShortError
from xtrimo.log import warn_once

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
COPIES = 14
FIRST_CHUNK = 64
UNKNOWN_BYTES = 4 * 10**9
"""Taken as free where the system does not say."""


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for what comes
        return torch.cuda.mem_get_info(device)[0] + kept
    return min(_system_bytes(), _group_bytes())


def _group_bytes() -> int:
    """Memory that is left to the control group of a container or a job; without one, more than there is."""
    group = Path("/sys/fs/cgroup")
    try:
        return int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return sys.maxsize


def _system_bytes() -> int:
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        try:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError):
            return UNKNOWN_BYTES


def pairs_bytes(config: FoldConfig, length: int, batch: int = 1) -> int:
    """What uncut work over pairs takes at its peak, about; triangle attention looks from each pair at a whole row."""
    width = max(config.pair_width, config.num_point_heads * 4, 64)
    triangles = 3 * config.num_pair_heads * length if config.trunk == "esmfold" else 0
    return batch * length**2 * (COPIES * width + triangles) * 4


class Chunks:
    """Calls a function with a chunk that fits, and remembers what did not.

    Args:
        config: of the folding model.
        device: where it runs.
        asked: a chunk to begin with; None to let the free memory decide, 0 for uncut.

    Raises:
        ConfigError: a chunk below 0.
    """

    def __init__(self, config: FoldConfig, device: torch.device, asked: int | None = None) -> None:
        if asked is not None and asked < 0:
            raise ConfigError(f"chunk {asked}: expected rows of pairs at a time, or 0 for all at once")
        self.config, self.device, self.asked = config, device, asked
        self.failed: dict[int, int] = {}
        """Chunk, 0 for uncut, -> pairs that did not fit."""

    def first(self, length: int, batch: int) -> int:
        """The chunk to begin with; 0 is uncut."""
        if self.asked is not None:
            chunk = self.asked
        else:
            fits = pairs_bytes(self.config, length, batch) < free_bytes(self.device) / 2
            chunk = 0 if fits else FIRST_CHUNK
        while chunk != 1 and self.failed.get(chunk, length**2 * batch + 1) <= length**2 * batch:
            chunk = _finer(chunk)
        return chunk

    def run(self, compute: Callable[[int | None], Result], length: int, batch: int, name: str) -> Result:
        """`compute` with a chunk, again with a finer one where memory runs out.

        Raises:
            MemoryShortError: it does not fit with a chunk of 1 either.
        """
        chunk = self.first(length, batch)
        while True:
            try:
                return compute(chunk or None)
            except (RuntimeError, MemoryError) as error:
                if not is_memory_short(error):
                    raise
                shortage = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
            self.failed[chunk] = min(length**2 * batch, self.failed.get(chunk, length**2 * batch))
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            if chunk == 1:
                raise MemoryShortError(
                    f"{name}: {length:,} residues do not fit into the memory of {self.device} ({shortage}); cut the"
                    " protein into domains, or use a larger machine"
                )
            finer = _finer(chunk)
            warn_once(logger, "out of memory with %s residues and %s; now with --chunk %d", f"{length:,}",
                f"--chunk {chunk}" if chunk else "pairs uncut", finer)  # fmt: skip
            chunk = finer


def _finer(chunk: int) -> int:
    return FIRST_CHUNK if chunk == 0 else max(1, chunk // 2)
