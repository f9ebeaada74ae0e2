"""Hidden states of proteins, per residue or pooled; `embedding_file` writes them to HDF5.

What a model is fed is fixed, and nothing is masked: a model trained with MLM (alone or among other objectives) reads
`R1..Rn<eos>`, all of it seen by all, at positions 0, 1, ... (in a 2-D model (0, 0), (1, 0), ...); one that only
generates reads `<gmask><sop><eos>R1..Rn<eos>` from left to right, at positions 0, 1, ... (in a 2-D model (0, 0),
(0, 1), ...). Models of others read their own words, as their `tokenize` says. Row i of the answer is the state at
residue i; the states of other words are left out.

A protein longer than the model's training rows is an error, or read in windows: the windows are equally long, overlap
by so many residues (the last one, aligned to the end, by more), and are each read as a protein of its own. A residue
has its state from the window whose centre is nearest, so all but the ends are seen with half an overlap on each side.

    10 residues in windows of 6, overlap 2      0 1 2 3 4 5
                                                        4 5 6 7 8 9
    state taken from                            1 1 1 1 1 2 2 2 2 2

Chains joined by ":" are read one by one, as the models never saw two in one protein, and their states laid end to end.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise, tee
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from xtrimo.attention import within
from xtrimo.backbone import Backbone
from xtrimo.batch import Inputs, Sequences, named, run
from xtrimo.errors import ConfigError, MemoryShortError, SequenceError
from xtrimo.fasta import CHAIN_BREAK, Record, chain_names
from xtrimo.objectives import Example

Pooling = Literal["none", "mean", "max", "cls"]
Long = Literal["error", "windows"]
OVERLAP = 256  # residues
States = Float32[np.ndarray, "layer length dim"]
POOLINGS: dict[str, Callable[[States], Float32[np.ndarray, "layer ..."]]] = {
    "none": lambda states: states,
    "mean": lambda states: states.mean(axis=1),
    "max": lambda states: states.max(axis=1),
    "cls": lambda states: states[:, 0],  # nothing else is left of them
}


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """The hidden states of one protein."""

    name: str
    """The record's name; `sequence_1`, ... for a bare string."""
    hidden: Float32[np.ndarray, "..."]
    """(length, dim), or (num_layers, length, dim) if several layers were asked for; no length axis when pooled."""
    length: int
    """Residues, of all chains."""
    chains: tuple[int, ...]
    """Residues of each chain."""


class Window(NamedTuple):
    """A stretch of a long protein that is read on its own; places are residues of the whole protein."""

    start: int
    keep_from: int
    keep_to: int


class Piece(NamedTuple):
    """What the model reads in one go, and the rows of its states that are kept."""

    example: Example
    kept: slice


class Reading(NamedTuple):
    """A protein as it is read."""

    name: str
    chains: tuple[int, ...]
    pieces: list[Piece]


def embed(
    model: Backbone,
    sequences: Sequences,
    *,
    pooling: Pooling = "none",
    layers: Sequence[int] = (-1,),
    long: Long = "error",
    overlap: int = OVERLAP,
    row_tokens: int | None = None,
) -> list[Embedding]:
    """Hidden states of each protein's residues, in input order; the module says what the model is fed.

    Args:
        sequences: strings or records; ":" joins the chains of one protein.
        pooling: none; mean or max over the residues, of all chains; or cls, the state of the word that was trained to
            stand for the protein, where the model has one and the protein is one chain.
        layers: 0 is the embedding, i the output of block i, -1 the last one after the final norm.
        long: what happens to a chain of more tokens than a training row had: error, or windows (not with cls).
        overlap: residues that neighbouring windows share.
        row_tokens: the most tokens read at once, `batch.ROW_TOKENS` by default; changes speed and memory, no state.

    Raises:
        ConfigError: unknown pooling or layer, cls without such a word, an overlap as long as a window.
        SequenceError: an empty sequence or chain, an unknown letter, a chain too long; names the protein.
        MemoryShortError: a protein that does not fit into memory alone; names it.
    """
    return list(
        iter_embeddings(
            model, sequences, pooling=pooling, layers=layers, long=long, overlap=overlap, row_tokens=row_tokens
        )
    )


