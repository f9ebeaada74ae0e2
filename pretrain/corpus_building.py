"""From FASTA files to the token corpus that pretraining reads: the settings and the journey behind `xtrimo corpus`.

    stage    parse, filter and encode each input into parts               corpus_staging
    select   exclude, de-duplicate, split                                 corpus_selection
    write    shards and index of train and valid, last of all meta.json   corpus_writer

Until meta.json is there the directory is not a corpus. A run that was killed is continued by the same command: finished
parts are kept, the later steps, which are fast, run again, and the result is the same to the byte. A run that stops at
an error in its input leaves nothing. While it works it needs twice the disk space of the corpus.
"""

import dataclasses
import fcntl
import json
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from pretrain.corpus import (
    FORMAT,
    META,
    SPLITS,
    CorpusMeta,
    SourceMeta,
    SplitMeta,
    file_checksum,
    read_meta,
    vocabulary_hash,
)
from pretrain.corpus_selection import (
    FATES,
    TRAIN,
    VALID,
    Clusters,
    Records,
    Selection,
    as_keys,
    name_keys,
    read_clusters,
    select,
    sequence_digest,
)
from pretrain.corpus_staging import DROPPED, READ_AS_X, Filters, Part, commit, finished_parts, stage
from pretrain.corpus_writer import SplitWriter
from xtrimo.errors import ConfigError, CorpusError, FastaError, XtrimoError
from xtrimo.fasta import parse_fasta
from xtrimo.log import is_quiet
from xtrimo.tokens import Unknown, encode_residues

logger = logging.getLogger(__name__)

