"""The verb `fold`: the proteins of a FASTA file to structure files and a table of scores.

    OUT/NAME.cif, OUT/NAME.pdb   a protein; the letters of its record's name that no file name should have are "_"
    OUT/scores.json              mean pLDDT, pTM, seconds of each, and its sequence
    OUT/settings.json            model and recycles, which all files of a folder have in common

A protein is finished when its files and its line of scores are there: the same command folds what is left.
"""

import json
import logging
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from structure.fold_directory import Pipeline, load_fold
from structure.folding import check_recycles, iter_folded, num_residues
from structure.prediction import Prediction
from structure.writers import Scores, read_scores, write_mmcif, write_pdb, write_scores
from xtrimo.command import counting
from xtrimo.durable import write_json
from xtrimo.embedding_file import fingerprint_of
from xtrimo.errors import ConfigError, FastaError
from xtrimo.fasta import Record, read_fasta
from xtrimo.tokens import Unknown

logger = logging.getLogger(__name__)

SCORES, SETTINGS = "scores.json", "settings.json"
WRITTEN_EVERY = 10.0
"""Seconds between two writings of the scores: a killed run folds again what is newer."""
Format = Literal["mmcif", "pdb", "both"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FoldOptions:
    """Predict the structure of each protein of a FASTA file; ":" joins the chains of one."""

    fasta: Positional[Path]
    """Proteins, plain or gzipped."""
    out: Positional[Path]
    """Folder of structures and scores; what is finished in it is not done again."""
    model: Path
    """Folding model: the `model` folder of a run of train-fold, or a directory of ESMFold."""
    lm: str = ""
    """The language model that it reads, if it is no longer where it was."""
    num_recycles: int | None = None
    """Times that the trunk's output is fed back; by default as many as in training."""
    chunk: int | None = None
    """Rows of pairs at a time, which saves memory and changes no atom; by default as memory asks, 0 is all at once."""
    format: Format = "mmcif"
    """mmcif (ModelCIF), pdb, or both; the B column is the pLDDT, 0..100."""
    pae: bool = False
    """Write the expected error of each pair of residues into the mmCIF file as well: length^2 lines."""
    unknown: Unknown = "error"
    """A letter that is no residue: error stops, x reads it as X, skip leaves out the record."""
    device: str = "cpu"
    """Where to run, such as cuda."""


def main(args: Sequence[str] | None = None) -> None:
    """`xtrimo fold`."""
    import tyro

    options = tyro.cli(FoldOptions, prog="xtrimo fold", args=args)
    records = list(read_fasta(options.fasta, unknown=options.unknown, chains=True))
    if not records:
        raise FastaError(f"{options.fasta}: no record is left to fold; correct the letters, or try --unknown x")
    pipeline = load_fold(options.model, lm=options.lm, device=options.device)
    scores = fold_all(pipeline, records, options)
    mean = sum(each.mean_plddt for each in scores) / len(scores)
    print(f"{len(scores)} structures in {options.out}, mean pLDDT {mean:.1f}")


def fold_all(pipeline: Pipeline, records: Sequence[Record], options: FoldOptions) -> list[Scores]:
    """Fold what is not finished; the scores of all records, in their order.

    Raises:
        ConfigError: a folder of structures of another model or other recycles.
    """
    settings = {
        "model": pipeline.name, "model_hash": fingerprint_of(pipeline.model, pipeline.model.config.to_dict()),
        "num_recycles": check_recycles(pipeline, options.num_recycles),
    }  # fmt: skip
    _claim(options.out, settings)
    names = file_names([record.name for record in records])
    done = _finished(records, names, options)
    todo = [number for number in range(len(records)) if number not in done]
    if done:
        logger.info("%s: %d of %d proteins are finished", options.out, len(done), len(records))
    total = sum(num_residues(records[number]) for number in todo)
    began = written = time.monotonic()
    with counting("folding", total, "residues") as count:
        for number, prediction, seconds in _timed(pipeline, [records[i] for i in todo], options):
            number = todo[number]
            _write(prediction, options, names[number])
            done[number] = Scores.of(prediction, seconds)
            count(len(prediction.residues))
            if time.monotonic() - written > WRITTEN_EVERY:
                written = time.monotonic()
                write_scores([done[i] for i in sorted(done)], options.out / SCORES)
    write_scores([done[i] for i in sorted(done)], options.out / SCORES)
    if todo:
        logger.info("folded %d proteins in %.0f s", len(todo), time.monotonic() - began)
    return [done[number] for number in range(len(records))]


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


def _write(prediction: Prediction, options: FoldOptions, name: str) -> None:
    for path in _paths(options, name):
        if path.suffix == ".pdb":
            write_pdb(prediction, path)
        else:
            write_mmcif(prediction, path, pae=options.pae)


def _timed(
    pipeline: Pipeline, records: Sequence[Record], options: FoldOptions
) -> Iterator[tuple[int, Prediction, float]]:
    """Each prediction with the seconds since the one before; those of a batch share its time."""
    last = time.monotonic()
    for number, prediction in iter_folded(pipeline, records, num_recycles=options.num_recycles, chunk=options.chunk):
        now = time.monotonic()
        yield number, prediction, now - last
        last = time.monotonic()


def _finished(records: Sequence[Record], names: Sequence[str], options: FoldOptions) -> dict[int, Scores]:
    """The scores of the records whose files are there."""
    path = options.out / SCORES
    known = {(each.name, each.sequence): each for each in read_scores(path)} if path.exists() else {}
    found = {}
    for number, record in enumerate(records):
        scores = known.get((record.name, record.sequence.upper()))
        if scores and all(file.exists() for file in _paths(options, names[number])):
            found[number] = scores
    return found


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Make a folder this model's, or find it so."""
    path = out / SETTINGS
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)
        return
    theirs = json.loads(path.read_text("utf-8"))
    if theirs != settings:
        changed = [f"{name} {theirs.get(name)} to {value}" for name, value in settings.items()
                   if theirs.get(name) != value]  # fmt: skip
        raise ConfigError(f"{out} holds structures of other settings ({'; '.join(changed)}); choose another folder")
