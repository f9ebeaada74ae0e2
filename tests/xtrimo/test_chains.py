"""Chains from files: every oddity against lines written here, real entries against their own text."""

import gzip
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xtrimo.chains import ATOMS, BACKBONE, Chain, read_archive, read_chains, read_structure
from xtrimo.errors import DataError

FILES = Path(__file__).parents[1] / "structure" / "files"
PLACES = {"N": (0.0, 0.0), "CA": (1.2, 0.8), "C": (2.5, 0.0), "O": (2.6, -1.2), "CB": (1.0, 2.3)}
THREE = dict(A="ALA", G="GLY", W="TRP", S="SER", C="CYS")
STEP = 3.8


def residue(
    number: int, name: str = "ALA", *, at: float | None = None, atoms: str = "N CA C O", chain: str = "A",
    alternative: str = " ", occupancy: float = 1.0, insertion: str = " ",
) -> list[str]:  # fmt: skip
    """PDB lines of a residue whose N lies at `at` residues along x; C is then 1.3 A from the N of the one after it."""
    kind = "ATOM  " if name in ("DG", "UNK", *THREE.values()) else "HETATM"
    start = STEP * (number if at is None else at)
    lines = []
    for atom in atoms.split():
        x, y = PLACES.get(atom, (1.0, 3.5))
        lines.append(
            f"{kind}{1:5d}  {atom:<3}{alternative}{name:>3} {chain}{number:4d}{insertion}   {start + x:8.3f}{y:8.3f}"
            f"{0:8.3f}{occupancy:6.2f}{1:6.2f}          {atom[0]:>2}"
        )
    return lines


def chains(path: Path, *residues: list[str]) -> list[Chain]:
    path = path / "made.pdb"
    path.write_text("\n".join([line for lines in residues for line in lines] + ["END", ""]))
    return list(read_structure(path))


def only(path: Path, *residues: list[str]) -> Chain:
    (chain,) = chains(path, *residues)
    return chain


def seen(chain: Chain) -> list[set[str]]:
    """Names of the atoms of each residue that have a place."""
    return [{ATOMS[i] for i in np.flatnonzero(np.isfinite(places).all(-1))} for places in chain.xyz]


def column(chain: Chain, atom: str) -> np.ndarray:
    return chain.xyz[:, ATOMS.index(atom)]


def cells(path: Path) -> Iterator[tuple[int, str, str, float, tuple[float, ...]]]:
    """(number, residue, atom, occupancy, place) of every protein atom of a file, by its columns alone."""
    for line in path.read_text().splitlines():
        if not line.startswith(("ATOM", "HETATM")):
            continue
        if path.suffix == ".pdb":
            number, name, atom, occupancy = int(line[22:26]), line[17:20].strip(), line[12:16].strip(), line[54:60]
            place = line[30:38], line[38:46], line[46:54]
        else:
            words = line.split()
            if words[8] == ".":
                continue
            number, name, atom, occupancy = int(words[8]), words[5], words[3], words[13]
            place = words[10], words[11], words[12]
        if name != "HOH" and not atom.startswith("H"):
            yield number, name, atom, float(occupancy), tuple(map(float, place))


@pytest.mark.parametrize("name", ["1A8O.pdb", "1A8O.cif", "4CUP.cif"])
def test_real_entries(name: str) -> None:
    (chain,) = read_structure(FILES / name)
    best: dict[tuple[int, str], tuple[float, tuple[float, ...]]] = {}
    names: dict[int, str] = {}
    for number, residue_name, atom, occupancy, place in cells(FILES / name):
        atom = "SD" if atom == "SE" else atom
        names[number] = residue_name
        if (number, atom) not in best or occupancy > best[number, atom][0]:
            best[number, atom] = occupancy, place
    expected = np.full((len(names), len(ATOMS), 3), np.nan, dtype=np.float32)
    first = min(names)
    for (number, atom), (_, place) in best.items():
        expected[number - first, ATOMS.index(atom)] = place
    np.testing.assert_array_equal(chain.xyz, expected)
    assert chain.name == f"{name[:4]}_A" and chain.atoms == ATOMS and chain.split is None
    assert chain.numbers is not None and chain.numbers.tolist() == sorted(names)
    assert chain.sequence.startswith("MDIRQGPKEPFRD" if name[:4] == "1A8O" else "SMSVKKPKRDDSK")


def test_selenomethionine_is_methionine() -> None:
    (chain,) = read_structure(FILES / "1A8O.cif")
    methionines = [i for i, letter in enumerate(chain.sequence) if letter == "M"]
    assert len(methionines) == 4 and np.isfinite(column(chain, "SD")[methionines]).all()


