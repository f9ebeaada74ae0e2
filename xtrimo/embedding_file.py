"""The verb `embed`: the hidden states of the proteins of a FASTA file, as an HDF5 file, by one process or many.

The input is read through once to check every record and to cut it into parts (`embedding_parts`); each process then
streams through it again and embeds the parts that it takes. What is in memory does not depend on the input's size.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from tyro.conf import Positional

from xtrimo import __version__, embedding_parts
from xtrimo.backbone import Backbone
from xtrimo.command import FastaOptions, counting
from xtrimo.embedding import OVERLAP, Long, Pooling, check, iter_embeddings, reading
from xtrimo.embedding_parts import Part, Parts, cut
from xtrimo.errors import ConfigError, FastaError, XtrimoError
from xtrimo.fasta import read_fasta
from xtrimo.shards import parse_shard

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

logger = logging.getLogger(__name__)

WRITTEN = {"f16": "float16", "f32": "float32"}
PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
ATTRIBUTES = ("model_hash", "precision", "layers", "pooling", "dtype", "long", "overlap", "xtrimo_version")
"""The settings that the file states, beside its model and a digest of all of them."""


@runtime_checkable
class HasWeights(Protocol):
    """A backbone, or any module."""

    def state_dict(self) -> Mapping[str, Any]:
        """Weights by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedOptions(FastaOptions):
    """Write the hidden states of each protein of a FASTA file to an HDF5 file, one dataset a record, in input order.

    A dataset has its record's name, with "/" as "_" and without the dots it begins or ends with ("_" if nothing is
    left); further records of that name have "#2", "#3", ... added. Its attributes are original_id, length (residues),
    and chains (residues of each) where ":" joins several; the file's are model, model_hash, precision, layers, pooling,
    dtype, long, overlap, xtrimo_version and settings_hash. Killed, the same command goes on.
    """

    fasta: Positional[Path]
    """Proteins, plain or gzipped; ":" joins the chains of one, which are read one by one."""
    out: Positional[Path]
    """HDF5 file; replaced, once the new one is complete."""
    pooling: Pooling = "none"
    """Over the residues: none keeps (length, dim), mean and max give (dim); cls is the word for the whole protein."""
    layers: tuple[int, ...] = (-1,)
    """0 is the embedding, i the output of block i, -1 the last; several add a first axis."""
    dtype: Literal["f16", "f32"] = "f32"
    """Of the numbers in the file."""
    long: Long = "error"
    """A protein longer than the model's training rows: error stops, windows reads it in overlapping pieces."""
    overlap: int = OVERLAP
    """Residues that neighbouring windows share."""
    row_tokens: int | None = None
    """Most tokens read at once, 2,048 by default; changes speed and memory, not the states."""
    processes: int = 1
    """That share the work, on the CPU; they share its threads too."""
    shard: str = "1/1"
    """I/N: embed the I-th of N shares, for job arrays; the last to finish writes the file."""

    def __post_init__(self) -> None:
        parse_shard(self.shard)
        if self.processes < 1 or self.row_tokens is not None and self.row_tokens < 1:
            raise ConfigError(f"processes {self.processes}, row_tokens {self.row_tokens}: each is at least 1")
        if self.processes > 1 and self.device != "cpu":
            raise ConfigError(
                f"processes {self.processes} on {self.device}: several share a CPU only; give each device a --shard"
            )

    def parts(self, model: Backbone) -> list[Part]:
        """The parts of the input, each record of which is checked here, so that a bad one is met at once.

        Raises:
            FastaError, SequenceError: as `read_fasta` and `embed`, or no record is left.
        """
        overlap = self.overlap if self.long == "windows" else None

        def lengths() -> Iterator[int]:
            for record in read_fasta(self.fasta, unknown=self.unknown, force=self.force, chains=True):
                if "\0" in record.name:
                    raise FastaError(
                        f"{self.fasta}: the name {record.name!r} holds a zero byte, which no name in HDF5 can; take it"
                        " out of the header"
                    )
                yield sum(reading(model, record, self.pooling, overlap).chains)

        parts = cut(lengths())
        if not parts:
            raise FastaError(f"{self.fasta}: no record is left to work on; correct the letters, or try --unknown x")
        return parts

    def check_out(self) -> None:
        """Refuse an output that is something else, which must not be replaced.

        Raises:
            ConfigError: there is such a file.
        """
        import h5py

        out = self.out
        if out.is_file() and out.stat().st_size and not h5py.is_hdf5(out):
            raise ConfigError(f"{out} is there and is no HDF5 file; remove it or choose another output")

    def settings(self, model: Backbone) -> dict[str, Any]:
        """All that decides what is in the parts: other settings, other parts."""
        with self.fasta.open("rb") as file:
            input_hash = hashlib.file_digest(file, "blake2b").hexdigest()[:32]
        return dict(
            xtrimo_version=__version__, model_hash=fingerprint(model), input_hash=input_hash, unknown=self.unknown,
            pooling=self.pooling, layers=list(self.layers), dtype=WRITTEN[self.dtype], long=self.long,
            overlap=self.overlap if self.long == "windows" else 0, part_residues=embedding_parts.PART_RESIDUES,
            precision=self.precision or PRECISIONS.get(model.dtype, str(model.dtype)),
        )  # fmt: skip


