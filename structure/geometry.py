"""Frames and torsions of residues, from their atoms.

A frame is a rotation R and a translation t: a local point x lies at R x + t. A residue has eight rigid groups (omega,
phi, psi and chi1..4 turn the last seven; those of omega and phi hold no heavy atom), and as many frames. All follow
one rule, AlphaFold 2's algorithm 21 (supplement 1.8.1): an axis, a second vector that spans the xy plane, an origin.
Everything is plain tensors, differentiable, in the precision of the atoms; atoms stand in the 14 slots of their
residue type (N CA C O CB, then the side chain), `aatype` counts `constants.restypes_with_x`, and masks are float.
What is masked has finite values without meaning.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from structure.openfold import constants

N, CA, C, OXYGEN, CB = range(5)
"""The slots that all residue types share; glycine's CB slot is empty."""


class Frames(NamedTuple):
    """Rigid frames; `rotations` has the local axes as columns, `translations` are in angstrom."""

    rotations: Float[Tensor, "*shape 3 3"]
    translations: Float[Tensor, "*shape 3"]


class GroupFrames(NamedTuple):
    """The eight rigid groups of each residue: backbone, omega, phi, psi, chi1..4."""

    frames: Frames
    """[*batch length 8]; the identity where masked."""
    alternative: Frames
    """The same with the other name of atoms that chemistry cannot tell apart, such as OD1 and OD2 of ASP."""
    mask: Float[Tensor, "*batch length 8"]
    """1 where the group exists and its three atoms are seen."""


class Torsions(NamedTuple):
    """Omega, phi, psi and chi1..4 of each residue, as (sine, cosine)."""

    values: Float[Tensor, "*batch length 7 2"]
    mask: Float[Tensor, "*batch length 7"]
    """1 where the angle exists and its four atoms are seen; omega and phi ask for the residue before, too."""
    alternative: Float[Tensor, "*batch length 7 2"]
    """As `values`, turned by 180 degrees where that gives the same molecule with other names."""


class _Tables(NamedTuple):
    """What is true of residue types; the first index is `aatype`."""

    frame_slots: Int[Tensor, "type=21 8 3"]
    """Of each group: the atom that the x axis comes from (backbone: leads to), the origin, the atom in the plane."""
    frame_exists: Float[Tensor, "type=21 8"]
    frame_flips: Float[Tensor, "type=21 8"]
    """1 where the alternative frame is turned by 180 degrees around its x axis."""
    chi_slots: Int[Tensor, "type=21 4 4"]
    chi_exists: Float[Tensor, "type=21 4"]
    chi_flips: Float[Tensor, "type=21 4"]
    swap_slots: Int[Tensor, "type=21 14"]
    """The slot that holds the atom's other name; itself where there is none."""
    ambiguous: Float[Tensor, "type=21 14"]
    atom37_slots: Int[Tensor, "type=21 37"]
    atom37_exists: Float[Tensor, "type=21 37"]


@cache
def _tables(device: torch.device) -> _Tables:
    """The tables on a device, written down once."""
    chi_slots, chi_exists = np.zeros((21, 4, 4), dtype=np.int64), np.zeros((21, 4), dtype=np.float32)
    slots37, exists37 = np.zeros((21, 37), dtype=np.int64), np.zeros((21, 37), dtype=np.float32)
    for aatype, letter in enumerate(constants.restypes):
        name = constants.restype_1to3[letter]
        names = constants.restype_name_to_atom14_names[name]
        for chi, atoms in enumerate(constants.chi_angles_atoms[name]):
            chi_slots[aatype, chi] = [names.index(atom) for atom in atoms]
            chi_exists[aatype, chi] = 1
        for slot, atom in enumerate(names):
            if atom:
                slots37[aatype, constants.atom_order[atom]], exists37[aatype, constants.atom_order[atom]] = slot, 1
    chi_flips = np.array(constants.chi_pi_periodic, dtype=np.float32)
    frame_slots = np.zeros((21, 8, 3), dtype=np.int64)
    frame_slots[:, 0], frame_slots[:, 3], frame_slots[:, 4:] = (C, CA, N), (CA, C, OXYGEN), chi_slots[..., 1:]
    both = np.zeros((21, 4), dtype=np.float32)
    backbone = both + np.array([1, 0, 0, 1], dtype=np.float32)
    tables = (
        frame_slots,
        np.concatenate([backbone, chi_exists], axis=1),
        np.concatenate([both, chi_flips], axis=1),
        chi_slots,
        chi_exists,
        chi_flips,
        constants.restype_atom14_ambiguous_atoms_swap_idx,
        constants.restype_atom14_ambiguous_atoms,
        slots37,
        exists37,
    )
    return _Tables(*(torch.tensor(table, device=device) for table in tables))