def test_residues_beyond_the_twenty_keep_their_backbone() -> None:
    (chain,) = read_structure(FILES / "2N0N.pdb")
    assert chain.sequence == "HXEGKFTSEFX"
    assert seen(chain)[1] == seen(chain)[10] == set(BACKBONE) and "CB" in seen(chain)[0]


def test_unusual_letters(tmp_path: Path) -> None:
    names = ("ALA", "SEC", "PYL", "SEP", "UNK", "MSE", "GLY")
    chain = only(tmp_path, *(residue(i, name, atoms="N CA C O CB SE H") for i, name in enumerate(names, start=1)))
    assert chain.sequence == "AUOXXMG"
    kept = [{*BACKBONE, "CB"}] * 3 + [set(BACKBONE)] * 2 + [{*BACKBONE, "CB", "SD"}, {*BACKBONE, "CB"}]
    assert seen(chain) == kept


def test_skipped_numbers_are_residues_without_coordinates(tmp_path: Path) -> None:
    chain = only(tmp_path, residue(-1), residue(0), residue(3, "GLY"), residue(4))
    assert chain.sequence == "AAXXGA" and chain.numbers is not None and chain.numbers.tolist() == [-1, 0, 1, 2, 3, 4]
    assert [len(atoms) for atoms in seen(chain)] == [4, 4, 0, 0, 4, 4]


def test_numbers_that_jump_over_a_bond_or_far_are_no_gap(tmp_path: Path) -> None:
    bonded = only(tmp_path, residue(34), residue(37, at=35), residue(38, at=36))
    assert bonded.sequence == "AAA" and bonded.numbers is not None and bonded.numbers.tolist() == [34, 37, 38]
    assert only(tmp_path, residue(1), residue(102)).sequence == "A" + "X" * 100 + "A"
    assert only(tmp_path, residue(1), residue(103)).sequence == "AA"
    back = only(tmp_path, residue(7, at=0), residue(2, at=5))
    assert back.sequence == "AA" and back.numbers is not None and back.numbers.tolist() == [7, 2]


def test_inserted_residues(tmp_path: Path) -> None:
    chain = only(
        tmp_path, residue(52, at=1), residue(52, "GLY", at=2, insertion="A"), residue(52, "TRP", at=3, insertion="B"),
        residue(53, "SER", at=4),
    )  # fmt: skip
    assert chain.sequence == "AGWS" and chain.numbers is not None and chain.numbers.tolist() == [52, 52, 52, 53]


def test_alternate_locations(tmp_path: Path) -> None:
    for shares, x in (((0.4, 0.6), 9.0), ((0.6, 0.4), 4.0), ((0.5, 0.5), 4.0)):
        one, other = (
            residue(1, at=at, atoms="N CA C", alternative=letter, occupancy=share)
            for at, letter, share in ((4.0 / STEP, "A", shares[0]), (9.0 / STEP, "B", shares[1]))
        )
        mixed = [line for pair in zip(one, other, strict=True) for line in pair]
        chain = only(tmp_path, mixed, residue(2))
        assert column(chain, "N")[0, 0] == x and chain.sequence == "AA"


@pytest.mark.parametrize(("shares", "letter"), [((0.4, 0.6), "S"), ((0.6, 0.4), "C"), ((0.5, 0.5), "C")])
def test_two_types_of_residue_in_one_place(shares: tuple[float, float], letter: str, tmp_path: Path) -> None:
    one, other = (
        residue(2, name, alternative=alternative, occupancy=share)
        for name, alternative, share in (("CYS", "A", shares[0]), ("SER", "B", shares[1]))
    )
    assert only(tmp_path, residue(1), one, other, residue(3)).sequence == f"A{letter}A"
    one, other = (  # one of them a hetero-atom, for Biopython two residues of one number
        residue(2, name, alternative=alternative, occupancy=share)
        for name, alternative, share in (("CYS", "A", shares[0]), ("MSE", "B", shares[1]))
    )
    expected = {"S": "M", "C": "C"}[letter]
    assert only(tmp_path, residue(1), one, other, residue(3)).sequence == f"A{expected}A"


def test_missing_atoms(tmp_path: Path) -> None:
    chain = only(tmp_path, residue(1, atoms="N CA"), residue(2, "TRP", atoms="N C"), residue(3, atoms="CA"))
    assert chain.sequence == "AWA" and seen(chain) == [{"N", "CA"}, {"N", "C"}, {"CA"}]


