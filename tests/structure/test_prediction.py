"""What a Prediction refuses, and what it tells."""

from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

from structure.prediction import Prediction
from xtrimo.errors import DataError

LENGTH = 5


def prediction(**changes: Any) -> Prediction:
    """Two chains, of three residues and two, of which N, CA and C are there."""
    exists = np.zeros((LENGTH, 37), dtype=bool)
    exists[:, :3] = True
    fields: dict[str, Any] = dict(
        name="toy", sequence="MKV:GG", atoms=np.ones((LENGTH, 37, 3), np.float32), exists=exists,
        plddt=np.array([10, 20, 30, 40, 50], np.float32), atom_plddt=np.full((LENGTH, 37), 50, np.float32),
        pae_ang=np.zeros((LENGTH, LENGTH), np.float32), ptm=0.5, chain=np.array([0, 0, 0, 1, 1]), num_recycles=0,
        model="model",
    )  # fmt: skip
    return Prediction(**(fields | changes))


def test_its_chains_and_means() -> None:
    found = prediction()
    assert found.chains == ("MKV", "GG") and found.residues == "MKVGG"
    assert found.mean_plddt == 30.0
    with pytest.raises(FrozenInstanceError):
        found.ptm = 1.0  # type: ignore[misc]


def test_atoms_that_do_not_exist_may_hold_anything() -> None:
    atoms, plddt = np.ones((LENGTH, 37, 3), np.float32), np.full((LENGTH, 37), 50, np.float32)
    atoms[:, 3:], plddt[:, 3:] = np.nan, np.nan
    assert prediction(atoms=atoms, atom_plddt=plddt).exists.sum() == 15


NAN = np.full((LENGTH, 37, 3), np.nan, np.float32)
WRONG = {
    "a chain more": (dict(chain=np.array([0, 0, 1, 1, 2])), "`chain` that does not count the chains"),
    "chains from 1": (dict(chain=np.array([1, 1, 1, 2, 2])), "`chain` that does not count the chains"),
    "an empty chain": (dict(sequence="MKVGG:"), "a chain without residues"),
    "another length": (dict(sequence="MKV:GGG"), r"atoms of shape \(5, 37, 3\); expected \(6, 37, 3\)"),
    "no place": (dict(atoms=NAN), "atoms without a place"),
    "no C-alpha": (dict(exists=np.zeros((LENGTH, 37), dtype=bool)), "a C-alpha in each residue"),
    "plddt above 100": (dict(plddt=np.full(LENGTH, 101, np.float32)), "plddt from 101 to 101; expected 0 to 100"),
    "plddt not a number": (dict(plddt=np.full(LENGTH, np.nan, np.float32)), "plddt from nan"),
    "atom plddt": (dict(atom_plddt=np.full((LENGTH, 37), -1, np.float32)), "atom_plddt from -1 to -1"),
    "ptm": (dict(ptm=1.5), "ptm from 1.5 to 1.5; expected 0 to 1"),
    "pae": (dict(pae_ang=np.full((LENGTH, LENGTH), -1, np.float32)), "pae_ang from -1"),
    "recycles": (dict(num_recycles=-1), "num_recycles -1; expected 0 or more"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_refused(name: str) -> None:
    changes, message = WRONG[name]
    with pytest.raises(DataError, match=f"prediction toy: .*{message}"):
        prediction(**changes)


@pytest.mark.parametrize(
    "changes", [dict(plddt=np.zeros(4, np.float32)), dict(pae_ang=np.zeros((2, 2), np.float32))], ids=["plddt", "pae"]
)
def test_arrays_of_other_lengths_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises((DataError, TypeError)):  # the latter where tests check the words of shapes
        prediction(**changes)
