"""Confidence that is as good as its word: the temperature of pLDDT, fitted on chains that nothing was learned from.

The head says how likely the lDDT of an atom is in each bin, P(b) = softmax(logits / T)_b. Networks learn to be surer
than they are right, so T is chosen after training, for the likelihood of the true bins on the validation chains (Guo et
al. 2017, arXiv:1706.04599). Above 1 it takes sureness away, below 1 it adds some. It changes no atom, and not which bin
is the likeliest. With u = 1 / T and z the logits, whose true bin is y, the mean nats are convex in u:

    d/du mean(log sum_b exp(u z_b) - u z_y)  =  mean(sum_b P(b) z_b - z_y)      rises with u, and is 0 at the best one

The number that people read is the mean of P. Where the likeliest T takes it further from the truth on these chains, T
stays 1: a head whose bins are wrong altogether is likeliest when it says nothing, which is 50 of 100.

What T cannot give is knowledge: a head that says the same of every residue is a constant at any T, and is told apart.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from structure.confidence import expected_plddt
from structure.judging import Judged, calibration_error
from structure.model import FoldModel

SUREST, LEAST_SURE = 0.05, 20.0
"""Temperatures that are not passed, however little the chains say against it."""
CONSTANT_SPREAD = 1.0
"""Points of pLDDT; residues that differ less tell nothing from anything."""
NUM_HALVINGS = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """A temperature, and what it was fitted on."""

    temperature: float
    """What the logits are divided by; 1 leaves them."""
    num_residues: int
    nats_before: float
    """Of the true bin of a residue's lDDT, mean."""
    nats_after: float
    nats_constant: float
    """The same of a head that says of each residue how often each bin is true: what pLDDT must come below to know
    anything."""
    spread: float
    """Standard deviation of pLDDT over the residues, in points, at this temperature."""

    @property
    def is_constant(self) -> bool:
        """Whether pLDDT says the same of all residues."""
        return self.spread < CONSTANT_SPREAD

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with what there is to say of it in a sentence."""
        return {**asdict(self), "is_constant": self.is_constant, "said": str(self)}

    def __str__(self) -> str:
        if not self.num_residues:
            return "no validation residue was seen that a temperature of pLDDT could be fitted on"
        told = f"temperature {self.temperature:.2f} of pLDDT on {self.num_residues:,} validation residues:"
        told += (
            f" {self.nats_before:.3f} nats before, {self.nats_after:.3f} after, {self.nats_constant:.3f} of a constant"
        )
        if self.is_constant:
            told += f"; pLDDT is a constant (it varies by {self.spread:.2f} points): it tells no residue from another"
        elif self.nats_after >= self.nats_constant:
            told += "; pLDDT tells the residues apart no better than a constant"
        return told


def calibrate(chains: Sequence[Judged]) -> Calibration:
    """The temperature that makes the true lDDT of some chains' C-alphas likeliest; 1 where none was seen.

    Args:
        chains: not trained on.
    """
    logits = torch.from_numpy(np.concatenate([chain.logits for chain in chains])).double()
    bins = _bins(np.concatenate([chain.true_lddt for chain in chains]), logits.shape[-1])
    if not len(bins):
        return Calibration(
            temperature=1.0, num_residues=0, nats_before=0.0, nats_after=0.0, nats_constant=0.0, spread=0.0
        )
    temperature = _fit(logits, bins)
    true = np.concatenate([chain.true_lddt for chain in chains])
    if _error(logits / temperature, true) > _error(logits, true):
        temperature = 1.0
    shares = torch.bincount(bins).double() / len(bins)
    return Calibration(
        temperature=temperature, num_residues=len(bins),
        nats_before=float(F.cross_entropy(logits, bins)), nats_after=float(F.cross_entropy(logits / temperature, bins)),
        nats_constant=float(torch.special.entr(shares).sum()),
        spread=float(expected_plddt(logits / temperature).std(correction=0)),
    )  # fmt: skip


def _bins(lddt: Float[np.ndarray, "residue"], num_bins: int) -> Int[Tensor, "residue"]:
    """Of 0..100, as the loss has them."""
    return torch.from_numpy(lddt / 100 * num_bins).long().clamp(0, num_bins - 1)


def _fit(logits: Float[Tensor, "residue bin"], bins: Int[Tensor, "residue"]) -> float:
    """By halving the range of log(1 / T) in which the slope becomes positive."""
    true = logits.gather(1, bins[:, None])[:, 0]
    low, high = -math.log(LEAST_SURE), -math.log(SUREST)
    for _ in range(NUM_HALVINGS):
        middle = (low + high) / 2
        slope = ((math.exp(middle) * logits).softmax(-1) * logits).sum(-1) - true
        low, high = (low, middle) if float(slope.mean()) > 0 else (middle, high)
    return math.exp(-(low + high) / 2)


def _error(logits: Float[Tensor, "residue bin"], true: Float[np.ndarray, "residue"]) -> float:
    return calibration_error(expected_plddt(logits).numpy(), true)


def apply_temperature(model: FoldModel, temperature: float) -> None:
    """Divide a model's logits of the lDDT by this from now on, beyond what it divides them by already."""
    model.config = replace(model.config, lddt_temperature=model.config.lddt_temperature * temperature)
    model.confidence.temperature = model.config.lddt_temperature
