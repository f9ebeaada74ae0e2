"""The proteins of a FASTA file to structure files and a table of scores: what the verb `fold` does.

    OUT/NAME.cif, OUT/NAME.pdb   a protein; the letters of its record's name that no file name should have are "_"
    OUT/scores.json              mean pLDDT, pTM, seconds of each, its sequence and the name of its files
    OUT/settings.json            model, recycles and --pae, which all files of a folder have in common

A protein is finished when its files are there, and scores.json has the record's name and sequence beside their name:
the same command folds what is left.
"""

import fcntl
import json
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from structure.fold_command import FoldOptions
from structure.fold_directory import Pipeline
from structure.folding import check_recycles, iter_folded, num_residues
from structure.prediction import Prediction
from structure.writers import Scores, read_scores, write_mmcif, write_pdb, write_scores
from xtrimo.command import counting
from xtrimo.durable import differences, write_json
from xtrimo.embedding_file import fingerprint_of
from xtrimo.errors import ConfigError, DataError, XtrimoError
from xtrimo.fasta import Record

logger = logging.getLogger(__name__)

SCORES, SETTINGS = "scores.json", "settings.json"
WRITTEN_EVERY = 10.0
"""Seconds between two writings of the scores: a killed run folds what is newer again."""


def fold_all(pipeline: Pipeline, records: Sequence[Record], options: FoldOptions) -> list[Scores]:
    """Fold what is not finished; the scores of all records, in their order.

    Raises:
        ConfigError: a folder of structures of another model, other recycles, or with errors of pairs and now without.
        SequenceError: as `fold`; before anything is folded.
        XtrimoError: proteins that could not be written, after all others were; or another process at work there.
    """
    settings = {
        "model": pipeline.name, "model_hash": fingerprint_of(pipeline.model, pipeline.model.config.to_dict()),
        "num_recycles": check_recycles(pipeline, options.num_recycles), "pae": options.pae,
    }  # fmt: skip
    _claim(options.out, settings)
    with _alone(options.out):
        return _fold_rest(pipeline, records, options)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold a folder: two processes would each write the scores that they know of."""
    with (out / SETTINGS).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise XtrimoError(f"another process folds into {out}; wait for it, or choose another folder") from error
        yield


def _fold_rest(pipeline: Pipeline, records: Sequence[Record], options: FoldOptions) -> list[Scores]:
    path, names = options.out / SCORES, file_names([record.name for record in records])
    known = {each.file: each for each in (read_scores(path) if path.exists() else ())}
    table = {name: _finished(record, name, known, options) for name, record in zip(names, records, strict=True)}
    todo = {name: record for name, record in zip(names, records, strict=True) if table[name] is None}
    table |= {name: scores for name, scores in known.items() if name not in table}  # of other inputs
    if len(todo) < len(records):
        logger.info("%s: %d of %d proteins are finished", options.out, len(records) - len(todo), len(records))
    for name, record in todo.items():
        if name in known and (known[name].name, known[name].sequence) != (record.name, record.sequence.upper()):
            logger.warning("%s: the files of another protein of this name are replaced", options.out / name)
    failed = _fold_missing(pipeline, todo, table, options) if todo else {}
    if failed:
        name, error = next(iter(failed.items()))
        raise XtrimoError(
            f"{len(failed)} of {len(records)} proteins could not be written, such as {name} ({error}); all others are"
            f" in {options.out}"
        )
    return [scores for name in names if (scores := table[name])]


def _fold_missing(
    pipeline: Pipeline, records: Mapping[str, Record], table: dict[str, Scores | None], options: FoldOptions
) -> dict[str, DataError]:
    """Fold records, given by the name of their files, and put their scores into the table and its file.

    Returns:
        What could not be written, and why.
    """
    failed: dict[str, DataError] = {}

    def save() -> None:
        write_scores([scores for scores in table.values() if scores], options.out / SCORES)

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


def file_names(names: Sequence[str]) -> list[str]:
    """A file name for each record, all different whatever the case of their letters.

    >>> file_names(["sp|P1|A", "x", "X"])
    ['sp_P1_A', 'x', 'X_2']
    """
    found: list[str] = []
    taken: set[str] = set()
    for name in names:
        base = re.sub(r"[^A-Za-z0-9._-]", "_", name).strip(".") or "_"
        unique, number = base[:200], 1
        while unique.lower() in taken:
            number += 1
            unique = f"{base[:200]}_{number}"
        taken.add(unique.lower())
        found.append(unique)
    return found


def _paths(options: FoldOptions, name: str) -> list[Path]:
    endings = {"mmcif": (".cif",), "pdb": (".pdb",), "both": (".cif", ".pdb")}[options.format]
    return [options.out / f"{name}{ending}" for ending in endings]


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
        write_json(path, settings)
        return
    theirs = json.loads(path.read_text("utf-8"))
    if changed := differences(theirs, settings):
        raise ConfigError(f"{out} holds structures of other settings ({'; '.join(changed)}); choose another folder")
