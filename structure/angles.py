"""The loss of the torsion angles that the structure module gives (AlphaFold 2, supplement, algorithm 27).

An angle comes as two numbers a; a / |a| is compared with the sine and cosine of the true one or, where chemistry
cannot tell them apart, of that turned by 180 degrees, whichever is nearer. |a| itself is kept near 1.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from structure.geometry import Torsions

NORM_WEIGHT = 0.02
"""Of | |a| - 1 | beside the angle's own loss (algorithm 27, line 6)."""


def torsion_loss(
    angles: Float[Tensor, "layer batch length 7 2"],
    true: Torsions,
    residue_mask: Float[Tensor, "batch length"],
) -> Float[Tensor, "batch"]:
    """The mean squared distance on the unit circle, of all seen angles and layers, and the weighted norm's.

    Args:
        angles: as the structure module gives them before they are normalised.
        true: of the same residues, [batch length 7].
        residue_mask: 1 where a residue is no padding: the norm is asked for also where no atom was seen.

    Returns:
        One value an item: 0 .. 4 by the angles; zero where there is no residue.
    """
    norms = angles.square().sum(-1).clamp_min(1e-12).sqrt()
    units = angles / norms[..., None]
    off = torch.minimum(*((units - values).square().sum(-1) for values in (true.values, true.alternative)))
    turned = (off * true.mask).sum((2, 3)) / true.mask.sum((1, 2)).clamp_min(1)
    stretched = ((norms - 1).abs().mean(-1) * residue_mask).sum(-1) / residue_mask.sum(-1).clamp_min(1)
    return (turned + NORM_WEIGHT * stretched).mean(0)
