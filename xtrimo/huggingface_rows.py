"""A padded batch as Hugging Face hands it over, read by a GLM without its padding.

What may be seen is packed: the proteins of the batch lie end to end in one row, and only attention knows where one
ends. So padding is never multiplied, its side does not matter, and a protein's states are those it has alone.

How a row of the batch is read, its words say; this is the rule of the objectives (see objectives.py), for M K V A:

    without <sop>   M K V <mask> <eos>                  positions (place, 0), all seen by all
    with <sop>      <gmask> | <sop> <eos> M K V         what is before the first <sop> is seen by all, the rest causal;
                    M <smask> A <eos> | <sop> K V       the k-th <sop> opens what fills the k-th <gmask> or <smask>,
                                                        at whose place it stands, counted 1, 2, ... in channel two

A model with one-dimensional positions reads all rows in the one way it was trained in: both ways, or left to right.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from xtrimo import attention
from xtrimo.attention import Attend, Heads
from xtrimo.config import GLMConfig
from xtrimo.errors import ConfigError, SequenceError
from xtrimo.reading import reads_both_ways
from xtrimo.tokens import EOS, GMASK, PAD, SMASK, SOP

Store = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""A cache of transformers: (keys, values, layer), each of the new ones (batch, head, new, width) -> all there are."""


class Layout(NamedTuple):
    """How a GLM reads the words of one row."""

    positions: Int64[np.ndarray, "token 2"]
    """Both rotary channels."""
    prefix: int
    """The first `prefix` tokens are seen by all, the others by those that come after them."""
    first_answer: int
    """Place of the first token that the model was trained to say; what comes before was given."""


def layout(tokens: Int[np.ndarray, "token"], config: GLMConfig, *, name: str) -> Layout:
    """Positions and prefix of the words of a row; see the module's rule.

    Raises:
        SequenceError: a <sop> without a <gmask> or <smask> for it, or none in a model that only writes; names `name`.

    >>> from xtrimo.tokens import Tokenizer
    >>> found = layout(Tokenizer().encode("M<smask>A<eos><sop>KV", eos=False), GLMConfig(
    ...     num_layers=2, hidden_size=64, num_heads=1, ffn_size=64), name="row 0")
    >>> found.positions.T.tolist(), found.prefix
    ([[0, 1, 2, 3, 1, 1, 1], [0, 0, 0, 0, 1, 2, 3]], 4)
    """
    positions = np.zeros((len(tokens), 2), dtype=np.int64)
    positions[:, 0] = np.arange(len(tokens))
    starts = np.flatnonzero(tokens == SOP)
    given = int(starts[0]) if len(starts) else 0
    first_answer = given + 1 + int(tokens[given + 1 : given + 2].tolist() == [EOS]) if len(starts) else 0
    if config.rotary == "1d":
        return Layout(positions, len(tokens) if reads_both_ways(config) else 0, first_answer)
    if not len(starts):
        if not reads_both_ways(config):
            raise SequenceError(
                f"{name} has no <sop>, and this model only writes; begin with <gmask><sop><eos>, as its tokenizer does"
            )
        return Layout(positions, len(tokens), 0)
    gaps = np.flatnonzero((tokens[:given] == GMASK) | (tokens[:given] == SMASK))
    if len(starts) > len(gaps):
        raise SequenceError(
            f"{name} has {len(starts)} <sop>, and {len(gaps)} <gmask> or <smask> before the first of them;"
            " each <sop> opens what fills one of these, as in <gmask><sop><eos>MKV"
        )
    opened_by = np.cumsum(tokens[given:] == SOP) - 1
    positions[given:, 0] = gaps[opened_by]
    positions[given:, 1] = np.arange(given, len(tokens)) - starts[opened_by] + 1
    return Layout(positions, given, first_answer)


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """The words of a batch that may be seen, end to end, on the model's device."""

    seen: Bool[Tensor, "batch length"]
    """Where they lie in the batch."""
    tokens: Int64[Tensor, "token"]
    positions: Int64[Tensor, "token 2"]
    segments: Int64[Tensor, "segment 3"]
    """[start, length, prefix] of each row that has words; on the CPU."""
    layouts: Sequence[Layout]
    """Of every row of the batch."""

    def padded(self, values: Float[Tensor, "token *rest"]) -> Float[Tensor, "batch length *rest"]:
        """Values of the tokens at their places in the batch; zeros at the padding."""
        out = values.new_zeros(*self.seen.shape, *values.shape[1:])
        out[self.seen] = values
        return out


