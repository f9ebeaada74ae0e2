"""Contacts from coordinates: an archive of chains (.npz), or PDB and mmCIF files, which Biopython reads.

Two residues touch where their C-betas are nearer than 8 A. The C-beta is placed by the three backbone atoms alone, so
that glycine has one too (the constants: Dauparas et al. 2022, doi:10.1126/science.add2187):

    b = CA - N,  d = C - CA,  CB = CA - 0.58273431 b x d + 0.56802827 b - 0.54067466 d

The archive holds arrays per chain (`chain_id`, `length`, `seq`, `split`) and one `xyz` of all residues laid end to end,
(residue, 4, 3) in angstrom, atoms N, CA, C, O.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int8

from xtrimo.errors import DataError

CONTACT_ANG = 8.0
UNKNOWN = -1
LONGEST_GAP = 100
"""Residues; a jump of the numbering beyond it is taken for a new numbering, not for residues that were not seen."""
STRUCTURES = (".pdb", ".ent", ".cif", ".mmcif")
ARCHIVES = ("chains.npz", "structures/chains.npz", "../structures/chains.npz")
"""Where the archive is looked for from the folder of a table that names its chains."""

Backbone = Float[np.ndarray, "length atom 3"]
Contacts = Int8[np.ndarray, "length length"]


class Chain(NamedTuple):
    """A chain of a structure."""

    name: str
    sequence: str
    xyz: Backbone
    """N, CA, C in angstrom, and more atoms or none behind them; NaN where an atom was not seen."""
    split: str | None = None
    dssp8: str = ""


def contacts(xyz: Backbone) -> Contacts:
    """1 where two residues touch, 0 where not, UNKNOWN where the backbone of one was not seen.

    Args:
        xyz: N, CA, C in angstrom, and any further atoms.
    """
    n, ca, c = (xyz[:, atom].astype(np.float64) for atom in range(3))
    b, d = ca - n, c - ca
    return near(-0.58273431 * np.cross(b, d) + 0.56802827 * b - 0.54067466 * d + ca)


def near(places: Float[np.ndarray, "length 3"], seen: Bool[np.ndarray, "length"] | None = None) -> Contacts:
    """`contacts` of residues that are one point each, in angstrom.

    Args:
        seen: which have a place; by default those without a NaN.
    """
    seen = np.isfinite(places).all(1) if seen is None else seen
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
    return np.where(seen[:, None] & seen[None], apart < CONTACT_ANG, UNKNOWN).astype(np.int8)


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
            xyz = held["xyz"][ends[i] - length : ends[i]]
            split = str(held["split"][i]) if "split" in held else None
            dssp8 = str(held["dssp8"][i]) if "dssp8" in held else ""
            yield Chain(str(name), str(sequence), xyz, split, dssp8)
    except (KeyError, ValueError, OSError, EOFError) as error:
        raise DataError(
            f"{path} is no archive of chains ({error}); expected arrays chain_id, length, seq and xyz"
        ) from error


def read_structure(path: Path) -> Iterator[Chain]:
    """The protein chains of the first model of a PDB or mmCIF file, named `file_chain`.

    Residues that were not seen but have a number are X without coordinates, so that separations stay right.

    Raises:
        DataError: a file that cannot be read, or has no protein.
    """
    from Bio.PDB.MMCIFParser import MMCIFParser
    from Bio.PDB.PDBParser import PDBParser

    is_pdb = path.suffix.lower() in STRUCTURES[:2]
    parser: Any = (
        PDBParser(QUIET=True) if is_pdb else MMCIFParser(QUIET=True, auth_residues=False)  # type: ignore[no-untyped-call]
    )
    try:
        model = next(iter(parser.get_structure(path.stem, str(path))))
    except Exception as error:  # the parsers raise whatever a damaged line leads them to
        raise DataError(f"{path} cannot be read as a structure ({error}); expected a PDB or mmCIF file") from error
    found = False
    for chain in model:
        letters, atoms = _residues(chain)
        if letters:
            found = True
            yield Chain(f"{path.stem}_{chain.id}", "".join(letters), np.array(atoms, dtype=np.float32))
    if not found:
        raise DataError(f"{path}: no protein chain in it; expected residues with atoms N, CA, C")


def _residues(chain: Any) -> tuple[list[str], list[list[list[float]]]]:
    """Letters and the places of N, CA, C."""
    from Bio.SeqUtils import seq1

    missing = [[np.nan] * 3] * 3
    letters: list[str] = []
    atoms: list[list[list[float]]] = []
    last = None
    for residue in chain:
        hetero, number, _ = residue.id
        letter = seq1(residue.resname, custom_map={"MSE": "M", "SEC": "U", "PYL": "O"}, undef_code="X")  # type: ignore[no-untyped-call]
        is_protein = "CA" in residue and (not hetero.strip() or letter != "X")
        if not is_protein:
            continue
        gap = number - last - 1 if last is not None else 0
        if 0 < gap <= LONGEST_GAP:
            letters += ["X"] * gap
            atoms += [missing] * gap
        last = number
        letters.append(letter)
        atoms.append([residue[atom].coord.tolist() if atom in residue else missing[0] for atom in ("N", "CA", "C")])
    return letters, atoms


class Labels:
    """Turns what a table says of the contacts of a protein into contacts; opens each archive or structure once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[Path, dict[str, Chain]] = {}

    def of(self, value: object, where: str) -> object:
        """Contacts of a chain's name, of a structure file (`file.cif`, or `file.cif:A` where it has several chains), or
        of places (residue, 3); anything else, such as contacts, as it is.

        Raises:
            DataError: nothing of that name.
        """
        if isinstance(value, list):
            value = np.array(value)
        if isinstance(value, np.ndarray):
            is_places = value.dtype.kind == "f" and value.ndim == 2 and value.shape[1] == 3
            return near(value) if is_places else value
        if not isinstance(value, str) or not value.strip():
            return value
        return contacts(self._chain(value.strip(), where).xyz)

    def _chain(self, value: str, where: str) -> Chain:
        name, _, chain = value.partition(":")
        file = self.folder / name
        if file.suffix.lower() in STRUCTURES:
            held = self._chains(file)
            if not chain and len(held) == 1:
                return next(iter(held.values()))
            wanted = f"{file.stem}_{chain}"
            if wanted in held:
                return held[wanted]
            raise DataError(f"{where}: label {value!r}, but {file} has the chains {', '.join(held)}; name one, as :A")
        if self._archive is None:
            raise DataError(
                f"{where}: label {value!r} names a chain, but there is no {' or '.join(ARCHIVES)} from {self.folder};"
                " put the archive there, or name structure files"
            )
        held = self._chains(self._archive)
        if value not in held:
            raise DataError(f"{where}: label {value!r} is not one of the {len(held):,} chains of {self._archive}")
        return held[value]

    def _chains(self, path: Path) -> dict[str, Chain]:
        if path not in self._read:
            read = read_archive if path.suffix == ".npz" else read_structure
            self._read[path] = {chain.name: chain for chain in read(path)}
        return self._read[path]

    @cached_property
    def _archive(self) -> Path | None:
        return next((self.folder / place for place in ARCHIVES if (self.folder / place).is_file()), None)
