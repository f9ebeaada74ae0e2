"""Rewards: what proteins are worth, as functions of many at once; and their shaping, before anything learns from them.

    reward(["MKT..", ...]) -> float64 array, higher is better, NaN where nothing can be said

Any such function will do. Those here: the bit score of a family's HMMs, how natural a model finds a protein, sums of
others. A head's prediction or a structure's confidence comes as a function of the user's.

A reward that is learned from as it is teaches its side effects first: longer proteins, more of one letter, whatever
varies most between prompts. The lesson of learning from people's preferences (ChatGLM-RLHF, Hou et al. 2024,
arXiv:2404.00934) is to take these out: `shaped` brings each prompt to mean 0 and deviation 1, subtracts what length and
composition say of that, and cuts what is far out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from generate.membership import bit_scores, of_family, read_hmms
from xtrimo.backbone import Backbone
from xtrimo.errors import ConfigError, DataError
from xtrimo.scoring import score
from xtrimo.tokens import AMINO_ACIDS

Values = Float64[np.ndarray, "protein"]
Reward = Callable[[Sequence[str]], Values]
"""What each protein is worth."""

_FLOOR = 1e-9  # a deviation below it is none


def family_bits(hmms: Path, family: str) -> Reward:
    """The best bit score of the HMMs called FAMILY_1, FAMILY_2 ... in a HMMER3 file; 0 where none matches.

    Raises:
        DataError: a file that cannot be read, or has no HMM of the family.
    """
    profiles = read_hmms(hmms)
    own = [profiles[number] for number in of_family(profiles, family)]
    return lambda proteins: bit_scores(own, proteins).max(axis=1)


def naturalness(model: Backbone) -> Reward:
    """Nats per residue, negative, that the model gives a protein: its likelihood, or pseudo-likelihood."""
    return lambda proteins: np.array([-each.nll for each in score(model, list(proteins))], dtype=np.float64)


def weighted(*parts: tuple[Reward, float]) -> Reward:
    """The sum of some rewards, each times its weight.

    Raises:
        ConfigError: none are given, or a weight is not finite.
    """
    if not parts or not all(np.isfinite(weight) for _, weight in parts):
        raise ConfigError(f"weights {[weight for _, weight in parts]}: give one reward at least, and finite weights")
    return lambda proteins: np.sum([weight * asked(reward, proteins) for reward, weight in parts], axis=0)


def asked(reward: Reward, proteins: Sequence[str]) -> Values:
    """What a reward says, checked; infinite values are none.

    Raises:
        DataError: it does not give a number for each protein.
    """
    values = np.asarray(reward(proteins), dtype=np.float64)
    if values.shape != (len(proteins),):
        raise DataError(f"a reward gave an array of shape {values.shape} for {len(proteins)} proteins; one number each")
    return np.where(np.isfinite(values), values, np.nan)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shaping:
    """How raw rewards become what is learned from."""

    debias: bool = True
    """Subtract what length and composition predict."""
    clip: float = 3.0
    """Deviations from a prompt's mean at which a reward is cut; 0 cuts none."""
    ridge: float = 1.0
    """Of the regression on length and composition, whose columns have deviation 1, in proteins."""

    def __post_init__(self) -> None:
        if min(self.clip, self.ridge) < 0:
            raise ConfigError(f"clip {self.clip} and ridge {self.ridge} must not be negative")

    def shaped(self, values: Values, proteins: Sequence[str], prompts: Sequence[object]) -> Values:
        """Rewards of mean 0 within each prompt, in its deviations; 0 where all of a prompt are worth the same.

        Args:
            values: raw; NaN counts as the lowest of its prompt, or 0 where there is no other.
            prompts: what each protein was written for; equal ones are one group.

        Raises:
            ConfigError: not one value and one prompt for each protein.
        """
        if not len(values) == len(proteins) == len(prompts):
            raise ConfigError(f"{len(values)} values, {len(proteins)} proteins and {len(prompts)} prompts; one each")
        groups = [np.array([i for i, p in enumerate(prompts) if p == prompt]) for prompt in dict.fromkeys(prompts)]
        out = values.astype(np.float64)
        differing = []
        for group in groups:
            known = out[group][~np.isnan(out[group])]
            out[group] = np.where(np.isnan(out[group]), known.min() if len(known) else 0.0, out[group])
            out[group] -= out[group].mean()
            deviation = out[group].std()
            out[group] = out[group] / deviation if deviation > _FLOOR else 0.0
            differing += [group] if deviation > _FLOOR else []
        if self.debias and differing:  # and no deviation 1 after it: what is left of next to nothing must not grow
            out = out - predicted(out, proteins, differing, self.ridge)
        return np.clip(out, -self.clip, self.clip) if self.clip else out


def predicted(values: Values, proteins: Sequence[str], groups: Sequence[np.ndarray], ridge: float) -> Values:
    """What length and composition say of the values, by ridge regression within the groups; 0 on the average of each,
    and outside of all."""
    columns = [np.log([len(protein) for protein in proteins])]
    columns += [np.array([protein.count(letter) / len(protein) for protein in proteins]) for letter in AMINO_ACIDS]
    x, y = np.stack(columns, axis=1), values.copy()
    for group in groups:
        x[group] -= x[group].mean(axis=0)
        y[group] -= y[group].mean()
    known = np.concatenate(groups)
    x, y = x[known], y[known]
    deviations = x.std(axis=0)
    x = x / np.where(deviations > _FLOOR, deviations, 1.0)
    slopes = np.linalg.solve(x.T @ x + (ridge + _FLOOR) * np.eye(x.shape[1]), x.T @ y)
    found: Values = np.zeros(len(values))
    found[known] = x @ slopes
    return found