def gram_schmidt(
    axis: Float[Tensor, "*shape 3"], plane: Float[Tensor, "*shape 3"], origin: Float[Tensor, "*shape 3"]
) -> Frames:
    """The frame at `origin` whose x axis is along `axis`, with `plane` in the xy plane at a positive y.

    AlphaFold 2, algorithm 21. Vectors without a length give a matrix that is no rotation, but finite.
    """
    first = _unit(axis)
    second = _unit(plane - first * (first * plane).sum(-1, keepdim=True))
    return Frames(torch.stack((first, second, torch.linalg.cross(first, second)), dim=-1), origin)


def backbone_frames(atoms: Float[Tensor, "*batch length 14 3"]) -> Frames:
    """The frame of each residue's backbone: CA at the origin, C on the x axis, N in the xy plane.

    Returns:
        Frames [*batch length]; without meaning where one of N, CA, C is not seen.
    """
    n, ca, c = (atoms[..., slot, :] for slot in (N, CA, C))
    return gram_schmidt(c - ca, n - ca, ca)


def rigid_group_frames(
    aatype: Int[Tensor, "*batch length"],
    atoms: Float[Tensor, "*batch length 14 3"],
    seen: Float[Tensor, "*batch length 14"],
) -> GroupFrames:
    """The frames of the rigid groups, as the structure module would place them from the same torsions.

    The frame of psi and chi lies at the end of the bond that the angle turns, x along that bond, with the last atom
    that defines the angle in the xy plane (supplement 1.8.4, table 2). Omega and phi have none.
    """
    tables = _tables(atoms.device)
    slots = tables.frame_slots[aatype]
    behind, origin, side = _gather(atoms, slots.flatten(-2)).unflatten(-2, (8, 3)).unbind(-2)
    axis = origin - behind
    axis = torch.cat((-axis[..., :1, :], axis[..., 1:, :]), dim=-2)  # the backbone's x axis leads to its first atom, C
    rotations, translations = gram_schmidt(axis, side - origin, origin)
    seen_slots = torch.gather(seen, -1, slots.flatten(-2)).unflatten(-1, (8, 3))
    mask = seen_slots.prod(-1) * tables.frame_exists[aatype].to(seen.dtype)
    real = mask[..., None] > 0
    rotations = torch.where(real[..., None], rotations, torch.eye(3, dtype=atoms.dtype, device=atoms.device))
    frames = Frames(rotations, torch.where(real, translations, torch.zeros_like(translations)))
    flip = 1 - 2 * tables.frame_flips[aatype].to(atoms.dtype)
    turned = rotations * torch.stack((torch.ones_like(flip), flip, flip), dim=-1)[..., None, :]  # columns y and z
    return GroupFrames(frames, Frames(turned, frames.translations), mask)


def torsions(
    aatype: Int[Tensor, "*batch length"],
    atoms: Float[Tensor, "*batch length 14 3"],
    seen: Float[Tensor, "*batch length 14"],
    index: Int[Tensor, "*batch length"],
) -> Torsions:
    """The seven torsion angles of each residue (supplement 1.8.4, table 2).

    Args:
        index: number of each residue in its chain; a jump is a gap, across which nothing turns.

    Psi is read off the oxygen, which lies opposite to the next N: what places the oxygen, and there at the chain's end.
    """
    tables = _tables(atoms.device)
    before, before_seen = torch.roll(atoms, 1, dims=-3), torch.roll(seen, 1, dims=-2)
    joined = torch.zeros_like(seen[..., 0])
    joined[..., 1:] = (index[..., 1:] - index[..., :-1] == 1).to(seen.dtype)
    # Eight atoms of the backbone, those of the residue before first; then four of each chi.
    around = torch.cat((before[..., :3, :], atoms[..., :4, :]), dim=-2)
    around_seen = torch.cat((before_seen[..., :3] * joined[..., None], seen[..., :4]), dim=-1)
    backbone = torch.tensor([[1, 2, 3, 4], [2, 3, 4, 5], [3, 4, 5, 6]], device=atoms.device)
    chi_slots = tables.chi_slots[aatype]
    chi_atoms = _gather(atoms, chi_slots.flatten(-2)).unflatten(-2, (4, 4))
    chi_seen = torch.gather(seen, -1, chi_slots.flatten(-2)).unflatten(-1, (4, 4)).prod(-1)
    values = _torsion(torch.cat((around[..., backbone, :], chi_atoms), dim=-3))
    values = values * values.new_tensor([1, 1, -1, 1, 1, 1, 1])[:, None]
    chi_mask = chi_seen * tables.chi_exists[aatype].to(seen.dtype)
    mask = torch.cat((around_seen[..., backbone].prod(-1), chi_mask), dim=-1)
    flips = 1 - 2 * tables.chi_flips[aatype].to(values.dtype)
    flips = torch.cat((torch.ones_like(flips[..., :3]), flips), dim=-1)
    return Torsions(values, mask, values * flips[..., None])


