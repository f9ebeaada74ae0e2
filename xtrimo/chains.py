"""Chains of proteins with their coordinates: from an archive (.npz), or PDB and mmCIF files, which Biopython reads.

The archive holds arrays per chain (`chain_id`, `length`, `seq`; `split`, `dssp8` and `start_resnum` where there are
such) and one `xyz` of all residues laid end to end, (residue, 4, 3) in angstrom, atoms N, CA, C, O.

What each oddity of a structure file means here:

* the first model counts; water, ligands, nucleotides and hydrogens are left out;
* residues whose numbers are skipped are X without coordinates, unless the two beside the gap are bonded;
* of alternate locations, be they of an atom or of other residues in one place, the one of the highest occupancy stays,
  of equals the first;
* MSE is read as M, its selenium as SD; SEC as U and PYL as O; any other residue that is bonded into the chain as X, of
  which the backbone stays;
* numbers are those of the whole sequence in mmCIF files, and the authors' in PDB files; inserted residues (52A) repeat
  the number of the one before them.
"""

import logging
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from xtrimo.errors import DataError, FastaError
from xtrimo.fasta import open_text
from xtrimo.log import warn_once

logger = logging.getLogger(__name__)

BACKBONE = ("N", "CA", "C", "O")
ATOMS = (
    "N", "CA", "C", "CB", "O", "CG", "CG1", "CG2", "OG", "OG1", "SG", "CD", "CD1", "CD2", "ND1", "ND2", "OD1", "OD2",
    "SD", "CE", "CE1", "CE2", "CE3", "NE", "NE1", "NE2", "OE1", "OE2", "CH2", "NH1", "NH2", "OH", "CZ", "CZ2", "CZ3",
    "NZ", "OXT",
)  # fmt: skip
"""The heavy atoms of the twenty amino acids, in the order of AlphaFold 2's atom37."""
LONGEST_GAP = 100
"""Residues; a jump of the numbering beyond it is taken for a new numbering, not for residues that were not seen."""
BOND_ANG = 2.0
"""C and N nearer than this are bonded; ideal are 1.33."""
CONTACT_ANG = 8.0
"""C-betas nearer than this touch."""
STRUCTURES = (".pdb", ".ent", ".cif", ".mmcif")
_PDB = STRUCTURES[:2]
_COLUMNS = {atom: column for column, atom in enumerate(ATOMS)}
_IN_CHAINS = {"MSE": "M", "SEC": "U", "PYL": "O"}
"""Residues that files call hetero-atoms and that are part of a chain wherever they are met."""

Places = Float32[np.ndarray, "length atom 3"]
Numbers = Int64[np.ndarray, "length"]


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """A chain of a structure."""

    name: str
    sequence: str
    xyz: Places
    """In angstrom; NaN where an atom was not seen."""
    atoms: tuple[str, ...] = BACKBONE
    """Names of the columns of `xyz`; they begin with N, CA, C."""
    split: str | None = None
    dssp8: str = ""
    numbers: Numbers | None = None
    """Residue numbers; None where the source has none."""

    def __post_init__(self) -> None:
        num = len(self.sequence)
        lengths = {"xyz": len(self.xyz), "numbers": num if self.numbers is None else len(self.numbers)}
        for what, length in lengths.items():
            if length != num:
                raise DataError(f"chain {self.name}: {what} of {length} residues, but a sequence of {num}")
        if self.xyz.shape[1] != len(self.atoms) or self.atoms[:3] != BACKBONE[:3]:
            raise DataError(
                f"chain {self.name}: {self.xyz.shape[1]} columns of coordinates for the atoms {', '.join(self.atoms)};"
                " expected one for each, the first of N, CA, C"
            )


def file_type(path: Path) -> str:
    """The end of a file's name in small letters, such as .cif, without .gz."""
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def file_stem(path: Path) -> str:
    """A file's name without its end: 1abc of 1abc.cif.gz."""
    return Path(path.name.removesuffix(".gz")).stem


