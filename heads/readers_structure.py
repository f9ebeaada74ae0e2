"""Contacts from the coordinates of chains, which `xtrimo.chains` reads from an archive (.npz), PDB or mmCIF files.

Two residues touch where their C-betas are nearer than 8 A. The C-beta is placed by the three backbone atoms alone, so
that glycine has one too: see `xtrimo.chains.c_betas`.
"""

from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int8

from xtrimo.chains import CONTACT_ANG, STRUCTURES, Chain, c_betas, file_stem, file_type, read_chains
from xtrimo.errors import DataError

UNKNOWN = -1
ARCHIVES = ("chains.npz", "structures/chains.npz", "../structures/chains.npz")
"""Where the archive is looked for from the folder of a table that names its chains."""

Backbone = Float[np.ndarray, "length atom 3"]
Contacts = Int8[np.ndarray, "length length"]


def contacts(xyz: Backbone) -> Contacts:
    """1 where two residues touch, 0 where not, UNKNOWN where the backbone of one was not seen.

    Args:
        xyz: N, CA, C in angstrom, and any further atoms.
    """
    return near(c_betas(xyz))


def near(places: Float[np.ndarray, "length 3"], seen: Bool[np.ndarray, "length"] | None = None) -> Contacts:
    """`contacts` of residues that are one point each, in angstrom.

    Args:
        seen: which have a place; by default those without a NaN.
    """
    seen = np.isfinite(places).all(1) if seen is None else seen
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
    return np.where(seen[:, None] & seen[None], apart < CONTACT_ANG, UNKNOWN).astype(np.int8)


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
        if file_type(file) in STRUCTURES:
            held = self._chains(file)
            if not chain and len(held) == 1:
                return next(iter(held.values()))
            wanted = f"{file_stem(file)}_{chain}"
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
            self._read[path] = {chain.name: chain for chain in read_chains(path)}
        return self._read[path]

    @cached_property
    def _archive(self) -> Path | None:
        return next((self.folder / place for place in ARCHIVES if (self.folder / place).is_file()), None)
