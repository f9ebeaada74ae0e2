"""The distogram: in which bin the distance of two residues falls, and the loss of the head that says so.

64 bins of 0.3125 angstrom; the first holds all below 2.3125, the last all beyond 21.6875. Source: AlphaFold 2,
supplement 1.9.8, equation 41; distances there are those of CB atoms, and of CA in glycine. Here glycine has the CB that
its backbone would give it, as contacts have.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

FIRST_BREAK_ANG, LAST_BREAK_ANG = 2.3125, 21.6875
"""Where the first bin ends, and where the last begins."""


def distogram_loss(
    logits: Float[Tensor, "batch length length bin"],
    cb: Float[Tensor, "batch length 3"],
    mask: Float[Tensor, "batch length"],
) -> Float[Tensor, "batch"]:
    """Cross-entropy of the distance bins, mean over all pairs of seen residues (equation 41).

    Args:
        cb: true place of CB, or of what stands for it, in angstrom.
        mask: 1 where it is known.

    Returns:
        Nats, one value an item; zero where nothing is seen.
    """
    with torch.no_grad():
        bins = distance_bins(torch.linalg.vector_norm(cb[:, :, None] - cb[:, None], dim=-1), logits.shape[-1])
    nats = F.cross_entropy(logits.permute(0, 3, 1, 2), bins, reduction="none")
    pairs = mask[:, :, None] * mask[:, None, :]
    return (nats * pairs).sum((1, 2)) / pairs.sum((1, 2)).clamp_min(1)


def distance_bins(distances: Float[Tensor, "*shape"], num_bins: int = 64) -> Int[Tensor, "*shape"]:
    """The bin that each distance (angstrom) falls into."""
    return torch.bucketize(distances, bin_breaks(num_bins, distances))


def bin_breaks(num_bins: int, like: Tensor) -> Float[Tensor, "break"]:
    """The distances between two bins, in angstrom: one fewer than bins; in the precision and place of `like`."""
    return torch.linspace(FIRST_BREAK_ANG, LAST_BREAK_ANG, num_bins - 1, dtype=like.dtype, device=like.device)
