"""Hidden states of the proteins of a data set in one HDF5 file, for heads that leave the model as it is.

    states   (row, number)   a row for each protein (mean over its residues, fp32) or for each residue (fp16)
                             or, in a file of its own, for each pair of residues: its attention maps (fp16, `pair_maps`)
    offsets  (protein + 1)   the rows of protein i are offsets[i] .. offsets[i + 1]
    done     (part)          1 once the rows of a part, consecutive proteins, are there

A file has the name of what it holds: a digest of model, proteins, layers and precision. HDF5 does not survive a process
that dies while it writes; so the whole file is laid out first, with room for all numbers, and from then on only numbers
are written, in place and past the library: a part's states, brought to the disk, then its flag. A run that was killed
loses one part; a file that was cut or is another's is made anew.

Attention maps are kept, not read from the model again in each epoch: of 3,000 proteins of 40 to 256 residues and a
layer of 4 heads of an 8M model they take 0.28 GB and 2 minutes of one core, once. Read live, they would take those
minutes in each of fifteen epochs, half of what the pair head itself takes.
"""

import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import h5py
import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import nn

from xtrimo.backbone import Backbone
from xtrimo.command import counting
from xtrimo.durable import sync
from xtrimo.embedding import Pooling, iter_embeddings
from xtrimo.embedding_parts import Part, cut
from xtrimo.errors import XtrimoError
from xtrimo.model import GLM
from xtrimo.pair_maps import PairMaps, num_pairs
from xtrimo.prepacking import prepack
from xtrimo.states import Lengths, LiveStates, States

logger = logging.getLogger(__name__)

