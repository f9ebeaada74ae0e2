"""What no molecule does: stretched or bent peptide bonds, and atoms inside each other; and the loss of it.

The structure module builds residues of ideal geometry, so that it can break only what joins two residues, or place
side chains through something. Source: AlphaFold 2, supplement 1.9.11, equations 44 to 47, flat at the bottom: within
12 standard deviations a bond or an angle costs nothing, and atoms may overlap by 1.5 angstrom.
"""

from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from structure.geometry import CA, C, N
from structure.openfold import constants

DEVIATIONS = 12.0
"""Standard deviations that a bond or the cosine of an angle may be off."""
OVERLAP_ANG = 1.5
"""How far two atoms may reach into each other."""

_SIDE_CHAIN_BONDS = {
    "A": "",
    "R": "CB-CG CG-CD CD-NE NE-CZ CZ-NH1 CZ-NH2",
    "N": "CB-CG CG-OD1 CG-ND2",
    "D": "CB-CG CG-OD1 CG-OD2",
    "C": "CB-SG",
    "Q": "CB-CG CG-CD CD-OE1 CD-NE2",
    "E": "CB-CG CG-CD CD-OE1 CD-OE2",
    "G": "",
    "H": "CB-CG CG-ND1 CG-CD2 ND1-CE1 CD2-NE2 CE1-NE2",
    "I": "CB-CG1 CB-CG2 CG1-CD1",
    "L": "CB-CG CG-CD1 CG-CD2",
    "K": "CB-CG CG-CD CD-CE CE-NZ",
    "M": "CB-CG CG-SD SD-CE",
    "F": "CB-CG CG-CD1 CG-CD2 CD1-CE1 CD2-CE2 CE1-CZ CE2-CZ",
    "P": "CB-CG CG-CD CD-N",
    "S": "CB-OG",
    "T": "CB-OG1 CB-CG2",
    "W": "CB-CG CG-CD1 CG-CD2 CD1-NE1 NE1-CE2 CD2-CE2 CD2-CE3 CE2-CZ2 CE3-CZ3 CZ2-CH2 CZ3-CH2",
    "Y": "CB-CG CG-CD1 CG-CD2 CD1-CE1 CD2-CE2 CE1-CZ CE2-CZ CZ-OH",
    "V": "CB-CG1 CB-CG2",
}
_BACKBONE_BONDS = "N-CA CA-C C-O"


class Violations(NamedTuple):
    """Of each item; zero in a molecule that could exist."""

    bonds: Float[Tensor, "batch"]
    """Angstrom by which the peptide bond is too long or too short, mean over them (equation 44)."""
    angles: Float[Tensor, "batch"]
    """By how much cosines are off, mean over the angles CA-C-N and C-N-CA at peptide bonds (equation 45)."""
    clashes: Float[Tensor, "batch"]
    """Angstrom by which pairs that are not bonded overlap, summed and divided by the number of atoms: the sum alone
    (equation 46) would grow with the protein."""


def violation_loss(
    aatype: Int[Tensor, "batch length"],
    atoms: Float[Tensor, "batch length 14 3"],
    exists: Float[Tensor, "batch length 14"],
    index: Int[Tensor, "batch length"],
) -> Float[Tensor, "batch"]:
    """The sum of the three violations (equation 47), for the arguments of `find_violations`."""
    found = find_violations(aatype, atoms, exists, index)
    return found.bonds + found.angles + found.clashes


def find_violations(
    aatype: Int[Tensor, "batch length"],
    atoms: Float[Tensor, "batch length 14 3"],
    exists: Float[Tensor, "batch length 14"],
    index: Int[Tensor, "batch length"],
) -> Violations:
    """The violations of predicted atoms.

    Args:
        atoms: in angstrom; what does not exist may lie anywhere.
        exists: 1 for the atoms to judge; backbones alone are 0 to 3.
        index: number of each residue in its chain; a jump is a gap or another chain, and no bond.
    """
    bonds, angles = _peptide_bonds(aatype, atoms, exists, index)
    return Violations(bonds, angles, _clashes(aatype, atoms, exists, index))


