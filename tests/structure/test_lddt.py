"""lDDT beside biotite's, and the loss of its prediction beside a loop."""

import biotite.structure as biotite
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from structure.lddt import lddt_atom37, lddt_atoms, lddt_ca, plddt_loss
from structure.openfold import constants
from tests.structure.proteins import noise, real


def atom_array(places: Tensor, residue: Tensor) -> biotite.AtomArray:
    array = biotite.AtomArray(len(places))
    array.coord = places.numpy().astype(np.float32)
    array.res_id = residue.numpy()
    array.chain_id[:] = "A"
    return array


def by_biotite(true: Tensor, predicted: Tensor, residue: Tensor) -> np.ndarray:
    reference, subject = atom_array(true, residue), atom_array(predicted, residue)
    return biotite.lddt(reference, subject, aggregation="atom", exclude_same_residue=True)


@pytest.mark.parametrize("size_ang", [0.3, 2.0, 10.0])
def test_atoms_score_as_with_biotite(size_ang: float) -> None:
    _, atoms, seen, _ = real()
    predicted = atoms + noise(atoms, size_ang)
    mask = seen[0] > 0
    residue, _ = mask.nonzero(as_tuple=True)
    got = lddt_atoms(predicted, atoms, seen)
    np.testing.assert_allclose(got[0, mask].numpy(), by_biotite(atoms[0, mask], predicted[0, mask], residue), atol=2e-3)
    assert float(got[0, ~mask].abs().max()) == 0
    ca = lddt_ca(predicted[..., 1, :], atoms[..., 1, :], seen[..., 1])
    expected = by_biotite(atoms[0, :, 1], predicted[0, :, 1], torch.arange(70))
    np.testing.assert_allclose(ca[0].numpy(), expected, atol=2e-2)
    assert ca.mean() == pytest.approx(expected.mean(), abs=1e-3)


def test_the_score_is_its_formula() -> None:
    true = real().atoms[:, :30, 1]
    predicted, mask = true + noise(true, 1.5), torch.ones(1, 30).double()
    mask[0, 7] = 0
    got = lddt_ca(predicted, true, mask, cutoff_ang=12.0)
    for i in range(30):
        kept, counted = 0, 0
        for j in range(30):
            distance = float((true[0, i] - true[0, j]).norm())
            if i != j and distance < 12 and mask[0, i] and mask[0, j]:
                off = abs(float((predicted[0, i] - predicted[0, j]).norm()) - distance)
                kept, counted = kept + sum(off < bound for bound in (0.5, 1, 2, 4)), counted + 4
        assert float(got[0, i]) == pytest.approx(kept / counted if counted else 0)


def test_what_is_not_seen_does_not_matter() -> None:
    _, atoms, seen, _ = real()
    predicted, seen = (atoms + noise(atoms, 1.0)).repeat(2, 1, 1, 1), seen.repeat(2, 1, 1).clone()
    seen[1, 10:20] = 0
    true = atoms.repeat(2, 1, 1, 1)
    clean = lddt_atoms(predicted, true, seen)
    assert not torch.equal(clean[0], clean[1])
    junk = torch.where(seen[..., None] > 0, true, 1e3)
    assert torch.equal(lddt_atoms(predicted, junk, seen), clean)
    assert torch.equal(lddt_atoms(predicted, true, seen * 0), torch.zeros_like(seen))
    scores, junk_scores = (lddt_ca(predicted[..., 1, :], each[..., 1, :], seen[..., 1]) for each in (true, junk))
    assert torch.equal(scores, junk_scores) and not scores[1, 10:20].any()


def test_truth_scores_one() -> None:
    _, atoms, seen, _ = real()
    assert torch.equal(lddt_atoms(atoms, atoms, seen), seen)


def test_columns_are_atoms_by_name() -> None:
    aatype, atoms, seen, _ = real()
    predicted = atoms + noise(atoms, 1.0)
    wide, mask = lddt_atom37(aatype, predicted, atoms, seen)
    narrow = lddt_atoms(predicted, atoms, seen)
    for at in range(70):
        names = constants.restype_name_to_atom14_names[constants.resnames[aatype[0, at]]]
        for column, name in enumerate(constants.atom_types):
            known = name in names and seen[0, at, names.index(name)] > 0
            assert float(mask[0, at, column]) == known
            assert float(wide[0, at, column]) == (float(narrow[0, at, names.index(name)]) if known else 0)


@pytest.mark.parametrize("columns", [1, 37])
def test_the_loss_is_its_formula(columns: int) -> None:
    logits = noise(torch.zeros(2, 5, columns, 50).double(), 2.0)
    lddt = torch.rand(2, 5, columns, generator=torch.Generator().manual_seed(0)).double()
    lddt[0, 0, 0], lddt[0, 1, 0] = 1.0, 0.0
    mask = torch.ones_like(lddt)
    mask[1, 2:] = 0
    got = plddt_loss(logits, lddt, mask)
    for item in range(2):
        nats = []
        for at in np.argwhere(mask[item].numpy()):
            row = logits[(item, *at)].numpy()
            nats.append(np.log(np.exp(row).sum()) - row[min(int(float(lddt[(item, *at)]) / 0.02), 49)])
        assert float(got[item]) == pytest.approx(np.mean(nats))
    assert torch.equal(plddt_loss(logits, lddt, mask * 0), torch.zeros(2).double())


def test_gradients_are_right() -> None:
    logits = noise(torch.zeros(1, 3, 2, 50).double(), 1.0).requires_grad_()
    lddt, mask = torch.full((1, 3, 2), 0.7).double(), torch.tensor([[[1, 0], [1, 1], [0, 0]]]).double()
    assert gradcheck(lambda values: plddt_loss(values, lddt, mask), logits)
