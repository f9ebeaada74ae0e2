"""A token corpus on disk, as training sees it: memory-mapped residues, an index, and `meta.json`.

    corpus/
      meta.json                 written last: a directory without it is not a corpus
      train-00000.residues      uint8 token ids (1..25), proteins end to end; a protein never crosses two shards
      train.lengths.npy         int32 (N,)  residues of each protein
      train.offsets.npy         int64 (N,)  its start in the shards laid end to end
      train.sources.npy         uint8 (N,)  the input it came from, an index into `source_names`
      train.clusters.npy        int64 (N,)  its cluster; its own index where no clusters were given
      valid-00000.residues ...  the same for the held-out split

`Corpus.open` compares the size of every file with meta.json, which is cheap; `Corpus.verify` reads and checksums them.

    >>> corpus = Corpus.open("corpus")                      # doctest: +SKIP
    >>> corpus.train[0], corpus.train.lengths[0]            # doctest: +SKIP
    (array([17, 12,  4], dtype=uint8), 3)
"""

import hashlib
import json
import mmap
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from xtrimo.errors import CorpusError
from xtrimo.tokens import PUBLISHED_WORDS

FORMAT = "xtrimo-corpus-1"
META = "meta.json"
SPLITS = ("train", "valid")
INDEX_DTYPES = {"lengths": "<i4", "offsets": "<i8", "sources": "|u1", "clusters": "<i8"}


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
    """One file for each of INDEX_DTYPES, in that order."""


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
    """The proteins of one split: `split[i]` is a read-only view of the token ids of protein i, residues only."""

    lengths: Int32[np.ndarray, "protein"]
    offsets: Int64[np.ndarray, "protein"]
    sources: UInt8[np.ndarray, "protein"]
    clusters: Int64[np.ndarray, "protein"]
    shards: tuple[UInt8[np.ndarray, "_"], ...]
    shard_starts: tuple[int, ...]
    """Where each shard begins when all are laid end to end, residues."""

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "length"]:
        offset = int(self.offsets[index])
        shard = bisect_right(self.shard_starts, offset) - 1
        start = offset - self.shard_starts[shard]
        return self.shards[shard][start : start + int(self.lengths[index])]


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
            CorpusError: no finished corpus there, another format or vocabulary, or a file of the wrong size.
        """
        path = Path(path)
        meta = read_meta(path)
        for file in _files(meta):
            size = (path / file.name).stat().st_size if (path / file.name).is_file() else None
            if size != file.size:
                got = "is missing" if size is None else f"holds {size:,} bytes instead of {file.size:,}"
                raise CorpusError(f"{path / file.name} {got}; copy the corpus again or rebuild it with `xtrimo corpus`")
        return cls(path, meta, *(_open_split(path, getattr(meta, split)) for split in SPLITS))

    def verify(self) -> None:
        """Read every file and compare its checksum.

        Raises:
            CorpusError: naming the first file that was altered.
        """
        for file in _files(self.meta):
            found = file_checksum(self.path / file.name)
            if found != file.checksum:
                raise CorpusError(
                    f"{self.path / file.name} was altered: checksum {found} instead of {file.checksum};"
                    " copy the corpus again or rebuild it with `xtrimo corpus`"
                )

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
        """Of the content and the weights; the same corpus at another path has the same one."""
        content = json.dumps([[file.name, file.size, file.checksum] for file in _files(self.meta)])
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


def _open_split(path: Path, meta: SplitMeta) -> Split:
    lengths, offsets, sources, clusters = (_open_index(path / file.name) for file in meta.index)
    for file, array, dtype in zip(
        meta.index, (lengths, offsets, sources, clusters), INDEX_DTYPES.values(), strict=True
    ):
        if array.shape != (meta.num_proteins,) or array.dtype != np.dtype(dtype):
            raise CorpusError(
                f"{path / file.name} holds {array.dtype} {array.shape} instead of {dtype} ({meta.num_proteins},);"
                " rebuild the corpus with `xtrimo corpus`"
            )
    shards = tuple(_map_shard(path / file.name) for file in meta.shards)
    starts = tuple(accumulate((len(shard) for shard in shards), initial=0))[:-1]
    return Split(lengths, offsets, sources, clusters, shards, starts)


def _open_index(path: Path) -> Any:
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except ValueError as error:
        raise CorpusError(f"{path} is damaged ({error}); rebuild the corpus with `xtrimo corpus`") from error


def _map_shard(path: Path) -> UInt8[np.ndarray, "_"]:
    # A plain array over the map: slicing a np.memmap costs several times as much.
    with open(path, "rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)
