"""Proteins that a policy wrote to some prompts, what they are worth, and how likely it and the first policy write them.

A round of alignment is judged by its drafts, and learns from them. They lie in a CSV file, a row each:

    prompt, protein, finished, reward, log_likelihood, start_log_likelihood, and a column for each judge
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from generate.answers import answer, measured
from generate.designs import Brief, passed, ranked
from generate.drawing import DrawingConfig
from generate.novelty import best_method, clusters
from generate.prompt import parse
from generate.rewards import Reward, Values, asked
from generate.ways import Task
from xtrimo.command import replacing
from xtrimo.errors import DataError
from xtrimo.intervals import Estimate, bootstrap_ratio
from xtrimo.model import GLM
from xtrimo.objectives import Example

_FIXED = ("prompt", "protein", "finished", "reward", "log_likelihood", "start_log_likelihood")
_ALIKE = 0.9  # identity within a cluster


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Drafts:
    """The proteins of one round, prompt by prompt."""

    prompts: tuple[str, ...]
    """What each was written to."""
    proteins: tuple[str, ...]
    finished: Bool[np.ndarray, "protein"]
    """Whether its end was drawn; if not, it was cut."""
    rewards: Values
    """As they are; NaN where nothing can be said."""
    log_likelihoods: Values
    """Under the policy that wrote them, nats a protein."""
    start_log_likelihoods: Values
    """Under the policy that the run began with."""
    judges: Mapping[str, Values]
    """What others say, which nothing is learned from."""

    def places(self, prompt: str) -> list[int]:
        """Those of a prompt."""
        return [place for place, own in enumerate(self.prompts) if own == prompt]

    def answers(self, model: GLM) -> list[Example]:
        """As the model reads them."""
        return _answers(model, self.prompts, self.proteins, self.finished)

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        columns = (self.rewards, self.log_likelihoods, self.start_log_likelihoods, *self.judges.values())
        with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow((*_FIXED, *self.judges))
            for row in zip(self.prompts, self.proteins, self.finished.astype(int), *columns, strict=True):
                writer.writerow((*row[:3], *(repr(float(value)) for value in row[3:])))

    @classmethod
    def load(cls, path: Path) -> "Drafts":
        """Read what `save` wrote.

        Raises:
            DataError: it is something else.
        """
        with path.open(encoding="utf-8", newline="") as file:
            head, *rows = csv.reader(file)
        if tuple(head[: len(_FIXED)]) != _FIXED or not rows or {len(row) for row in rows} != {len(head)}:
            raise DataError(f"{path} is no table of drafts; expected the columns {', '.join(_FIXED)}, and rows")
        columns = [np.array([float(row[place]) for row in rows]) for place in range(2, len(head))]
        return cls(
            prompts=tuple(row[0] for row in rows), proteins=tuple(row[1] for row in rows), finished=columns[0] == 1,
            rewards=columns[1], log_likelihoods=columns[2], start_log_likelihoods=columns[3],
            judges=dict(zip(head[len(_FIXED) :], columns[4:], strict=True)),
        )  # fmt: skip


def draw(
    model: GLM, start: GLM, prompts: Sequence[str], config: DrawingConfig, *, max_length: int,
    rewards: Mapping[str, Reward], judges: Mapping[str, Reward],
) -> Drafts:  # fmt: skip
    """Write `config.num` proteins to each prompt, and ask what they are worth.

    Args:
        start: the policy that the run began with.
        rewards: of each prompt.

    Raises:
        DataError: a reward that does not give a number for each protein.
    """
    tasks = tuple(Task("", parse(prompt), "forward") for prompt in prompts)
    brief = Brief(tasks=tasks, config=config, max_length=max_length)
    samples = ranked(list(passed(brief.written(model))))  # nothing scores them: in the order of their numbers
    of = tuple(prompts[sample.number // config.num] for sample in samples)
    proteins = tuple(sample.sequence for sample in samples)
    finished = np.array([sample.finished for sample in samples])
    answers, groups = _answers(model, of, proteins, finished), [proteins[i : i + config.num] for i in _starts(of)]
    return Drafts(
        prompts=of, proteins=proteins, finished=finished,
        rewards=np.concatenate([asked(rewards[p], group) for p, group in zip(prompts, groups, strict=True)]),
        log_likelihoods=measured(model, answers, config.temperature),
        start_log_likelihoods=measured(start, answers, config.temperature),
        judges={name: asked(judge, proteins) for name, judge in judges.items()},
    )  # fmt: skip


def _starts(prompts: Sequence[str]) -> list[int]:
    return [place for place, prompt in enumerate(prompts) if not place or prompts[place - 1] != prompt]


def _answers(
    model: GLM, prompts: Sequence[str], proteins: Sequence[str], finished: Bool[np.ndarray, "protein"]
) -> list[Example]:
    parsed = {prompt: parse(prompt) for prompt in set(prompts)}
    return [
        answer(model.config, parsed[prompt], protein, finished=bool(done))
        for prompt, protein, done in zip(prompts, proteins, finished, strict=True)
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """How a policy stands after a round, against the first one."""

    round: int
    """0 is the policy that the run began with."""
    reward: Estimate
    """Mean over the drafts."""
    gain: Estimate
    """Of the reward, in deviations of the first policy's drafts to the same prompt."""
    kl: Estimate
    """KL(policy || first policy) over what is drawn, nats a protein; an estimate by its own drafts."""
    distinct: float
    """Clusters of 90 % identity for each draft, mean over the prompts."""
    length: float
    """Residues, mean."""
    finished: float
    """Share that came to an end before the cut."""
    judges: dict[str, Estimate]
    """Mean of what each says."""
    replay: dict[str, Estimate] = field(default_factory=dict)
    """Nats of held-out replayed proteins, by objective."""

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> "Standing":
        """From `asdict`, as JSON has it."""
        estimates = {name: Estimate(**facts[name]) for name in ("reward", "gain", "kl")}
        groups = {name: {of: Estimate(**e) for of, e in facts[name].items()} for name in ("judges", "replay")}
        return cls(**{**facts, **estimates, **groups})

    def row(self) -> dict[str, str]:
        """For a table."""
        return {
            "round": str(self.round), "reward": str(self.reward), "gain": str(self.gain), "KL": str(self.kl),
            "distinct": f"{self.distinct:.2f}", "length": f"{self.length:.0f}", "finished": f"{self.finished:.2f}",
            **{name: str(value) for name, value in self.judges.items()},
            **{f"replay, {name}": str(value) for name, value in self.replay.items()},
        }  # fmt: skip


