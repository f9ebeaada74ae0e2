"""Hidden states of proteins, per residue or pooled, as arrays or as an HDF5 file.

A model trained with MLM reads `R1..Rn<eos>` in both directions; one that only generates reads `<gmask><sop><eos>R1..Rn`
from left to right. Either way the states of the residues are returned, those of the other words are not.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor
from tyro.conf import Positional

from xtrimo.attention import within
from xtrimo.backbone import Backbone
from xtrimo.batch import Inputs, Sequences, named, run
from xtrimo.command import FastaOptions, progress_bar, replacing
from xtrimo.errors import ConfigError

if TYPE_CHECKING:
    import h5py

States = Float32[np.ndarray, "layer length dim"]
POOLINGS: dict[str, Callable[[States], Float32[np.ndarray, "layer ..."]]] = {
    "none": lambda states: states,
    "mean": lambda states: states.mean(axis=1),
    "max": lambda states: states.max(axis=1),
}


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """The hidden states of one protein."""

    name: str
    """The record's name; `sequence_1`, ... for a bare string."""
    hidden: Float32[np.ndarray, "..."]
    """(length, dim), or (num_layers, length, dim) if several layers were asked for; no length axis when pooled."""
    length: int
    """Residues."""


def embed(
    model: Backbone, sequences: Sequences, *, pooling: str = "none", layers: Sequence[int] = (-1,)
) -> list[Embedding]:
    """Hidden states of each protein's residues, in input order.

    Args:
        sequences: strings or records.
        pooling: over the residues: none, mean or max.
        layers: 0 is the embedding, i the output of block i, -1 the last one after the final norm.

    Raises:
        ConfigError: unknown pooling or layer.
        SequenceError: empty sequence or unknown letter.
    """
    return list(iter_embeddings(model, sequences, pooling=pooling, layers=layers))


def iter_embeddings(
    model: Backbone, sequences: Sequences, *, pooling: str = "none", layers: Sequence[int] = (-1,)
) -> Iterator[Embedding]:
    """`embed`, streaming: takes as many proteins as fit a row, yields their embeddings, goes on."""
    _check(model, pooling, layers)
    first, _ = model.words_around

    def states(row: Inputs) -> Float[Tensor, "token layer dim"]:
        hidden = model.hidden(row.tokens, row.positions, within(row.segments), layers=tuple(layers))
        return torch.stack(hidden, dim=1)

    proteins, to_read = tee(named(sequences))
    examples = (model.tokenize(protein.sequence, name=protein.name) for protein in to_read)
    for protein, (example, values) in zip(proteins, run(model, examples, states), strict=True):
        length = len(example.tokens) - sum(model.words_around)
        own = values[first : first + length].swapaxes(0, 1)
        pooled = np.array(POOLINGS[pooling](own), order="C")  # a copy: a view would keep the whole row in memory
        yield Embedding(protein.name, pooled[0] if len(layers) == 1 else pooled, length)


def _check(model: Backbone, pooling: str, layers: Sequence[int]) -> None:
    if pooling not in POOLINGS:
        raise ConfigError(f"no pooling {pooling!r}; known: {', '.join(POOLINGS)}")
    num_states = model.num_layers + 1
    wrong = [layer for layer in layers if not -num_states <= layer < num_states]
    if wrong or not layers:
        raise ConfigError(
            f"layers {list(layers)}: give at least one, each 0 (the embedding) to {num_states - 1}, or counted from the"
            f" end, -1 to {-num_states}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedOptions(FastaOptions):
    """Write the hidden states of each protein of a FASTA file to an HDF5 file, one dataset a record.

    A dataset has its record's name, with "/" as "_"; further records of that name have "#2", "#3", ... added. Its
    attribute is length (residues); the file's attributes are model, layers and pooling.
    """

    fasta: Positional[Path]
    """Proteins, plain or gzipped."""
    out: Positional[Path]
    """HDF5 file; replaced, once the new one is complete."""
    pooling: Literal["none", "mean", "max"] = "none"
    """Over the residues: none keeps (length, dim), mean and max give (dim)."""
    layers: tuple[int, ...] = (-1,)
    """0 is the embedding, i the output of block i, -1 the last; several add a first axis."""


def main(args: Sequence[str] | None = None) -> None:
    """`xtrimo embed`."""
    import h5py
    import tyro

    options = tyro.cli(EmbedOptions, prog="xtrimo embed", args=args)
    model = options.load()
    num_records, records = options.read(options.fasta)
    with (
        replacing(options.out) as partial,
        h5py.File(partial, "w", libver="latest") as file,
        progress_bar() as progress,
    ):
        file.attrs.update(model=options.model, layers=options.layers, pooling=options.pooling)
        embeddings = iter_embeddings(model, records, pooling=options.pooling, layers=options.layers)
        for embedding in progress.track(embeddings, total=num_records, description="embedding"):
            dataset = file.create_dataset(_free_name(file, embedding.name), data=embedding.hidden)
            dataset.attrs["length"] = embedding.length


def _free_name(file: "h5py.File", name: str) -> str:
    name = name.encode(errors="replace").decode()  # bytes of an unknown encoding
    name = name.replace("/", "_").strip(".") or "_"  # to HDF5 "/" is a path and "." the file itself
    free, number = name, 1
    while free in file:
        number += 1
        free = f"{name}#{number}"
    return free
