"""Frames and torsions beside OpenFold's way back, Biopython's angles, and chemistry written down by hand."""

import itertools
import math

import pytest
import torch
from Bio.PDB.vectors import calc_dihedral
from torch import Tensor
from torch.nn.functional import normalize

from structure.geometry import (
    Torsions,
    backbone_frames,
    gram_schmidt,
    rename_ambiguous,
    rigid_group_frames,
    to_atom37,
    torsions,
    virtual_cb,
)
from structure.openfold import (
    Rigid,
    Rotation,
    constants,
    frames_and_literature_positions_to_atom14_pos,
    torsion_angles_to_frames,
)
from tests.structure.proteins import noise, random_frames, real, residues

SWAPS = {"D": [("OD1", "OD2")], "E": [("OE1", "OE2")], "F": [("CD1", "CD2"), ("CE1", "CE2")]}
SWAPS["Y"] = SWAPS["F"]


def table(name: str) -> Tensor:
    return torch.tensor(getattr(constants, name))


def built(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Rigid]:
    """Each of the twenty residues from random torsions: types, atoms, torsions, and OpenFold's frames."""
    generator = torch.Generator().manual_seed(seed)
    aatype = torch.arange(20)[None]
    angles = normalize(torch.randn(1, 20, 7, 2, generator=generator, dtype=torch.float64), dim=-1)
    start = random_frames(1, 20)
    rigid = Rigid(Rotation(rot_mats=start.rotations), start.translations)
    default = table("restype_rigid_group_default_frame").double()
    frames = torsion_angles_to_frames(rigid, angles, aatype, default)
    atoms = frames_and_literature_positions_to_atom14_pos(
        frames,
        aatype,
        default,
        table("restype_atom14_to_rigid_group"),
        table("restype_atom14_mask").double(),
        table("restype_atom14_rigid_group_positions").double(),
    )
    return aatype, atoms, angles, frames


def exists(aatype: Tensor) -> Tensor:
    return table("restype_atom14_mask").double()[aatype]


def swapped(aatype: Tensor, atoms: Tensor) -> Tensor:
    """The atoms with every ambiguous pair exchanged, by name."""
    other = atoms.clone()
    for item, at in itertools.product(*map(range, aatype.shape)):
        letter = constants.restypes_with_x[aatype[item, at]]
        names = constants.restype_name_to_atom14_names[constants.resnames[aatype[item, at]]]
        for one, two in SWAPS.get(letter, []):
            pair = [names.index(one), names.index(two)]
            other[item, at, pair] = atoms[item, at, pair[::-1]]
    return other


