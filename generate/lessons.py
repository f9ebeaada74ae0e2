"""What a policy learns from its drafts: pairs or chosen proteins, in shuffled epochs, and replayed ones beside them."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy as np

from generate.drafts import Drafts
from generate.preferences import Kept, Lesson, Pair, Preference, by_reward, logistic, paired, win_rates
from generate.rewards import Shaping, Values
from generate.tuning import Mix, in_epochs
from xtrimo.errors import DataError
from xtrimo.model import GLM
from xtrimo.objectives import IGNORE, Example

Method = Literal["rest", "dpo", "dno"]
METHODS: tuple[Method, ...] = ("rest", "dpo", "dno")
_FROM_DRAFTS = 2  # a random stream; those of `Mix` are 0 and 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The lessons of each step: a pure function of seed and step."""

    items: Sequence[Lesson]
    """From drafts; each comes once an epoch."""
    num: int
    """Of these, a step."""
    replay: Mix | None
    """Its whole batch goes with each step."""
    seed: int
    """Of the order."""

    def __call__(self, step: int) -> list[Lesson]:
        """The lessons of step 0, 1, ..."""
        places = in_epochs([self.seed, _FROM_DRAFTS], len(self.items), step * self.num, self.num)
        return [self.items[place] for place in places] + (self.replay(step) if self.replay else [])


def lessons_from(
    method: Method, drafts: Drafts, model: GLM, *, shaping: Shaping, keep: float, preference: Preference | None = None
) -> list[Lesson]:
    """What the drafts teach.

    Args:
        model: whose words and objectives the answers are read in.
        keep: of rest: the share of each prompt's drafts, the best ones.
        preference: of dno; by default the shaped reward's.

    Raises:
        DataError: nothing, since all are worth the same; or a preference that is none.
    """
    shaped, answers = shaping.shaped(drafts.rewards, drafts.proteins, drafts.prompts), drafts.answers(model)
    found: list[Lesson] = []
    for prompt in dict.fromkeys(drafts.prompts):
        own = np.array(drafts.places(prompt))
        if method == "rest":
            found += _kept(answers, own[_best(shaped[own], keep)])
        elif method == "dpo":
            found += _pairs(answers, own, shaped[own], drafts.start_log_likelihoods)
        else:
            proteins = [drafts.proteins[place] for place in own]
            oracle = preference or by_reward(dict(zip(proteins, shaped[own].tolist(), strict=True)))
            found += _pairs(answers, own, win_rates(oracle, proteins), drafts.log_likelihoods)
    if not found:
        raise DataError("all drafts of a prompt are worth the same, so that nothing can be learned from them")
    return found


def _best(values: Values, keep: float) -> list[int]:
    """Places of the best ones, the first of equals; none where all are equal."""
    num = ceil(keep * len(values))
    return np.argsort(-values, kind="stable")[:num].tolist() if np.ptp(values) > 0 else []


def _kept(answers: Sequence[Example], places: Sequence[int] | np.ndarray) -> list[Kept]:
    scale = float(np.mean([(each.labels != IGNORE).sum() for each in answers]))
    return [Kept(answers[place], scale) for place in places]


def _pairs(answers: Sequence[Example], own: np.ndarray, values: Values, references: np.ndarray) -> list[Pair]:
    return [
        Pair(
            answers[own[a]], answers[own[b]], reference=float(references[own[a]] - references[own[b]]),
            chance=float(logistic(values[a : a + 1] - values[b])[0]),
        )
        for a, b in paired(values)
    ]  # fmt: skip
