"""Figures of proteins that were written on request, family by family and over all: what each set of them reaches.

The sets are those of `xtrimo judge`: the samples, held-out members, and what HMMs, 3-grams and composition write. Over
all families shares are of all proteins alike; medians and correlations are means over families.

TARGETS is what the samples should reach. A target is met if the figure itself is on its side, whatever its interval;
but a correlation must be above that of HMM emission beyond luck, since noise is above noise half of the time. Noise is
new and diverse as well: what novelty and diversity are worth, the share of members says.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from examples.infill_figures import MODEL_WAYS, MOODS, Filling, difference
from generate import novelty
from generate.divergence import UNDEFINED
from generate.judge_report import Judgement
from generate.measures import GENERATED, HELD_OUT, Finding, mean
from generate.members import fact
from xtrimo.intervals import Estimate, bootstrap_ratio, drawn_counts

SETS = (GENERATED, HELD_OUT, "HMM", "3-gram", "composition")
EMITTED = "HMM"
IDENTITY = 0.9  # of a cluster

Values = Float64[np.ndarray, "protein"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The samples of one tag, judged as members of its family."""

    judgement: Judgement
    clusters: Values
    """1 / size of the cluster that each sample is in, among all of them; the mean is clusters a sample."""
    is_cut: Values
    """1 for a sample that was cut at the longest length allowed."""

    @classmethod
    def of(cls, judgement: Judgement) -> "Outcome":
        """Clusters are made here: among all samples, where the judge takes as many as the smallest set has."""
        samples = judgement.sets[GENERATED]
        chosen = novelty.clusters([sample.sequence for sample in samples], IDENTITY, novelty.best_method())
        is_cut = np.array([float(fact(sample, "finished") == "no") for sample in samples])
        return cls(judgement=judgement, clusters=novelty.cluster_shares(chosen), is_cut=is_cut)

    def found(self, measure: str, of: str) -> Finding:
        """What the judge says, not defined where it says nothing."""
        return self.judgement.finding(measure, of) or Finding(measure, of, UNDEFINED, 0, np.array([]))

    def values(self, measure: str, of: str) -> Values:
        """Of each protein."""
        values = self.found(measure, of).values
        assert values is not None
        return values


def share(outcomes: Sequence[Outcome], of: str, *, measure: str) -> Estimate:
    """Of all proteins of a set, those of which a measure says yes, with Wilson's interval."""
    return mean(measure, of, np.concatenate([outcome.values(measure, of) for outcome in outcomes])).estimate


def medians(values: Values, seed: int) -> Float64[np.ndarray, "draw"]:
    """Of bootstrap draws; as many values and the same seed meet the same draws."""
    return np.array([np.median(np.repeat(values, counts)) for counts in drawn_counts(len(values), seed)])


def identity(outcomes: Sequence[Outcome], of: str) -> Estimate:
    """Median over proteins of the identity to the nearest training protein, mean over families."""
    return Estimate.of(*_identity(outcomes, of, seed=0))


def identity_excess(outcomes: Sequence[Outcome]) -> Estimate:
    """That of the samples less that of held-out members; the two are drawn apart."""
    own, own_draws = _identity(outcomes, GENERATED, seed=0)
    real, real_draws = _identity(outcomes, HELD_OUT, seed=len(outcomes))
    return Estimate.of(own - real, own_draws - real_draws)


def _identity(outcomes: Sequence[Outcome], of: str, seed: int) -> tuple[float, Float64[np.ndarray, "draw"]]:
    values = [outcome.values("identity", of) for outcome in outcomes]
    draws = [medians(own, seed + number) for number, own in enumerate(values)]
    return float(np.mean([np.median(own) for own in values])), np.mean(draws, axis=0)


def correlation(outcomes: Sequence[Outcome], of: str) -> Estimate:
    """Two-site correlation with held-out members; of several families the mean, drawn over families."""
    if len(outcomes) == 1:
        return outcomes[0].found("couplings", of).estimate
    return _over_families([_correlation(outcome, of) for outcome in outcomes])


