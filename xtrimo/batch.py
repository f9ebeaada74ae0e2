"""Inference over proteins: many are read in one packed row.

Nothing is padded, so there is nothing to gain from sorting by length: a row is simply the next proteins that fit into
the token budget. Input streams in, results stream out in input order, and a row's worth is in memory.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from xtrimo.backbone import Backbone
from xtrimo.errors import SequenceError
from xtrimo.fasta import Record
from xtrimo.log import warn_once
from xtrimo.objectives import Example
from xtrimo.packing import pack, unpack

logger = logging.getLogger(__name__)

ROW_TOKENS = (
    2048  # on a CPU throughput is flat from 1,024 to 8,192, so take little memory; a longer protein is a row alone
)

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
    model: Backbone, examples: Iterable[Example], compute: Callable[[Inputs], Shaped[Tensor, "token ..."]]
) -> Iterator[tuple[Example, Shaped[np.ndarray, "_ ..."]]]:
    """Each example with its own tokens' rows of `compute`, which is called once for a packed row of examples."""
    for group in _rows(examples):
        longest = max(len(example.tokens) for example in group)
        if longest > model.max_length:
            warn_once(
                logger, "input longer than the %d tokens of a training row; results there are extrapolated",
                model.max_length,
            )  # fmt: skip
        row = pack(group)
        tokens, positions, labels = (
            torch.from_numpy(x).to(model.device) for x in (row.tokens, row.positions, row.labels)
        )
        with torch.inference_mode():
            values = compute(Inputs(tokens, positions, torch.from_numpy(row.segments), labels)).float().cpu().numpy()
        yield from zip(group, unpack(values, row.segments), strict=True)


def _rows(examples: Iterable[Example]) -> Iterator[list[Example]]:
    group: list[Example] = []
    num_tokens = 0
    for example in examples:
        if group and num_tokens + len(example.tokens) > ROW_TOKENS:
            yield group
            group, num_tokens = [], 0
        group.append(example)
        num_tokens += len(example.tokens)
    if group:
        yield group
