"""A token corpus on disk, as training sees it: memory-mapped residues, an index, and `meta.json`.

    corpus/
      meta.json                 written last: a directory without it is not a corpus
      train-00000.residues      uint8 token ids (1..25), proteins end to end; a protein never crosses two shards
      train.lengths.npy         int32 (N,)  residues of each protein
      train.offsets.npy         int64 (N,)  its start in the shards laid end to end
      train.sources.npy         uint8 (N,)  the input it came from, an index into `source_names`
      train.clusters.npy        int64 (N,)  its cluster; its own index where no clusters were given
      train.checksums.npy       uint32 (N,) CRC-32 of its token ids; corpora of the first versions lack it
      valid-00000.residues ...  the same for the held-out split

A damaged corpus does not train. `Corpus.open` compares the size of every file with meta.json and reads the index, some
25 bytes a protein, to compare its checksums; residues are checked one protein at a time, each time one is read.
`xtrimo info CORPUS --verify` reads it all.

    >>> corpus = Corpus.open("corpus")                      # doctest: +SKIP
    >>> corpus.train[0], corpus.train.lengths[0]            # doctest: +SKIP
    (array([17, 12,  4], dtype=uint8), 3)
"""

import hashlib
import json
import logging
import mmap
import zlib
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, UInt8, UInt32

from xtrimo.errors import CorpusError
from xtrimo.log import warn_once
from xtrimo.tokens import PUBLISHED_WORDS

logger = logging.getLogger(__name__)

FORMAT = "xtrimo-corpus-1"
META = "meta.json"
SPLITS = ("train", "valid")
CHECKSUMS = "checksums"
INDEX_DTYPES = {"lengths": "<i4", "offsets": "<i8", "sources": "|u1", "clusters": "<i8", CHECKSUMS: "<u4"}
CURE = "copy the corpus again or rebuild it with `xtrimo corpus`"


@dataclass(frozen=True, kw_only=True, slots=True)
class FileMeta:
    """What a file of the corpus must look like."""

    name: str
    size: int
    """Bytes."""
    checksum: str
    """BLAKE2b of the content, 128 bits in hexadecimal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceMeta:
    """One input file and the fate of its records; read = the sum of the other counts."""

    name: str
    weight: float
    """Share of the training residues that sampling should take from this source; all weights add up to 1."""
    num_train_residues: int
    num_valid_residues: int
    read: int
    train: int
    valid: int
    empty: int
    unknown: int
    """Left out for a letter outside the vocabulary."""
    too_short: int
    too_long: int
    duplicate: int
    excluded_exact: int
    """Left out because an excluded sequence is the same."""
    excluded_cluster: int
    """Left out because the cluster holds an excluded sequence."""
    read_as_x: int
    """Records, among those that passed the letters, in which unknown letters became X; not a fate of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitMeta:
    """Size and composition of one split."""

    num_proteins: int
    num_residues: int
    num_clusters: int
    residue_counts: dict[str, int]
    """Residues by letter."""
    length_histogram: dict[str, int]
    """Proteins by length; the key is the lower edge of the bin, the next key the upper one, exclusive."""
    shards: tuple[FileMeta, ...]
    index: tuple[FileMeta, ...]
    """One file for each of INDEX_DTYPES, in that order; corpora of the first versions lack the checksums."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusMeta:
    """The content of meta.json."""

    format: str
    vocabulary: str
    """`vocabulary_hash()` of the words that the token ids stand for."""
    split_rule: str
    has_clusters: bool
    num_unlisted: int
    """Records that the cluster file does not name; each is a cluster of its own."""
    num_exclusions: int
    """Records read from the files of excluded sequences."""
    sources: tuple[SourceMeta, ...]
    train: SplitMeta
    valid: SplitMeta
    settings: dict[str, Any]
    """Every setting and input checksum that the content depends on."""

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "CorpusMeta":
        """The inverse of `dataclasses.asdict`."""
        splits = {name: _split_meta(fields[name]) for name in SPLITS}
        return cls(**(fields | splits | {"sources": tuple(SourceMeta(**source) for source in fields["sources"])}))


def _split_meta(fields: dict[str, Any]) -> SplitMeta:
    files = {key: tuple(FileMeta(**file) for file in fields[key]) for key in ("shards", "index")}
    return SplitMeta(**(fields | files))


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """The proteins of one split: `split[i]` is a read-only view of the token ids of protein i, residues only.

    Raises:
        CorpusError: on reading a protein whose token ids are no longer those that were written.
    """

    lengths: Int32[np.ndarray, "protein"]
    offsets: Int64[np.ndarray, "protein"]
    sources: UInt8[np.ndarray, "protein"]
    clusters: Int64[np.ndarray, "protein"]
    checksums: UInt32[np.ndarray, "protein"] | None
    files: tuple[Path, ...]
    """The shards' names."""
    shards: tuple[UInt8[np.ndarray, "_"], ...]
    """Their content."""
    shard_starts: tuple[int, ...]
    """Where each shard begins when all are laid end to end, residues."""

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "length"]:
        offset = int(self.offsets[index])
        shard = bisect_right(self.shard_starts, offset) - 1
        start = offset - self.shard_starts[shard]
        residues = self.shards[shard][start : start + int(self.lengths[index])]
        if self.checksums is not None and zlib.crc32(residues.data) != self.checksums[index]:
            raise CorpusError(
                f"{self.files[shard]} is damaged: protein {range(len(self))[index]}, the {len(residues)} bytes from"
                f" {start} on, does not have the checksum {self.checksums[index]:08x} it was written with; {CURE}"
            )
        return residues