def seen_of(ids: Int[Tensor, "batch length"], attention_mask: Tensor | None) -> Bool[Tensor, "batch length"]:
    """What of a batch may be seen: what its mask says; without one, all that is not <pad>.

    Raises:
        ConfigError: a mask of another shape.
    """
    if attention_mask is None:
        return ids != PAD
    if attention_mask.shape != ids.shape:
        raise ConfigError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, input_ids {tuple(ids.shape)}; expected the same:"
            " 1 for words, 0 for padding. Who sees whom within a protein follows from its words"
        )
    return attention_mask.bool()


def layouts_of(
    ids: Int[Tensor, "batch length"], seen: Bool[Tensor, "batch length"], config: GLMConfig
) -> tuple[Layout, ...]:
    """The layout of each row.

    Raises:
        SequenceError: as `layout`.
    """
    rows = zip(ids.cpu().numpy(), seen.cpu().numpy(), strict=True)
    return tuple(layout(row[mask], config, name=f"row {i} of the batch") for i, (row, mask) in enumerate(rows))


def pack_batch(ids: Int[Tensor, "batch length"], seen: Bool[Tensor, "batch length"], config: GLMConfig) -> Packed:
    """The batch as one packed row.

    Raises:
        SequenceError: as `layout`, or if nothing may be seen.
    """
    layouts = layouts_of(ids, seen, config)
    lengths = np.array([len(one.positions) for one in layouts])
    if not lengths.sum():
        raise SequenceError("the batch holds nothing but padding; give at least one protein")
    segments = np.stack((np.cumsum(lengths) - lengths, lengths, [one.prefix for one in layouts]), axis=1)
    positions = np.concatenate([one.positions for one in layouts])
    return Packed(
        seen, ids[seen], torch.from_numpy(positions).to(ids.device), torch.from_numpy(segments[lengths > 0]), layouts
    )


def asked(labels: Int[Tensor, "batch length"], packed: Packed, *, ignore: int) -> Int[Tensor, "batch length"]:
    """Labels of the next word at the token before it, without what nobody was ever trained to say.

    These are padding, all that a prompt gives, up to its <sop> and the <eos> that opens a protein, and further <sop>.
    """
    wanted = labels.masked_fill(~packed.seen | (labels == SOP), ignore)
    count = packed.seen.cumsum(1) - 1  # place of each word in its row without padding
    first = torch.tensor([one.first_answer for one in packed.layouts], device=labels.device)
    wanted = wanted.masked_fill(count < first.clamp(min=1)[:, None], ignore)
    out = torch.full_like(labels, ignore)
    rows, columns = packed.seen.nonzero(as_tuple=True)
    out[rows[:-1], columns[:-1]] = wanted[rows[1:], columns[1:]]  # a row's first word, never asked, ends the one before
    return out


def keeping(packed: Packed, store: Store) -> Attend:
    """Attention over the packed row, which hands keys and values to the cache, padded as the batch is."""

    def attend(layer: int, q: Heads, k: Heads, v: Heads) -> Heads:
        store(packed.padded(k).transpose(1, 2), packed.padded(v).transpose(1, 2), layer)
        return attention.attend(q, k, v, packed.segments)

    return attend


class Continued:
    """Attention of new words, the same number in each row, to what the cache holds and to those before them.

    Args:
        seen: what may be seen of all words, those in the cache and the new ones.
        num_new: how many are new.
    """

    def __init__(self, seen: Bool[Tensor, "batch length"], num_new: int, store: Store) -> None:
        self._seen, self._num_new, self._store = seen, num_new, store

    @cached_property
    def _mask(self) -> Bool[Tensor, "batch 1 new length"]:
        length = self._seen.shape[1]
        place = torch.arange(length, device=self._seen.device)
        return self._seen[:, None, None] & (place <= place[length - self._num_new :, None])

    def attend(self, layer: int, q: Heads, k: Heads, v: Heads) -> Heads:
        """An `Attend` for GLM.hidden; the new words of all rows lie end to end."""
        new = [x.unflatten(0, (-1, self._num_new)).transpose(1, 2) for x in (q, k, v)]  # (batch, head, new, width)
        keys, values = self._store(new[1], new[2], layer)
        mixed = F.scaled_dot_product_attention(new[0], keys, values, attn_mask=self._mask)
        return mixed.transpose(1, 2).flatten(0, 1)
