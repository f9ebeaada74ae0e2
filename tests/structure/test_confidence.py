"""pLDDT, aligned error and pTM: against their formulas, OpenFold's pTM, and the bins that the losses teach."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from structure.aligned_errors import pae_loss
from structure.confidence import Confidence, expected_pae, expected_plddt, predicted_tm
from structure.geometry import Frames
from structure.lddt import plddt_loss
from structure.openfold import compute_tm
from tests.structure.models import SMALL
from tests.structure.truths import one_hot


def logits_of(*shape: int, seed: int = 0, spread: float = 2.0) -> Tensor:
    return spread * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shares(logits: Tensor) -> np.ndarray:
    """Softmax, in float64."""
    raised = np.exp(logits.double().numpy())
    return np.asarray(raised / raised.sum(-1, keepdims=True))


def tm_by_loops(logits: Tensor) -> float:
    """Of one protein without padding."""
    length, best = len(logits), 0.0
    d0 = 1.24 * (max(length, 19) - 15) ** (1 / 3) - 1.8
    probable = shares(logits)
    for i in range(length):
        total = 0.0
        for j in range(length):
            total += sum(p / (1 + ((k + 0.5) * 0.5 / d0) ** 2) for k, p in enumerate(probable[i, j]))
        best = max(best, total / length)
    return best


def test_plddt_is_its_formula() -> None:
    logits = logits_of(2, 5, 37, 50)
    expected = 100 * sum(shares(logits)[..., b] * (b + 0.5) / 50 for b in range(50))
    np.testing.assert_allclose(expected_plddt(logits).numpy(), expected, rtol=1e-5)
    sure = expected_plddt(one_hot(torch.arange(50), 50))
    np.testing.assert_allclose(sure.numpy(), np.arange(1, 100, 2), rtol=1e-5)


def test_pae_is_its_formula() -> None:
    logits = logits_of(3, 6, 6, 64)
    expected = sum(shares(logits)[..., b] * (b + 0.5) / 2 for b in range(64))
    np.testing.assert_allclose(expected_pae(logits).numpy(), expected, rtol=1e-5)
    sure = expected_pae(one_hot(torch.arange(64).reshape(1, 8, 8), 64))
    np.testing.assert_allclose(sure.flatten().numpy(), np.arange(0.25, 32, 0.5), rtol=1e-5)


@pytest.mark.parametrize("length", [1, 5, 19, 20, 43])
def test_ptm_is_openfolds(length: int) -> None:
    logits = logits_of(2, length, length, 64, spread=4.0)
    found = predicted_tm(logits, torch.ones(2, length))
    for item in range(2):
        assert float(found[item]) == pytest.approx(float(compute_tm(logits[item])), rel=1e-5)


def test_ptm_is_its_formula() -> None:
    logits = logits_of(1, 9, 9, 64, spread=4.0)
    assert float(predicted_tm(logits, torch.ones(1, 9))) == pytest.approx(tm_by_loops(logits[0]), rel=1e-5)
    columns = logits.transpose(1, 2)
    assert float(predicted_tm(columns, torch.ones(1, 9))) != pytest.approx(tm_by_loops(logits[0]), rel=1e-3)


def test_a_sure_prediction_has_a_ptm_of_nearly_one_and_a_lost_one_of_nearly_none() -> None:
    for pae_bin, low, high in ((0, 0.97, 1.0), (63, 0.0, 0.03)):
        logits = one_hot(torch.full((1, 40, 40), pae_bin), 64)
        assert low < float(predicted_tm(logits, torch.ones(1, 40))) < high


def test_one_well_placed_frame_is_enough() -> None:
    """The maximum over frames, rows; a single column is worth a fortieth."""
    lost = one_hot(torch.full((40, 40), 63), 64)
    row, column = lost.clone(), lost.clone()
    row[3], column[:, 3] = one_hot(torch.zeros(40).long(), 64), one_hot(torch.zeros(40).long(), 64)
    found = predicted_tm(torch.stack((row, column)), torch.ones(2, 40))
    assert float(found[0]) > 0.97 and float(found[1]) < 0.06


@pytest.mark.parametrize("pad", [1, 7, 33])
def test_padding_takes_no_part(pad: int) -> None:
    """Junk beyond the mask changes nothing; without the mask it would."""
    alone = [logits_of(1, length, length, 64, seed=length, spread=4.0) for length in (23, 11)]
    length = 23 + pad
    padded, mask = torch.zeros(2, length, length, 64), torch.zeros(2, length)
    padded[..., 0] = 100.0  # all the rest is sure to be right
    for row, real, one in zip(padded, mask, alone, strict=True):
        row[: one.shape[1], : one.shape[1]] = one[0]
        real[: one.shape[1]] = 1
    found = predicted_tm(padded, mask)
    for value, one in zip(found, alone, strict=True):
        assert float(value) == pytest.approx(float(compute_tm(one[0])), rel=1e-5)
    assert (predicted_tm(padded, torch.ones_like(mask)) - found).abs().min() > 0.1
    pae, plddt = expected_pae(padded), logits_of(2, length, 37, 50)
    for item, one in enumerate(alone):
        size = one.shape[1]
        torch.testing.assert_close(pae[item, :size, :size], expected_pae(one)[0])
        torch.testing.assert_close(expected_plddt(plddt)[item, :size], expected_plddt(plddt[item, :size]))


def test_half_precision_is_read_in_fp32() -> None:
    logits = logits_of(1, 9, 9, 64).bfloat16()
    for read in (expected_pae, expected_plddt, lambda values: predicted_tm(values, torch.ones(1, 9))):
        assert read(logits).dtype == torch.float32
        torch.testing.assert_close(read(logits), read(logits.float()), rtol=0, atol=0)


def test_what_is_read_is_what_the_losses_teach() -> None:
    """The bin of least loss, for errors and lDDT anywhere, is read as nearly that."""
    turn = torch.eye(3).expand(1, 2, 3, 3)
    for error in (0.01, 0.4, 3.1, 12.9, 31.2):
        true = Frames(turn, torch.tensor([[[0.0, 0.0, 0.0], [5.0, 0.0, 0.0]]]))
        moved = Frames(turn, true.translations + torch.tensor([[[0.0, 0.0, 0.0], [-0.6 * error, 0.8 * error, 0.0]]]))
        sure = [one_hot(torch.tensor([[[0, b], [b, 0]]]), 64) for b in range(64)]  # each is right in its own frame
        best = torch.cat([pae_loss(logits, moved, true, torch.ones(1, 2)) for logits in sure]).argmin()
        assert float(expected_pae(sure[int(best)])[0, 0, 1]) == pytest.approx(error, abs=0.251)
    for lddt in (0.0, 0.013, 0.5, 0.877, 1.0):
        scores, mask = torch.full((1, 1, 1), lddt), torch.ones(1, 1, 1)
        losses = torch.cat([plddt_loss(one_hot(torch.full((1, 1, 1), b), 50), scores, mask) for b in range(50)])
        read = expected_plddt(one_hot(losses.argmin().reshape(1), 50))
        assert float(read) == pytest.approx(100 * lddt, abs=1.01)


def test_the_heads() -> None:
    """A distogram that is symmetric; pLDDT in 37 columns of 50 bins, as ESMFold lays them out."""
    torch.manual_seed(0)
    heads = Confidence(replace(SMALL, pair_width=8, structure_width=16))
    pair, states = torch.randn(2, 5, 5, 8), torch.randn(2, 5, 16)
    distogram = heads.distogram_logits(pair)
    assert distogram.shape == (2, 5, 5, 64)
    torch.testing.assert_close(distogram, distogram.transpose(1, 2), rtol=0, atol=0)
    torch.testing.assert_close(distogram[:, 1, 3], heads.distogram((pair[:, 1, 3] + pair[:, 3, 1]) / 2))
    lddt = heads.lddt_logits(states)
    assert lddt.shape == (2, 5, 37, 50)
    torch.testing.assert_close(lddt[0, 2, 4], heads.lddt(states)[0, 2, 200:250])
    assert heads.pae(pair).shape == (2, 5, 5, 64)
