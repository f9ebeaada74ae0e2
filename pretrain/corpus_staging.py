"""The first pass over the inputs: parse, filter by letters and length, encode, and put aside what selection needs.

An input becomes parts of at most PART_RESIDUES residues, each a pair of files in the staging folder:

    003-00007.residues   the token ids of the records that passed, end to end
    003-00007.npz        their lengths, digests and name keys, and how many records each filter took

The .npz is renamed into place after its residues are on disk, so a part with an .npz is whole. A run that was killed
finds its finished parts, skips as many records as they account for, and goes on: it loses one part's work at most.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Int32, UInt8

from pretrain.corpus_selection import Records, as_keys, name_keys, sequence_digest
from xtrimo.errors import SequenceError
from xtrimo.fasta import Record, parse_fasta
from xtrimo.tokens import Unknown, encode_residues

PART_RESIDUES = 1 << 24
PASSED = "passed"
DROPPED = (EMPTY, UNKNOWN, TOO_SHORT, TOO_LONG) = ("empty", "unknown", "too_short", "too_long")
READ_AS_X = "read_as_x"  # counted besides the others, which add up to the records read
COUNTED = (PASSED, *DROPPED, READ_AS_X)


@dataclass(frozen=True, kw_only=True, slots=True)
class Filters:
    """Which records pass."""

    min_length: int
    max_length: int | None
    unknown: Unknown
    force: bool


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A finished part."""

    residues_path: Path
    lengths: Int32[np.ndarray, "record"]
    records: Records
    counts: Counter[str]
    """Records by what became of them, COUNTED."""
    is_last: bool
    """Whether the input ends with this part."""

    def residues(self) -> UInt8[np.ndarray, "_"]:
        """The token ids of all records, end to end."""
        return np.fromfile(self.residues_path, dtype=np.uint8)


def finished_parts(folder: Path, source: int) -> list[Part]:
    """The finished parts of input number `source`, in order."""
    parts: list[Part] = []
    while not (parts and parts[-1].is_last) and (index := _index_path(folder, source, len(parts))).exists():
        with np.load(index) as arrays:
            parts.append(
                Part(
                    index.with_suffix(".residues"),
                    arrays["lengths"],
                    Records(arrays["digests"], arrays["names"]),
                    Counter(dict(zip(COUNTED, arrays["counts"].tolist(), strict=True))),
                    bool(arrays["is_last"]),
                )
            )
    return parts


def stage(path: Path, raw: BinaryIO, folder: Path, source: int, filters: Filters) -> None:
    """Turn input `path`, opened as `raw`, into parts in `folder`, after those that are already there.

    Raises:
        FastaError, SequenceError: the file cannot be used; with `unknown` "error" also a record that cannot.
    """
    done = finished_parts(folder, source)
    if done and done[-1].is_last:
        return
    num_seen = sum(part.counts.total() - part.counts[READ_AS_X] for part in done)
    records = islice(parse_fasta(path, raw=raw, force=filters.force), num_seen, None)
    number = len(done)
    while not _write_part(_index_path(folder, source, number), records, str(path), filters):
        number += 1


def commit(partial: Path, path: Path) -> None:
    """Make `partial`, already complete, appear as `path`: after a crash there is the whole file or none."""
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _index_path(folder: Path, source: int, number: int) -> Path:
    return folder / f"{source:03d}-{number:05d}.npz"


def _write_part(index: Path, records: Iterator[tuple[int, Record]], path: str, filters: Filters) -> bool:
    """Write one part; returns whether it is the last."""
    lengths: list[int] = []
    digests, names = bytearray(), bytearray()
    counts = Counter(dict.fromkeys(COUNTED, 0))
    num_residues = 0
    is_last = True
    with open(index.with_suffix(".residues"), "wb") as file:
        for line, record in records:
            ids = _passed(record, f"{path}, line {line}: {record.name}", filters, counts)
            if ids is None:
                continue
            lengths.append(len(ids))
            digests += sequence_digest(ids)
            names += name_keys(record.name)
            file.write(ids.data)
            num_residues += len(ids)
            if num_residues >= PART_RESIDUES:
                is_last = False
                break
        file.flush()
        os.fsync(file.fileno())
    arrays: dict[str, Any] = dict(
        lengths=np.array(lengths, dtype=np.int32),
        digests=as_keys(digests),
        names=as_keys(names),
        counts=np.array([counts[key] for key in COUNTED]),
        is_last=is_last,
    )
    partial = index.with_suffix(".partial")
    with open(partial, "wb") as file:
        np.savez(file, **arrays)
    commit(partial, index)
    return is_last


def _passed(record: Record, where: str, filters: Filters, counts: Counter[str]) -> UInt8[np.ndarray, "length"] | None:
    """The token ids of a record that passes the filters; otherwise None. Either way it is counted.

    Raises:
        SequenceError: `unknown` is "error" and the record is empty or has an unknown letter.
    """
    ids, outcome = None, PASSED
    try:
        ids = encode_residues(record.sequence, name=where)
    except SequenceError:
        if filters.unknown == "error":
            raise
        if not record.sequence:
            outcome = EMPTY
        elif filters.unknown == "skip":
            outcome = UNKNOWN
        else:
            ids = encode_residues(record.sequence, unknown="x")
            counts[READ_AS_X] += 1
    if ids is not None and len(ids) < filters.min_length:
        ids, outcome = None, TOO_SHORT
    elif ids is not None and filters.max_length is not None and len(ids) > filters.max_length:
        ids, outcome = None, TOO_LONG
    counts[outcome] += 1
    return ids