def iter_embeddings(
    model: Backbone,
    sequences: Sequences,
    *,
    pooling: Pooling = "none",
    layers: Sequence[int] = (-1,),
    long: Long = "error",
    overlap: int = OVERLAP,
    row_tokens: int | None = None,
) -> Iterator[Embedding]:
    """`embed`, streaming: takes as many proteins as fit a row, yields their embeddings, goes on."""
    check(model, pooling, layers, long, overlap)

    def states(row: Inputs) -> Float[Tensor, "token layer dim"]:
        hidden = model.hidden(row.tokens, row.positions, within(row.segments), layers=tuple(layers))
        return torch.stack(hidden, dim=1)

    windowed = overlap if long == "windows" else None
    to_embed, to_read = tee(reading(model, record, pooling, windowed) for record in named(sequences))
    examples = (piece.example for protein in to_read for piece in protein.pieces)
    answers = run(model, examples, states, row_tokens=row_tokens)
    for protein in to_embed:
        try:
            rows = [values for _, values in islice(answers, len(protein.pieces))]
        except MemoryShortError as error:
            raise MemoryShortError(f"{protein.name}: {error}") from error
        kept = [values[piece.kept] for values, piece in zip(rows, protein.pieces, strict=True)]
        own = (kept[0] if len(kept) == 1 else np.concatenate(kept)).swapaxes(0, 1)
        pooled = np.array(POOLINGS[pooling](own), order="C")  # a copy: a view would keep the whole row in memory
        yield Embedding(protein.name, pooled[0] if len(layers) == 1 else pooled, sum(protein.chains), protein.chains)


def check(model: Backbone, pooling: str, layers: Sequence[int], long: str, overlap: int) -> None:
    """Refuse what this model cannot be asked.

    Raises:
        ConfigError: as `embed`.
    """
    if pooling not in POOLINGS:
        raise ConfigError(f"no pooling {pooling!r}; known: {', '.join(POOLINGS)}")
    if pooling == "cls" and model.cls is None:
        raise ConfigError("pooling cls: no word of this model was trained to stand for the whole protein; use mean")
    if long not in ("error", "windows"):
        raise ConfigError(f"long {long!r}: expected error or windows")
    if pooling == "cls" and long == "windows":
        raise ConfigError("pooling cls with windows: a window's word stands for that window alone; use mean or max")
    if long == "windows" and not 0 <= overlap < room(model):
        raise ConfigError(
            f"overlap {overlap}: windows of this model have {room(model)} residues, of which neighbours can share 0 to"
            f" {room(model) - 1}"
        )
    num_states = model.num_layers + 1
    wrong = [layer for layer in layers if not -num_states <= layer < num_states]
    if wrong or not layers:
        raise ConfigError(
            f"layers {list(layers)}: give at least one, each 0 (the embedding) to {num_states - 1}, or counted from the"
            f" end, -1 to {-num_states}"
        )


def room(model: Backbone) -> int:
    """Residues of the longest protein that `model` reads in one piece."""
    return model.max_length - sum(model.words_around)


def windows(length: int, room: int, overlap: int) -> list[Window]:
    """The windows of `room` residues that a longer protein is read in; see the module's worked example."""
    starts = [*range(0, length - room, room - overlap), length - room]
    # Halfway between the centres of neighbours; a residue that is as near to both stays with the first.
    cuts = [0, *((start + following + room + 1) // 2 for start, following in pairwise(starts)), length]
    return [Window(start, *kept) for start, kept in zip(starts, pairwise(cuts), strict=True)]


def reading(model: Backbone, record: Record, pooling: str, overlap: int | None) -> Reading:
    """How a protein is read; without an `overlap` no chain may need windows.

    Raises:
        SequenceError: as `embed`.
    """
    chains = record.sequence.split(CHAIN_BREAK)
    if pooling == "cls" and len(chains) > 1:
        raise SequenceError(
            f"{record.name}: {len(chains)} chains, each with a cls of its own; use mean or max, or give them as records"
        )
    before, after, cls = *model.words_around, model.cls
    lengths, pieces = [], []
    for name, chain in zip(chain_names(record.name, len(chains)), chains, strict=True):
        example = model.tokenize(chain, name=name)
        length = len(example.tokens) - before - after
        lengths.append(length)
        if length <= room(model):
            kept = slice(before, before + length)
            if pooling == "cls" and cls is not None:
                kept = slice(cls, cls + 1)
            pieces.append(Piece(example, kept))
            continue
        if overlap is None:
            raise SequenceError(
                f"{name}: {length:,} residues, and {before + after} words around them, where this model reads at most"
                f" {model.max_length:,} tokens; read it in windows (long='windows', --long windows), or cut or drop it"
            )
        for start, keep_from, keep_to in windows(length, room(model), overlap):
            shown = model.tokenize(chain[start : min(start + room(model), length)], name=name)
            pieces.append(Piece(shown, slice(before + keep_from - start, before + keep_to - start)))
    return Reading(record.name, tuple(lengths), pieces)
