"""Inference over proteins: many are read in one packed row.

Nothing is padded, so there is nothing to gain from sorting by length: a row is simply the next proteins that fit into
the token budget. Input streams in, results stream out in input order, and a row's worth is in memory. Where the memory
does not hold a row, the budget is halved.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from xtrimo.backbone import Backbone
from xtrimo.errors import MemoryShortError, SequenceError
from xtrimo.fasta import Record
from xtrimo.log import warn_once
from xtrimo.objectives import Example
from xtrimo.packing import pack, unpack

logger = logging.getLogger(__name__)

# On a CPU throughput is flat from 1,024 to 8,192, so take little memory; a longer protein is a row alone.
ROW_TOKENS = 2048

Sequences = Iterable[str | Record]


class Inputs(NamedTuple):
    """A packed row on the model's device, as `GLM.forward` takes it, and its labels."""

    tokens: Int[Tensor, "token"]
    positions: Int[Tensor, "token 2"]
    segments: Int[Tensor, "segment 3"]
    labels: Int[Tensor, "token"]


def named(sequences: Sequences) -> Iterator[Record]:
    """Each protein with a name; a bare string is called `sequence_1`, `sequence_2`, ... by its place.

    Raises:
        SequenceError: for one bare string in place of a list.
    """
    if isinstance(sequences, str):
        raise SequenceError(f"got one string, {sequences[:20]!r}; expected a list of sequences or records")
    for number, item in enumerate(sequences, start=1):
        yield Record(f"sequence_{number}", item) if isinstance(item, str) else item


def run(
    model: Backbone,
    examples: Iterable[Example],
    compute: Callable[[Inputs], Shaped[Tensor, "token ..."]],
    *,
    row_tokens: int | None = None,
) -> Iterator[tuple[Example, Shaped[np.ndarray, "_ ..."]]]:
    """Each example with its own tokens' rows of `compute`, which is called once for a packed row of examples.

    Args:
        row_tokens: the most tokens of a row, ROW_TOKENS by default; a longer example is a row alone. Where memory runs
            out it is halved for the rest, with a warning.

    Raises:
        MemoryShortError: an example that does not fit into memory alone in its row; all before it have been yielded.
    """
    budget = row_tokens or ROW_TOKENS
    source, waiting = iter(examples), deque[Example]()
    while group := _next_row(source, waiting, budget):
        answer = _values(model, group, compute)
        if not isinstance(answer, str):
            yield from zip(group, answer, strict=True)
            continue
        num_tokens = sum(len(example.tokens) for example in group)
        if len(group) == 1:
            raise MemoryShortError(
                f"its {num_tokens:,} tokens do not fit into the memory of {model.device}, even in a row of their own"
                f" ({answer}); cut it, read it in windows where that is offered, or use a larger machine"
            )
        budget = num_tokens // 2
        warn_once(logger, "out of memory in a row of %d tokens; from here on rows have %d (--row-tokens)",
            num_tokens, budget)  # fmt: skip
        waiting.extendleft(reversed(group))


def _next_row(source: Iterator[Example], waiting: deque[Example], budget: int) -> list[Example]:
    """The next examples that fit, at least one; the first that does not is left in `waiting`. Empty at the end."""
    group: list[Example] = []
    num_tokens = 0
    while True:
        if not waiting:
            example = next(source, None)
            if example is None:
                return group
            waiting.append(example)
        num_tokens += len(waiting[0].tokens)
        if group and num_tokens > budget:
            return group
        group.append(waiting.popleft())


def _values(
    model: Backbone, group: list[Example], compute: Callable[[Inputs], Shaped[Tensor, "token ..."]]
) -> list[Shaped[np.ndarray, "_ ..."]] | str:
    """What `compute` says of each example; or, where memory ran out, what was said about that.

    Not raised from here, because the traceback of an error keeps the tensors of every frame alive.
    """
    longest = max(len(example.tokens) for example in group)
    if longest > model.max_length:
        warn_once(
            logger, "input longer than the %d tokens of a training row; results there are extrapolated",
            model.max_length,
        )  # fmt: skip
    row = pack(group)
    try:
        tokens, positions, labels = (
            torch.from_numpy(x).to(model.device) for x in (row.tokens, row.positions, row.labels)
        )
        with torch.inference_mode():
            values = compute(Inputs(tokens, positions, torch.from_numpy(row.segments), labels)).float().cpu().numpy()
    except (RuntimeError, MemoryError) as error:
        if not is_memory_short(error):
            raise
        shortage = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
    else:
        return unpack(values, row.segments)
    if model.device.type == "cuda":
        torch.cuda.empty_cache()  # blocks of the shapes that failed do not fit smaller ones
    return shortage


def is_memory_short(error: Exception) -> bool:
    """Whether memory ran out: on the CPU torch has no error of its own for that, only its allocator's words."""
    words = ("DefaultCPUAllocator", "not enough memory", "can't allocate memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(word in str(error) for word in words)
