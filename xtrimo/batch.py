"""Inference over proteins: each is written as the model was trained to read it, and many are read in one packed row.

Nothing is padded, so there is nothing to gain from sorting by length: a row is simply the next proteins that fit into
the token budget. Input streams in, results stream out in input order, and a row's worth is in memory.

The two ways to write M K V, both with the labels that scoring asks for:

    whole      tokens  M K V <eos>                   labels  . . . .             all seen by all
    prompted   tokens  <gmask> <sop> <eos> M K V     labels  . . M K V <eos>     causal

`prompted` is the gmask objective with an empty source (causal in a 1-D model), so it is also how generation starts.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Int32, Shaped, UInt8
from torch import Tensor

from xtrimo.config import GLMConfig
from xtrimo.errors import SequenceError
from xtrimo.fasta import Record
from xtrimo.log import warn_once
from xtrimo.model import GLM
from xtrimo.objectives import IGNORE, Example
from xtrimo.packing import pack, unpack
from xtrimo.tokens import EOS, GMASK, SOP, encode_residues

logger = logging.getLogger(__name__)

PROMPT_WORDS = (GMASK, SOP, EOS)
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


def named_residues(sequences: Sequences) -> Iterator[tuple[str, UInt8[np.ndarray, "length"]]]:
    """Name and token ids of each protein; a bare string is called `sequence_1`, `sequence_2`, ... by its place.

    Raises:
        SequenceError: for an empty sequence or an unknown letter, naming the protein; or for one bare string.
    """
    if isinstance(sequences, str):
        raise SequenceError(f"got one string, {sequences[:20]!r}; expected a list of sequences or records")
    for number, item in enumerate(sequences, start=1):
        name, sequence = (f"sequence_{number}", item) if isinstance(item, str) else (item.name, item.sequence)
        yield name, encode_residues(sequence, name=name)


def whole(residues: UInt8[np.ndarray, "length"]) -> Example:
    """`R1..Rn<eos>`, read in both directions, nothing asked."""
    tokens = np.append(residues, np.uint8(EOS))
    positions = np.zeros((len(tokens), 2), dtype=np.int32)
    positions[:, 0] = np.arange(len(tokens))
    return Example("mlm", tokens, positions, np.full_like(tokens, IGNORE), prefix=len(tokens))


def prompted(residues: UInt8[np.ndarray, "length"], config: GLMConfig) -> Example:
    """`<gmask><sop><eos>R1..Rn`; asked are the residues, each at the token before it, and the closing `<eos>`."""
    tokens = np.append(np.array(PROMPT_WORDS, dtype=np.uint8), residues)
    labels = np.full_like(tokens, IGNORE)
    labels[2:] = np.append(residues, np.uint8(EOS))
    is_gmask = "gmask" in config.objectives
    positions = prompted_positions(len(tokens), config)
    return Example("gmask" if is_gmask else "causal", tokens, positions, labels, prefix=int(is_gmask))


def prompted_positions(num_tokens: int, config: GLMConfig) -> Int32[np.ndarray, "token 2"]:
    """Positions of the first tokens of a prompted protein: <gmask> is (0, 0) and the place of all that follows it.

    So the count runs in the second channel; in a causal model, which has no target apart, in the first.
    """
    positions = np.zeros((num_tokens, 2), dtype=np.int32)
    positions[:, int("gmask" in config.objectives)] = np.arange(num_tokens)
    return positions


def run(
    model: GLM, examples: Iterable[Example], compute: Callable[[Inputs], Shaped[Tensor, "token ..."]]
) -> Iterator[tuple[Example, Shaped[np.ndarray, "_ ..."]]]:
    """Each example with its own tokens' rows of `compute`, which is called once for a packed row of examples."""
    for group in _rows(examples):
        longest = max(len(example.tokens) for example in group)
        if longest > model.config.max_length:
            warn_once(
                logger, "input longer than the %d tokens of a training row; results there are extrapolated",
                model.config.max_length,
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
