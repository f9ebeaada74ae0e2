"""The distogram's loss beside a loop over pairs and bins."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from structure.distogram import distance_bins, distogram_loss
from tests.structure.proteins import noise, real


def test_the_loss_is_its_formula() -> None:
    cb = real().atoms[:, :20, 1].repeat(2, 1, 1)
    cb[1] *= 0.5
    mask = torch.ones(2, 20, dtype=torch.float64)
    mask[0, 3], mask[1, 10:] = 0, 0
    logits = noise(torch.zeros(2, 20, 20, 64).double(), 2.0)
    got = distogram_loss(logits, cb, mask)
    edges = [2.3125 + 0.3125 * k for k in range(63)]
    assert edges[-1] == 21.6875
    for item in range(2):
        nats = []
        for i in range(20):
            for j in range(20):
                if mask[item, i] and mask[item, j]:
                    distance = np.linalg.norm((cb[item, i] - cb[item, j]).numpy())
                    row = logits[item, i, j].numpy()
                    nats.append(np.log(np.exp(row).sum()) - row[sum(distance > edge for edge in edges)])
        assert float(got[item]) == pytest.approx(np.mean(nats))


def test_bins_begin_and_end_where_alphafold_has_them() -> None:
    distances = torch.tensor([0.0, 2.3, 2.32, 2.62, 2.63, 21.68, 21.7, 400.0])
    assert distance_bins(distances).tolist() == [0, 0, 1, 1, 2, 62, 63, 63]


def test_what_is_not_seen_does_not_matter() -> None:
    cb, logits = real().atoms[:, :9, 1].clone(), noise(torch.zeros(1, 9, 9, 64).double(), 1.0)
    mask = torch.ones(1, 9).double()
    mask[0, 5:] = 0
    clean = distogram_loss(logits, cb, mask)
    cb[:, 5:] = 1e3
    logits = logits.clone()
    logits[:, 5:], logits[:, :, 5:] = 50, 50
    assert torch.equal(distogram_loss(logits, cb, mask), clean)
    free = logits.requires_grad_()
    nothing = distogram_loss(free, cb, mask * 0)
    nothing.sum().backward()
    assert float(nothing.detach()) == 0 and free.grad is not None and float(free.grad.abs().max()) == 0


def test_gradients_are_right() -> None:
    cb, mask = real().atoms[:, :4, 1], torch.tensor([[1, 1, 0, 1]]).double()
    logits = noise(torch.zeros(1, 4, 4, 64).double(), 1.0).requires_grad_()
    assert gradcheck(lambda values: distogram_loss(values, cb, mask), logits)
