"""Violations: none in real proteins, and beside loops over the equations in broken ones."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from structure.openfold import constants
from structure.violations import _chemistry, find_violations, violation_loss
from tests.structure.proteins import Protein, noise, real

BACKBONE = torch.arange(14) < 4


def one(protein: Protein, places: Tensor, exists: Tensor, index: Tensor | None = None) -> dict[str, float]:
    found = find_violations(protein.aatype, places, exists, protein.index if index is None else index)
    return {name: float(value) for name, value in found._asdict().items()}


@pytest.mark.parametrize("file", ["1A8O.pdb", "4CUP.cif"])
def test_real_proteins_have_none(file: str) -> None:
    protein = real(file)
    found = one(protein, protein.atoms, protein.seen)
    assert found["bonds"] == found["angles"] == 0
    assert found["clashes"] < 1e-3
    assert one(protein, protein.atoms, protein.seen * BACKBONE) == dict(bonds=0, angles=0, clashes=0)


def test_each_kind_of_damage_is_found() -> None:
    protein = real()
    squashed = one(protein, protein.atoms * 0.5, protein.seen)
    assert squashed["bonds"] > 0.4 and squashed["clashes"] > 1
    backbone = one(protein, protein.atoms * 0.5, protein.seen * BACKBONE)
    assert backbone["bonds"] > 0.4 and backbone["clashes"] > 0.1
    stretched = one(protein, protein.atoms * 2, protein.seen)
    assert stretched["bonds"] > 1 and stretched["angles"] == stretched["clashes"] == 0
    shaken = one(protein, protein.atoms + noise(protein.atoms, 1.0), protein.seen)
    assert min(shaken.values()) > 0.05


def test_bonds_and_angles_are_their_formulas() -> None:
    protein = real()
    places = protein.atoms + noise(protein.atoms, 0.7)
    exists = protein.seen.clone()
    exists[0, 20, 2], exists[0, 40, 1] = 0, 0
    index = protein.index + (torch.arange(70) >= 50)
    got = one(protein, places, exists, index)
    bonds, angles = [], []
    for i in range(69):
        if index[0, i + 1] - index[0, i] != 1 or not exists[0, i, 2] or not exists[0, i + 1, 0]:
            continue
        ca, c, n, after = (place.numpy() for place in (*places[0, i, 1:3], *places[0, i + 1, :2]))
        ideal, spread = (1.341, 0.016) if protein.aatype[0, i + 1] == 14 else (1.329, 0.014)
        bonds.append(max(abs(math.dist(c, n) - ideal) - 12 * spread, 0))
        corners = [(ca, c, n, -0.4473, 0.0311, exists[0, i, 1]), (c, n, after, -0.5203, 0.0353, exists[0, i + 1, 1])]
        for a, b, d, mean, spread, known in corners:
            if known:
                cosine = ((a - b) @ (d - b)) / math.dist(a, b) / math.dist(d, b)
                angles.append(max(abs(cosine - mean) - 12 * spread, 0))
    assert len(bonds) == 67 and len(angles) == 132
    assert got["bonds"] == pytest.approx(sum(bonds) / len(bonds))
    assert got["angles"] == pytest.approx(sum(angles) / len(angles))


def test_clashes_are_their_formula() -> None:
    protein = real("4CUP.cif")
    aatype, atoms, seen, index = (values[:, :40] for values in protein)
    places = atoms * 0.6
    atom = [(at, slot) for at, slot in itertools.product(range(40), range(14)) if seen[0, at, slot]]
    names = {at: constants.restype_name_to_atom14_names[constants.resnames[aatype[0, at]]] for at in range(40)}
    total, bonds = 0.0, 0
    for (i, a), (j, b) in itertools.combinations(atom, 2):
        bonded = float((atoms[0, i, a] - atoms[0, j, b]).norm()) < 2.0  # told by the real protein
        bonds += bonded
        reach = sum(constants.van_der_waals_radius[names[at][slot][0]] for at, slot in ((i, a), (j, b))) - 1.5
        total += 0 if bonded else max(reach - float((places[0, i, a] - places[0, j, b]).norm()), 0)
    assert bonds > len(atom)
    got = find_violations(aatype, places, seen, index).clashes
    assert float(got) == pytest.approx(total / len(atom))


def test_bonds_of_the_table_are_those_of_real_proteins() -> None:
    _, bonded = _chemistry(torch.device("cpu"))
    kinds = set()
    for file in ("1A8O.pdb", "4CUP.cif"):
        aatype, atoms, seen, _ = real(file)
        for at, kind in enumerate(aatype[0].tolist()):
            near = torch.cdist(atoms[0, at], atoms[0, at]) < 2.0
            pairs = seen[0, at, :, None] * seen[0, at] * (1 - torch.eye(14)) > 0
            assert torch.equal(near & pairs, bonded[kind] & pairs), constants.resnames[kind]
            kinds.add(kind)
    assert len(kinds) == 20


def test_a_disulphide_bridge_is_no_clash() -> None:
    protein = real()
    sulphurs = protein.atoms[0, protein.aatype[0] == constants.restype_order["C"], 5]
    assert len(sulphurs) == 2 and float((sulphurs[0] - sulphurs[1]).norm()) < 2.1
    serine = torch.where(protein.aatype == constants.restype_order["C"], constants.restype_order["M"], protein.aatype)
    bridge = torch.zeros_like(protein.seen)
    bridge[0, protein.aatype[0] == constants.restype_order["C"], 5] = 1
    moved = protein.atoms.clone()
    moved[0, protein.aatype[0] == constants.restype_order["C"], 5] *= 0.5
    assert float(find_violations(protein.aatype, moved, bridge, protein.index).clashes) == 0
    assert float(find_violations(serine, moved, bridge, protein.index).clashes) > 0


def test_across_a_gap_nothing_is_bonded() -> None:
    protein = real()
    far = torch.arange(70)[None] * 2
    found = one(protein, protein.atoms * 2, protein.seen, far)
    assert found["bonds"] == found["angles"] == 0
    assert one(protein, protein.atoms, protein.seen * BACKBONE, far)["clashes"] > 0  # C and N overlap, and are no bond


def test_what_does_not_exist_does_not_matter() -> None:
    protein = real()
    places = protein.atoms + noise(protein.atoms, 1.0)
    junk = torch.where(protein.seen[..., None] > 0, places, 1e3)
    assert one(protein, junk, protein.seen) == one(protein, places, protein.seen)
    free = places.clone().requires_grad_()
    loss = violation_loss(protein.aatype, free, protein.seen * 0, protein.index)
    loss.sum().backward()
    assert float(loss.detach()) == 0 and free.grad is not None and float(free.grad.abs().max()) == 0


def test_atoms_in_one_point_have_finite_gradients() -> None:
    protein = real()
    free = torch.zeros_like(protein.atoms).requires_grad_()
    violation_loss(protein.aatype, free, protein.seen, protein.index).sum().backward()
    assert free.grad is not None and bool(free.grad.isfinite().all())


def test_items_stand_alone_and_gradients_are_right() -> None:
    aatype, atoms, seen, index = (values[:, :4].repeat(2, *(1,) * (values.ndim - 1)) for values in real())
    places = (atoms + noise(atoms, 1.0)).requires_grad_()
    assert gradcheck(lambda free: violation_loss(aatype, free, seen, index), places)
    both = violation_loss(aatype, places, seen, index)
    alone = [violation_loss(aatype[i : i + 1], places[i : i + 1], seen[i : i + 1], index[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(both, torch.cat(alone))
    assert float((both[0] - both[1]).detach().abs()) > 0
