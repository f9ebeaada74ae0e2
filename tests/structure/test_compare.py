"""The verb `compare`: which residues, chains and files belong together, and what comes out."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from Bio.SeqUtils import seq3

from structure import compare
from structure.compare import CompareOptions, compare_paths, compare_structures, main, match
from xtrimo.chains import ATOMS, Chain, read_structure
from xtrimo.errors import ConfigError, DataError

FILES = Path(__file__).parent / "files"
SEQUENCE = "MDIRQGPKEPFRDYVDRFYKTLRAEQASQEVKNWMTETLLVQNANPDCKTILKALGPGATLEEMMTACQG"


@pytest.fixture(scope="module")
def real() -> Chain:
    return next(read_structure(FILES / "1A8O.cif"))


def renamed(chain: Chain, name: str, **changes: object) -> Chain:
    fields = dict(
        name=name, sequence=chain.sequence, xyz=chain.xyz, atoms=chain.atoms, numbers=chain.numbers
    )  # fmt: skip
    return Chain(**(fields | changes))  # type: ignore[arg-type]


def piece(chain: Chain, begin: int, end: int, shift: int = 0, name: str = "piece_A") -> Chain:
    assert chain.numbers is not None
    rows = slice(begin, end)
    return Chain(name, chain.sequence[rows], chain.xyz[rows], chain.atoms, numbers=chain.numbers[rows] + shift)


def pdb(chain: Chain, path: Path, letters: str = "A", noise_ang: float = 0.0) -> None:
    """N, CA and C as a PDB file, a copy for each chain letter."""
    assert chain.numbers is not None
    noise = np.random.default_rng(0).normal(size=chain.xyz[:, :3].shape) * noise_ang
    lines = [
        f"ATOM  {1:5d}  {ATOMS[atom]:<3} {seq3(residue).upper()} {letter}{chain.numbers[row]:4d}    "
        + "".join(f"{value:8.3f}" for value in chain.xyz[row, atom] + noise[row, atom])
        + f"  1.00  0.00           {ATOMS[atom][0]}"
        for letter in letters
        for row, residue in enumerate(chain.sequence)
        for atom in range(3)
    ]
    path.write_text("\n".join([*lines, "END"]) + "\n")


def test_residues_are_matched_by_number(real: Chain) -> None:
    found = match(piece(real, 10, 60), real)
    assert (found.by, found.num_identical, found.num_known) == ("number", 50, 50)
    assert found.rows.tolist() == [[row, row + 10] for row in range(50)]


def test_other_numbers_are_seen_through(real: Chain) -> None:
    assert real.sequence == SEQUENCE
    found = match(piece(real, 10, 60, shift=1), real)
    assert (found.by, found.num_identical) == ("sequence", 50)
    assert found.rows.tolist() == [[row, row + 10] for row in range(50)]


def test_a_mutant_is_matched_by_number_and_a_deletion_by_sequence(real: Chain) -> None:
    mutant = renamed(real, "mutant_A", sequence="W" * 5 + SEQUENCE[5:])
    assert match(mutant, real)[1:] == (65, 70, "number")
    rows = [row for row in range(70) if row not in (30, 31)]
    shorter = Chain("shorter_A", SEQUENCE[:30] + SEQUENCE[32:], real.xyz[rows], real.atoms)
    found = match(shorter, real)
    assert found.by == "sequence" and found.num_identical >= 67
    assert [pair[1] - pair[0] for pair in found.rows.tolist()].count(2) >= 38


def test_repeated_numbers_say_nothing(real: Chain) -> None:
    assert real.numbers is not None
    inserted = renamed(real, "inserted_A", numbers=np.where(real.numbers > 40, real.numbers - 1, real.numbers))
    assert match(inserted, real)[1:] == (70, 70, "sequence")
    assert match(renamed(real, "without_A", numbers=None), real)[1:] == (70, 70, "sequence")


def test_few_numbers_in_common_are_not_believed(real: Chain) -> None:
    """The end of one and the beginning of the other, by chance of one letter."""
    one = Chain("one_A", SEQUENCE, real.xyz, real.atoms, numbers=np.arange(1, 71))
    other = Chain("other_A", SEQUENCE, real.xyz, real.atoms, numbers=np.arange(70, 140))
    other = renamed(other, "other_A", sequence="G" + SEQUENCE[1:])
    assert match(one, other)[1:] == (69, 70, "sequence")


def test_letters_without_a_score_are_aligned(real: Chain) -> None:
    odd = renamed(real, "odd_A", sequence="U" + SEQUENCE[1:-1] + "O", numbers=None)
    assert match(odd, real).num_identical == 68


def test_unknown_letters_neither_agree_nor_differ(real: Chain) -> None:
    found = match(renamed(real, "x_A", sequence="X" * 20 + SEQUENCE[20:]), real)
    assert found[1:] == (50, 50, "number") and len(found.rows) == 70


def test_a_piece_is_measured_against_the_whole(real: Chain) -> None:
    (row,) = compare_structures([piece(real, 10, 60, shift=200)], [real])
    assert (row.figures.num_aligned, row.figures.num_reference, row.matched_by) == (50, 70, "sequence")
    assert row.figures.tm == pytest.approx(50 / 70, abs=1e-4) and row.identity == 1.0
    (row,) = compare_structures([real], [piece(real, 10, 60)])
    assert row.figures.coverage == 1.0 and row.figures.tm == pytest.approx(1, abs=1e-6)


def test_chains_of_one_sequence_are_paired_by_letter(real: Chain) -> None:
    far = real.xyz * np.float32(2)
    models = [renamed(real, "m_A"), renamed(real, "m_B", xyz=far)]
    references = [renamed(real, "r_B", xyz=far), renamed(real, "r_A"), piece(real, 0, 69, name="r_C")]
    rows = compare_structures(models, references)
    assert [(row.model, row.reference) for row in rows] == [("m_A", "r_A"), ("m_B", "r_B")]
    assert all(row.figures.tm > 0.999 for row in rows)


def test_chains_of_other_letters_are_paired_by_sequence(real: Chain, caplog: pytest.LogCaptureFixture) -> None:
    other = next(read_structure(FILES / "4CUP.cif"))
    references = [renamed(other, "r_L"), renamed(real, "r_H")]
    models = [renamed(real, "m_A"), renamed(other, "m_B"), renamed(real, "m_C")]
    rows = compare_structures(models, references)
    assert [(row.model, row.reference) for row in rows] == [("m_A", "r_H"), ("m_B", "r_L")]
    assert "compared 2 of 3 chains" in caplog.text
    unlike = renamed(other, "r_X", sequence="W" * len(other.sequence), numbers=None)
    with pytest.raises(DataError, match="no chain of m_A is one of r_X"):
        compare_structures(models[:1], [unlike, unlike])


def test_two_files_are_compared_whatever_their_names(real: Chain, tmp_path: Path) -> None:
    pdb(real, tmp_path / "mine.pdb", noise_ang=0.5)
    (row,) = compare_paths(tmp_path / "mine.pdb", FILES / "1A8O.cif")
    assert (row.model, row.reference) == ("mine_A", "1A8O_A")
    assert 0.6 < row.figures.rmsd_ang < 1.1


def test_folders_are_matched_by_name(real: Chain, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    models, references = tmp_path / "models", tmp_path / "references"
    models.mkdir()
    references.mkdir()
    pdb(real, models / "b.pdb")
    pdb(real, models / "a.pdb", letters="AB")
    pdb(real, models / "lonely.pdb")
    (models / "broken.pdb").write_text("nothing\n")
    (models / "notes.txt").write_text("no structure")
    for name in ("a", "b", "broken", "unused"):
        pdb(real, references / f"{name}.ent", letters="AB" if name == "a" else "A")
    rows = compare_paths(models, references)
    assert [(row.model, row.reference) for row in rows] == [("a_A", "a_A"), ("a_B", "a_B"), ("b_A", "b_A")]
    assert "1 of 4 have no reference of their name, such as lonely" in caplog.text
    assert "left out 1 of 3 structures, the first because: broken" in caplog.text
    assert len(compare_paths(models / "b.pdb", references)) == 1  # a file in a folder: by name too


def test_of_both_formats_the_mmcif_file_counts(real: Chain, tmp_path: Path) -> None:
    pdb(real, tmp_path / "1A8O.pdb", noise_ang=5.0)
    (tmp_path / "1A8O.cif").write_text((FILES / "1A8O.cif").read_text())
    (row,) = compare_paths(tmp_path, FILES)
    assert row.figures.rmsd_ang < 1e-3


def test_an_archive_is_matched_by_the_names_of_its_chains(real: Chain, tmp_path: Path) -> None:
    lengths = [70, 70]
    np.savez(
        tmp_path / "chains.npz", chain_id=["p1_A", "p2_A"], length=lengths, seq=[SEQUENCE] * 2,
        xyz=np.concatenate([real.xyz[:, [0, 1, 2, 4]]] * 2),
    )  # fmt: skip
    (tmp_path / "models").mkdir()
    pdb(real, tmp_path / "models" / "p2_A.pdb")
    (row,) = compare_paths(tmp_path / "models", tmp_path / "chains.npz")
    assert row.reference == "p2_A" and row.figures.tm == pytest.approx(1, abs=1e-5)


def test_nothing_to_compare_is_an_error(real: Chain, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    cases: list[tuple[Path, Path, str]] = [
        (tmp_path / "none.pdb", FILES, "none.pdb: there is nothing"),
        (tmp_path / "empty", FILES, "empty holds no structures"),
    ]
    (tmp_path / "models").mkdir()
    pdb(real, tmp_path / "models" / "x.pdb")
    (tmp_path / "truth").mkdir()
    pdb(real, tmp_path / "truth" / "y.pdb")
    cases.append((tmp_path / "models", tmp_path / "truth", "no structure of .* such as x and y; name the files alike"))
    (tmp_path / "bad.pdb").write_text("nothing\n")
    cases.append((tmp_path / "bad.pdb", FILES / "1A8O.cif", "nothing could be compared, the first of 1 because: bad"))
    for models, references, message in cases:
        with pytest.raises(DataError, match=message):
            compare_paths(models, references)


@pytest.fixture
def folder(real: Chain, tmp_path: Path) -> Path:
    """Three models, ever worse, beside the truth."""
    for name in ("models", "truth"):
        (tmp_path / name).mkdir()
    for noise in (0, 1, 4):
        pdb(real, tmp_path / "models" / f"n{noise}.pdb", noise_ang=noise)
        pdb(real, tmp_path / "truth" / f"n{noise}.pdb")
    return tmp_path


def test_the_table_and_its_means(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(folder / "models"), str(folder / "truth"), "--out", str(folder / "out.json")])
    lines = capsys.readouterr().out.splitlines()
    head = "model reference TM RMSD lDDT GDT-TS P@L/5 P@L/2 P@L aligned identity by"
    assert lines[0].split() == head.split()
    assert lines[1].split()[:4] == ["n0_A", "n0_A", "1.000", "0.000"] and "70/70" in lines[1]
    assert len(lines) == 4 + len(compare.TITLES) and lines[4].startswith("mean TM")
    written = json.loads((folder / "out.json").read_text())
    tm = [row["tm"] for row in written["rows"]]
    assert tm == sorted(tm, reverse=True) and tm[0] == pytest.approx(1) and tm[2] < 0.5
    mean = written["means"]["tm"]
    assert mean["value"] == pytest.approx(np.mean(tm)) and mean["low"] < mean["value"] < mean["high"]
    assert f"mean TM      {mean['value']:.3f} (" in lines[4]


def test_the_table_as_csv(folder: Path, real: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    pdb(piece(real, 0, 20), folder / "models" / "short.pdb")
    pdb(piece(real, 0, 20), folder / "truth" / "short.pdb")
    main([str(folder / "models"), str(folder / "truth"), "--out", str(folder / "out.csv")])
    rows = list(csv.DictReader((folder / "out.csv").open()))
    assert [row["model"] for row in rows] == ["n0_A", "n1_A", "n4_A", "short_A"]
    short = rows[3]
    assert short["precision_l5"] == "" and short["num_aligned"] == "20" and short["matched_by"] == "number"
    assert float(short["coverage"]) == 1.0 and float(short["tm"]) == pytest.approx(1, abs=1e-5)
    assert " - " in capsys.readouterr().out.splitlines()[4]


def test_one_pair_has_no_mean(real: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(FILES / "1A8O.pdb"), str(FILES / "1A8O.cif")])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "sequence" in lines[1]  # the PDB file has the authors' numbers, from 151 on


def test_a_table_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--out x.txt: expected a name that ends in .csv or .json"):
        CompareOptions(models=FILES, references=FILES, out=Path("x.txt"))


def test_a_figure_without_a_value_has_no_mean(real: Chain) -> None:
    rows = compare_structures([piece(real, 0, 20)], [piece(real, 0, 20)])
    assert set(compare.TITLES) - set(compare.means(rows)) == {"precision_l5", "precision_l2", "precision_l"}
    assert rows[0].to_dict()["precision_l5"] is None