def correlation_gain(outcomes: Sequence[Outcome]) -> Estimate:
    """That of the samples less that of HMM emission; of one family from the near to the far ends of both intervals."""
    values = [_correlation(outcome, GENERATED) - _correlation(outcome, EMITTED) for outcome in outcomes]
    if len(outcomes) > 1:
        return _over_families(values)
    own, emitted = (outcomes[0].found("couplings", of).estimate for of in (GENERATED, EMITTED))
    return Estimate(value=values[0], low=own.low - emitted.high, high=own.high - emitted.low)


def _correlation(outcome: Outcome, of: str) -> float:
    """A set that has no covariances agrees with nothing: 0."""
    value = outcome.found("couplings", of).estimate.value
    return 0.0 if math.isnan(value) else value


def _over_families(values: Sequence[float]) -> Estimate:
    return bootstrap_ratio(np.array(values), np.ones(len(values)))


def distinct(outcomes: Sequence[Outcome]) -> Estimate:
    """Clusters a sample, each family's by themselves."""
    return mean("clusters_90", GENERATED, np.concatenate([outcome.clusters for outcome in outcomes])).estimate


FIGURES: Mapping[str, Callable[[Sequence[Outcome], str], Estimate]] = {
    "members": partial(share, measure="member"),
    "members of others": partial(share, measure="other_family"),
    "nearest training identity, median": identity,
    "two-site correlation": correlation,
}
"""Of each of SETS."""


class Target(NamedTuple):
    """What the samples should reach."""

    wanted: str
    estimate: Callable[[Sequence[Outcome]], Estimate]
    is_met: Callable[[Estimate], bool]


TARGETS: Mapping[str, Target] = {
    "members": Target("80 % or more", partial(share, of=GENERATED, measure="member"), lambda x: x.value >= 0.8),
    "members of others": Target(
        "below 5 %", partial(share, of=GENERATED, measure="other_family"), lambda x: x.value < 0.05
    ),
    "clusters at 90 % a sample": Target("50 % or more", distinct, lambda x: x.value >= 0.5),
    "nearest training identity above held-out members'": Target(
        "0.05 or less", identity_excess, lambda x: x.value <= 0.05
    ),
    "two-site correlation above HMM emission's": Target("above 0 beyond luck", correlation_gain, lambda x: x.low > 0),
}  # fmt: skip


class Verdict(NamedTuple):
    """A target and what was found."""

    what: str
    wanted: str
    estimate: Estimate
    is_met: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"wanted": self.wanted, **to_dict(self.estimate), "met": self.is_met}


def verdicts(outcomes: Sequence[Outcome]) -> list[Verdict]:
    """TARGETS, of one family or of all. What is not defined is not met."""
    found = ((what, target, target.estimate(outcomes)) for what, target in TARGETS.items())
    return [Verdict(what, target.wanted, x, bool(target.is_met(x))) for what, target, x in found]


def infilling_verdicts(fillings: Sequence[Filling]) -> list[Verdict]:
    """The model's ways, in each mood, against the HMM's consensus and against letters drawn by their shares."""
    of = {(filling.way, filling.mood): filling for filling in fillings}
    floor = of["composition", "drawn"].bits_lost
    half = np.median(floor) / 2, medians(floor, seed=0) / 2
    found = []
    for way, mood in ((way, mood) for way in MODEL_WAYS for mood in MOODS if (way, mood) in of):
        own = of[way, mood]
        points, _ = difference(own, of["consensus", "likeliest"])
        found.append(
            Verdict(f"{way}, {mood}: identity above the consensus, points", "above 0", points, points.value > 0)
        )
        # the same proteins, drawn together
        beyond = Estimate.of(np.median(own.bits_lost) - half[0], medians(own.bits_lost, seed=0) - half[1])
        what = f"{way}, {mood}: median bits lost beyond half of composition's"
        found.append(Verdict(what, "0 or less", beyond, beyond.value <= 0))
    return found


def to_dict(estimate: Estimate) -> dict[str, float | None]:
    """JSON-ready: null for what is not defined."""
    ends = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {name: None if math.isnan(end) else float(end) for name, end in ends.items()}
