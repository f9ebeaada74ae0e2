"""Real proteins as the losses take them, read by Biopython alone, and what is done to them."""

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from Bio.PDB.MMCIFParser import MMCIFParser
from Bio.PDB.PDBParser import PDBParser
from torch import Tensor

from structure.geometry import Frames
from structure.openfold import constants

FILES = Path(__file__).parent / "files"


class Protein(NamedTuple):
    """A batch of one, in float64."""

    aatype: Tensor
    atoms: Tensor
    seen: Tensor
    index: Tensor


def residues(file: str) -> list[Any]:
    """The residues of chain A that have a CA, as Biopython has them."""
    parser: Any = MMCIFParser(QUIET=True) if file.endswith(".cif") else PDBParser(QUIET=True)
    return [residue for residue in parser.get_structure(file, FILES / file)[0]["A"] if "CA" in residue]


@cache
def real(file: str = "1A8O.pdb") -> Protein:
    """The first chain of a file; selenomethionine as methionine."""
    found = residues(file)
    aatype = torch.zeros(1, len(found), dtype=torch.int64)
    atoms, seen = torch.zeros(1, len(found), 14, 3, dtype=torch.float64), torch.zeros(1, len(found), 14).double()
    index = torch.tensor([[residue.id[1] for residue in found]])
    for at, residue in enumerate(found):
        name = {"MSE": "MET"}.get(residue.resname, residue.resname)
        aatype[0, at] = constants.resname_to_idx[name]
        for slot, atom in enumerate(constants.restype_name_to_atom14_names[name]):
            written = {"SD": "SE"}.get(atom, atom) if residue.resname == "MSE" else atom
            if atom and written in residue:
                atoms[0, at, slot] = torch.tensor(residue[written].coord.tolist())
                seen[0, at, slot] = 1
    return Protein(aatype, atoms, seen, index)


def rotation(seed: int = 0) -> Tensor:
    """A random rotation matrix [3 3]."""
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    return q * torch.linalg.det(q)


def random_frames(*shape: int, seed: int = 0) -> Frames:
    """Frames of random places and turns."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(*shape, 3, 3, generator=generator, dtype=torch.float64))
    places = 5 * torch.randn(*shape, 3, generator=generator, dtype=torch.float64)
    return Frames(q * torch.linalg.det(q)[..., None, None], places)


def noise(like: Tensor, size_ang: float, seed: int = 0) -> Tensor:
    """Gaussian noise in the shape of a tensor."""
    return size_ang * torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), dtype=like.dtype)