def virtual_cb(
    n: Float[Tensor, "*shape 3"], ca: Float[Tensor, "*shape 3"], c: Float[Tensor, "*shape 3"]
) -> Float[Tensor, "*shape 3"]:
    """Where alanine's CB lies in the frame of N, CA, C; also for glycine, and where no CB was seen."""
    rotations, translations = gram_schmidt(c - ca, n - ca, ca)
    ideal = next(place for atom, _, place in constants.rigid_group_atom_positions["ALA"] if atom == "CB")
    return (rotations * rotations.new_tensor(ideal)).sum(-1) + translations


def to_atom37(
    aatype: Int[Tensor, "*batch length"], values: Float[Tensor, "*batch length 14 value"]
) -> Float[Tensor, "*batch length 37 value"]:
    """Values of the 14 slots, in the 37 of `constants.atom_types`; zero for atoms that the residue has not."""
    tables = _tables(values.device)
    exists = tables.atom37_exists[aatype].to(values.dtype)
    return _gather(values, tables.atom37_slots[aatype]) * exists[..., None]


@torch.no_grad()
def rename_ambiguous(
    aatype: Int[Tensor, "batch length"],
    predicted: Float[Tensor, "batch length 14 3"],
    atoms: Float[Tensor, "batch length 14 3"],
    seen: Float[Tensor, "batch length 14"],
) -> tuple[Float[Tensor, "batch length 14 3"], Float[Tensor, "batch length 14"]]:
    """The true atoms and what is seen of them, under those names that suit the prediction (algorithm 26).

    In ASP, GLU, PHE and TYR two names are chemically the same. A residue takes the other ones if its distances to all
    unambiguous atoms are then nearer to the predicted; it keeps its own where one atom of a pair is not seen.
    """
    tables = _tables(atoms.device)
    ambiguous, swap = tables.ambiguous[aatype].to(seen.dtype), tables.swap_slots[aatype]
    other, other_seen = _gather(atoms, swap), torch.gather(seen, -1, swap)
    item, residue, slot = (ambiguous * seen * other_seen).nonzero(as_tuple=True)
    landmarks = (seen * (1 - ambiguous)).flatten(1)[item]

    def distances(points: Tensor, to: Tensor) -> Tensor:
        return torch.linalg.vector_norm(points[item, residue, slot][:, None] - to.flatten(1, 2)[item], dim=-1)

    wanted = distances(predicted, predicted)
    own, swapped = ((distances(points, atoms) - wanted).abs() * landmarks for points in (atoms, other))
    gain = torch.zeros_like(seen[..., 0]).index_put((item, residue), (own - swapped).sum(-1), accumulate=True)
    better = gain[..., None] > 0
    return torch.where(better[..., None], other, atoms), torch.where(better, other_seen, seen)


def _unit(vector: Float[Tensor, "*shape 3"]) -> Float[Tensor, "*shape 3"]:
    """The vector at length 1; a zero stays zero, with a finite gradient."""
    return vector * (vector * vector).sum(-1, keepdim=True).clamp_min(1e-12).rsqrt()


def _torsion(points: Float[Tensor, "*shape 4 3"]) -> Float[Tensor, "*shape 2"]:
    """Sine and cosine of the torsion angle of four atoms: where the fourth lies in the frame of the first three."""
    a, b, c, d = points.unbind(-2)
    rotations, _ = gram_schmidt(c - b, a - b, c)
    local = (rotations * (d - c)[..., None]).sum(-2)
    flat = _unit(torch.stack((torch.zeros_like(local[..., 0]), local[..., 2], local[..., 1]), dim=-1))
    return flat[..., 1:]


def _gather(
    values: Float[Tensor, "*batch length slot value"], slots: Int[Tensor, "*batch length many"]
) -> Float[Tensor, "*batch length many value"]:
    """The values in the slots asked for, residue by residue."""
    return torch.gather(values, -2, slots[..., None].expand(*slots.shape, values.shape[-1]))
