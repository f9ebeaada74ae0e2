"""Files of predictions, as biotite, gemmi, Biopython, modelcif and mkdssp read them."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import biotite.structure.io.pdb as biotite_pdb
import biotite.structure.io.pdbx as biotite_pdbx
import gemmi
import modelcif
import modelcif.dumper
import modelcif.reader
import numpy as np
import pytest
from Bio.PDB import MMCIFParser, PDBParser

from structure import writers
from structure.prediction import Prediction
from xtrimo.chains import ATOMS, read_structure
from xtrimo.errors import DataError

FILES = Path(__file__).parent / "files"
WRITERS: dict[str, Callable[[Prediction, Path], None]] = {".pdb": writers.write_pdb, ".cif": writers.write_mmcif}
BACKBONE_ONLY = np.isin(ATOMS, ("N", "CA", "C", "O", "CB"))
mkdssp = pytest.mark.skipif(not shutil.which("mkdssp"), reason="the program mkdssp (Debian: dssp) is not here")


def predicted(*chains: tuple[str, np.ndarray], name: str = "toy_1", seed: int = 0) -> Prediction:
    """These chains, NaN where there is no atom, with random scores."""
    rng = np.random.default_rng(seed)
    places = np.concatenate([places for _, places in chains]).astype(np.float32)
    length = len(places)
    return Prediction(
        name=name, sequence=":".join(sequence for sequence, _ in chains), atoms=np.nan_to_num(places),
        exists=np.isfinite(places).all(-1), plddt=rng.uniform(0, 100, length).astype(np.float32),
        atom_plddt=rng.uniform(0, 100, (length, 37)).astype(np.float32),
        pae_ang=rng.uniform(0, 31, (length, length)).astype(np.float32), ptm=0.625,
        chain=np.repeat(np.arange(len(chains)), [len(sequence) for sequence, _ in chains]), num_recycles=3,
        model="fold-toy",
    )  # fmt: skip


@pytest.fixture(scope="module")
def three() -> Prediction:
    """A real chain, its copy, and its backbone with an unknown residue and a selenocysteine."""
    chain = next(read_structure(FILES / "1A8O.cif"))
    backbone = np.where(BACKBONE_ONLY[:, None], chain.xyz, np.nan)
    other = f"XU{chain.sequence[2:]}"
    return predicted((chain.sequence, chain.xyz), (chain.sequence, chain.xyz + 40), (other, backbone - 40))


def written(prediction: Prediction, folder: Path, ending: str) -> Path:
    path = folder / f"{prediction.name}{ending}"
    WRITERS[ending](prediction, path)
    return path


def expected(prediction: Prediction) -> list[tuple[Any, ...]]:
    """(chain, number, residue, atom) of every atom, in order."""
    names = {"X": "UNK", "U": "SEC", "M": "MET", "D": "ASP", "G": "GLY"}
    starts = np.cumsum([0, *map(len, prediction.chains)])
    return [
        ("ABC"[prediction.chain[row]], row - starts[prediction.chain[row]] + 1,
         names.get(prediction.residues[row]), ATOMS[column])
        for row, column in np.argwhere(prediction.exists).tolist()
    ]  # fmt: skip


def by_biotite(path: Path) -> tuple[list[tuple[Any, ...]], np.ndarray, np.ndarray]:
    """Atoms, places, B."""
    if path.suffix == ".pdb":
        array = biotite_pdb.PDBFile.read(path).get_structure(model=1, extra_fields=["b_factor"])
    else:
        file = biotite_pdbx.CIFFile.read(path)
        array = biotite_pdbx.get_structure(file, model=1, extra_fields=["b_factor"])
    atoms = list(zip(array.chain_id, array.res_id, array.res_name, array.atom_name, strict=True))
    return atoms, array.coord, array.b_factor


def by_gemmi(path: Path) -> tuple[list[tuple[Any, ...]], np.ndarray, np.ndarray]:
    found = gemmi.read_structure(str(path))
    assert len(found) == 1
    every = [(c.name, r.seqid.num, r.name, a.name, a.pos.tolist(), a.b_iso) for c in found[0] for r in c for a in r]
    return [atom[:4] for atom in every], np.array([atom[4] for atom in every]), np.array([atom[5] for atom in every])


def by_biopython(path: Path) -> tuple[list[tuple[Any, ...]], np.ndarray, np.ndarray]:
    parser: Any = PDBParser(PERMISSIVE=False) if path.suffix == ".pdb" else MMCIFParser()  # type: ignore[no-untyped-call]
    model = next(iter(parser.get_structure("x", str(path))))
    every = [(c.id, r.id[1], r.resname, a.name, a.coord, a.bfactor) for c in model for r in c for a in r]
    return [atom[:4] for atom in every], np.array([atom[4] for atom in every]), np.array([atom[5] for atom in every])


@pytest.mark.filterwarnings("ignore:Attribute 'auth_atom_id' not found")
@pytest.mark.parametrize("read", [by_biotite, by_gemmi, by_biopython])
@pytest.mark.parametrize("ending", WRITERS)
def test_every_reader_finds_every_atom(
    three: Prediction, tmp_path: Path, ending: str, read: Callable[..., Any]
) -> None:
    atoms, places, b = read(written(three, tmp_path, ending))
    wanted = expected(three)
    assert len(atoms) == len(wanted)
    for found, (chain, number, name, atom) in zip(atoms, wanted, strict=True):
        assert (found[0], int(found[1]), found[3]) == (chain, number, atom)
        assert name is None or found[2] == name
    np.testing.assert_allclose(places, three.atoms[three.exists], atol=6e-4)
    np.testing.assert_allclose(b, three.atom_plddt[three.exists], atol=6e-3)


@pytest.mark.parametrize("ending", WRITERS)
def test_our_reader_finds_sequences_and_places(three: Prediction, tmp_path: Path, ending: str) -> None:
    chains = list(read_structure(written(three, tmp_path, ending)))
    assert [chain.name for chain in chains] == ["toy_1_A", "toy_1_B", "toy_1_C"]
    assert tuple(chain.sequence for chain in chains) == three.chains
    for number, chain in enumerate(chains):
        mine = three.chain == number
        assert chain.numbers is not None and chain.numbers.tolist() == list(range(1, 71))
        seen = np.isfinite(chain.xyz).all(-1)
        assert seen[:, :3].all()
        np.testing.assert_allclose(chain.xyz[seen], three.atoms[mine][seen], atol=6e-4)


@mkdssp
@pytest.mark.parametrize("ending", WRITERS)
def test_mkdssp_finds_the_helices(three: Prediction, tmp_path: Path, ending: str) -> None:
    def letters(path: Path) -> list[str]:
        out = tmp_path / "out.dssp"
        subprocess.run(["mkdssp", "--output-format", "dssp", path, out], check=True, timeout=60, capture_output=True)
        lines = out.read_text().split("STRUCTURE BP1 BP2")[1].splitlines()[1:]
        return [line[16] for line in lines if line[13] != "!"]

    ours, original = letters(written(three, tmp_path, ending)), letters(FILES / "1A8O.cif")
    assert original.count("H") > 30
    assert ours == original * 3


def test_pdb_records(three: Prediction, tmp_path: Path) -> None:
    lines = written(three, tmp_path, ".pdb").read_text().splitlines()
    assert {len(line) for line in lines} == {80}
    assert lines[0].startswith("HEADER") and lines[1].rstrip() == "TITLE     toy_1" and lines[-1].startswith("END")
    ends = [row for row, line in enumerate(lines) if line.startswith("TER")]
    assert [lines[row][17:26] for row in ends] == ["GLY A  70", "GLY B  70", "GLY C  70"]
    assert [lines[row - 1][21] for row in ends] == ["A", "B", "C"]
    serials = [int(line[6:11]) for line in lines if line.startswith(("ATOM", "TER"))]
    assert serials == list(range(1, len(serials) + 1))


def test_a_long_name_goes_on_in_the_next_record(tmp_path: Path) -> None:
    path = tmp_path / "x.pdb"
    writers.write_pdb(predicted(("MK", np.ones((2, 37, 3))), name="é" + "n" * 150), path)
    lines = [line for line in path.read_text("ascii").splitlines() if line.startswith("TITLE")]
    assert [line[8:10] for line in lines] == ["  ", " 2", " 3"]
    assert "".join(line[10:].strip() for line in lines) == "?" + "n" * 150
    assert biotite_pdb.PDBFile.read(path).get_structure(model=1).array_length() == 74


def large(length: int, num_chains: int = 1) -> Prediction:
    """Whose arrays take no memory."""

    def filled(*shape: int) -> np.ndarray:
        return np.broadcast_to(np.float32(1), shape)

    return Prediction(
        name="large", sequence=":".join(["A" * (length // num_chains)] * num_chains), atoms=filled(length, 37, 3),
        exists=np.broadcast_to(np.True_, (length, 37)), plddt=filled(length), atom_plddt=filled(length, 37),
        pae_ang=filled(length, length), ptm=0.0, chain=np.repeat(np.arange(num_chains), length // num_chains),
        num_recycles=0, model="m",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("length", "num_chains", "message"),
    [(63, 63, "63 chains, a PDB file holds 62"), (2703, 1, "100,012 atoms and ends of chains, .* holds 99,999")],
)
def test_a_pdb_file_is_refused_what_it_cannot_hold(length: int, num_chains: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"prediction large: {message}; write mmCIF"):
        writers.write_pdb(large(length, num_chains), tmp_path / "x.pdb")
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:Attribute 'auth_atom_id' not found")
def test_sixty_two_chains_are_written_and_more_as_mmcif(tmp_path: Path) -> None:
    writers.write_pdb(large(124, 62), tmp_path / "x.pdb")
    atoms, _, _ = by_biotite(tmp_path / "x.pdb")
    assert len({chain for chain, *_ in atoms}) == 62
    writers.write_mmcif(large(126, 63), tmp_path / "x.cif")
    atoms, _, _ = by_biotite(tmp_path / "x.cif")
    assert len({chain for chain, *_ in atoms}) == 63


@pytest.mark.parametrize("place", [-1000.0, 10000.0])
def test_a_structure_that_burst_is_refused(place: float, tmp_path: Path) -> None:
    places = np.ones((2, 37, 3))
    places[1, 2, 0] = place
    with pytest.raises(DataError, match="coordinates from .* the structure has burst"):
        writers.write_pdb(predicted(("MK", places)), tmp_path / "x.pdb")
    writers.write_mmcif(predicted(("MK", places)), tmp_path / "x.cif")
    assert by_gemmi(tmp_path / "x.cif")[1][39, 0] == place


def test_a_model_says_how_sure_it_is(three: Prediction, tmp_path: Path) -> None:
    block = gemmi.cif.read(str(written(three, tmp_path, ".cif"))).sole_block()
    kinds = {row[0]: tuple(row) for row in block.find("_ma_qa_metric.", ["id", "name", "mode", "type"])}
    plddt, ptm, mean = (
        next(id for id, kind in kinds.items() if kind[1] == name) for name in ("pLDDT", "pTM", "mean_pLDDT")
    )
    assert kinds[plddt][2:] == ("local", "pLDDT") and kinds[ptm][2:] == ("global", "pTM")
    whole = {row[0]: float(row[1]) for row in block.find("_ma_qa_metric_global.", ["metric_id", "metric_value"])}
    assert whole == {ptm: 0.625, mean: pytest.approx(three.mean_plddt, abs=0.01)}
    names = ["label_asym_id", "label_seq_id", "label_comp_id", "metric_id", "metric_value"]
    local = [tuple(row) for row in block.find("_ma_qa_metric_local.", names)]
    assert [row[:4] for row in (local[0], local[70], local[140])] == [
        ("A", "1", "MET", plddt), ("B", "1", "MET", plddt), ("C", "1", "UNK", plddt),
    ]  # fmt: skip
    np.testing.assert_allclose([float(row[4]) for row in local], three.plddt, atol=6e-3)
    assert [tuple(row) for row in block.find("_software.", ["name", "version"])] == [("xtrimo", writers.__version__)]
    assert len(block.find("_entity.", ["id"])) == 2  # two chains are of one sequence
    assert not block.find("_ma_qa_metric_local_pairwise.", ["metric_value"])


def test_errors_of_pairs_are_written_when_asked_for(three: Prediction, tmp_path: Path) -> None:
    places = three.atoms[:20]
    pair = predicted((three.residues[:20], places), (three.residues[:20], places + 40))
    writers.write_mmcif(pair, tmp_path / "x.cif", pae=True)
    names = ["label_asym_id_1", "label_seq_id_1", "label_asym_id_2", "label_seq_id_2", "metric_value"]
    table = gemmi.cif.read(str(tmp_path / "x.cif")).sole_block().find("_ma_qa_metric_local_pairwise.", names)
    assert len(table) == 40**2
    found = np.zeros((40, 40))
    for chain, number, other_chain, other, value in table:
        row, column = (20 * "AB".index(c) + int(n) - 1 for c, n in ((chain, number), (other_chain, other)))
        found[row, column] = float(value)
    np.testing.assert_allclose(found, pair.pae_ang, atol=6e-3)


def test_the_file_is_modelcif_to_its_own_library(three: Prediction, tmp_path: Path) -> None:
    with written(three, tmp_path, ".cif").open() as file:
        (system,) = modelcif.reader.read(file)
    (group,) = system.model_groups
    assert isinstance(group[0], modelcif.model.AbInitioModel)
    assert len(list(group[0].get_atoms())) == three.exists.sum()
    assert [type(step).__name__ for step in system.protocols[0].steps] == ["ModelingStep"]
    assert system.title == "toy_1"


@pytest.mark.parametrize("ending", WRITERS)
def test_writing_that_fails_leaves_what_was_there(
    three: Prediction, tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"toy_1{ending}"
    path.write_text("before")

    def fail(*args: object) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr(biotite_pdb.PDBFile, "set_structure", fail)
    monkeypatch.setattr(modelcif.dumper, "write", fail)
    with pytest.raises(RuntimeError):
        written(three, tmp_path, ending)
    assert path.read_text() == "before" and len(list(tmp_path.iterdir())) == 1


def test_scores_come_back(three: Prediction, tmp_path: Path) -> None:
    scores = [writers.Scores.of(three, seconds=1.5), writers.Scores.of(predicted(("MK", np.ones((2, 37, 3)))))]
    writers.write_scores(scores, tmp_path / "scores.json")
    assert writers.read_scores(tmp_path / "scores.json") == scores
    first = scores[0]
    assert (first.name, first.length, first.num_chains, first.ptm, first.seconds) == ("toy_1", 210, 3, 0.625, 1.5)
    assert first.mean_plddt == pytest.approx(float(three.plddt.mean()), abs=1e-3)
    for broken in ('{"name": "x"}', "[{}]", "[", '["x"]'):
        (tmp_path / "scores.json").write_text(broken)
        with pytest.raises(DataError, match="is no list of scores"):
            writers.read_scores(tmp_path / "scores.json")
