"""The parts of a file of embeddings: written one by one, found again after a kill, put together in input order.

HDF5 does not survive a process that dies while it writes. So the input is cut into runs of consecutive records, a
function of the input alone: the same after a restart, and for every process of a job. Each is written under a temporary
name into a hidden folder beside the output, brought to the disk, and renamed to

    .out.h5.parts/000012.h5     states: (row, layer, dim), a row for each residue or protein; index: names, chains

When all are there one process puts them together; the result, too, gets its name when it is whole, and then the folder
goes. So it may vanish under a process that was started twice, or comes late: `are_merged` tells that from a failure.
`settings.json` says which work the parts belong to: those of other work are refused, never mixed in.
"""

import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from xtrimo.durable import sync
from xtrimo.embedding import Embedding
from xtrimo.errors import XtrimoError

if TYPE_CHECKING:
    import h5py

logger = logging.getLogger(__name__)

PART_RESIDUES = 100_000  # what a kill can lose, and what a process takes at a time: seconds of work at least
SETTINGS = "settings.json"
_LIBVER = ("v110", "v110")  # what HDF5 1.10 can read, whatever the library here
_DEAD_AFTER = 3600.0  # seconds without a byte written; what is half-written grows with each protein


class Part(NamedTuple):
    """Consecutive records of the input."""

    number: int
    first: int
    num_records: int
    num_residues: int