LARGE_BYTES = 10**9
"""A file beyond it is worth a word."""
Values = Float[np.ndarray, "row number"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheKey:
    """All that decides what is in a file but the proteins."""

    model_hash: str
    """`embedding_file.fingerprint` of the model."""
    dtype: str
    """Of the model's weights when it reads."""
    layers: tuple[int, ...]
    pooled: bool
    """Whether a protein has one row, its mean."""
    maps: bool = field(default=False, repr=False)
    """Whether a pair has a row, its attention maps, in place of the states."""

    def of(self, sequences: Sequence[str]) -> str:
        """A digest of this and the proteins."""
        digest = hashlib.blake2b(f"{self!r}{' maps' if self.maps else ''}".encode(), digest_size=16)
        for sequence in sequences:
            digest.update(f"{sequence}\n".encode())
        return digest.hexdigest()


class CachedStates(nn.Module):
    """States from a file that is complete, in place of `LiveStates`.

    Args:
        path: the file.
        sequences: the proteins whose states it holds, in its order.
        device: where the states are put.
        maps: the file of the attention maps of the same proteins.
    """

    def __init__(self, path: Path, sequences: Sequence[str], device: torch.device, *, maps: Path | None = None) -> None:
        super().__init__()
        self.places = {sequence: place for place, sequence in enumerate(sequences)}
        layout = _Layout.read(path)
        self.rows, self.offsets, self.device = layout.open_states(path), layout.offsets, device
        if maps:
            layout = _Layout.read(maps)
        self.maps = (layout.open_states(maps), layout.offsets) if maps else None

    def forward(self, sequences: Sequence[str]) -> tuple[States, Lengths]:
        """The states of these proteins, in their order.

        Raises:
            KeyError: a protein that is not in the file.
        """
        places = np.array([self.places[sequence] for sequence in sequences])
        starts, lengths = self.offsets[places], self.offsets[places + 1] - self.offsets[places]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        rows = self.rows[np.repeat(starts, lengths) + within]
        return torch.from_numpy(rows).float().to(self.device), torch.from_numpy(lengths)

    def of_pairs(self, sequence: str) -> tuple[States, PairMaps | None]:
        """The states of one protein, and its attention maps where there is a file of them.

        Raises:
            KeyError: a protein that is not in the file.
        """
        states, _ = self([sequence])
        if self.maps is None:
            return states, None
        (rows, offsets), place = self.maps, self.places[sequence]
        maps = rows[offsets[place] : offsets[place + 1]].astype(np.float32)
        return states, torch.from_numpy(maps).to(self.device)


def cached_states(
    folder: Path, model: Backbone, key: CacheKey, sequences: Sequence[str], *, num_maps: int = 0
) -> CachedStates:
    """The states of these proteins, read from a file of `folder` or computed into it.

    Args:
        model: the one whose hash is in the key.
        sequences: all different; each fits into a row of the model.
        num_maps: attention maps that the layers of the key have, and that are wanted as well.

    Raises:
        XtrimoError: a state too large for fp16, or no room on the disk.
    """
    path = _filled(folder, model, key, sequences, model.width * len(key.layers))
    maps = _filled(folder, model, replace(key, maps=True), sequences, num_maps) if num_maps else None
    return CachedStates(path, sequences, model.device, maps=maps)


def _filled(folder: Path, model: Backbone, key: CacheKey, sequences: Sequence[str], width: int) -> Path:
    """A file of rows of so many numbers, all of whose parts are there."""
    sizes = [num_pairs(len(sequence)) if key.maps else len(sequence) for sequence in sequences]
    name = key.of(sequences)
    path, parts = folder / f"{name}.h5", cut(sizes)
    with _writing(path):
        layout = _Layout.find(path) or _Layout.make(path, name, sizes, key.pooled, width, len(parts))
        flags = layout.flags(path)
        todo = [part for part in parts if not flags[part.number]]
        reader = prepack(model) if todo and isinstance(model, GLM) else model
        unit, num_rows = "pairs" if key.maps else "residues", sum(part.num_residues for part in todo)
        with path.open("r+b") as file, counting("reading proteins", num_rows, unit) as count:
            for part in todo:
                own = sequences[part.first : part.first + part.num_records]
                rows = _read_maps(reader, key, own) if key.maps else _read_states(reader, key, own)
                _write(file.fileno(), layout, part, zip(own, rows, strict=True))
                count(part.num_residues)
    return path


def _read_states(model: Backbone, key: CacheKey, sequences: Sequence[str]) -> Iterator[Values]:
    pooling: Pooling = "mean" if key.pooled else "none"
    for embedding in iter_embeddings(model, sequences, pooling=pooling, layers=key.layers):
        hidden = embedding.hidden  # (layer, residue, dim), the first two where there are several
        by_residue = hidden.swapaxes(0, 1) if hidden.ndim == 3 else hidden
        yield by_residue.reshape(1 if key.pooled else len(by_residue), -1)


def _read_maps(model: Backbone, key: CacheKey, sequences: Sequence[str]) -> Iterator[Values]:
    live = LiveStates(model, key.layers, pooled=False, maps=True)
    for sequence in sequences:
        with torch.inference_mode():
            _, maps = live.of_pairs(sequence)
        assert maps is not None
        yield maps.cpu().numpy()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """One process at a time; a second one waits, and finds the work done. A kill lets go.

    Raises:
        XtrimoError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_name(f".{path.stem}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise XtrimoError(f"{path} cannot be written: {error.strerror or error}; choose another --cache") from error


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the numbers are in a file."""

    offsets: Int64[np.ndarray, "offset"]
    shape: tuple[int, int]
    dtype: str
    states_at: int
    """Byte at which the states begin."""
    done_at: int
    num_parts: int

    @classmethod
    def make(cls, path: Path, name: str, sizes: Sequence[int], pooled: bool, width: int, num_parts: int) -> "_Layout":
        """Lay a file out; it gets its name when it is whole, with no part done.

        Raises:
            XtrimoError: the disk has less room than it will take.
        """
        offsets = np.concatenate(([0], np.cumsum([1] * len(sizes) if pooled else sizes)))
        wanted, free = int(offsets[-1]) * width * (4 if pooled else 2), shutil.disk_usage(path.parent).free
        if wanted > free:
            raise XtrimoError(
                f"{path.parent}: the states take {wanted / 1e9:.1f} GB, and {free / 1e9:.1f} are free; ask for fewer"
                " layers or no maps, or choose another folder for them (--cache)"
            )
        if wanted > LARGE_BYTES:
            logger.info("states of %s proteins take %.1f GB in %s", f"{len(sizes):,}", wanted / 1e9, path.parent)
        work = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with h5py.File(work, "w") as file:  # the oldest format: a newer one marks a file as open when killed
                file.attrs["key"] = name
                file["offsets"] = offsets
                _reserve(file, "states", (int(offsets[-1]), width), np.dtype(np.float32 if pooled else np.float16))
                _reserve(file, "done", (num_parts,), np.dtype(np.uint8))
            sync(work)
            os.replace(work, path)
        finally:
            work.unlink(missing_ok=True)
        return cls.read(path)

    @classmethod
    def find(cls, path: Path) -> "_Layout | None":
        """The layout of a file that an earlier run has left; None where there is none, or a damaged one."""
        if not path.exists():
            return None
        try:
            return cls.read(path)
        except (OSError, KeyError, ValueError) as error:
            logger.warning("%s is damaged (%s) and made anew", path, error)
            return None

    @classmethod
    def read(cls, path: Path) -> "_Layout":
        """The layout of a file.

        Raises:
            OSError, KeyError, ValueError: it is no file of ours, or was cut.
        """
        with h5py.File(path) as file:
            if file.attrs["key"] != path.stem:
                raise ValueError("it holds something else than its name says")
            states, done = file["states"], file["done"]
            layout = cls(
                file["offsets"][:], states.shape, states.dtype.str, states.id.get_offset(), done.id.get_offset(),
                len(done),
            )  # fmt: skip
        if path.stat().st_size < max(layout.states_at + states_bytes(layout), layout.done_at + layout.num_parts):
            raise ValueError("it was cut")
        return layout

    def open_states(self, path: Path) -> np.memmap:
        """The states, read where they are asked for."""
        return np.memmap(path, self.dtype, "r", self.states_at, self.shape)

    def flags(self, path: Path) -> UInt8[np.ndarray, "part"]:
        """1 for each part that is there."""
        return np.fromfile(path, np.uint8, self.num_parts, offset=self.done_at)


def states_bytes(layout: _Layout) -> int:
    """Size of the states."""
    return layout.shape[0] * layout.shape[1] * np.dtype(layout.dtype).itemsize


def _reserve(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """A dataset in one stretch of the file, all of it there at once and zero."""
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.CONTIGUOUS)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_obj_track_times(False)  # the same proteins make the same file, whenever
    space = h5py.h5s.create_simple(shape)
    h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(dtype), space, plan)


def _write(handle: int, layout: _Layout, part: Part, proteins: Iterable[tuple[str, Values]]) -> None:
    """The rows of a part, then its flag. `pwrite` says when a disk is full; a mapped page would end the process."""
    row_bytes = layout.shape[1] * np.dtype(layout.dtype).itemsize
    for number, (sequence, rows) in enumerate(proteins, start=part.first):
        with np.errstate(over="ignore"):
            values = rows.astype(layout.dtype)
        if not np.isfinite(values).all():
            raise XtrimoError(f"{sequence[:20]}: a state is beyond fp16; take the last layer, or pooling mean")
        _write_at(handle, values.tobytes(), layout.states_at + int(layout.offsets[number]) * row_bytes)
    os.fsync(handle)
    _write_at(handle, b"\1", layout.done_at + part.number)
    os.fsync(handle)


def _write_at(handle: int, content: bytes, place: int) -> None:
    done = 0
    while done < len(content):
        done += os.pwrite(handle, content[done:], place + done)