def _peptide_bonds(aatype: Tensor, atoms: Tensor, exists: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Bond and angle violations [batch] where one residue follows upon another."""
    joined = (index[:, 1:] - index[:, :-1] == 1).to(exists.dtype)
    ca, c = atoms[:, :-1, CA], atoms[:, :-1, C]
    next_n, next_ca = atoms[:, 1:, N], atoms[:, 1:, CA]
    bonded = joined * exists[:, :-1, C] * exists[:, 1:, N]

    proline = (aatype[:, 1:] == constants.restype_order["P"]).long()
    ideal = atoms.new_tensor(constants.between_res_bond_length_c_n)[proline]
    deviation = atoms.new_tensor(constants.between_res_bond_length_stddev_c_n)[proline]
    off_bond = (_length(next_n - c) - ideal).abs() - DEVIATIONS * deviation

    bends = (
        (_cosine(ca - c, next_n - c), constants.between_res_cos_angles_ca_c_n, bonded * exists[:, :-1, CA]),
        (_cosine(c - next_n, next_ca - next_n), constants.between_res_cos_angles_c_n_ca, bonded * exists[:, 1:, CA]),
    )
    off_angle = torch.cat([(cosine - mean).abs() - DEVIATIONS * spread for cosine, (mean, spread), _ in bends], dim=1)
    angle_mask = torch.cat([mask for _, _, mask in bends], dim=1)
    return _mean(off_bond.relu(), bonded), _mean(off_angle.relu(), angle_mask)


def _clashes(aatype: Tensor, atoms: Tensor, exists: Tensor, index: Tensor) -> Tensor:
    """Overlap [batch] of the pairs that are not bonded, per atom."""
    radii, bonded = _chemistry(atoms.device)
    losses = []
    for item in range(len(atoms)):
        residue, slot = (exists[item] > 0).nonzero(as_tuple=True)
        places, kind = atoms[item, residue, slot], aatype[item, residue]
        radius = radii.to(atoms.dtype)[kind, slot]
        with torch.no_grad():  # few pairs are near: the gradient's graph holds those alone
            exact = torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")
            near = exact < radius[:, None] + radius - OVERLAP_ANG
            first, second = near.triu(1).nonzero(as_tuple=True)
            same = residue[first] == residue[second]
            inside = same & bonded[kind[first], slot[first], slot[second]]
            follows = index[item, residue[second]] - index[item, residue[first]] == 1
            peptide = follows & (slot[first] == C) & (slot[second] == N)
            cysteine, sulphur = constants.restype_order["C"], 5
            bridge = ~same & (kind[first] == cysteine) & (kind[second] == cysteine)
            bridge &= (slot[first] == sulphur) & (slot[second] == sulphur)
            free = ~(inside | peptide | bridge)
            first, second = first[free], second[free]
        overlap = radius[first] + radius[second] - OVERLAP_ANG - _length(places[first] - places[second])
        losses.append(overlap.relu().sum() / max(len(places), 1))
    return torch.stack(losses)


@cache
def _chemistry(device: torch.device) -> tuple[Float[Tensor, "type=21 14"], Bool[Tensor, "type=21 14 14"]]:
    """Of each residue type, the radius of each atom (van der Waals, angstrom), and which atoms are bonded."""
    radii, bonded = torch.zeros(21, 14), torch.zeros(21, 14, 14, dtype=torch.bool)
    for aatype, letter in enumerate(constants.restypes):
        names = constants.restype_name_to_atom14_names[constants.restype_1to3[letter]]
        for slot, name in enumerate(names):
            radii[aatype, slot] = constants.van_der_waals_radius[name[0]] if name else 0
        base = _BACKBONE_BONDS if letter == "G" else f"{_BACKBONE_BONDS} CA-CB"
        for bond in f"{base} {_SIDE_CHAIN_BONDS[letter]}".split():
            one, other = (names.index(name) for name in bond.split("-"))
            bonded[aatype, one, other] = bonded[aatype, other, one] = True
    return radii.to(device), bonded.to(device)


def _length(vector: Float[Tensor, "*shape 3"]) -> Float[Tensor, "*shape"]:
    """In angstrom, with a finite gradient at zero."""
    return vector.square().sum(-1).clamp_min(1e-12).sqrt()


def _cosine(one: Float[Tensor, "*shape 3"], other: Float[Tensor, "*shape 3"]) -> Float[Tensor, "*shape"]:
    return (one * other).sum(-1) / (_length(one) * _length(other))


def _mean(values: Float[Tensor, "batch item"], mask: Float[Tensor, "batch item"]) -> Float[Tensor, "batch"]:
    return (values * mask).sum(1) / mask.sum(1).clamp_min(1)