def test_what_is_no_protein_is_left_out(tmp_path: Path) -> None:
    others = [
        residue(201, "HOH", atoms="O"), residue(202, " CA", atoms="CA"), residue(203, "DG", atoms="N1 C2"),
        residue(204, "NAG", atoms="C1 O"),
    ]  # fmt: skip
    ligands = residue(10, "SEP"), residue(20, "GLU")  # amino acids, but hetero-atoms, and bonded to nothing
    assert only(tmp_path, residue(1), residue(2), *others, *ligands).sequence == "AA"
    (protein,) = chains(tmp_path, residue(1), residue(2, "DG", chain="B", atoms="P C4"))
    assert protein.name == "made_A"


def test_the_first_model_counts(tmp_path: Path) -> None:
    models = [["MODEL        1"], residue(1), ["ENDMDL"], ["MODEL        2"], residue(1, "GLY"), ["ENDMDL"]]
    assert only(tmp_path, *models).sequence == "A"


def test_a_chain_without_a_letter(tmp_path: Path) -> None:
    assert only(tmp_path, residue(1, chain=" ")).name == "made"


def test_gzipped(tmp_path: Path) -> None:
    for name in ("1A8O.pdb", "1A8O.cif"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((FILES / name).read_bytes()))
        (chain,), (plain,) = read_chains(tmp_path / f"{name}.gz"), read_chains(FILES / name)
        assert chain.name == plain.name == "1A8O_A"
        np.testing.assert_array_equal(chain.xyz, plain.xyz)


def test_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "two.PDB").write_text("\n".join(residue(1, chain="A") + residue(1, "GLY", chain="B")))
    (tmp_path / "a.ent").write_text("\n".join(residue(1, "TRP")))
    (tmp_path / "bad.cif").write_text("hello\n")
    (tmp_path / "empty.pdb").write_text("")
    (tmp_path / "notes.txt").write_text("hello\n")
    with caplog.at_level(logging.WARNING):
        found = [(chain.name, chain.sequence) for chain in read_chains(tmp_path)]
    assert found == [("two_A", "A"), ("two_B", "G"), ("a_A", "W")]
    (message,) = (record.message for record in caplog.records)
    assert "left out 2 of 4 structure files" in message and "bad.cif cannot be read as a structure" in message


def test_what_holds_no_structure(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is nothing"):
        next(read_chains(tmp_path / "none.pdb"))
    with pytest.raises(DataError, match="cannot be read"):
        next(read_structure(tmp_path / "none.pdb"))
    with pytest.raises(DataError, match="holds no structures"):
        next(read_chains(tmp_path))
    (tmp_path / "empty.pdb").write_text("")
    with pytest.raises(DataError, match="none of 1 structure files can be used, the first because: .*Empty file"):
        next(read_chains(tmp_path))
    (tmp_path / "cut.cif.gz").write_bytes(gzip.compress((FILES / "1A8O.cif").read_bytes())[:9000])
    with pytest.raises(DataError, match="cannot be read as a structure"):
        next(read_chains(tmp_path / "cut.cif.gz"))
    (tmp_path / "rows.csv").write_text("a\n")
    with pytest.raises(DataError, match="its name tells no structures"):
        next(read_chains(tmp_path / "rows.csv"))


def test_an_archive(tmp_path: Path) -> None:
    xyz = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
    held: dict[str, Any] = dict(
        chain_id=["1ABC_A", "1ABC_B"], length=[3, 2], seq=["MKV", "GG"], xyz=xyz, split=["train", "test"]
    )
    np.savez(tmp_path / "chains.npz", **held, start_resnum=[7, -1], dssp8=["HHH", "CC"])
    one, other = read_chains(tmp_path / "chains.npz")
    np.testing.assert_array_equal(np.concatenate((one.xyz, other.xyz)), xyz)
    assert (one.name, one.sequence, one.split, one.dssp8, one.atoms) == ("1ABC_A", "MKV", "train", "HHH", BACKBONE)
    assert one.numbers is not None and one.numbers.tolist() == [7, 8, 9]
    assert other.numbers is not None and other.numbers.tolist() == [-1, 0] and other.split == "test"
    held.pop("split")
    np.savez(tmp_path / "bare.npz", **held)
    bare = next(read_archive(tmp_path / "bare.npz"))
    assert bare.split is None and bare.numbers is None and bare.dssp8 == ""
    held["seq"] = ["MK", "GG"]
    np.savez(tmp_path / "bad.npz", **held)
    with pytest.raises(DataError, match="xyz of 3 residues, but a sequence of 2"):
        next(read_archive(tmp_path / "bad.npz"))
    with pytest.raises(DataError, match="4 columns of coordinates for the atoms N, CA, C;"):
        Chain("a", "GG", xyz[:2], ("N", "CA", "C"))