def cut(lengths: Iterable[int]) -> list[Part]:
    """The parts of an input whose records have so many residues: as many records as reach PART_RESIDUES."""
    parts: list[Part] = []
    first = num_records = num_residues = 0
    for length in lengths:
        num_records, num_residues = num_records + 1, num_residues + length
        if num_residues >= PART_RESIDUES:
            parts.append(Part(len(parts), first, num_records, num_residues))
            first, num_records, num_residues = first + num_records, 0, 0
    return [*parts, Part(len(parts), first, num_records, num_residues)] if num_records else parts


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one output; `settings`, as for JSON, is all that decides what is in them."""

    out: Path
    settings: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """Where they are."""
        return self.out.with_name(f".{self.out.name}.parts")

    @property
    def key(self) -> str:
        """A digest of the settings."""
        return hashlib.blake2b(json.dumps(self.settings, sort_keys=True).encode(), digest_size=16).hexdigest()

    def path(self, part: Part) -> Path:
        """Where a part is, once it is whole."""
        return self.folder / f"{part.number:06}.h5"

    def missing(self, parts: Sequence[Part]) -> list[Part]:
        """Those not written yet."""
        return [part for part in parts if not self.path(part).exists()]

    def are_merged(self) -> bool:
        """Whether the output is there already, of these very settings."""
        import h5py

        with suppress(OSError), h5py.File(self.out) as file:
            return bool(file.attrs.get("settings_hash") == self.key)
        return False

    def tidy(self) -> None:
        """Remove the parts of an output that is complete, all at once.

        On NFS a folder outlives its files that others have open; who leaves last removes it.
        """
        shutil.rmtree(self._merged_folder, ignore_errors=True)
        with suppress(OSError, ValueError):
            if json.loads((self.folder / SETTINGS).read_text("utf-8")) == self.settings:
                os.replace(self.folder, self._merged_folder)
        shutil.rmtree(self._merged_folder, ignore_errors=True)

    def open(self) -> None:
        """Make the folder, or find it as an earlier run of the same settings left it.

        Raises:
            XtrimoError: no output can be written there, or the folder has parts of other work.
        """
        with _writing(self.out):
            if self.out.is_dir():
                raise IsADirectoryError(0, "it is a directory")
            shutil.rmtree(self._merged_folder, ignore_errors=True)
            self.folder.mkdir(exist_ok=True)
            mark = self.folder / SETTINGS
            if mark.exists() and any(self.folder.glob("[0-9]*.h5")):
                self._compare(json.loads(mark.read_text("utf-8")))
            self._forget_the_dead()
            with self._appearing(mark) as work:
                work.write_text(json.dumps(self.settings, indent=1), "utf-8")

    def write(self, part: Part, embeddings: Iterable[Embedding]) -> None:
        """Write a part, from the embeddings of its records.

        Raises:
            XtrimoError: a number that the dtype cannot hold, a full disk, records that are not those of the part.
        """
        import h5py

        num_rows = part.num_residues if self.settings["pooling"] == "none" else part.num_records
        index: list[tuple[str, tuple[int, ...]]] = []
        start = 0
        with _writing(self.out), self._appearing(self.path(part)) as work:
            with h5py.File(work, "w", libver=_LIBVER) as file:
                for embedding in embeddings:
                    rows = self._rows(embedding)
                    if not index:
                        states = file.create_dataset("states", shape=(num_rows, *rows.shape[1:]), dtype=rows.dtype)
                    if start + len(rows) > num_rows:
                        break
                    states[start : start + len(rows)] = rows
                    index.append((embedding.name, embedding.chains))
                    start += len(rows)
                file.create_dataset("index", data=np.frombuffer(json.dumps(index).encode(), dtype=np.uint8))
                file.attrs["settings_hash"] = self.key
            if (start, len(index)) != (num_rows, part.num_records):
                raise XtrimoError("the input has changed since this run began; start it again")

    def merge(self, parts: Sequence[Part], attributes: Mapping[str, Any]) -> None:
        """Put all parts together under the output's name, and remove them; of several that try, one does.

        Raises:
            XtrimoError: a full disk, or a part of other work.
        """
        try:
            with _writing(self.out), self._lock():
                if not self.are_merged():
                    self._put_together(parts, attributes)
        except XtrimoError:
            if not self.are_merged():  # by another process, which has removed the folder
                raise
        self.tidy()  # without the lock, whose open file would keep the folder on NFS

    def _put_together(self, parts: Sequence[Part], attributes: Mapping[str, Any]) -> None:
        import h5py

        with self._appearing(self.out) as work, h5py.File(work, "w", libver=_LIBVER, track_order=True) as file:
            file.attrs.update(attributes, settings_hash=self.key)
            for part in parts:
                for name, chains, states in self._read(part):
                    _add(file, name, chains, states)

    @property
    def _merged_folder(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.merged")

    def _rows(self, embedding: Embedding) -> Float[np.ndarray, "row layer dim"]:
        """Of one protein, in the dtype of the file."""
        with np.errstate(over="ignore"):
            hidden = embedding.hidden.astype(self.settings["dtype"])
        if not np.isfinite(hidden).all():
            largest = float(np.abs(embedding.hidden).max())
            if np.isfinite(largest):
                raise XtrimoError(
                    f"{embedding.name}: a state of {largest:,.0f} is beyond the 65,504 of f16; write --dtype f32, after"
                    f" removing {self.folder} or to another output"
                )
            raise XtrimoError(
                f"{embedding.name}: its states are not all finite numbers; the model's weights are damaged"
            )
        layers = len(self.settings["layers"])
        return hidden.reshape(layers, -1, hidden.shape[-1]).swapaxes(0, 1)

    def _read(self, part: Part) -> Iterator[tuple[str, list[int], Float[np.ndarray, "..."]]]:
        """Name, chains and states of a part's records, in the shapes of an `Embedding`."""
        import h5py

        is_pooled, several = self.settings["pooling"] != "none", len(self.settings["layers"]) > 1
        with h5py.File(self.path(part)) as file:
            if file.attrs.get("settings_hash") != self.key:
                raise XtrimoError(f"{self.path(part)} belongs to other work; remove {self.folder} and start again")
            start, rows = 0, file["states"]
            for name, chains in json.loads(file["index"][:].tobytes()):
                num_rows = 1 if is_pooled else sum(chains)
                states = rows[start : start + num_rows].swapaxes(0, 1)  # (layer, row, dim)
                start += num_rows
                states = states[:, 0] if is_pooled else states
                yield name, chains, states if several else states[0]

    def _compare(self, found: Mapping[str, Any]) -> None:
        differ = [name for name in {**found, **self.settings} if found.get(name) != self.settings.get(name)]
        if differ:
            changes = ", ".join(f"{name} {found.get(name)}, now {self.settings.get(name)}" for name in differ)
            raise XtrimoError(
                f"{self.folder} holds unfinished work of other settings ({changes}); finish that with its own command,"
                " remove the folder, or choose another output"
            )

    @contextmanager
    def _appearing(self, path: Path) -> Iterator[Path]:
        """A path to write to, which no other process has; on the disk it gets its name, when the block ends well."""
        work = self.folder / f"{path.name}.{secrets.token_hex(8)}.tmp"  # hosts and pids are alike in containers
        try:
            yield work
            sync(work)
            os.replace(work, path)
            sync(path.parent)
        finally:
            with suppress(OSError):
                work.unlink()

    def _forget_the_dead(self) -> None:
        """Remove what killed processes left half-written; no machine can ask for the processes of another."""
        for work in self.folder.glob("*.tmp"):
            with suppress(FileNotFoundError):
                if time.time() - work.stat().st_mtime > _DEAD_AFTER:
                    work.unlink()

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Held by one process at a time, on any machine; gone with the process that holds it, however that ends."""
        with (self.folder / "lock").open("w") as handle:
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX)
            except OSError as error:  # on some cluster file systems; two that merge write the same
                logger.warning("%s cannot be locked (%s); going on without", self.folder, error.strerror)
            yield


def read_embeddings(path: str | os.PathLike[str]) -> Iterator[tuple[str, Float[np.ndarray, "..."]]]:
    """The record name, as it was in the FASTA file, and states of each protein in a file of `xtrimo embed`, in order.

    States have the shapes of `Embedding.hidden`, in the file's dtype.
    """
    import h5py

    with h5py.File(path) as file:
        for dataset in file.values():
            yield dataset.attrs["original_id"], dataset[()]


def _add(file: "h5py.File", name: str, chains: Sequence[int], states: Float[np.ndarray, "..."]) -> None:
    """One record's dataset and its attributes."""
    name = name.encode(errors="replace").decode()  # bytes of an unknown encoding
    dataset = file.create_dataset(_free_name(file, name), data=states)
    dataset.attrs["original_id"] = name
    dataset.attrs["length"] = sum(chains)
    if len(chains) > 1:
        dataset.attrs["chains"] = chains


def _free_name(file: "h5py.File", name: str) -> str:
    """The name for HDF5, where "/" is a path and "." the file itself; with #2, #3, ... where it is taken."""
    name = name.replace("/", "_").strip(".") or "_"
    if name not in file:
        return name
    step = 1
    while f"{name}#{step + 1}" in file:  # a million records of one name would else be counted through each time
        step *= 2
    taken, free = step // 2 + 1, step + 1
    while free - taken > 1:
        middle = (taken + free) // 2
        taken, free = (middle, free) if f"{name}#{middle}" in file else (taken, middle)
    return f"{name}#{free}"


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Say of an error while writing which output it was for."""
    try:
        yield
    except OSError as error:
        raise XtrimoError(
            f"{out} cannot be written: {error.strerror or error}; choose another path, or make room: the same command"
            " goes on from what is finished"
        ) from error
