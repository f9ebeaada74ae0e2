"""Errors of points as seen from frames: the FAPE losses, and the loss of the predicted aligned error.

With T a frame, x a point and x* the true one, the error of point j in frame i is

    e_ij = | T_i^-1 x_j  -  T*_i^-1 x*_j |                                   (angstrom)

It knows no superposition, and changes under reflection: a mirror image has to be paid for. Source: AlphaFold 2,
supplement, algorithm 28 (FAPE), sections 1.9.2 and 1.9.3 (where it is used) and 1.9.7 (predicted aligned error).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from structure.geometry import Frames

EPSILON_ANG2 = 1e-4
"""Added to squared errors, so that the root has a gradient at zero: FAPE's floor is its root over the scale."""
PAE_WIDTH_ANG = 0.5
"""Width of a bin of the predicted aligned error; 64 bins from 0 to 31.5, and all beyond in the last."""


def aligned_error(
    predicted: Frames,
    true: Frames,
    points: Float[Tensor, "batch point 3"],
    true_points: Float[Tensor, "batch point 3"],
    *,
    epsilon: float = 0.0,
) -> Float[Tensor, "batch frame point"]:
    """The error of each point in each frame, in angstrom; frames are [batch frame]."""
    # One product instead of two: [R_p; -R_t]^T [x; x*] - (R_p^T t_p - R_t^T t_t) holds a single [frame point 3] array.
    # Half precision would round points by whole angstroms, hence no autocast.
    with torch.autocast(points.device.type, enabled=False):
        middle, true_middle = (values.mean(1, keepdim=True) for values in (points, true_points))
        turn = torch.cat((predicted.rotations, -true.rotations), dim=-2)  # batch frame 6 3
        stacked = torch.cat((points - middle, true_points - true_middle), dim=-1)  # batch point 6
        origins = torch.cat((predicted.translations - middle, true.translations - true_middle), dim=-1)
        offset = (turn * origins[..., None]).sum(-2)  # batch frame 3
        placed = torch.matmul(stacked, turn.permute(0, 2, 1, 3).flatten(2)).unflatten(-1, (-1, 3))
        difference = placed - offset[:, None]  # batch point frame 3
        return (difference.square().sum(-1) + epsilon).sqrt().transpose(1, 2)


def fape(
    predicted: Frames,
    true: Frames,
    frame_mask: Float[Tensor, "batch frame"],
    points: Float[Tensor, "batch point 3"],
    true_points: Float[Tensor, "batch point 3"],
    point_mask: Float[Tensor, "batch point"],
    *,
    clamp: Float[Tensor, "batch"],
    scale_ang: float = 10.0,
) -> Float[Tensor, "batch"]:
    """Frame-aligned point error: the mean of e_ij / scale over seen frames and points (algorithm 28).

    Args:
        predicted: frames [batch frame], and so is `true`.
        clamp: of each item, where errors stop to count (angstrom); inf for never.
        scale_ang: the error that costs 1.

    Returns:
        One value an item; zero, with zero gradient, where no frame or no point is seen.
    """
    errors = aligned_error(predicted, true, points, true_points, epsilon=EPSILON_ANG2)
    errors = torch.minimum(errors, clamp[:, None, None].to(errors.dtype))
    with torch.autocast(points.device.type, enabled=False):
        total = torch.einsum("bf,bfp,bp->b", frame_mask, errors, point_mask)
    return total / (frame_mask.sum(-1) * point_mask.sum(-1)).clamp_min(1) / scale_ang


def backbone_fape(
    predicted: Frames,
    true: Frames,
    mask: Float[Tensor, "batch length"],
    *,
    clamp: Float[Tensor, "batch"],
    scale_ang: float = 10.0,
) -> Float[Tensor, "batch"]:
    """FAPE of the CA atoms in the backbone frames, mean over the layers (section 1.9.2).

    Args:
        predicted: frames [layer batch length] of each layer of the structure module, in angstrom.
        true: frames [batch length].
        mask: 1 where N, CA and C are seen.
    """
    layers = predicted.translations.shape[0]
    flat = Frames(predicted.rotations.flatten(0, 1), predicted.translations.flatten(0, 1))
    repeated = Frames(true.rotations.repeat(layers, 1, 1, 1), true.translations.repeat(layers, 1, 1))
    masks = mask.repeat(layers, 1)
    losses = fape(
        flat,
        repeated,
        masks,
        flat.translations,
        repeated.translations,
        masks,
        clamp=clamp.repeat(layers),
        scale_ang=scale_ang,
    )
    return losses.unflatten(0, (layers, -1)).mean(0)


def all_atom_fape(
    predicted: Frames,
    predicted_atoms: Float[Tensor, "batch length 14 3"],
    true: Frames,
    frame_mask: Float[Tensor, "batch length 8"],
    atoms: Float[Tensor, "batch length 14 3"],
    seen: Float[Tensor, "batch length 14"],
    *,
    clamp: Float[Tensor, "batch"],
    scale_ang: float = 10.0,
) -> Float[Tensor, "batch"]:
    """FAPE of all atoms in the frames of all rigid groups, of the last layer (section 1.9.3).

    Args:
        predicted: frames [batch length 8], and so is `true`: `geometry.rigid_group_frames` of the true atoms, after
            `geometry.rename_ambiguous`.
        frame_mask: 1 where the true group exists and is seen.
        seen: 1 where the true atom exists and is seen. Backbones alone are frames 0 and 3 and atoms 0 to 3.
    """
    losses = []
    for item in range(len(seen)):
        # Most of the 8 groups and 14 slots of a residue are empty: leaving them out saves three quarters of the array.
        frame, atom = frame_mask[item] > 0, seen[item] > 0
        ours, theirs = (
            Frames(f.rotations[item][frame][None], f.translations[item][frame][None]) for f in (predicted, true)
        )
        points, true_points = predicted_atoms[item][atom][None], atoms[item][atom][None]
        masks = frame_mask[item][frame][None], seen[item][atom][None]
        losses.append(
            fape(
                ours, theirs, masks[0], points, true_points, masks[1], clamp=clamp[item : item + 1], scale_ang=scale_ang
            )
        )
    return torch.cat(losses)


def pae_loss(
    logits: Float[Tensor, "batch length length bin"],
    predicted: Frames,
    true: Frames,
    mask: Float[Tensor, "batch length"],
) -> Float[Tensor, "batch"]:
    """Cross-entropy of the predicted aligned error: of CA j in the backbone frame of i, in bins (section 1.9.7).

    Bin k holds errors from k to k + 1 half angstroms, the centres with which `compute_tm` and the expected error read
    it. Gradients flow into the logits alone.

    Args:
        predicted: frames [batch length] of the last layer, and so is `true`.
        mask: 1 where N, CA and C are seen.
    """
    with torch.no_grad():
        errors = aligned_error(predicted, true, predicted.translations, true.translations)
        bins = (errors / PAE_WIDTH_ANG).long().clamp_max(logits.shape[-1] - 1)
    nats = F.cross_entropy(logits.permute(0, 3, 1, 2), bins, reduction="none")
    pairs = mask[:, :, None] * mask[:, None, :]
    return (nats * pairs).sum((1, 2)) / pairs.sum((1, 2)).clamp_min(1)
