"""Small molecules as bits: Morgan fingerprints of SMILES, hashed words of names.

A fingerprint bit says that an atom with a certain neighbourhood is there (Rogers and Hahn 2010, radius 2, by rdkit). A
name, such as "H2O;Vinyl butyrate", says less: its bits are the names between semicolons, each as a whole, and their
words, hashed. So the same substrate always has the same bits, and alike names share some.
"""

import re
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32

from xtrimo.errors import DataError, MissingExtraError

Kind = Literal["smiles", "names"]

NUM_BITS = 2048
RADIUS = 2
_WORD = re.compile(r"[a-z]{2,}|\d+")


def fingerprints(
    molecules: Sequence[str], *, kind: Kind | None = None, num_bits: int = NUM_BITS
) -> Float32[np.ndarray, "protein bit"]:
    """0 and 1, a row for each molecule; equal ones are worked out once.

    Args:
        kind: what the texts are; by default whatever `kind_of` finds.

    Raises:
        DataError: a SMILES that does not parse, naming it.
        MissingExtraError: rdkit, which SMILES need, is not installed.
    """
    kind = kind or kind_of(molecules)
    different = list(dict.fromkeys(molecules))
    rows = np.zeros((len(different), num_bits), dtype=np.float32)
    bits = _morgan_bits(different, num_bits) if kind == "smiles" else [_name_bits(text, num_bits) for text in different]
    for row, on in zip(rows, bits, strict=True):
        row[on] = 1.0
    place = {text: number for number, text in enumerate(different)}
    return rows[[place[text] for text in molecules]] if molecules else rows


def kind_of(molecules: Sequence[str]) -> Kind:
    """Whether a column holds SMILES: nothing in it has a space or semicolon, and nine in ten parse.

    To be asked of the whole column: a name such as CO may well parse.

    Raises:
        MissingExtraError: rdkit is not installed.
    """
    different = list(dict.fromkeys(molecules))
    if any(re.search(r"[\s;]", text) for text in different):
        return "names"
    chem = _rdkit()
    parsed = sum(chem.MolFromSmiles(text) is not None for text in different[:200])
    return "smiles" if different and parsed >= 0.9 * len(different[:200]) else "names"


def _morgan_bits(molecules: Sequence[str], num_bits: int) -> list[list[int]]:
    chem = _rdkit()
    from rdkit.Chem import rdFingerprintGenerator

    generator = rdFingerprintGenerator.GetMorganGenerator(radius=RADIUS, fpSize=num_bits)
    found = []
    for text in molecules:
        molecule = chem.MolFromSmiles(text)
        if molecule is None or not text.strip():
            raise DataError(f"{text!r} is no SMILES that rdkit can read; correct the row, or leave it out")
        found.append(list(generator.GetFingerprint(molecule).GetOnBits()))
    return found


def _name_bits(text: str, num_bits: int) -> list[int]:
    names = [name.strip().lower() for name in text.split(";") if name.strip()]
    words = {f"name {name}" for name in names} | {word for name in names for word in _WORD.findall(name)}
    return [int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "big") % num_bits for word in words]


def _rdkit() -> Any:
    try:
        from rdkit import Chem, rdBase
    except ModuleNotFoundError as error:
        raise MissingExtraError("reading SMILES needs rdkit; run: pip install 'xtrimo[heads]'") from error
    rdBase.DisableLog("rdApp.error")  # what does not parse is said by our own error
    return Chem
