"""Chosen positions of real proteins written anew, the rest in view: infilling, with the prompt made of the protein."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Unpack

from tyro.conf import Positional, arg

from generate.designs import Sample, passed, ranked
from generate.engine import Processor
from generate.hooks import Hooks, Score, Screen
from generate.infilling import InfillingConfig, InfillingSettings, brief_of
from generate.output import DesignOptions, deliver
from generate.prompt import Prompt, opened
from xtrimo.backbone import Backbone
from xtrimo.batch import Sequences, named
from xtrimo.errors import XtrimoError
from xtrimo.fasta import Record, read_fasta


def redesign(
    model: Backbone,
    proteins: Sequences,
    positions: str,
    *,
    logits: Processor | None = None,
    score: Score | None = None,
    screen: Screen | None = None,
    **settings: Unpack[InfillingSettings],
) -> list[Sample]:
    """Write these positions of each protein anew, `num` times; in the order of the proteins, or of their scores.

    Args:
        proteins: strings or records, of different names; a final * is dropped.
        positions: such as "10-15,40": places from 1, both ends included; "10-15[8..20]" puts 8 to 20 residues there.
        logits, score, screen: as of `sample`; logits by smask alone.
        settings: see InfillingConfig.

    Raises:
        ConfigError: positions outside of a protein, an impossible setting, or a model that cannot fill gaps.
        SequenceError: a letter that is no residue.
    """
    hooks = Hooks(logits=logits, score=score, screen=screen)
    brief = brief_of(model, _opened(named(proteins), positions), InfillingConfig(**settings), hooks)
    return ranked(list(passed(brief.written(model))))


def _opened(proteins: Iterable[Record], positions: str) -> Iterable[tuple[str, Prompt]]:
    for protein in proteins:
        try:
            yield protein.name, opened(protein.sequence.removesuffix("*"), positions)  # a stop, as in FASTA
        except XtrimoError as error:
            raise type(error)(f"{protein.name}: {error}") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class RedesignOptions(DesignOptions):
    """Write chosen positions of proteins anew, as FASTA with nll (nats per new residue), ppl, seed and prompt in the
    header."""

    fasta: Positional[Path]
    """Proteins, plain or gzipped."""
    positions: str
    """Places from 1, both ends included, such as 10-15,40; of each protein of the file. 10-15[8..20] puts 8 to 20
    residues in place of those six, 40[1:DE] one of two letters."""
    infilling: Annotated[InfillingConfig, arg(name="")] = InfillingConfig()
    """Its flags carry no prefix."""


def main(args: Sequence[str] | None = None) -> None:
    """`xtrimo redesign`."""
    import tyro

    options = tyro.cli(RedesignOptions, prog="xtrimo redesign", args=args)
    hooks = options.hooks
    prompts = list(_opened(read_fasta(options.fasta, unknown="error"), options.positions))
    model = options.load()
    brief = brief_of(model, prompts, options.infilling, hooks)
    for record in deliver(options, model, brief, "redesigning"):
        print(f">{record.name} {record.description}\n{record.sequence}")