@dataclass(frozen=True, slots=True, eq=False)
class Corpus:
    """An opened corpus directory."""

    path: Path
    meta: CorpusMeta
    train: Split
    valid: Split

    @classmethod
    def open(cls, path: str | Path) -> "Corpus":
        """Memory-map the corpus in directory `path`.

        Raises:
            CorpusError: no finished corpus there, another format or vocabulary, a file of the wrong size, or an
                altered index.
        """
        path = Path(path)
        meta = read_meta(path)
        for file in _files(meta):
            size = (path / file.name).stat().st_size if (path / file.name).is_file() else None
            if size != file.size:
                got = "is missing" if size is None else f"holds {size:,} bytes instead of {file.size:,}"
                raise CorpusError(f"{path / file.name} {got}; {CURE}")
        train, valid = (_open_split(path, getattr(meta, split)) for split in SPLITS)
        if train.checksums is None:
            warn_once(
                logger,
                "%s has no checksums of its proteins, as an earlier version wrote it: damaged residues would go into"
                " training unnoticed; rebuild it with `xtrimo corpus`, or look first with `xtrimo info %s --verify`",
                path, path,
            )  # fmt: skip
        return cls(path, meta, train, valid)

    @property
    def source_names(self) -> tuple[str, ...]:
        """The inputs, in the order of the command line."""
        return tuple(source.name for source in self.meta.sources)

    @property
    def source_weights(self) -> tuple[float, ...]:
        """Share of the training residues to take from each source; the weights add up to 1."""
        return tuple(source.weight for source in self.meta.sources)

    @property
    def fingerprint(self) -> str:
        """Of the content and the weights; the same corpus at another path has the same one, as has one rebuilt.

        So what follows from the rest of the content, the proteins' checksums, is left out.
        """
        files = [file for file in _files(self.meta) if _column(file) != CHECKSUMS]
        content = json.dumps([[file.name, file.size, file.checksum] for file in files])
        return hashlib.blake2b(f"{content}{self.source_weights}".encode(), digest_size=16).hexdigest()

    @property
    def has_clusters(self) -> bool:
        """Whether `clusters` came from a cluster file, so that no cluster is in both splits."""
        return self.meta.has_clusters


def vocabulary_hash() -> str:
    """Fingerprint of the published words in order: the same token ids mean the same letters."""
    return hashlib.blake2b("\n".join(PUBLISHED_WORDS).encode(), digest_size=16).hexdigest()


def file_checksum(path: Path) -> str:
    """BLAKE2b of a file's content, 128 bits in hexadecimal; about 1 GB/s."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def read_meta(path: Path) -> CorpusMeta:
    """Parse `path`/meta.json.

    Raises:
        CorpusError: it is missing, damaged, or of another format or vocabulary.
    """
    ours = {"format": FORMAT, "vocabulary": vocabulary_hash()}
    try:
        fields = json.loads((path / META).read_bytes())
        theirs = {key: fields[key] for key in ours}
        meta = CorpusMeta.from_dict(fields) if theirs == ours else None
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CorpusError(
            f"{path} is not a finished corpus: it has no {META}; build it with `xtrimo corpus IN.fasta --out {path}`"
            " (after an interruption, the same command again continues)"
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CorpusError(
            f"{path / META} is damaged ({type(error).__name__}: {error}); rebuild it with `xtrimo corpus`"
        ) from error
    if meta is None:
        raise CorpusError(f"{path}: this version reads {ours}, but found {theirs}; build it again with `xtrimo corpus`")
    return meta


def _files(meta: CorpusMeta) -> list[FileMeta]:
    return [file for split in (meta.train, meta.valid) for file in (*split.shards, *split.index)]


def _column(file: FileMeta) -> str:
    return file.name.split(".")[1]  # of train.lengths.npy: lengths


def _open_split(path: Path, meta: SplitMeta) -> Split:
    columns: dict[str, Any] = dict.fromkeys(INDEX_DTYPES)
    for file in meta.index:
        found = file_checksum(path / file.name)
        if found != file.checksum:
            raise CorpusError(f"{path / file.name} was altered: checksum {found} instead of {file.checksum}; {CURE}")
        columns[_column(file)] = np.asarray(np.load(path / file.name, mmap_mode="r", allow_pickle=False))
    files = tuple(path / file.name for file in meta.shards)
    shards = tuple(map(_map_shard, files))
    starts = tuple(accumulate((len(shard) for shard in shards), initial=0))[:-1]
    return Split(**columns, files=files, shards=shards, shard_starts=starts)


def _map_shard(path: Path) -> UInt8[np.ndarray, "_"]:
    # A plain array over the map: slicing a np.memmap costs several times as much.
    with open(path, "rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)
