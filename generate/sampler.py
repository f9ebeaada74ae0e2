"""New proteins from a model: free ones, and those that begin, end or are shaped as a prompt says (see prompt.py).

Drawn are the 20 amino acids and the end, nothing else. Sequence i of seed s has a random stream of its own, keyed by
(s, i), and is the same whatever it is batched with.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Unpack, get_args

from tyro.conf import arg

from generate.designs import Brief, Sample, passed, ranked
from generate.drawing import DrawingConfig, DrawingSettings
from generate.engine import Processor
from generate.hooks import Hooks, Score, Screen
from generate.output import DesignOptions, deliver
from generate.prompt import Prompt, parse
from generate.ways import Task, Way, choose_way
from xtrimo.backbone import Backbone
from xtrimo.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig(DrawingConfig):
    """What is drawn, and how. Impossible values raise ConfigError."""

    prompt: str = ""
    """What each protein looks like: residues that it starts with, MKT; or with gaps, such as [120..160], [..]GGH or
    MKT[8..20]GGH[5]."""
    max_length: int = 1000
    """Residues, prompt included, at which a protein is cut."""
    by: Way | None = None
    """How it is written: forward (N to C), reverse, smask, mlm, ends or ends+mlm; by default as suits the prompt and
    the model."""

    def __post_init__(self) -> None:
        DrawingConfig.__post_init__(self)
        if self.max_length < 1:
            raise ConfigError(f"max_length is {self.max_length}; it must be at least 1 residue")
        _ = self.parsed

    @property
    def parsed(self) -> Prompt:
        """`prompt` as read."""
        return parse(self.prompt)


class SamplingSettings(DrawingSettings, total=False):
    """The fields of SamplingConfig, as keywords of a function."""

    prompt: str
    max_length: int
    by: Way | None


def sample(
    model: Backbone,
    *,
    logits: Processor | None = None,
    score: Score | None = None,
    screen: Screen | None = None,
    **settings: Unpack[SamplingSettings],
) -> list[Sample]:
    """Draw proteins, in the order of their numbers, or of their scores where these are given.

    Args:
        logits: a processor of your own, see engine.Processor.
        score: what a protein is worth; the highest come first.
        screen: says why a protein must not be given out; those are left out, and counted in the log.
        settings: see SamplingConfig.

    Raises:
        ConfigError: an impossible setting, or a model that cannot write this prompt.
        SequenceError: a letter of the prompt is no residue.
    """
    hooks = Hooks(logits=logits, score=score, screen=screen)
    return ranked(list(iter_samples(model, SamplingConfig(**settings), hooks=hooks)))


def iter_samples(
    model: Backbone,
    config: SamplingConfig,
    on_ended: Callable[[int], object] = lambda num: None,
    *,
    hooks: Hooks | None = None,
) -> Iterator[Sample]:
    """`sample`, each protein as soon as it has ended, so in no fixed order; `on_ended` hears how many have just."""
    return passed(brief_of(model, config, hooks).written(model, on_ended=on_ended))


def brief_of(model: Backbone, config: SamplingConfig, hooks: Hooks | None = None) -> Brief:
    """What the settings ask of this model.

    Raises:
        ConfigError: it cannot write such a prompt.
    """
    among = (config.by,) if config.by else get_args(Way)
    task = Task("", config.parsed, choose_way(model, config.parsed, among))
    return Brief(tasks=(task,), config=config, max_length=config.max_length, hooks=hooks or Hooks())


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateOptions(DesignOptions):
    """Draw new proteins from a model, as FASTA with nll (nats per residue), ppl, seed and prompt in the header."""

    sampling: Annotated[SamplingConfig, arg(name="")] = SamplingConfig()
    """Its flags carry no prefix."""


def main(args: Sequence[str] | None = None) -> None:
    """`xtrimo generate`."""
    import tyro

    options = tyro.cli(GenerateOptions, prog="xtrimo generate", args=args)
    hooks = options.hooks
    model = options.load()
    brief = brief_of(model, options.sampling, hooks)
    for record in deliver(options, model, brief, "generating"):
        print(f">{record.name} {record.description}\n{record.sequence}")
