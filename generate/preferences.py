"""What a generator learns from rewards: how likely it writes a protein, pairs and chosen proteins, and their losses.

A policy pi answers a prompt x with a protein y: it draws the 20 amino acids and the end at a temperature, nothing else.
Its log-likelihood here is that of just these draws, so that what is learned is what is drawn from.

    DPO (Rafailov et al. 2023, arXiv:2305.18290, eq. 7), of two answers a and b of which a is better with chance t:

        -t log s(d) - (1 - t) log s(-d),   d = beta [log pi(a)/ref(a) - log pi(b)/ref(b)],   s the logistic function

    With t = s(r(a) - r(b)) it is lowest, over all policies, for pi = ref exp(r / beta) / Z: the most reward for its KL
    from ref, at beta a nat (eq. 4). Of a reward with deviation 1, normally distributed, that is a gain of 1 / beta
    deviations for 1 / (2 beta^2) nats.

    DNO (Direct Nash Optimization, Rosset et al. 2024, arXiv:2404.03715, algorithm 1): the same loss, whose reward is
    the share of the policy's own answers that an answer is preferred to, and whose ref is the policy of the round. It
    needs no reward that explains the preferences: these may go in circles. Of a policy that changes in small steps,
    the mean over the rounds is a Nash equilibrium.

    ReST (Gulcehre et al. 2023, arXiv:2308.08998): the likelihood of the best answers alone. Over all policies it is
    highest for pi(y) = ref(y) / Z where y is among them, 0 elsewhere.

    Best of n: no training, the best of n answers. Its KL is log n - (n - 1) / n for a reward without ties.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import log

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from generate.answers import nats_of
from generate.prompt import Fixed, Gap, Prompt
from generate.rewards import Values
from generate.tuning import asked
from xtrimo.errors import ConfigError, DataError
from xtrimo.objectives import Example

Preference = Callable[[Sequence[str], Sequence[str]], Values]
"""The chance, 0 to 1, that each protein of the first list is preferred to the one beside it in the second."""


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Two answers to one prompt."""

    first: Example
    second: Example
    reference: float
    """log ref(first) - log ref(second), nats."""
    chance: float
    """That the first is the better one."""


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """An answer to be learned as it is."""

    answer: Example
    scale: float
    """What its nats are divided by, the same for all of a run."""


Lesson = Pair | Kept | Example
"""An example alone is replayed: as in pretraining."""


def check_prompt(prompt: Prompt) -> None:
    """Refuse what leaves the writer more to choose than residues and an end.

    Raises:
        ConfigError: anything but tags and residues to begin with.
    """
    *given, last = prompt.pieces
    if last != Gap(0, None) or len(given) > 1 or not all(isinstance(piece, Fixed) for piece in given):
        raise ConfigError(
            f"prompt '{prompt}' cannot be learned for; give tags, residues to begin with, or both, such as"
            " <family=globin>MKT"
        )


def log_likelihoods(module: nn.Module, answers: Sequence[Example], temperature: float) -> Float[Tensor, "answer"]:
    """log pi of each answer, nats, with a gradient; all in one packed row."""
    said = asked(module, answers)
    nats = nats_of(said.logits, said.tokens, said.labels, temperature)
    return -nats.new_zeros(len(answers)).index_add(0, said.owners, nats)


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """What `fit` makes small. Impossible values raise ConfigError."""

    beta: float
    """Of pairs, in units of the reward for a nat of KL."""
    temperature: float
    """That answers are drawn at."""
    leash: float
    """Weight of a replayed protein's nats a label."""

    def __post_init__(self) -> None:
        if not (self.beta > 0 and self.temperature > 0 and self.leash >= 0):
            raise ConfigError(
                f"beta {self.beta} and temperature {self.temperature} must be above 0, leash {self.leash} not below"
            )

    def __call__(self, module: nn.Module, lessons: Sequence[Lesson]) -> tuple[Tensor, float]:
        """The sum of the lessons' losses, and how many there are."""
        pairs = [lesson for lesson in lessons if isinstance(lesson, Pair)]
        kept = [lesson for lesson in lessons if isinstance(lesson, Kept)]
        replayed = [lesson for lesson in lessons if isinstance(lesson, Example)]
        parts = []
        if pairs:
            both = [each for pair in pairs for each in (pair.first, pair.second)]
            logs = log_likelihoods(module, both, self.temperature).view(-1, 2)
            facts = logs.new_tensor([(pair.reference, pair.chance) for pair in pairs])
            parts.append(preference_loss(logs[:, 0] - logs[:, 1] - facts[:, 0], facts[:, 1], self.beta).sum())
        if kept:
            logs = log_likelihoods(module, [each.answer for each in kept], self.temperature)
            parts.append(-(logs / logs.new_tensor([each.scale for each in kept])).sum())
        if replayed:
            parts.append(self.leash * _replayed(module, replayed))
        return torch.stack(parts).sum(), float(len(lessons))


