"""Examples laid end to end in one row, so that nothing padded is multiplied.

A row has no attention mask, only `segments`: one [start, length, prefix] for each example. Token q sees token k iff
both lie in the same segment and, counted inside it, k < prefix or k <= q. Positions restart in each segment.

MK as mlm (K is masked) and V as an unconditional gmask, packed with multiple=8, which adds one padding token:

    index        0      1       2      3        4      5      6      7
    tokens       M      <mask>  <eos>  <gmask>  <sop>  <eos>  V      <pad>
    positions    0,0    1,0     2,0    0,0      0,1    0,2    0,3    0,0
    labels       .      K       .      .        .      V      <eos>  .
    weights      0      3       0      0        0      2      2      0
    objectives   0      0       0      1        1      1      1      0
    segments     [0, 3, 3]             [3, 4, 1]                     [7, 1, 1]

Who is seen (row q sees the columns k marked 1):

    0  1 1 1 . . . . .      mlm: the whole segment
    1  1 1 1 . . . . .
    2  1 1 1 . . . . .
    3  . . . 1 . . . .      gmask: the prefix, and what came before
    4  . . . 1 1 . . .
    5  . . . 1 1 1 . .
    6  . . . 1 1 1 1 .
    7  . . . . . . . 1      padding sees itself, so no softmax is empty

The weights of an example add up to its number of tokens, whatever the number of its labels. So an objective's share of
the loss is its share of the tokens, not of the labels: a gmask example has some five times as many of these as mlm.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int, Int64, Shaped

from xtrimo.errors import ConfigError
from xtrimo.objectives import IGNORE, OBJECTIVES, Example
from xtrimo.tokens import PAD

_OBJECTIVE_INDEX = {name: i for i, name in enumerate(OBJECTIVES)}


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """A packed row; see the module's worked example."""

    tokens: Int64[np.ndarray, "token"]
    """What the model reads."""
    positions: Int64[np.ndarray, "token 2"]
    """Both rotary channels."""
    labels: Int64[np.ndarray, "token"]
    """What the model must say at this token; IGNORE where nothing is asked."""
    weights: Float32[np.ndarray, "token"]
    """Weight of this token's loss; an example's weights add up to its number of tokens."""
    objectives: Int64[np.ndarray, "token"]
    """Index into tuple(OBJECTIVES); 0 at padding, where the weight is 0."""
    segments: Int64[np.ndarray, "segment 3"]
    """[start, length, prefix] in order; they cover the row. Padding, if any, is the last one."""


def pack(examples: Sequence[Example], multiple: int = 1) -> Row:
    """One row of `examples` in their order, padded until the number of tokens is a multiple of `multiple`.

    Raises:
        ConfigError: when there is no example, or `multiple` is below 1.
    """
    if not examples or multiple < 1:
        raise ConfigError(f"got {len(examples)} examples and multiple {multiple}; a row needs at least 1 of each")
    lengths = [len(example.tokens) for example in examples]
    objectives = [_OBJECTIVE_INDEX[example.objective] for example in examples]
    num_tokens, ends = sum(lengths), np.cumsum(lengths)
    row = Row(
        tokens=np.empty(num_tokens, dtype=np.int64),
        positions=np.empty((num_tokens, 2), dtype=np.int64),
        labels=np.empty(num_tokens, dtype=np.int64),
        weights=np.empty(num_tokens, dtype=np.float32),
        objectives=np.repeat(objectives, lengths),
        segments=np.stack((ends - lengths, lengths, [example.prefix for example in examples]), axis=1),
    )
    for example, end in zip(examples, ends.tolist(), strict=True):
        span = slice(end - len(example.tokens), end)
        row.tokens[span], row.positions[span], row.labels[span] = example.tokens, example.positions, example.labels
        asked = example.labels != IGNORE
        row.weights[span] = asked * (len(asked) / max(1, int(asked.sum())))
    return pad(row, multiple)


def pad(row: Row, multiple: int) -> Row:
    """The row with a last segment of padding that makes its number of tokens a multiple of `multiple`.

    Padding is asked nothing and seen by nobody else; ranks that share a row need it, to have a token count each.
    """
    num_tokens = len(row.tokens)
    padding = -num_tokens % multiple
    if not padding:
        return row
    zeros = np.zeros(padding, dtype=np.int64)
    return Row(
        tokens=np.append(row.tokens, zeros + PAD),
        positions=np.append(row.positions, np.zeros((padding, 2), dtype=np.int64), axis=0),
        labels=np.append(row.labels, zeros + IGNORE),
        weights=np.append(row.weights, zeros.astype(np.float32)),
        objectives=np.append(row.objectives, zeros),
        segments=np.append(row.segments, [[num_tokens, padding, padding]], axis=0),
    )


def unpack(
    values: Shaped[np.ndarray, "token ..."], segments: Int[np.ndarray, "segment 3"]
) -> list[Shaped[np.ndarray, "_ ..."]]:
    """Per-token `values` of a row as one view for each segment, in order (so padding, if any, comes last)."""
    return [values[start : start + length] for start, length, _ in segments.tolist()]
