"""Writing one split of a corpus: residues into shards of bounded size, then the index arrays over all of them."""

import hashlib
import os
import zlib
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from pretrain.corpus import CHECKSUMS, INDEX_DTYPES, FileMeta, SplitMeta, file_checksum
from xtrimo.tokens import FIRST_RESIDUE, RESIDUES

# Lower edges of the bins of the length histogram, residues; the last bin is open.
LENGTH_EDGES = (*range(0, 1000, 50), 1000, 2000, 4000, 8000, 16000, 32000)


class SplitWriter:
    """Appends proteins to the shards of one split; `finish` writes the index and describes all files."""

    def __init__(self, folder: Path, split: str, shard_residues: int) -> None:
        self._folder = folder
        self._split = split
        self._shard_residues = shard_residues
        self._shards: list[FileMeta] = []
        self._file: BinaryIO | None = None
        self._size = 0
        self._digest = hashlib.blake2b(digest_size=16)
        self._columns: dict[str, list[np.ndarray]] = {"lengths": [], "sources": [], "clusters": [], CHECKSUMS: []}
        self._letters = np.zeros(FIRST_RESIDUE + len(RESIDUES), dtype=np.int64)

    def append(
        self,
        residues: UInt8[np.ndarray, "_"],
        lengths: Int32[np.ndarray, "protein"],
        clusters: Int64[np.ndarray, "protein"],
        source: int,
    ) -> None:
        """Add proteins of input number `source`: `residues` holds them end to end."""
        ends = np.cumsum(lengths, dtype=np.int64)
        first = start = 0
        while first < len(lengths):
            stop = int(np.searchsorted(ends, start + self._shard_residues - self._size, side="right"))
            if stop <= first and self._size:
                self._close_shard()
                continue
            stop = max(stop, first + 1)  # a protein longer than a shard has one to itself
            self._write(residues[start : ends[stop - 1]])
            first, start = stop, int(ends[stop - 1])
        self._letters += np.bincount(residues, minlength=len(self._letters))
        columns = {
            "lengths": lengths,
            "clusters": clusters,
            "sources": np.full(len(lengths), source, dtype=np.uint8),
            CHECKSUMS: np.array(
                [zlib.crc32(residues[a:b].data) for a, b in pairwise((0, *ends.tolist()))], dtype=np.uint32
            ),
        }
        for name, column in columns.items():
            self._columns[name].append(column)

    def finish(self, *, has_clusters: bool) -> SplitMeta:
        """Close the last shard and write the index; without clusters each protein's cluster is its own index."""
        if self._size:
            self._close_shard()
        columns = {name: np.concatenate(column or [np.zeros(0)]) for name, column in self._columns.items()}
        lengths = columns["lengths"].astype(np.int64)
        columns["offsets"] = np.cumsum(lengths) - lengths
        if not has_clusters:
            columns["clusters"] = np.arange(len(lengths))
        index = tuple(self._save(name, columns[name].astype(dtype)) for name, dtype in INDEX_DTYPES.items())
        histogram = np.histogram(lengths, bins=[*LENGTH_EDGES, np.inf])[0]
        return SplitMeta(
            num_proteins=len(lengths),
            num_residues=int(lengths.sum()),
            num_clusters=len(np.unique(columns["clusters"])),
            residue_counts=dict(zip(RESIDUES, self._letters[FIRST_RESIDUE:].tolist(), strict=True)),
            length_histogram={str(edge): int(count) for edge, count in zip(LENGTH_EDGES, histogram, strict=True)},
            shards=tuple(self._shards),
            index=index,
        )

    def _write(self, residues: UInt8[np.ndarray, "_"]) -> None:
        if self._file is None:
            path = self._folder / f"{self._split}-{len(self._shards):05d}.residues"
            self._file = open(path, "wb")  # noqa: SIM115 (open across calls)
        self._file.write(residues.data)
        self._digest.update(residues.data)
        self._size += len(residues)

    def _close_shard(self) -> None:
        assert self._file is not None
        name = Path(self._file.name).name
        _sync_and_close(self._file)
        self._shards.append(FileMeta(name=name, size=self._size, checksum=self._digest.hexdigest()))
        self._file, self._size, self._digest = None, 0, hashlib.blake2b(digest_size=16)

    def _save(self, name: str, column: np.ndarray) -> FileMeta:
        path = self._folder / f"{self._split}.{name}.npy"
        with open(path, "wb") as file:
            np.save(file, column)
            _sync_and_close(file)
        return FileMeta(name=path.name, size=path.stat().st_size, checksum=file_checksum(path))


def _sync_and_close(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()
