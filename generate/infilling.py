"""Gaps of given proteins filled: all that is fixed is in view, before and behind a gap.

By smask the model says one gap after the other and ends each itself; by mlm all gaps are masked and filled round by
round, with lengths that are known, or drawn evenly from a range (unmasking.py). From both ends one gap is filled with
the likeliest of what was found: the slowest way, and the best where the model knows the family (from_ends.py).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Unpack

from tyro.conf import arg

from generate.designs import Brief, Sample, passed, ranked
from generate.drawing import DrawingConfig, DrawingSettings
from generate.engine import Processor
from generate.hooks import Hooks, Score, Screen
from generate.output import DesignOptions, deliver
from generate.prompt import Prompt, parse
from generate.unmasking import Order, Schedule, UnmaskingConfig
from generate.ways import Task, choose_way
from xtrimo.backbone import Backbone
from xtrimo.errors import ConfigError, XtrimoError
from xtrimo.fasta import read_fasta

Filling = Literal["smask", "mlm", "ends", "ends+mlm"]


@dataclass(frozen=True, kw_only=True, slots=True)
class InfillingConfig(DrawingConfig):
    """How gaps are filled. Impossible values raise ConfigError."""

    by: Filling | None = None
    """smask: gap after gap, the model ends each. mlm: masks, round by round. ends: one gap, from both ends of the
    protein, the likeliest of many drafts; ends+mlm: what mlm holds has its say. By default smask if the model has it,
    or mlm."""
    rounds: int = 16
    """Of mlm: rounds in which the gaps of a protein are filled; where it has fewer places, one place a round."""
    schedule: Schedule = "cosine"
    """Of mlm, how many places a round decides: cosine, few at first; linear, as many in each round."""
    order: Order = "random"
    """Of mlm, which places a round decides: confidence, those that the model holds likeliest; random, any."""
    sweeps: int = 0
    """Of mlm: Gibbs sweeps once the gaps are filled; each draws all their places anew, one at a time."""

    def __post_init__(self) -> None:
        DrawingConfig.__post_init__(self)
        _ = self.unmasking

    @property
    def unmasking(self) -> UnmaskingConfig:
        """What of it is for mlm."""
        return UnmaskingConfig(rounds=self.rounds, schedule=self.schedule, order=self.order, sweeps=self.sweeps)


class InfillingSettings(DrawingSettings, total=False):
    """The fields of InfillingConfig, as keywords of a function."""

    by: Filling | None
    rounds: int
    schedule: Schedule
    order: Order
    sweeps: int


def infill(
    model: Backbone,
    prompts: str | Prompt | Iterable[str | Prompt],
    *,
    logits: Processor | None = None,
    score: Score | None = None,
    screen: Screen | None = None,
    **settings: Unpack[InfillingSettings],
) -> list[Sample]:
    """Fill the gaps of each prompt, `num` times; proteins in the order of the prompts, or of their scores.

    Args:
        prompts: one or several, such as "MKT[8..20]GGH[5]".
        logits, score, screen: as of `sample`; logits by smask alone.
        settings: see InfillingConfig.

    Raises:
        ConfigError: an impossible setting, a prompt with an open end, or a model that cannot fill gaps.
        SequenceError: a letter of a prompt is no residue.
    """
    several = [prompts] if isinstance(prompts, str | Prompt) else list(prompts)
    named = ((f"p{i}" if len(several) > 1 else "", prompt) for i, prompt in enumerate(several, start=1))
    brief = brief_of(model, named, InfillingConfig(**settings), Hooks(logits=logits, score=score, screen=screen))
    return ranked(list(passed(brief.written(model))))


def brief_of(
    model: Backbone, prompts: Iterable[tuple[str, str | Prompt]], config: InfillingConfig, hooks: Hooks
) -> Brief:
    """What the settings ask of this model; prompts come with their names.

    Raises:
        ConfigError, SequenceError: it cannot fill one of them, or two have one name; names it.
    """
    among: tuple[Filling, ...] = (config.by,) if config.by else ("smask", "mlm")
    tasks = []
    places: dict[str, int] = {}
    for place, (name, prompt) in enumerate(prompts, start=1):
        if places.setdefault(name, place) != place:
            raise ConfigError(
                f"{name} is the name of proteins {places[name]} and {place}, and what is written is named after them;"
                " rename one"
            )
        try:
            prompt = parse(prompt) if isinstance(prompt, str) else prompt
            tasks.append(Task(name, prompt, choose_way(model, prompt, among)))
        except XtrimoError as error:
            raise type(error)(f"{name}: {error}" if name else str(error)) from error
    if not tasks:
        raise ConfigError("there is no prompt to fill in; give at least one")
    longest = max(task.prompt.longest or 0 for task in tasks)
    return Brief(tasks=tuple(tasks), config=config, max_length=longest, hooks=hooks, unmasking=config.unmasking)


@dataclass(frozen=True, kw_only=True, slots=True)
class InfillOptions(DesignOptions):
    """Fill the gaps of proteins, as FASTA with nll (nats per filled residue), ppl, seed and prompt in the header."""

    prompt: str | None = None
    """A protein with gaps, such as MKT[8..20]GGH[5]."""
    fasta: Path | None = None
    """In place of it, a FASTA file whose sequences are such prompts."""
    infilling: Annotated[InfillingConfig, arg(name="")] = InfillingConfig()
    """Its flags carry no prefix."""

    def prompts(self) -> Iterator[tuple[str, str]]:
        """Names and prompts.

        Raises:
            ConfigError: neither or both of the two ways to give them.
            FastaError: the file cannot be read.
        """
        if (self.prompt is None) == (self.fasta is None):
            raise ConfigError("give either --prompt or --fasta")
        if self.prompt is not None:
            yield "", self.prompt
        else:
            assert self.fasta
            for record in read_fasta(self.fasta, force=True):  # prompts are few letters, which may be A, C, G and T
                yield record.name, record.sequence


def main(args: Sequence[str] | None = None) -> None:
    """`xtrimo infill`."""
    import tyro

    options = tyro.cli(InfillOptions, prog="xtrimo infill", args=args)
    hooks, prompts = options.hooks, list(options.prompts())
    model = options.load()
    brief = brief_of(model, prompts, options.infilling, hooks)
    for record in deliver(options, model, brief, "filling"):
        print(f">{record.name} {record.description}\n{record.sequence}")