def read_chains(path: Path) -> Iterator[Chain]:
    """The chains of an archive, of a structure file, or of all structure files in a folder and below it, by name.

    A file of a folder that cannot be used is left out; one warning tells their number and the first reason.

    Raises:
        DataError: nothing there that can be used.
    """
    if not path.is_dir():
        if not path.is_file():
            raise DataError(f"{path}: there is nothing; give an archive of chains, a structure file, or a folder")
        yield from _reader(path)(path)
        return
    files = sorted(file for file in path.rglob("*") if file_type(file) in STRUCTURES and file.is_file())
    if not files:
        raise DataError(f"{path} holds no structures; expected files of {', '.join(STRUCTURES)}, also with .gz")
    reasons: list[str] = []
    for file in files:
        try:
            yield from read_structure(file)
        except DataError as error:
            reasons.append(str(error))
    if len(reasons) == len(files):
        raise DataError(f"{path}: none of {len(files):,} structure files can be used, the first because: {reasons[0]}")
    if reasons:
        warn_once(
            logger, "%s: left out %d of %d structure files, the first because: %s",
            path, len(reasons), len(files), reasons[0],
        )  # fmt: skip


def _reader(path: Path) -> Callable[[Path], Iterator[Chain]]:
    if path.suffix.lower() == ".npz":
        return read_archive
    if file_type(path) in STRUCTURES:
        return read_structure
    raise DataError(f"{path}: its name tells no structures; expected .npz or one of {', '.join(STRUCTURES)}")


def c_betas(xyz: Float[np.ndarray, "length atom 3"]) -> Float64[np.ndarray, "length 3"]:
    """C-betas where the backbone puts them, glycine's too, in angstrom; NaN where one of N, CA, C was not seen.

    With b = CA - N and d = C - CA, CB = CA - 0.58273431 b x d + 0.56802827 b - 0.54067466 d (Dauparas et al. 2022,
    doi:10.1126/science.add2187).

    Args:
        xyz: N, CA, C in angstrom, and any further atoms.
    """
    n, ca, c = (xyz[:, atom].astype(np.float64) for atom in range(3))
    b, d = ca - n, c - ca
    return -0.58273431 * np.cross(b, d) + 0.56802827 * b - 0.54067466 * d + ca


def read_archive(path: Path) -> Iterator[Chain]:
    """The chains of an archive, in order.

    Raises:
        DataError: not such an archive.
    """
    try:
        with np.load(path) as archive:
            held = {name: archive[name] for name in archive.files}
        ends = np.cumsum(held["length"])
        for i, (name, sequence, length) in enumerate(zip(held["chain_id"], held["seq"], held["length"], strict=True)):
            yield Chain(
                str(name),
                str(sequence),
                held["xyz"][ends[i] - length : ends[i]].astype(np.float32, copy=False),
                BACKBONE,
                str(held["split"][i]) if "split" in held else None,
                str(held["dssp8"][i]) if "dssp8" in held else "",
                int(held["start_resnum"][i]) + np.arange(length, dtype=np.int64) if "start_resnum" in held else None,
            )
    except (KeyError, ValueError, OSError, EOFError, BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path} is no archive of chains ({error}); expected arrays chain_id, length, seq and xyz"
        ) from error


def read_structure(path: Path) -> Iterator[Chain]:
    """The protein chains of a PDB or mmCIF file, plain or gzipped, named `file_chain`, with all ATOMS.

    Raises:
        DataError: a file that cannot be read, or has no protein.
    """
    from Bio.PDB.MMCIFParser import MMCIFParser
    from Bio.PDB.PDBParser import PDBParser

    is_pdb = file_type(path) in _PDB
    parser: Any = (
        PDBParser(QUIET=True) if is_pdb else MMCIFParser(QUIET=True, auth_residues=False)  # type: ignore[no-untyped-call]
    )
    stem = file_stem(path)
    try:
        with open_text(path) as handle:
            model = next(iter(parser.get_structure(stem, handle)), ())
    except FastaError as error:  # of a missing file, it says all there is
        raise DataError(str(error)) from error
    except Exception as error:  # the parsers raise whatever a damaged line leads them to
        raise DataError(f"{path} cannot be read as a structure ({error}); expected a PDB or mmCIF file") from error
    found = False
    for chain in model:
        residues = _residues(chain, is_pdb)
        if residues:
            found = True
            yield _joined(f"{stem}_{chain.id}" if chain.id.strip() else stem, residues)
    if not found:
        raise DataError(f"{path}: no protein chain in it; expected residues with atoms N, CA, C")


