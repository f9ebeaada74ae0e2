"""lDDT, which judges distances without superposing anything, and the loss of the head that predicts it.

A distance of the truth is one within `cutoff_ang`, between atoms of two residues. It is kept to a tolerance when the
prediction's differs by less; the lDDT of an atom is the ratio of its distances that are kept, mean over the tolerances
0.5, 1, 2 and 4 angstrom. Ratios are 0..1 here. Source: Mariani et al. 2013 (doi 10.1093/bioinformatics/btt473);
AlphaFold 2, supplement 1.9.6 and algorithm 29 (on CA, and how it is predicted in bins).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from structure.geometry import to_atom37

TOLERANCES_ANG = (0.5, 1.0, 2.0, 4.0)


@torch.no_grad()
def lddt_ca(
    predicted: Float[Tensor, "batch length 3"],
    true: Float[Tensor, "batch length 3"],
    mask: Float[Tensor, "batch length"],
    cutoff_ang: float = 15.0,
) -> Float[Tensor, "batch length"]:
    """The lDDT of each residue by CA atoms alone, 0..1; zero where masked, or with no neighbour within the cutoff."""
    residue = torch.arange(mask.shape[1], device=mask.device)
    return torch.stack([_scores(predicted[i], true[i], mask[i], residue, cutoff_ang) for i in range(len(mask))])


@torch.no_grad()
def lddt_atoms(
    predicted: Float[Tensor, "batch length 14 3"],
    true: Float[Tensor, "batch length 14 3"],
    seen: Float[Tensor, "batch length 14"],
    cutoff_ang: float = 15.0,
) -> Float[Tensor, "batch length 14"]:
    """The lDDT of each atom against all atoms of other residues, 0..1; zero where it is not seen, or has none near.

    Args:
        true: the names of ambiguous atoms as the prediction has them: `geometry.rename_ambiguous`.
        seen: 1 where the atom exists and its true place is known.
    """
    scores = torch.zeros_like(true[..., 0])
    for item, atom in enumerate(seen > 0):  # only what is seen: half of the 14 slots are empty
        residue, _ = atom.nonzero(as_tuple=True)
        everywhere = torch.ones_like(residue, dtype=true.dtype)
        scores[item, atom] = _scores(predicted[item, atom], true[item, atom], everywhere, residue, cutoff_ang)
    return scores


def lddt_atom37(
    aatype: Int[Tensor, "batch length"],
    predicted: Float[Tensor, "batch length 14 3"],
    true: Float[Tensor, "batch length 14 3"],
    seen: Float[Tensor, "batch length 14"],
) -> tuple[Float[Tensor, "batch length 37"], Float[Tensor, "batch length 37"]]:
    """`lddt_atoms` in the 37 columns of a head that predicts it atom by atom, and which of them are seen."""
    both = torch.stack((lddt_atoms(predicted, true, seen), seen.to(true.dtype)), dim=-1)
    scores, mask = to_atom37(aatype, both).unbind(-1)
    return scores, mask


def plddt_loss(
    logits: Float[Tensor, "batch length column bin"],
    lddt: Float[Tensor, "batch length column"],
    mask: Float[Tensor, "batch length column"],
) -> Float[Tensor, "batch"]:
    """Cross-entropy of the predicted lDDT, in bins of equal width, mean over what is seen (algorithm 29).

    Args:
        logits: 37 columns, one an atom, or 1, for CA.
        lddt: true lDDT, 0..1, by `lddt_atom37`, and `mask` beside it.
    """
    num_bins = logits.shape[-1]
    bins = (lddt * num_bins).long().clamp(0, num_bins - 1)
    nats = F.cross_entropy(logits.permute(0, 3, 1, 2), bins, reduction="none")
    return (nats * mask).sum((1, 2)) / mask.sum((1, 2)).clamp_min(1)


def _scores(
    predicted: Float[Tensor, "atom 3"],
    true: Float[Tensor, "atom 3"],
    mask: Float[Tensor, "atom"],
    residue: Int[Tensor, "atom"],
    cutoff_ang: float,
) -> Float[Tensor, "atom"]:
    """The lDDT of each atom, of the distances to atoms of other residues."""
    distances = torch.linalg.vector_norm(true[:, None] - true, dim=-1)
    near = (distances < cutoff_ang) & (residue[:, None] != residue)
    weight = near * mask[:, None] * mask
    off = (torch.linalg.vector_norm(predicted[:, None] - predicted, dim=-1) - distances).abs()
    kept = torch.zeros_like(off)
    for tolerance in TOLERANCES_ANG:
        kept += off < tolerance
    return (kept * weight).sum(-1) / weight.sum(-1).clamp_min(1) / len(TOLERANCES_ANG)
