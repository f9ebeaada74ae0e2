"""Contacts from an archive of chains and from structure files, against one pair after another."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from Bio.PDB.mmcifio import MMCIFIO
from Bio.PDB.PDBIO import PDBIO
from Bio.PDB.StructureBuilder import StructureBuilder

from heads.readers_structure import contacts
from heads.rows import NO_LABEL, read
from heads.tasks import TASKS, Columns, custom_task
from xtrimo.errors import DataError

RES = replace(custom_task("mine", level="residue", target="classes"), classes=("H", "E", "C"))
PAIR = custom_task("mine", level="pair", target="classes")
SPLITS = ("train", "valid", "test")


def backbone(length: int, seed: int) -> np.ndarray:
    """N, CA, C of a made-up compact chain, rounded as files do."""
    rng = np.random.default_rng(seed)
    ca = np.cumsum(rng.normal(size=(length, 1, 3)) * 2.2, axis=0)
    return np.round(ca + rng.normal(size=(length, 3, 3)), 3)


def reference(xyz: np.ndarray) -> np.ndarray:
    """Contacts by one pair after another."""
    beta = []
    for n, ca, c in xyz[:, :3].astype(float):
        b, d = ca - n, c - ca
        cross = np.array([b[1] * d[2] - b[2] * d[1], b[2] * d[0] - b[0] * d[2], b[0] * d[1] - b[1] * d[0]])
        beta.append(-0.58273431 * cross + 0.56802827 * b - 0.54067466 * d + ca)
    return np.array([[np.linalg.norm(p - q) < 8.0 for q in beta] for p in beta])


def archive(path: Path, lengths: tuple[int, ...] = (30, 40, 26)) -> list[np.ndarray]:
    chains = [np.concatenate((backbone(n, n), np.zeros((n, 1, 3))), axis=1).astype(np.float32) for n in lengths]
    path.parent.mkdir(exist_ok=True)
    np.savez(
        path, chain_id=[f"1ABC_{i}" for i in "ABC"[: len(lengths)]], length=lengths, xyz=np.concatenate(chains),
        seq=["A" * n for n in lengths], split=SPLITS[: len(lengths)], dssp8=["H" * n for n in lengths],
    )  # fmt: skip
    return chains


def test_an_archive_of_chains(tmp_path: Path) -> None:
    chains = archive(tmp_path / "chains.npz")
    dataset = read(tmp_path / "chains.npz", TASKS["contact_map"])
    rows = (*dataset.train, *dataset.valid, *dataset.test)
    for row, xyz in zip(rows, chains, strict=True):
        np.testing.assert_array_equal(row.label, reference(xyz))
    cut = read(tmp_path / "chains.npz", replace(PAIR, max_length=25))
    np.testing.assert_array_equal(cut.train[0].label, reference(chains[0])[:25, :25])
    helix = replace(RES, columns=Columns(label="dssp8"))
    assert read(tmp_path / "chains.npz", helix).train[0].label.sum() == 0


def test_a_table_that_names_chains(tmp_path: Path) -> None:
    chains = archive(tmp_path / "structures" / "chains.npz")
    (tmp_path / "tasks").mkdir()
    path = tmp_path / "tasks" / "contact_map.csv"
    path.write_text(f"seq,label,split\n{'A' * 40},1ABC_B,train\n{'A' * 26},1ABC_C,valid\n")
    np.testing.assert_array_equal(read(path, TASKS["contact_map"]).train[0].label, reference(chains[1]))
    path.write_text(f"seq,label,split\n{'A' * 40},9XYZ_B,train\n")
    with pytest.raises(DataError, match="line 2: label '9XYZ_B' is not one of the 3 chains of"):
        read(path, TASKS["contact_map"])
    path.write_text(f"seq,label,split\n{'A' * 41},1ABC_B,train\n")
    with pytest.raises(DataError, match=r"line 2: contacts of shape \(40, 40\) for 41 residues"):
        read(path, TASKS["contact_map"])
    (tmp_path / "structures" / "chains.npz").unlink()
    with pytest.raises(DataError, match="names a chain, but there is no chains.npz"):
        read(path, TASKS["contact_map"])


def structure(path: Path, xyz: np.ndarray, *, leave_out: tuple[int, ...] = (), no_c: tuple[int, ...] = ()) -> Path:
    """A file of two chains of alanines: A with these places, B a short one with water; numbers start at 5."""
    builder = StructureBuilder()
    builder.init_structure("made")
    builder.init_model(0)
    for chain, places in (("A", xyz), ("B", xyz[:3])):
        builder.init_chain(chain)
        builder.init_seg("    ")
        for i, residue in enumerate(places):
            if i in leave_out:
                continue
            builder.init_residue("ALA" if i else "MSE", "H_MSE" if i == 0 else " ", i + 5, " ")
            for atom, place in zip(("N", "CA", "C"), residue, strict=True):
                if not (atom == "C" and i in no_c):
                    builder.init_atom(atom, place.astype(np.float32), 1.0, 1.0, " ", f" {atom:<3}", element=atom[0])
        builder.init_residue("HOH", "W", 200, " ")
        builder.init_atom("O", np.zeros(3, np.float32), 1.0, 1.0, " ", " O  ", element="O")
    writer: Any = PDBIO() if path.suffix == ".pdb" else MMCIFIO()
    writer.set_structure(builder.get_structure())
    writer.save(str(path))
    if path.suffix == ".cif":
        path.write_text("".join(map(archived, path.read_text().splitlines(keepends=True))))
    return path


def archived(line: str) -> str:
    """A line of atoms as the PDB's archive numbers them: by the whole sequence, and by its authors' own numbers."""
    cells = line.split()
    if cells and cells[0] in ("ATOM", "HETATM") and cells[5] != "HOH":
        number = int(cells[15])
        cells[8], cells[15] = str(number - 4), str(number if number < 9 else number + 500)
        return " ".join(cells) + "\n"
    return line


@pytest.mark.parametrize("name", ["made.pdb", "made.cif"])
def test_contacts_of_a_structure_file(name: str, tmp_path: Path) -> None:
    xyz = backbone(30, 7)
    path = structure(tmp_path / name, xyz, leave_out=(10, 11), no_c=(20,))
    dataset = read(path, PAIR, only="test")
    assert dataset.left_out == {"shorter than 25 residues": 1}
    row = dataset.test[0]
    assert row.sequence == "M" + "A" * 9 + "XX" + "A" * 18 and row.name == "made_A"
    unknown = [10, 11, 20]
    expected = reference(xyz).astype(int)
    expected[unknown] = expected[:, unknown] = NO_LABEL
    np.testing.assert_array_equal(row.label, expected)


def test_a_table_that_names_files(tmp_path: Path) -> None:
    xyz = backbone(30, 7)
    structure(tmp_path / "made.pdb", xyz)
    path = tmp_path / "rows.csv"
    path.write_text(f"seq,label,split\n{'M' + 'A' * 29},made.pdb:A,train\n{'M' + 'A' * 29},made.pdb:A,valid\n")
    np.testing.assert_array_equal(read(path, PAIR).train[0].label, reference(xyz))
    path.write_text(f"seq,label,split\n{'M' + 'A' * 29},made.pdb,train\n")
    with pytest.raises(DataError, match="has the chains made_A, made_B; name one"):
        read(path, PAIR)


def test_what_is_no_structure(tmp_path: Path) -> None:
    (tmp_path / "a.cif").write_text("hello\n")
    (tmp_path / "a.pdb").write_text("hello\n")
    (tmp_path / "a.npz").write_text("hello\n")
    for name in ("a.cif", "a.pdb"):
        with pytest.raises(DataError, match="cannot be read as a structure|no protein chain"):
            read(tmp_path / name, PAIR)
    with pytest.raises(DataError, match="is no archive of chains"):
        read(tmp_path / "a.npz", PAIR)


def test_contacts_where_nothing_was_seen() -> None:
    xyz = backbone(4, 1)
    xyz[2, 1] = np.nan
    label = contacts(xyz)
    assert (label[2] == NO_LABEL).all() and (label[:, 2] == NO_LABEL).all() and (np.diag(label)[[0, 1, 3]] == 1).all()
