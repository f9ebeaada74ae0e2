"""How far a prediction can be trusted: pLDDT of each atom, aligned error of each pair of residues, pTM of the whole.

    pLDDT of an atom   sum_b P(b) (b + 1/2) / 50                            50 bins of the lDDT, 0..1
                       P = softmax(logits / T), T fitted after training     see `calibration`
    PAE of a pair      sum_b P(b) (b + 1/2) / 2                             64 bins of 0.5 angstrom
    pTM                max_i mean_j sum_b P_ij(b) / (1 + (PAE_b / d0)^2)    d0 = 1.24 (max(L, 19) - 15)^(1/3) - 1.8

Source: Jumper et al. 2021, supplement 1.9.6 and 1.9.7; the layout of the heads is ESMFold's, so its weights fit.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from structure.config import FoldConfig

NUM_LDDT_BINS, NUM_PAE_BINS, NUM_DISTANCE_BINS, NUM_ATOMS = 50, 64, 64, 37
SHORTEST = 19
"""Residues; d0 of shorter proteins would not be positive."""


class Confidence(nn.Module):
    """The heads beside the structure module."""

    def __init__(self, config: FoldConfig) -> None:
        super().__init__()
        self.temperature = config.lddt_temperature
        self.distogram = nn.Linear(config.pair_width, NUM_DISTANCE_BINS)
        self.pae = nn.Linear(config.pair_width, NUM_PAE_BINS)
        width = config.confidence_width
        self.lddt = nn.Sequential(
            nn.LayerNorm(config.structure_width), nn.Linear(config.structure_width, width),
            nn.Linear(width, width), nn.Linear(width, NUM_ATOMS * NUM_LDDT_BINS),
        )  # fmt: skip

    def distogram_logits(self, pair: Float[Tensor, "batch length length pair"]) -> Tensor:
        """[batch length length bin] of the distance between C-betas, symmetric."""
        logits: Tensor = self.distogram(pair)
        return (logits + logits.transpose(1, 2)) / 2

    def lddt_logits(self, states: Float[Tensor, "batch length structure"]) -> Tensor:
        """[batch length 37 bin] of each atom's lDDT, from the residues' last states."""
        logits: Tensor = self.lddt(states)
        return logits.unflatten(-1, (NUM_ATOMS, NUM_LDDT_BINS)) / self.temperature


def expected_plddt(logits: Float[Tensor, "*item bin"]) -> Float[Tensor, "*item"]:
    """0..100."""
    centres = (torch.arange(logits.shape[-1], device=logits.device) + 0.5) / logits.shape[-1]
    return 100 * (logits.float().softmax(-1) @ centres)


def expected_pae(logits: Float[Tensor, "batch length length bin"]) -> Float[Tensor, "batch length length"]:
    """Angstrom, of residue j (column) in the frame of residue i (row)."""
    return torch.stack([rows.float().softmax(-1) @ _centres(rows) for rows in logits])


def predicted_tm(
    logits: Float[Tensor, "batch length length bin"], mask: Float[Tensor, "batch length"]
) -> Float[Tensor, "batch"]:
    """pTM, 0..1; padding takes no part."""
    found = []
    for item, real in zip(logits, mask > 0, strict=True):
        own = item[real][:, real].float().softmax(-1)
        d0 = 1.24 * (max(len(own), SHORTEST) - 15) ** (1 / 3) - 1.8
        found.append((own @ (1 / (1 + (_centres(own) / d0) ** 2))).mean(1).max())
    return torch.stack(found)


def _centres(logits: Float[Tensor, "*item bin"]) -> Float[Tensor, "bin"]:
    return (torch.arange(logits.shape[-1], device=logits.device) + 0.5) / 2