class _Residue(NamedTuple):
    """A residue of a file."""

    letter: str
    number: int
    insertion: str
    xyz: Float32[np.ndarray, "atom 3"]
    """Places of ATOMS."""
    occupancy: float
    is_sure: bool
    """Whether it is part of a chain, whatever is near."""


def _joined(name: str, residues: list[_Residue]) -> Chain:
    """One chain of residues, those without coordinates filled in where numbers are skipped."""
    letters: list[str] = []
    numbers: list[int] = []
    places: list[Float32[np.ndarray, "atom 3"]] = []
    for residue in residues:
        gap = residue.number - numbers[-1] - 1 if numbers else 0
        if 0 < gap <= LONGEST_GAP and not is_bonded(places[-1], residue.xyz):
            letters += ["X"] * gap
            places += [np.full_like(residue.xyz, np.nan)] * gap
            numbers += range(residue.number - gap, residue.number)
        letters.append(residue.letter)
        places.append(residue.xyz)
        numbers.append(residue.number)
    return Chain(name, "".join(letters), np.stack(places), ATOMS, numbers=np.array(numbers, dtype=np.int64))


def is_bonded(one: Float32[np.ndarray, "atom 3"], other: Float32[np.ndarray, "atom 3"]) -> bool:
    """Whether C of one residue is bonded to N of the other, atoms N, CA, C, ...; no where one of them was not seen."""
    return bool(np.linalg.norm(one[2] - other[0]) < BOND_ANG)


def _residues(chain: Any, is_pdb: bool) -> list[_Residue]:
    """The residues of a chain in order, one for each number and insertion code."""
    residues = [_placed(residue) for residue in _flat(chain) if _may_be_protein(residue)]
    if is_pdb:
        # PDB files list amino acids that are ligands under the chain beside them; in mmCIF files these have no number.
        residues = [own for own in residues if own.is_sure or any(_are_neighbours(own, other) for other in residues)]
    best: dict[tuple[int, str], _Residue] = {}
    for residue in residues:
        place = residue.number, residue.insertion
        if place not in best or residue.occupancy > best[place].occupancy:
            best[place] = residue
    return list(best.values())


def _are_neighbours(one: _Residue, other: _Residue) -> bool:
    return is_bonded(one.xyz, other.xyz) or is_bonded(other.xyz, one.xyz)


def _flat(chain: Any) -> Iterator[Any]:
    """The residues of a chain, each type by itself where there are several in one place."""
    for residue in chain:
        if residue.is_disordered() == 2:
            yield from residue.disordered_get_list()
        else:
            yield residue


def _letter(residue: Any) -> str:
    """One letter of an amino acid, X for all else."""
    from Bio.SeqUtils import seq1

    return seq1(residue.resname, custom_map=_IN_CHAINS, undef_code="X") or "X"  # type: ignore[no-untyped-call]


def _is_sure(residue: Any) -> bool:
    return not residue.id[0].strip() or residue.resname in _IN_CHAINS


def _may_be_protein(residue: Any) -> bool:
    """A usual amino acid, however few of its atoms are there, or another one with a backbone; ions named CA have none.

    An unusual one that is no hetero-atom has a CA at least; no nucleotide has.
    """
    if _is_sure(residue):
        return _letter(residue) != "X" or "CA" in residue
    return all(atom in residue for atom in BACKBONE[:3])


def _placed(residue: Any) -> _Residue:
    letter = _letter(residue)
    xyz = np.full((len(ATOMS), 3), np.nan, dtype=np.float32)
    kept = BACKBONE if letter == "X" else ATOMS
    occupancy = 0.0
    for atom in residue:
        name = "SD" if residue.resname == "MSE" and atom.get_name() == "SE" else atom.get_name()
        if name in kept:
            xyz[_COLUMNS[name]] = atom.coord
            occupancy = max(occupancy, atom.get_occupancy() or 0.0)
    _, number, insertion = residue.id
    return _Residue(letter, number, insertion, xyz, occupancy, _is_sure(residue))
