"""The proteins of a FASTA file to structure files and a table of scores: what the verb `fold` does.

    OUT/NAME.cif, OUT/NAME.pdb   a protein; the letters of its record's name that no file name should have are "_"
    OUT/NAME.pae.json            with --page: the expected error of each pair, as AlphaFold's database has it
    OUT/page.html                with --page: all of it to look at
    OUT/scores.json              mean pLDDT, pTM, seconds of each, its sequence and the name of its files
    OUT/scores.2-of-8.json       the same of a job array's second task, until the last task makes scores.json of all
    OUT/settings.json            model, recycles, --pae and --cache, which all files of a folder have in common

A protein is finished when its files are there, and a table of scores has the record's name and sequence beside their
name: the same command folds what is left. The shares of an array are of whole batches, so that each protein is computed
beside the same others, and to the same bits, as by one process.
"""

import fcntl
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from structure.fold_command import FoldOptions
from structure.fold_directory import Pipeline
from structure.fold_page import ERRORS, write_fold_page
from structure.folding import buckets, check_recycles, iter_folded, num_residues
from structure.prediction import Prediction
from structure.writers import Scores, read_scores, write_mmcif, write_pae, write_pdb, write_scores
from xtrimo.command import counting, replacing
from xtrimo.durable import create_json, differences
from xtrimo.embedding_file import fingerprint_of
from xtrimo.errors import ConfigError, DataError, XtrimoError
from xtrimo.fasta import Record, file_names
from xtrimo.shards import WHOLE, Shard, parse_shard

logger = logging.getLogger(__name__)

SCORES, SETTINGS = "scores.json", "settings.json"
SHARES = "scores.*-of-*.json"
WRITTEN_EVERY = 10.0
"""Seconds between two writings of the scores: a killed run folds what is newer again."""


def fold_all(pipeline: Pipeline, records: Sequence[Record], options: FoldOptions) -> list[Scores]:
    """Fold what is not finished; the scores of all records, or of this share of them, in their order.

    Raises:
        ConfigError: a folder of structures of another model, other recycles, or with errors of pairs and now without.
        SequenceError: as `fold`; before anything is folded.
        XtrimoError: proteins that could not be written, after all others were; or another process at work there.
    """
    settings = {
        "model": pipeline.name, "model_hash": fingerprint_of(pipeline.model, pipeline.model.config.to_dict()),
        "num_recycles": check_recycles(pipeline, options.num_recycles), "pae": options.pae,
        "states": "fp16" if options.cache else None,
    }  # fmt: skip
    _claim(options.out, settings)
    shard = parse_shard(options.shard)
    with _alone(options.out, shard):
        return _fold_rest(pipeline, records, options, shard)