STAGING = "staging"
SETTINGS = "settings.json"
MAX_SOURCES = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusConfig:
    """Build a token corpus from protein FASTA files, plain or gzipped. The same command continues a killed run."""

    inputs: tyro.conf.Positional[tuple[Path, ...]]
    """Protein FASTA files; of equal sequences the first one, in this order, is kept."""
    out: Path
    """Directory of the corpus; new, or that of an unfinished run with the same settings."""
    weights: tuple[float, ...] = ()
    """Share of the training residues to take from each input, in their order; any scale. Default: by size."""
    exclude: tuple[Path, ...] = ()
    """FASTA files of sequences to keep out: equal ones, and with --clusters every cluster that holds one."""
    clusters: Path | None = None
    """mmseqs2 cluster.tsv (representative TAB member) over the inputs; no cluster is then in both train and valid."""
    min_length: int = 30
    """Shortest protein to keep, residues."""
    max_length: int | None = None
    """Longest protein to keep, residues; training crops longer ones at random. Default: no limit."""
    valid_ratio: float = 0.01
    """Share of the clusters (without --clusters: of the sequences) to hold out for validation, 0..0.5."""
    unknown: Unknown = "skip"
    """Records with letters outside the vocabulary, or empty ones: skip and count, read the letters as x, or error."""
    force: bool = False
    """Read files that look like nucleotides."""
    shard_residues: int = 1 << 30
    """Largest shard file, residues (= bytes); a protein never crosses shards."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.inputs) <= MAX_SOURCES:
            raise ConfigError(f"got {len(self.inputs)} inputs; give 1 to {MAX_SOURCES} FASTA files")
        if self.weights and len(self.weights) != len(self.inputs):
            raise ConfigError(f"got {len(self.weights)} weights for {len(self.inputs)} inputs; give one each, or none")
        if self.weights and (min(self.weights) < 0 or not 0 < sum(self.weights) < float("inf")):
            raise ConfigError(f"weights {self.weights} must be finite, not negative, and not all 0")
        if self.min_length < 1 or self.shard_residues < 1:
            raise ConfigError(
                f"min_length {self.min_length} and shard_residues {self.shard_residues} must be at least 1"
            )
        if self.max_length is not None and self.max_length < self.min_length:
            raise ConfigError(f"max_length {self.max_length} is below min_length {self.min_length}: nothing would pass")
        if not 0 <= self.valid_ratio <= 0.5:
            raise ConfigError(f"valid_ratio {self.valid_ratio} must be in 0..0.5")


def build_corpus(config: CorpusConfig) -> CorpusMeta:
    """Build the corpus that `config` describes, or continue it, or return at once if it is complete.

    Raises:
        FastaError, SequenceError: an input cannot be used.
        CorpusError: the directory holds something else, or nothing is left to train on.
    """
    began = time.perf_counter()
    with _locked(config.out):
        settings = _settings(config)
        if (config.out / META).exists():
            meta = read_meta(config.out)
            _require_same(config.out, meta.settings, settings)
            logger.warning("%s is complete already; nothing to do", config.out)
        else:
            # Bad exclusions or clusters must not cost a pass over the inputs.
            exclusions = _read_exclusions(config)
            clusters = read_clusters(config.clusters) if config.clusters else None
            staging = _claim(config.out, settings)
            try:
                _stage_inputs(config, staging)
                meta = _write(config, settings, staging, exclusions, clusters)
            except XtrimoError:  # the cure will change the settings, which the staged parts would not fit
                shutil.rmtree(staging)
                raise
            seconds = time.perf_counter() - began
            rate = (meta.train.num_residues + meta.valid.num_residues) / seconds
            logger.info("%s: complete after %.1f s, %s residues/s", config.out, seconds, f"{rate:,.0f}")
        shutil.rmtree(config.out / STAGING, ignore_errors=True)
        return meta


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep a second run out of the directory; the lock ends with the process, however it ends."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        folder = os.open(out, os.O_RDONLY)
    except OSError as error:
        raise CorpusError(f"{out}: cannot be made a directory ({error.strerror}); choose another --out") from error
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CorpusError(
                f"{out}: another `xtrimo corpus` is writing here; wait, or choose another --out"
            ) from error
        yield
    finally:
        os.close(folder)


def _settings(config: CorpusConfig) -> dict[str, Any]:
    """All that the content depends on. Files count by name and content, so they may be moved between two runs."""
    files = {
        field: [_describe(path) for path in paths]
        for field, paths in {
            "inputs": config.inputs,
            "exclude": config.exclude,
            "clusters": (config.clusters,) if config.clusters else (),
        }.items()
    }
    plain = ("min_length", "max_length", "valid_ratio", "unknown", "force", "shard_residues")
    return {
        "format": FORMAT,
        "vocabulary": vocabulary_hash(),
        **files,
        "weights": list(config.weights),
        **{field: getattr(config, field) for field in plain},
    }


def _describe(path: Path) -> dict[str, Any]:
    try:
        return {"name": path.name, "size": path.stat().st_size, "checksum": file_checksum(path)}
    except OSError as error:
        raise FastaError(f"{path}: cannot be read ({error.strerror}); give the path of a file") from error


def _require_same(out: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    changed = [key for key in now if before.get(key) != now[key]]
    if changed:
        details = "; ".join(f"{key} was {before.get(key)}, now {now[key]}" for key in changed)
        raise CorpusError(f"{out} was begun with other settings: {details}; repeat those, or choose another --out")


def _claim(out: Path, settings: dict[str, Any]) -> Path:
    """The staging folder, begun by this run or by an earlier one with the same settings."""
    staging = out / STAGING
    begun = staging / SETTINGS
    if begun.exists():
        _require_same(out, json.loads(begun.read_bytes()), settings)
        logger.warning("%s: continuing the interrupted run", out)
        return staging
    others = sorted(path.name for path in out.iterdir() if path.name != STAGING)
    if others:
        raise CorpusError(f"{out} holds {', '.join(others[:3])}, which is no corpus; choose a new or empty directory")
    staging.mkdir(exist_ok=True)
    _write_json(begun, settings)
    return staging


def _stage_inputs(config: CorpusConfig, staging: Path) -> None:
    filters = Filters(
        min_length=config.min_length, max_length=config.max_length, unknown=config.unknown, force=config.force
    )
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=is_quiet()) as progress:
        tasks = [progress.add_task(path.name, total=path.stat().st_size) for path in config.inputs]
        for source, (path, task) in enumerate(zip(config.inputs, tasks, strict=True)):
            with progress.open(path, "rb", task_id=task) as raw:
                stage(path, raw, staging, source, filters)
            progress.update(task, completed=path.stat().st_size)


def _write(
    config: CorpusConfig, settings: dict[str, Any], staging: Path, exclusions: Records, clusters: Clusters | None
) -> CorpusMeta:
    """Select among the staged records, write both splits, and at last meta.json."""
    sources = [finished_parts(staging, source) for source in range(len(config.inputs))]
    parts = [part for source in sources for part in source]
    records = Records(
        np.concatenate([part.records.digests for part in parts]), np.concatenate([part.records.names for part in parts])
    )
    if clusters is None:
        logger.warning(
            "no cluster file: train and valid are split by the hash of each sequence, so close relatives can be on both"
            " sides and validation will look better than it is; cluster with mmseqs2 and give --clusters"
        )
    selection = select(records, exclusions, clusters, config.valid_ratio)
    source_metas = _count(config, sources, selection)
    rule = "cluster: hash of the representative's name" if clusters else "sequence: hash of the token ids, no clusters"
    meta = CorpusMeta(
        format=FORMAT,
        vocabulary=vocabulary_hash(),
        split_rule=f"{rule}; valid where it falls in the lowest {config.valid_ratio:g} of its range",
        has_clusters=clusters is not None,
        num_unlisted=selection.num_unlisted,
        num_exclusions=len(exclusions.digests),
        sources=source_metas,
        **_write_splits(config, sources, selection),
        settings=settings,
    )
    if selection.num_unlisted:
        logger.warning("%d records are not in the cluster file; each is a cluster of its own", selection.num_unlisted)
    _write_json(config.out / META, dataclasses.asdict(meta))
    return meta


def _read_exclusions(config: CorpusConfig) -> Records:
    """Digests and names of the excluded sequences; unknown letters become X, as they may have in the corpus."""
    digests, names = bytearray(), bytearray()
    for path in config.exclude:
        for _, record in parse_fasta(path, force=config.force):
            if record.sequence:
                digests += sequence_digest(encode_residues(record.sequence, unknown="x"))
                names += name_keys(record.name)
    return Records(as_keys(digests), as_keys(names))


def _write_splits(config: CorpusConfig, sources: list[list[Part]], selection: Selection) -> dict[str, SplitMeta]:
    writers = [SplitWriter(config.out, split, config.shard_residues) for split in SPLITS]
    start = 0
    for source, parts in enumerate(sources):
        for part in parts:
            fates, clusters = (
                column[start : start + len(part.lengths)] for column in (selection.fates, selection.clusters)
            )
            residues = part.residues()
            for fate, writer in enumerate(writers):  # the first FATES are the splits
                kept = fates == fate
                writer.append(residues[np.repeat(kept, part.lengths)], part.lengths[kept], clusters[kept], source)
            start += len(part.lengths)
    metas = [writer.finish(has_clusters=config.clusters is not None) for writer in writers]
    return dict(zip(SPLITS, metas, strict=True))


def _count(config: CorpusConfig, sources: list[list[Part]], selection: Selection) -> tuple[SourceMeta, ...]:
    """What became of the records of each input.

    Raises:
        CorpusError: an input that has a weight has nothing to train on.
    """
    lengths = [np.concatenate([part.lengths for part in parts]) for parts in sources]
    fates = np.split(selection.fates, np.cumsum([len(column) for column in lengths])[:-1])
    residues = [
        np.bincount(f, weights=n, minlength=len(FATES)).astype(int) for f, n in zip(fates, lengths, strict=True)
    ]
    weights = config.weights or [float(by_fate[TRAIN]) for by_fate in residues]
    names = [path.name for path in config.inputs]
    metas = []
    for source, path in enumerate(config.inputs):
        if config.weights and config.weights[source] and not residues[source][TRAIN]:
            raise CorpusError(f"{path} has weight {config.weights[source]} but no protein left to train on; drop it")
        staged = sum((part.counts for part in sources[source]), Counter[str]())
        metas.append(
            SourceMeta(
                name=path.name if names.count(path.name) == 1 else str(path),
                weight=weights[source] / sum(weights),
                num_train_residues=int(residues[source][TRAIN]),
                num_valid_residues=int(residues[source][VALID]),
                read=staged.total() - staged[READ_AS_X],
                **{key: staged[key] for key in (*DROPPED, READ_AS_X)},
                **dict(zip(FATES, np.bincount(fates[source], minlength=len(FATES)).tolist(), strict=True)),
            )
        )
    return tuple(metas)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    commit(partial, path)
