"""The verb `predict`: what a trained head says of the proteins of a FASTA file, as a table.

    sequence, two_sequences, molecule, classes     name, prediction, and the probability of each class: p_CLASS
    the same, regression                           name, prediction, low, high
    the same, preference                           name, prediction: the reward of each protein alone
    residue                                        name, prediction: a letter a residue, - where none was read
    pair                                           name, first, second, probability: the L most likely contacts of a
                                                   protein of L residues, at least 6 apart, counted from 1

The interval of a value is the prediction and the middle 95 % of what it missed by on the validation rows: as wide for
each protein, and right for those that are like them.
"""

import csv
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import tee
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float64
from tyro.conf import Positional

from heads.head_directory import HeadFacts, load_head
from heads.predictor import Predictor
from heads.rows import Row
from heads.tasks import UNSCORED
from xtrimo.backbone import Backbone
from xtrimo.command import FastaOptions, ModelOptions, progress_bar, replacing
from xtrimo.embedding import room
from xtrimo.errors import ConfigError, SequenceError
from xtrimo.fasta import CHAIN_BREAK, Record, read_fasta
from xtrimo.log import warn_once
from xtrimo.model import GLM
from xtrimo.prepacking import prepack
from xtrimo.states import LiveStates
from xtrimo.tokens import Unknown

logger = logging.getLogger(__name__)