@contextmanager
def _alone(out: Path, shard: Shard = WHOLE) -> Iterator[None]:
    """Hold a folder: two processes would each write the scores that they know of. Shares hold it together."""
    with (out / SETTINGS).open("r+") as file:  # NFS lets nobody hold alone what is open for reading only
        try:
            fcntl.flock(file, (fcntl.LOCK_EX if shard.num == 1 else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError as error:
            raise XtrimoError(f"another process folds into {out}; wait for it, or choose another folder") from error
        yield


def _fold_rest(pipeline: Pipeline, records: Sequence[Record], options: FoldOptions, shard: Shard) -> list[Scores]:
    names = file_names([record.name for record in records])
    batches = shard.of(buckets([num_residues(record) for record in records]))
    own = {names[number]: records[number] for number in sorted(number for batch in batches for number in batch)}
    known = _known(options.out)
    table = {name: _finished(record, name, known, options) for name, record in own.items()}
    todo = {name: record for name, record in own.items() if table[name] is None}
    if shard.num == 1:
        table |= {name: scores for name, scores in known.items() if name not in table}  # of other inputs
    if len(todo) < len(own):
        logger.info("%s: %d of %d proteins are finished", options.out, len(own) - len(todo), len(own))
    for name, record in todo.items():
        if name in known and (known[name].name, known[name].sequence) != (record.name, record.sequence.upper()):
            if shard.num > 1:
                raise ConfigError(
                    f"{options.out} has the files of another protein called {name}, which shares do not replace; choose"
                    " another folder, or leave out --shard"
                )
            logger.warning("%s: the files of another protein of this name are replaced", options.out / name)
            for ending in (".cif", ".pdb", ERRORS):
                (options.out / f"{name}{ending}").unlink(missing_ok=True)
    failed = _fold_missing(pipeline, todo, table, options, shard) if todo else {}
    if not failed:
        _put_together(dict(zip(names, records, strict=True)), options)
    if options.page and not any(options.out.glob(SHARES)):
        logger.info("wrote %s", write_fold_page(options.out, names))
    if failed:
        name, error = next(iter(failed.items()))
        raise XtrimoError(
            f"{len(failed)} of {len(own)} proteins could not be written, such as {name} ({error}); all others are"
            f" in {options.out}"
        )
    return [scores for name in own if (scores := table[name])]


def _known(out: Path) -> dict[str, Scores]:
    """All scores of a folder, by the name of their files."""
    found: list[list[Scores]] = []
    for path in [*sorted(out.glob(SHARES)), out / SCORES]:  # a share's vanish once they are in scores.json, read last
        try:
            found.append(read_scores(path))
        except DataError:
            if path.exists():
                raise
    return {each.file: each for table in reversed(found) for each in table}


def _put_together(records: Mapping[str, Record], options: FoldOptions) -> None:
    """Make one table of those of the shares, if all records are in them."""
    shares = sorted(options.out.glob(SHARES))
    if not shares:
        return
    known = _known(options.out)
    table = {name: scores for name, record in records.items() if (scores := _finished(record, name, known, options))}
    if len(table) < len(records):
        logger.info("%s: %d of %d proteins are finished", options.out, len(table), len(records))
        return
    table |= {name: scores for name, scores in known.items() if name not in table}
    with replacing(options.out / SCORES) as partial:  # of a name that no other task has
        write_scores([*table.values()], partial)
    for path in shares:
        path.unlink(missing_ok=True)


def _fold_missing(
    pipeline: Pipeline,
    records: Mapping[str, Record],
    table: dict[str, Scores | None],
    options: FoldOptions,
    shard: Shard,
) -> dict[str, DataError]:
    """Fold records, given by the name of their files, and put their scores into the table and its file.

    Returns:
        What could not be written, and why.
    """
    failed: dict[str, DataError] = {}

    path = options.out / (SCORES if shard.num == 1 else f"{shard.name_in('scores')}.json")

    def save() -> None:
        write_scores([scores for scores in table.values() if scores], path)

    save()  # without what is now folded again, before its files are others than their scores say
    names, total = list(records), sum(num_residues(record) for record in records.values())
    began = written = last = time.monotonic()
    batches = iter_folded(pipeline, [*records.values()], num_recycles=options.num_recycles, chunk=options.chunk)
    try:
        with counting("folding", total, "residues") as count:
            for batch in batches:
                seconds = (time.monotonic() - last) / len(batch)
                for number, prediction in batch:
                    name = names[number]
                    try:
                        table[name] = Scores.of(_written(prediction, options, name), seconds, file=name)
                    except DataError as error:
                        failed[name] = error
                        logger.warning("%s", error)
                    count(num_residues(records[name]))
                last = time.monotonic()
                if last - written > WRITTEN_EVERY:
                    written = last
                    save()
    finally:
        save()
    logger.info("folded %d proteins in %.0f s", len(records) - len(failed), time.monotonic() - began)
    return failed


def _paths(options: FoldOptions, name: str) -> list[Path]:
    endings = {"mmcif": (".cif",), "pdb": (".pdb",), "both": (".cif", ".pdb")}[options.format]
    return [options.out / f"{name}{ending}" for ending in (*endings, *((ERRORS,) if options.page else ()))]


def _written(prediction: Prediction | DataError, options: FoldOptions, name: str) -> Prediction:
    """The prediction, once it is in its files.

    Raises:
        DataError: it is none, or does not fit into a file.
    """
    if isinstance(prediction, DataError):
        raise prediction
    for path in _paths(options, name):
        if path.suffix == ".pdb":
            write_pdb(prediction, path)
        elif path.suffix == ".json":
            write_pae(prediction, path)
        else:
            write_mmcif(prediction, path, pae=options.pae)
    return prediction


def _finished(record: Record, name: str, known: Mapping[str, Scores], options: FoldOptions) -> Scores | None:
    """The scores of a record whose files of this name are there."""
    scores = known.get(name)
    if scores is None or (scores.name, scores.sequence) != (record.name, record.sequence.upper()):
        return None
    return scores if all(file.exists() for file in _paths(options, name)) else None


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Make a folder this model's, or find it so."""
    path = out / SETTINGS
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):  # by another task of the array, just now
            create_json(path, settings)
    theirs = json.loads(path.read_text("utf-8"))
    if changed := differences(theirs, settings):
        raise ConfigError(f"{out} holds structures of other settings ({'; '.join(changed)}); choose another folder")