def test_atoms_give_back_the_frames_that_placed_them() -> None:
    aatype, atoms, _, frames = built()
    found = rigid_group_frames(aatype, atoms, exists(aatype))
    mask = found.mask > 0
    assert mask[0].sum(0).tolist() == [20, 0, 0, 20, 18, 14, 5, 2]
    torch.testing.assert_close(
        found.frames.rotations[mask], frames.get_rots().get_rot_mats()[mask].double(), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(found.frames.translations[mask], frames.get_trans()[mask].double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(backbone_frames(atoms).rotations, found.frames.rotations[..., 0, :, :])
    torch.testing.assert_close(found.frames.rotations[~mask], torch.eye(3).double().expand(int((~mask).sum()), 3, 3))


def test_atoms_give_back_their_torsions() -> None:
    aatype, atoms, angles, _ = built()
    found = torsions(aatype, atoms, exists(aatype), torch.arange(20)[None])
    inner = found.mask.clone()
    inner[..., :2] = 0  # the residues were placed anywhere: what turns around the peptide bond is not what was drawn
    assert inner[0].sum(0).tolist() == [0, 0, 20, 18, 14, 5, 2]
    torch.testing.assert_close(found.values[inner > 0], angles[inner > 0], atol=1e-5, rtol=0)


def test_a_frame_is_a_rotation_with_its_axes_where_they_belong() -> None:
    protein = real()
    frames = backbone_frames(protein.atoms)
    local = torch.einsum(
        "blij,blai->blaj", frames.rotations, protein.atoms[..., :3, :] - frames.translations[..., None, :]
    )
    (n, ca, c) = local.unbind(2)
    assert float(ca.abs().max()) < 1e-9
    assert float(c[..., 1:].abs().max()) < 1e-9 and float(c[..., 0].min()) > 1.4
    assert float(n[..., 2].abs().max()) < 1e-9 and float(n[..., 1].min()) > 1.2
    torch.testing.assert_close(torch.linalg.det(frames.rotations), torch.ones(protein.aatype.shape).double())


@pytest.mark.parametrize("file", ["1A8O.pdb", "4CUP.cif"])
def test_torsions_are_those_of_biopython(file: str) -> None:
    protein, found = real(file), residues(file)
    ours = torsions(*protein)
    compared = [0] * 7
    for at, residue in enumerate(found):
        name = {"MSE": "MET"}.get(residue.resname, residue.resname)
        last = found[at - 1] if at and protein.index[0, at] - protein.index[0, at - 1] == 1 else {}
        wanted = [
            (last, "CA", last, "C", residue, "N", residue, "CA"),
            (last, "C", residue, "N", residue, "CA", residue, "C"),
            (residue, "N", residue, "CA", residue, "C", residue, "O"),
            *(tuple(x for atom in chi for x in (residue, atom)) for chi in constants.chi_angles_atoms[name]),
        ]
        for kind, row in enumerate(wanted):
            names = [{"SD": "SE"}.get(atom, atom) if residue.resname == "MSE" else atom for atom in row[1::2]]
            if not all(atom in of for of, atom in zip(row[::2], names, strict=True)):
                assert ours.mask[0, at, kind] == 0
                continue
            angle = calc_dihedral(*(of[atom].get_vector() for of, atom in zip(row[::2], names, strict=True)))
            angle += math.pi if kind == 2 else 0  # the oxygen lies opposite to the next N
            sine, cosine = ours.values[0, at, kind].tolist()
            assert ours.mask[0, at, kind] == 1
            assert (sine, cosine) == pytest.approx((math.sin(angle), math.cos(angle)), abs=1e-5)
            compared[kind] += 1
    assert compared == ours.mask[0].sum(0).int().tolist() and min(compared) > 3


def test_psi_by_the_oxygen_is_psi() -> None:
    protein, found = real(), residues("1A8O.pdb")
    ours = torsions(*protein).values[0, :, 2]
    for at in range(len(found) - 1):
        here, after = found[at], found[at + 1]
        psi = calc_dihedral(*(here[atom].get_vector() for atom in ("N", "CA", "C")), after["N"].get_vector())
        assert float(ours[at] @ torch.tensor([math.sin(psi), math.cos(psi)]).double()) > math.cos(math.radians(12))


def test_nothing_turns_across_a_gap_or_without_its_atoms() -> None:
    aatype, atoms, seen, index = real()
    jumped = index + (torch.arange(index.shape[1]) >= 30)
    whole, gap = torsions(aatype, atoms, seen, index).mask, torsions(aatype, atoms, seen, jumped).mask
    assert whole[0, 0].tolist()[:3] == [0, 0, 1]
    assert gap[0, 30].tolist()[:3] == [0, 0, 1]
    assert (whole != gap).sum() == 2
    without = seen.clone()
    without[0, 30, 1] = 0  # CA: with it goes all of residue 30, and omega of the next
    assert torsions(aatype, atoms, without, index).mask[0, 30].sum() == 0
    assert torsions(aatype, atoms, without, index).mask[0, 31].tolist()[:3] == [0, 1, 1]
    assert rigid_group_frames(aatype, atoms, without).mask[0, 30, :5].sum() == 0
    unknown = torch.full_like(aatype, 20)
    assert rigid_group_frames(unknown, atoms, seen).mask[..., 4:].sum() == 0
    assert torsions(unknown, atoms, seen, index).mask[..., 3:].sum() == 0


def test_other_names_are_the_alternative() -> None:
    aatype, atoms, _, _ = built()
    seen, index = exists(aatype), torch.arange(20)[None]
    other = swapped(aatype, atoms)
    frames, renamed = rigid_group_frames(aatype, atoms, seen), rigid_group_frames(aatype, other, seen)
    torch.testing.assert_close(frames.alternative.rotations, renamed.frames.rotations, atol=3e-3, rtol=0)
    assert int(((frames.alternative.rotations - frames.frames.rotations).abs().amax((-1, -2)) > 1).sum()) == 4
    values, turned = torsions(aatype, atoms, seen, index), torsions(aatype, other, seen, index)
    mask = values.mask > 0
    torch.testing.assert_close(values.alternative[mask], turned.values[mask], atol=3e-3, rtol=0)


def test_a_virtual_cb_lies_where_the_real_one_does() -> None:
    _, atoms, seen, _ = real()
    off = (virtual_cb(*atoms[..., :3, :].unbind(2)) - atoms[..., 4, :]).norm(dim=-1)[seen[..., 4] > 0]
    assert float(off.mean()) < 0.1 and float(off.max()) < 0.4


def test_names_follow_the_prediction() -> None:
    aatype, atoms, seen, _ = real("4CUP.cif")
    predicted = atoms + noise(atoms, 0.2)
    got, got_seen = rename_ambiguous(aatype, predicted, swapped(aatype, atoms), seen)
    torch.testing.assert_close(got, atoms, atol=0, rtol=0)
    assert torch.equal(got_seen, seen)
    assert not torch.equal(swapped(aatype, atoms), atoms)


def test_names_are_chosen_as_algorithm_26_has_it() -> None:
    aatype, atoms, seen, _ = real()
    aatype, atoms, seen = aatype[:, :25], atoms[:, :25], seen[:, :25]
    other, moved = swapped(aatype, atoms), 0
    # Few landmarks: what is measured from, and what is not, decides.
    seen = seen * ((other != atoms).any(-1) | (torch.arange(14) == 1))
    predicted = atoms + noise(atoms, 6.0, seed=1)
    got, _ = rename_ambiguous(aatype, predicted, atoms, seen)
    fixed = [
        (at, slot)
        for at, slot in itertools.product(range(25), range(14))
        if seen[0, at, slot] and bool((other == atoms)[0, at, slot].all())
    ]
    for at in range(25):
        cost = {"own": 0.0, "other": 0.0}
        for slot in range(14):
            if (other == atoms)[0, at, slot].all():
                continue
            for j in fixed:
                wanted = float((predicted[0, at, slot] - predicted[0][j]).norm())
                cost["own"] += abs(float((atoms[0, at, slot] - atoms[0][j]).norm()) - wanted)
                cost["other"] += abs(float((other[0, at, slot] - atoms[0][j]).norm()) - wanted)
        taken = other if cost["other"] < cost["own"] else atoms
        assert torch.equal(got[0, at], taken[0, at])
        moved += taken is other
    assert moved


def test_half_a_pair_keeps_its_name() -> None:
    aatype, atoms, seen, _ = real("4CUP.cif")
    at = aatype[0].tolist().index(constants.restype_order["D"])
    seen = seen.clone()
    seen[0, at, 7] = 0
    got, got_seen = rename_ambiguous(aatype, swapped(aatype, atoms), atoms, seen)
    assert torch.equal(got[0, at], atoms[0, at]) and torch.equal(got_seen[0, at], seen[0, at])


def test_slots_become_columns_by_name() -> None:
    aatype, atoms, _, _ = real()
    wide = to_atom37(aatype, atoms)
    assert wide.shape == (1, 70, 37, 3)
    for at, kind in enumerate(aatype[0].tolist()):
        names = constants.restype_name_to_atom14_names[constants.resnames[kind]]
        for column, name in enumerate(constants.atom_types):
            place = atoms[0, at, names.index(name)] if name in names else torch.zeros(3).double()
            assert torch.equal(wide[0, at, column], place)


def test_gradients_are_finite_where_nothing_is_seen() -> None:
    aatype = real().aatype[:, :6]
    atoms = torch.zeros(1, 6, 14, 3, dtype=torch.float64, requires_grad=True)
    frames = rigid_group_frames(aatype, atoms, torch.zeros(1, 6, 14).double()).frames
    values = torsions(aatype, atoms, torch.zeros(1, 6, 14).double(), torch.arange(6)[None]).values
    (frames.rotations.sum() + backbone_frames(atoms).rotations.sum() + values.sum()).backward()
    assert atoms.grad is not None and bool(atoms.grad.isfinite().all())


def test_gradients_are_right() -> None:
    vectors = noise(torch.zeros(3, 2, 3).double(), 1.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: gram_schmidt(*v), vectors)
    aatype, atoms, seen, index = (values[:, 3:6] for values in real())

    def of_atoms(places: Tensor) -> tuple[Tensor, Tensor]:
        found: Torsions = torsions(aatype, places, seen, index)
        groups = rigid_group_frames(aatype, places, seen)
        return found.values * found.mask[..., None], groups.frames.rotations

    assert torch.autograd.gradcheck(of_atoms, atoms.clone().requires_grad_())


def test_tables_made_under_inference_serve_training() -> None:
    from structure.geometry import _tables

    _tables.cache_clear()
    aatype, atoms, seen, index = real()
    with torch.inference_mode():
        torsions(aatype, atoms, seen, index)
    atoms = atoms.clone().requires_grad_()
    torsions(aatype, atoms, seen, index).values.sum().backward()
    assert atoms.grad is not None