NEAREST = 6  # residues that the two of a listed contact are apart, at least
Answer = Float[np.ndarray, "item *class"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictOptions:
    """Predict with a trained head."""

    fasta: Positional[Path]
    """Proteins, plain or gzipped; for a head on two proteins each record holds both, joined by ":"."""
    out: Positional[Path]
    """CSV file."""
    head: Path
    """Folder that `xtrimo finetune` wrote."""
    model: str | None = None
    """The model that the head stands on, if it is no longer where it was."""
    molecule: str = ""
    """The molecule, as the head was trained on them: SMILES, or names; the same for all proteins."""
    device: str = "cpu"
    """Where to run, such as cuda."""
    unknown: Unknown = "error"
    """A letter that is no residue: error stops, x reads it as X, skip leaves out the record."""
    force: bool = False
    """Read a file that looks like nucleotides."""


def main(args: Sequence[str] | None = None) -> None:
    """`xtrimo predict`."""
    import tyro

    options = tyro.cli(PredictOptions, prog="xtrimo predict", args=args)
    facts = HeadFacts.read(options.head).of_one()
    name = options.model or facts.model
    if facts.task.level == "molecule" and not options.molecule:
        raise ConfigError(f"{options.head} was trained on proteins with a molecule each; give it in --molecule")
    fasta = FastaOptions(model=name, unknown=options.unknown, force=options.force)
    to_check = read_fasta(options.fasta, unknown=options.unknown, force=options.force, chains=True)
    num_records = sum(1 for _ in to_check)  # a bad record is met now
    records = fasta.read_again(options.fasta, chains=True)
    predictor, most = open_head(options.head, facts, name, options.device)
    with replacing(options.out) as partial, partial.open("w", newline="") as file, progress_bar() as progress:
        shown = progress.track(records, total=num_records, description="predicting")
        table = csv.writer(file)
        table.writerow(header(facts))
        table.writerows(predicted(predictor, facts, shown, most, options.molecule))


def open_head(folder: Path, facts: HeadFacts, model: str, device: str) -> tuple[Predictor, int]:
    """A trained head on its model, and the residues that the model reads of a protein.

    Raises:
        CheckpointError, ConfigError: as `load` and `load_head`.
    """
    backbone: Backbone = ModelOptions(model=model, precision="fp32", device=device).load()
    predictor = load_head(folder, facts, backbone)
    if facts.method == "probe" and isinstance(backbone, GLM) and isinstance(predictor.source, LiveStates):
        predictor.source.backbone = prepack(backbone)
    return predictor, min(room(backbone), facts.task.max_length)


def reward_of(
    head: str | Path, label: str | None = None, *, model: str | None = None, device: str = "cpu"
) -> Callable[[Sequence[str]], Float64[np.ndarray, "protein"]]:
    """A trained head of level sequence as a reward: what it says of each protein, a number each.

    Of a preference that is the learned reward, of a regression the value, of classes the probability of one. A protein
    of no residues is worth NaN; a long one is read up to its first residues, as `xtrimo predict` does.

    Args:
        head: folder that `xtrimo finetune` wrote.
        label: of classes, whose probability; by default of two the second.
        model: the model that the head stands on, if it is no longer where it was.

    Raises:
        ConfigError: a head of another level, or a label that is none of its classes.
        CheckpointError: as `open_head`.
    """
    facts = HeadFacts.read(Path(head)).of_one()
    column = _column(facts, label)
    predictor, most = open_head(Path(head), facts, model or facts.model, device)

    def reward(proteins: Sequence[str]) -> Float64[np.ndarray, "protein"]:
        values = np.full(len(proteins), np.nan)
        there = [number for number, protein in enumerate(proteins) if protein]
        rows = (_row(Record(f"protein {number + 1}", proteins[number]), facts, most, "") for number in there)
        for number, answer in zip(there, predictor.answers(rows), strict=True):
            values[number] = answer[0] if column is None else answer[0, column]
        return values

    return reward


def _column(facts: HeadFacts, label: str | None) -> int | None:
    """Which of a head's numbers is the reward; None for the only one."""
    if facts.task.level != "sequence":
        raise ConfigError(
            f"a head of level {facts.task.level} gives no number for each protein; take one of level sequence"
        )
    if facts.task.target != "classes" and label is None:
        return None
    wanted = facts.classes[-1] if label is None and len(facts.classes) == 2 else label
    if wanted not in facts.classes:
        raise ConfigError(f"label {wanted!r} is none of this head's: {', '.join(facts.classes) or 'it has none'}")
    return facts.classes.index(wanted)


def header(facts: HeadFacts) -> list[str]:
    """The names of the columns."""
    if facts.task.level == "pair":
        return ["name", "first", "second", "probability"]
    if facts.task.level == "residue":
        return ["name", "prediction"]
    if facts.scale:
        return ["name", "prediction", *(("low", "high") if facts.residuals else ())]
    return ["name", "prediction", *(f"p_{word}" for word in facts.classes)]


def predicted(
    predictor: Predictor, facts: HeadFacts, records: Iterable[Record], most: int, molecule: str = ""
) -> Iterator[list[str]]:
    """The lines of the table, in order; a protein is read up to its first `most` residues.

    Raises:
        SequenceError: a record of one chain for a head on two, or the reverse.
    """
    to_read, to_name = tee(records)
    answers = predictor.answers(_row(record, facts, most, molecule) for record in to_read)
    for record, answer in zip(to_name, answers, strict=True):
        for cells in _lines(facts, answer, len(record.sequence)):
            yield [record.name, *cells]


def _row(record: Record, facts: HeadFacts, most: int, molecule: str) -> Row:
    chains = record.sequence.split(CHAIN_BREAK)
    wanted = 2 if facts.task.level == "two_sequences" else 1
    if len(chains) != wanted:
        raise SequenceError(
            f"{record.name}: {len(chains)} chains; this head reads {wanted} (joined by {CHAIN_BREAK!r})"
        )
    if longest := max(max(map(len, chains)) - most, 0):
        warn_once(
            logger, "proteins are read up to their first %d residues; %s is %d longer", most, record.name, longest
        )
    second = chains[1][:most] if wanted == 2 else molecule
    return Row(sequence=chains[0][:most], second=second, label=0, name=record.name)


def _lines(facts: HeadFacts, answer: Answer, length: int) -> Iterator[list[str]]:
    """What is said of one protein of so many residues, after its name."""
    if facts.task.level == "pair":
        yield from ([str(i + 1), str(j + 1), f"{p:.4f}"] for i, j, p in contacts(answer))
    elif facts.task.level == "residue":
        words = [facts.classes[i] for i in answer.argmax(1)] + [UNSCORED] * (length - len(answer))
        yield [("" if max(map(len, words)) == 1 else " ").join(words)]
    elif facts.scale:
        value = float(answer[0])
        yield [f"{value:.6g}", *(f"{value + residual:.6g}" for residual in facts.residuals or ())]
    else:
        yield [facts.classes[int(answer[0].argmax())], *(f"{p:.4f}" for p in answer[0])]


def contacts(answer: Float[np.ndarray, "pair"]) -> list[tuple[int, int, float]]:
    """The L most likely pairs of a map of L x L, at least NEAREST apart, the likeliest first; counted from 0."""
    length = round(len(answer) ** 0.5)
    first, second = np.triu_indices(length, NEAREST)
    values = answer.reshape(length, length)[first, second]
    best = np.argsort(-values, kind="stable")[:length]
    return [(int(first[i]), int(second[i]), float(values[i])) for i in best]
