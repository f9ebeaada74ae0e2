"""FAPE and the predicted aligned error beside loops over the formula, and what a rigid motion or a mirror does."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from structure.aligned_errors import aligned_error, all_atom_fape, backbone_fape, fape, pae_loss
from structure.geometry import Frames, backbone_frames, rigid_group_frames
from tests.structure.proteins import noise, random_frames, real, rotation

NEVER = torch.tensor([math.inf], dtype=torch.float64)
SHIFT = torch.tensor([30.0, -20.0, 7.0], dtype=torch.float64)


def by_loops(predicted: Frames, true: Frames, points: Tensor, true_points: Tensor, epsilon: float) -> np.ndarray:
    """The error of each point in each frame of one item, one 4 x 4 matrix after the other."""
    errors = np.zeros((len(predicted.translations), len(points)))
    for i in range(errors.shape[0]):
        local = []
        for frames, places in ((predicted, points), (true, true_points)):
            matrix = np.eye(4)
            matrix[:3, :3], matrix[:3, 3] = frames.rotations[i].numpy(), frames.translations[i].numpy()
            local.append([np.linalg.inv(matrix) @ np.append(place.numpy(), 1.0) for place in places])
        for j in range(errors.shape[1]):
            errors[i, j] = math.sqrt(((local[0][j] - local[1][j]) ** 2).sum() + epsilon)
    return errors


def item(frames: Frames, at: int) -> Frames:
    return Frames(frames.rotations[at], frames.translations[at])


def ones(*shape: int) -> Tensor:
    return torch.ones(*shape, dtype=torch.float64)


def points(*shape: int, seed: int) -> Tensor:
    return noise(torch.zeros(*shape, 3, dtype=torch.float64), 8.0, seed)


def test_fape_is_its_formula() -> None:
    predicted, true = random_frames(2, 5, seed=1), random_frames(2, 5, seed=2)
    places, true_places = points(2, 7, seed=3), points(2, 7, seed=4)
    frame_mask, point_mask = ones(2, 5), ones(2, 7)
    frame_mask[1, 2:], point_mask[0, 4] = 0, 0
    clamp = torch.tensor([10.0, math.inf], dtype=torch.float64)
    got = fape(predicted, true, frame_mask, places, true_places, point_mask, clamp=clamp, scale_ang=4.0)
    for at in range(2):
        errors = by_loops(item(predicted, at), item(true, at), places[at], true_places[at], 1e-4)
        assert errors.max() > 10
        seen = errors[frame_mask[at].numpy() > 0][:, point_mask[at].numpy() > 0]
        assert float(got[at]) == pytest.approx(np.minimum(seen, clamp[at].item()).mean() / 4)


def test_a_rigid_motion_leaves_fape_at_its_floor() -> None:
    atoms = real().atoms
    moved = atoms @ rotation().T + SHIFT
    before, after = backbone_frames(atoms), backbone_frames(moved)
    layer = Frames(after.rotations[None], after.translations[None])
    mask = ones(1, atoms.shape[1])
    assert float(backbone_fape(layer, before, mask, clamp=NEVER)) == pytest.approx(math.sqrt(1e-4) / 10, rel=1e-6)
    half = Frames(*(value.float() for value in layer)), Frames(*(value.float() for value in before))
    assert float(backbone_fape(*half, mask.float(), clamp=NEVER.float())) == pytest.approx(1e-3, rel=1e-3)


def test_a_mirror_image_is_paid_for() -> None:
    atoms = real().atoms
    mirror = atoms * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    before, after = backbone_frames(atoms), backbone_frames(mirror)
    layer = Frames(after.rotations[None], after.translations[None])
    mask = ones(1, atoms.shape[1])
    assert float(backbone_fape(layer, before, mask, clamp=NEVER)) > 1
    assert float(backbone_fape(layer, before, mask, clamp=torch.full_like(NEVER, 10.0))) < 1


def test_all_atoms_too_stay_at_the_floor_and_pay_for_a_mirror() -> None:
    aatype, atoms, seen, _ = real()
    true = rigid_group_frames(aatype, atoms, seen)

    def loss(places: Tensor) -> float:
        frames = rigid_group_frames(aatype, places, seen).frames
        return float(all_atom_fape(frames, places, true.frames, true.mask, atoms, seen, clamp=NEVER))

    assert loss(atoms @ rotation().T + SHIFT) == pytest.approx(1e-3, rel=1e-6)
    assert loss(atoms * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)) > 1


@pytest.mark.parametrize("slots", [4, 14])
def test_all_atom_fape_is_fape_of_all_groups_and_atoms_that_are_seen(slots: int) -> None:
    aatype, atoms, seen, _ = (values[:, :8] for values in real())
    seen = seen * (torch.arange(14) < slots)
    true = rigid_group_frames(aatype, atoms, seen)
    predicted, places = random_frames(1, 8, 8), atoms + noise(atoms, 4.0)
    got = all_atom_fape(predicted, places, true.frames, true.mask, atoms, seen, clamp=NEVER)
    flat = [Frames(f.rotations[0].flatten(0, 1), f.translations[0].flatten(0, 1)) for f in (predicted, true.frames)]
    errors = by_loops(*flat, places[0].flatten(0, 1), atoms[0].flatten(0, 1), 1e-4)
    frame, atom = true.mask[0].flatten().numpy() > 0, seen[0].flatten().numpy() > 0
    if slots == 4:
        assert frame.sum() == 16 and atom.sum() == 32  # backbone and psi; N, CA, C, O
    assert float(got) == pytest.approx(errors[frame][:, atom].mean() / 10)


def test_layers_count_alike() -> None:
    layers, true, mask = random_frames(3, 2, 6, seed=5), random_frames(2, 6, seed=6), ones(2, 6)
    mask[0, 3:] = 0
    clamp = torch.tensor([math.inf, 10.0], dtype=torch.float64)
    got = backbone_fape(layers, true, mask, clamp=clamp)
    alone = [backbone_fape(Frames(*(v[at : at + 1] for v in layers)), true, mask, clamp=clamp) for at in range(3)]
    torch.testing.assert_close(got, torch.stack(alone).mean(0))
    assert float((alone[0] - alone[1]).abs().min()) > 1e-3


def test_masked_residues_do_not_matter() -> None:
    layers, true, mask = random_frames(1, 1, 6, seed=5), random_frames(1, 6, seed=6), ones(1, 6)
    mask[0, 4:] = 0
    junk = Frames(true.rotations.clone(), true.translations.clone())
    junk.rotations[:, 4:], junk.translations[:, 4:] = 1e3, 1e3
    got, clean = (backbone_fape(layers, frames, mask, clamp=NEVER) for frames in (junk, true))
    torch.testing.assert_close(got, clean)
    logits = noise(torch.zeros(1, 6, 6, 64).double(), 1.0)
    predicted = item(layers, 0)
    torch.testing.assert_close(pae_loss(logits, predicted, junk, mask), pae_loss(logits, predicted, true, mask))
    aatype, atoms, seen, _ = (values[:, :8] for values in real())
    seen = seen.clone()
    seen[0, 3:5] = 0
    groups = rigid_group_frames(aatype, atoms, seen)
    spoiled = torch.where(seen[..., None] > 0, atoms, 1e3)
    frames = random_frames(1, 8, 8)
    got, clean = (
        all_atom_fape(frames, atoms + 1, groups.frames, groups.mask, places, seen, clamp=NEVER)
        for places in (spoiled, atoms)
    )
    torch.testing.assert_close(got, clean)


def test_nothing_seen_costs_nothing() -> None:
    layers, true = random_frames(1, 1, 6, seed=5), random_frames(1, 6, seed=6)
    places = layers.translations.clone().requires_grad_()
    none = torch.zeros(1, 6).double()
    loss = backbone_fape(Frames(layers.rotations, places), true, none, clamp=NEVER)
    atoms = torch.zeros(1, 6, 14, 3).double().requires_grad_()
    groups = random_frames(1, 6, 8)
    empty = torch.zeros(1, 6, 8).double(), torch.zeros(1, 6, 14).double()
    loss = loss + all_atom_fape(groups, atoms, groups, empty[0], atoms.detach(), empty[1], clamp=NEVER)
    loss.sum().backward()
    assert float(loss.detach()) == 0
    assert places.grad is not None and float(places.grad.abs().max()) == 0
    assert atoms.grad is not None and float(atoms.grad.abs().max()) == 0


def test_autocast_does_not_round_places() -> None:
    atoms = real().atoms.float()
    frames = backbone_frames(atoms)
    layer = Frames(frames.rotations[None], frames.translations[None])
    with torch.autocast("cpu", torch.bfloat16):
        loss = backbone_fape(layer, frames, torch.ones(1, 70), clamp=NEVER.float())
    assert loss.dtype == torch.float32 and float(loss) == pytest.approx(1e-3, rel=1e-3)


def test_the_predicted_aligned_error_is_judged_in_half_angstroms() -> None:
    predicted, true = random_frames(1, 9, seed=1), random_frames(1, 9, seed=2)
    true.translations[0, :4], true.rotations[0, :4] = predicted.translations[0, :4], predicted.rotations[0, :4]
    true.translations[0, 5] += 60
    logits = noise(torch.zeros(1, 9, 9, 64).double(), 2.0)
    mask = ones(1, 9)
    mask[0, 7] = 0
    errors = by_loops(item(predicted, 0), item(true, 0), predicted.translations[0], true.translations[0], 0.0)
    nats, bins = [], []
    for i in range(9):
        for j in range(9):
            if mask[0, i] and mask[0, j]:
                bins.append(min(int(2 * errors[i, j]), 63))
                row = logits[0, i, j].numpy()
                nats.append(np.log(np.exp(row).sum()) - row[bins[-1]])
    assert min(bins) == 0 and max(bins) == 63 and len(set(bins)) > 5
    assert float(pae_loss(logits, predicted, true, mask)) == pytest.approx(np.mean(nats))


def test_gradients_are_right() -> None:
    predicted, true = random_frames(2, 2, 3, seed=1), random_frames(2, 3, seed=2)
    mask = ones(2, 3)
    mask[0, 1] = 0
    clamp = torch.tensor([10.0, math.inf], dtype=torch.float64)
    free = tuple(value.clone().requires_grad_() for value in predicted)
    assert gradcheck(lambda *frames: backbone_fape(Frames(*frames), true, mask, clamp=clamp), free)
    aatype, atoms, seen, _ = (values[:, :3] for values in real())
    groups, moved = rigid_group_frames(aatype, atoms, seen), random_frames(1, 3, 8)
    places = (atoms + noise(atoms, 2.0)).requires_grad_()
    free = tuple(value.clone().requires_grad_() for value in moved)
    assert gradcheck(
        lambda p, *f: all_atom_fape(Frames(*f), p, groups.frames, groups.mask, atoms, seen, clamp=NEVER),
        (places, *free),
    )
    logits = noise(torch.zeros(2, 3, 3, 64).double(), 1.0).requires_grad_()
    assert gradcheck(lambda values: pae_loss(values, item(predicted, 0), true, mask), logits)


def test_no_gradient_of_the_predicted_error_reaches_the_structure() -> None:
    predicted, true = random_frames(1, 3, seed=1), random_frames(1, 3, seed=2)
    places = predicted.translations.requires_grad_()
    logits = torch.zeros(1, 3, 3, 64).double().requires_grad_()
    pae_loss(logits, Frames(predicted.rotations, places), true, ones(1, 3)).sum().backward()
    assert places.grad is None and logits.grad is not None


def test_errors_are_exact_far_from_the_origin() -> None:
    atoms = (real().atoms + 500).float()
    frames = backbone_frames(atoms)
    errors = aligned_error(frames, frames, frames.translations, frames.translations)
    assert float(errors.max()) < 1e-4
