"""How finely the work over pairs is cut, so that a protein fits into memory.

The trunk without gradients holds the pairs and two copies of them; on a CPU its other work is cut as the cache asks
(`triangle.rows_at_once`), on a GPU it takes all rows at once where COPIES of the pairs fit, else a chunk of them. The
results are the same to the bit. After an out-of-memory error the chunk is halved; a protein that does not fit with a
chunk of 1 is refused. What is not cut is the attention to points of the structure module, of OpenFold's port, at whose
peak there are two numbers for each coordinate of each head's four points and each pair.
"""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from structure.config import FoldConfig
from xtrimo.batch import is_memory_short
from xtrimo.errors import ConfigError, MemoryShortError
from xtrimo.free_memory import free_bytes
from xtrimo.log import warn_once

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
COPIES = 14
FIRST_CHUNK = 64


def pairs_bytes(config: FoldConfig, length: int, batch: int = 1) -> int:
    """What uncut work over pairs takes at its peak, about."""
    width = max(config.pair_width, config.num_point_heads * 4, 64)
    return batch * length**2 * COPIES * width * 4


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