def standing(number: int, drafts: Drafts, first: Drafts) -> Standing:
    """The figures of a round; intervals are bootstrap over its drafts, those of the first policy taken as they are."""
    gains, distinct = np.zeros(len(drafts.proteins)), []
    alike = clusters(drafts.proteins, _ALIKE, best_method())
    for prompt in dict.fromkeys(drafts.prompts):
        own, theirs = drafts.places(prompt), first.rewards[first.places(prompt)]
        deviation = float(np.nanstd(theirs))
        gains[own] = (drafts.rewards[own] - np.nanmean(theirs)) / (deviation or 1.0)
        distinct.append(len(set(alike[own].tolist())) / len(own))
    return Standing(
        round=number, reward=mean_of(drafts.rewards), gain=mean_of(gains),
        kl=mean_of(drafts.log_likelihoods - drafts.start_log_likelihoods), distinct=float(np.mean(distinct)),
        length=float(np.mean([len(protein) for protein in drafts.proteins])), finished=float(drafts.finished.mean()),
        judges={name: mean_of(values) for name, values in drafts.judges.items()},
    )  # fmt: skip


def mean_of(values: Values) -> Estimate:
    """Of those that are numbers; NaN where none is."""
    known = values[np.isfinite(values)]
    if not len(known):
        return Estimate(value=np.nan, low=np.nan, high=np.nan)
    return bootstrap_ratio(known, np.ones(len(known)))