class Work(NamedTuple):
    """What every process of a run has."""

    options: EmbedOptions
    model: Backbone
    store: Parts
    todo: list[Part]

    def embed(self, parts: Iterable[Part], count: Callable[[int], None]) -> None:
        """Write these parts, given in input order; `count` is told of the residues as they are done."""
        o = self.options
        records = o.read_again(o.fasta, chains=True)
        place = 0
        for part in parts:
            own = islice(records, part.first - place, part.first - place + part.num_records)
            place = part.first + part.num_records
            embeddings = iter_embeddings(
                self.model, own, pooling=o.pooling, layers=o.layers, long=o.long, overlap=o.overlap,
                row_tokens=o.row_tokens,
            )  # fmt: skip
            self.store.write(part, _counted(embeddings, count))


def fingerprint(model: Backbone) -> str:
    """A digest of all that the states of a model follow from, as it is in memory. About 1 s per GB.

    These are its facts (`Backbone.facts`), and its weights: names in order, dtypes, shapes, bytes.
    """
    return fingerprint_of(model, model.facts)


def fingerprint_of(module: HasWeights, facts: Mapping[str, Any]) -> str:
    """A digest of a module's weights and of what else its answers follow from."""
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16)
    weights = module.state_dict()
    for name in sorted(weights):
        weight = weights[name]
        if isinstance(weight, torch.Tensor):
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
            digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def main(args: Sequence[str] | None = None) -> None:
    """`xtrimo embed`."""
    import tyro

    options = tyro.cli(EmbedOptions, prog="xtrimo embed", args=args)
    options.check_paths(options.fasta, options.out)
    options.check_out()
    threads = max(1, torch.get_num_threads() // options.processes)
    if options.processes > 1:
        torch.set_num_threads(1)  # until the fork, which OpenMP's threads do not survive
    model = options.load()
    began = time.monotonic()
    check(model, options.pooling, options.layers, options.long, options.overlap)
    parts = options.parts(model)
    store = Parts(options.out, options.settings(model))
    done: list[Part] = []
    if not store.are_merged():
        model = options.prepare(model, options.fasta)
        try:
            done = _embed_share(options, model, store, parts, threads)
        except XtrimoError:
            if not store.are_merged():  # by the same command, started twice: its folder is gone
                raise
    if store.are_merged():
        store.tidy()
        logger.info("%s is complete: of these settings, this model and this input", options.out)
    if done:
        seconds, num_residues = time.monotonic() - began, sum(part.num_residues for part in done)
        logger.info("%s proteins, %s residues in %.1f s (%s residues/s)", f"{sum(p.num_records for p in done):,}",
            f"{num_residues:,}", seconds, f"{num_residues / seconds:,.0f}")  # fmt: skip


def _embed_share(
    options: EmbedOptions, model: Backbone, store: Parts, parts: Sequence[Part], threads: int
) -> list[Part]:
    """Embed this shard's parts that are missing, and put all together if none is missing then; what was embedded."""
    store.open()
    work = Work(options, model, store, store.missing(parse_shard(options.shard).of(parts)))
    num_residues = sum(part.num_residues for part in work.todo)
    if options.processes > 1 and work.todo:
        _in_processes(work, num_residues, threads)
    else:
        with counting("embedding", num_residues, "residues") as count:
            work.embed(work.todo, count)
    missing = store.missing(parts)
    if not missing:
        store.merge(parts, {"model": options.model} | {name: store.settings[name] for name in ATTRIBUTES})
    elif not store.are_merged():  # the folder goes after the merge, so what is looked at last decides
        logger.info("%d of %d parts are missing; the shard that ends last writes %s",
            len(missing), len(parts), options.out)  # fmt: skip
    return work.todo


def _counted(embeddings: Iterable[Any], count: Callable[[int], None]) -> Iterator[Any]:
    for embedding in embeddings:
        yield embedding
        count(embedding.length)


def _in_processes(work: Work, num_residues: int, threads: int) -> None:
    """Let processes take the parts one by one, and end when none is left; an error of one ends all."""
    import multiprocessing
    from multiprocessing.connection import wait

    context = multiprocessing.get_context("fork")  # the weights are in memory once
    taken, done, parent = context.Value("q", 0), context.Value("q", 0), os.getpid()

    def parts() -> Iterator[Part]:
        while True:
            with taken.get_lock():
                number, taken.value = taken.value, taken.value + 1
            if number >= len(work.todo):
                return
            yield work.todo[number]

    def count(amount: int) -> None:
        if os.getppid() != parent:
            os._exit(1)  # the parent was killed, and this must not meet the next run
        with done.get_lock():
            done.value += amount

    def run(answer: "Connection") -> None:
        torch.set_num_threads(threads)
        try:
            work.embed(parts(), count)
            answer.send(None)
        except XtrimoError as error:
            answer.send(error)

    workers, answers = [], []
    try:
        for _ in range(work.options.processes):
            receiver, sender = context.Pipe(duplex=False)
            workers.append(context.Process(target=run, args=(sender,), daemon=True))
            workers[-1].start()
            sender.close()  # so that the worker's death ends the pipe
            answers.append(receiver)
        counted = 0
        with counting("embedding", num_residues, "residues") as show:
            while answers:
                ended = wait(answers, timeout=0.5)
                now = done.value
                show(now - counted)
                counted = now
                for receiver in filter(ended.__contains__, answers.copy()):
                    answers.remove(receiver)
                    if error := _answer(receiver):
                        raise error
    finally:
        for worker in workers:
            worker.kill()
            worker.join()


def _answer(receiver: "Connection") -> XtrimoError | None:
    """What a worker that has ended says: nothing, or what went wrong."""
    try:
        error: XtrimoError | None = receiver.recv()
    except EOFError:
        return XtrimoError(
            "a worker process was killed, perhaps for want of memory, or stopped by the error above; the same command"
            " goes on, with fewer --processes or --row-tokens if memory was it"
        )
    return error
