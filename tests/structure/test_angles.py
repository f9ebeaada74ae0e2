"""The torsion loss beside a loop over algorithm 27."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from structure.angles import torsion_loss
from structure.geometry import Torsions, torsions
from tests.structure.proteins import noise, real


def drawn(layers: int, length: int) -> tuple[Tensor, Torsions, Tensor]:
    """Angles of layers, the truth of the first residues of a real protein twice, and a mask of residues."""
    aatype, atoms, seen, index = (values[:, :length].repeat(2, *(1,) * (values.ndim - 1)) for values in real())
    seen = seen.clone()
    seen[1, length // 2 :] = 0
    residue_mask = torch.ones(2, length).double()
    residue_mask[1, -1] = 0
    angles = noise(torch.zeros(layers, 2, length, 7, 2).double(), 1.0)
    return angles, torsions(aatype, atoms, seen, index), residue_mask


def test_the_loss_is_its_formula() -> None:
    angles, true, residue_mask = drawn(2, 30)
    got = torsion_loss(angles, true, residue_mask)
    flipped = 0
    for item in range(2):
        layers = []
        for layer in range(2):
            off, stretch = [], []
            for at in range(30):
                for kind in range(7):
                    x, y = angles[layer, item, at, kind].tolist()
                    norm = math.hypot(x, y)
                    if residue_mask[item, at]:
                        stretch.append(abs(norm - 1))
                    if true.mask[item, at, kind]:
                        squares = [
                            (x / norm - a) ** 2 + (y / norm - b) ** 2
                            for a, b in (value[item, at, kind].tolist() for value in (true.values, true.alternative))
                        ]
                        off.append(min(squares))
                        flipped += squares[1] < squares[0]
            layers.append(sum(off) / len(off) + 0.02 * sum(stretch) / len(stretch))
        assert float(got[item]) == pytest.approx(sum(layers) / 2)
    assert flipped


def test_the_truth_costs_nothing() -> None:
    _, true, residue_mask = drawn(1, 30)
    unseen = (1 - true.mask)[..., None] * torch.tensor([0.0, 1.0]).double()  # any angle will do
    for values in (true.values, true.alternative):
        angles = values * true.mask[..., None] + unseen
        assert float(torsion_loss(angles[None], true, residue_mask).max()) == pytest.approx(0, abs=1e-6)
        assert float(torsion_loss(3 * angles[None], true, residue_mask).max()) == pytest.approx(0.04)


def test_what_is_not_seen_does_not_matter() -> None:
    angles, true, residue_mask = drawn(1, 12)
    seen = true.mask[..., None] > 0
    junk = Torsions(torch.where(seen, true.values, 1e3), true.mask, torch.where(seen, true.alternative, 1e3))
    assert torch.equal(torsion_loss(angles, junk, residue_mask), torsion_loss(angles, true, residue_mask))
    nothing = Torsions(true.values, true.mask * 0, true.alternative)
    angles = torch.zeros_like(angles).requires_grad_()
    loss = torsion_loss(angles, nothing, residue_mask * 0)
    loss.sum().backward()
    assert float(loss.detach().sum()) == 0 and angles.grad is not None and float(angles.grad.abs().max()) == 0


def test_gradients_are_right() -> None:
    angles, true, residue_mask = drawn(2, 4)
    assert gradcheck(lambda values: torsion_loss(values, true, residue_mask), angles.requires_grad_())
