"""Fingerprints against rdkit's own, and what they must tell apart."""

import subprocess
import sys

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import AllChem

from heads.molecules import fingerprints, kind_of
from xtrimo.errors import DataError

SMILES = ["CCO", "c1ccccc1", "CCO", "OCC", "CC(=O)Oc1ccccc1C(=O)O"]


def test_smiles_are_morgan_fingerprints() -> None:
    ours = fingerprints(SMILES)
    assert ours.shape == (5, 2048) and ours.dtype == np.float32
    for row, text in zip(ours, SMILES, strict=True):
        reference = AllChem.GetMorganGenerator(radius=2).GetFingerprintAsNumPy(Chem.MolFromSmiles(text))
        np.testing.assert_array_equal(row, reference)
    np.testing.assert_array_equal(ours[0], ours[3])  # one molecule, written twice


def test_a_smiles_that_does_not_parse_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=r"'C1CC\(' is no SMILES"):
        fingerprints(["CCO", "C1CC("], kind="smiles")
    with pytest.raises(DataError, match="'' is no SMILES"):
        fingerprints([""], kind="smiles")
    assert capfd.readouterr().err == ""  # rdkit's own complaint would be a second one


def test_names_share_bits_as_they_share_words() -> None:
    water, vinyl, swapped, other = fingerprints(
        ["H2O;Vinyl butyrate", "Vinyl butyrate", "vinyl butyrate ; h2o", "D-Glucose 6-phosphate"], kind="names"
    )
    np.testing.assert_array_equal(water, swapped)
    assert (vinyl <= water).all() and vinyl.sum() == 3  # the name, vinyl, butyrate
    assert (other * water).sum() == 0
    assert fingerprints(["Vinyl butyrate"], kind="names", num_bits=64).shape == (1, 64)


def test_names_have_the_same_bits_in_every_process() -> None:
    code = (
        "from heads.molecules import fingerprints; print(fingerprints(['Vinyl butyrate'], kind='names').nonzero()[1])"
    )
    outputs = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(2)}
    assert len(outputs) == 1 and "[" in outputs.pop()


def test_what_a_column_holds() -> None:
    assert kind_of(SMILES) == "smiles"
    assert kind_of(["CO", "H2O;CO"]) == "names"
    assert kind_of(["ethanol", "glucose", "CO"]) == "names"
    assert fingerprints([], kind="names").shape == (0, 2048)