def preference_loss(
    ratios: Float[Tensor, "pair"], chances: Float[Tensor, "pair"], beta: float
) -> Float[Tensor, "pair"]:
    """Nats of the preferences.

    Args:
        ratios: log pi(a)/ref(a) - log pi(b)/ref(b).
        chances: that a is the better one.
    """
    return F.binary_cross_entropy_with_logits(beta * ratios, chances, reduction="none")


def _replayed(module: nn.Module, examples: Sequence[Example]) -> Float[Tensor, ""]:
    """Sum over the examples of each one's nats a label, over the whole vocabulary at temperature 1."""
    said = asked(module, examples)
    return (said.nats / torch.bincount(said.owners, minlength=len(examples))[said.owners]).sum()


def win_rates(preference: Preference, proteins: Sequence[str]) -> Values:
    """The share of the other proteins that each is preferred to; every two are compared once.

    Raises:
        DataError: a chance that is no number from 0 to 1.
    """
    num = len(proteins)
    couples = list(combinations(range(num), 2))
    asked_for = preference([proteins[i] for i, _ in couples], [proteins[j] for _, j in couples])
    chances = np.asarray(asked_for, dtype=np.float64)
    if chances.shape != (len(couples),) or not ((chances >= 0) & (chances <= 1)).all():
        raise DataError(
            f"a preference gave {chances.shape} chances for {len(couples)} pairs, or one outside of 0 to 1; one each"
        )
    wins = np.zeros(num)
    for (i, j), chance in zip(couples, chances.tolist(), strict=True):
        wins[i] += chance
        wins[j] += 1 - chance
    return wins / max(num - 1, 1)


def by_reward(values: dict[str, float]) -> Preference:
    """Preferences that a reward explains (Bradley-Terry): s(r(a) - r(b)) of known proteins."""
    return lambda firsts, seconds: logistic(
        np.array([values[a] - values[b] for a, b in zip(firsts, seconds, strict=True)])
    )


def logistic(x: Values) -> Values:
    """1 / (1 + exp(-x)).

    >>> logistic(np.array([-1000.0, 0.0]))
    array([0. , 0.5])
    """
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1 + small)


def paired(values: Values) -> list[tuple[int, int]]:
    """Places of pairs to learn from: of n values the best with the one at n / 2, and so on; equal ones make none.

    >>> paired(np.array([3.0, 1.0, 4.0, 0.0]))
    [(2, 1), (0, 3)]
    """
    order, half = np.argsort(-values, kind="stable"), len(values) // 2
    couples = zip(order[:half].tolist(), order[half:].tolist(), strict=False)
    return [(a, b) for a, b in couples if values[a] > values[b]]


def best_of(values: Values, n: int, by: Values | None = None) -> float:
    """The mean of the best of n, over all ways to take n of the values.

    Args:
        by: what says which is the best, where that is not the value itself.

    >>> best_of(np.array([1.0, 2.0, 3.0]), 2)
    2.6666666666666665

    Raises:
        ConfigError: n is no number of values that there are.
    """
    if not 1 <= n <= len(values):
        raise ConfigError(f"best of {n} of {len(values)} values; expected 1 to {len(values)}")
    # The i-th from below, i from 0, is the best of C(i, n - 1) of the C(N, n) choices.
    weights, weight = np.zeros(len(values)), 1.0
    for i in range(len(values) - 1, n - 2, -1):
        weights[i] = weight
        weight *= (i - n + 1) / i if i else 0.0
    order = np.argsort(values if by is None else by, kind="stable")
    return float(values[order] @ weights / weights.sum())


def kl_of_best(n: int) -> float:
    """Nats from the policy to its best of n, without ties: log n - (n - 1) / n (Beirami et al. 2024, 2401.01879)."""
    return log(n) - (n - 1) / n
