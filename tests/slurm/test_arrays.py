"""What the tasks of an array write, put together, is what one process writes."""

import json
from dataclasses import replace
from pathlib import Path

import h5py
import pytest
import torch

from structure.fold_command import main as fold
from structure.fold_directory import FoldFacts, save_fold
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import SLURM, log_of
from tests.structure.models import TRUNKS, model_of
from xtrimo import GLM
from xtrimo.__main__ import main
from xtrimo.checkpoint import save
from xtrimo.embedding_parts import PART_RESIDUES
from xtrimo.fasta import Record, write_fasta
from xtrimo.testing import toy_config, toy_sequences

pytestmark = pytest.mark.timeout(400)
TASKS = 3


def run_array(cluster: Cluster, folder: Path, name: str, *flags: str, **env: object) -> None:
    """A script as an array; all of its tasks succeed."""
    job = cluster.submit(f"--array=1-{TASKS}", SLURM / f"{name}.sbatch", *flags, cwd=folder, **env)
    for task in range(1, TASKS + 1):
        assert cluster.wait(f"{job}_{task}").state == "COMPLETED", log_of(folder, name)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy that generates."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("toy") / "model"
    save(GLM(toy_config(num_layers=1, hidden_size=32, num_heads=2, ffn_size=64)), path)
    return path


def test_embed(cluster: Cluster, model: Path, tmp_path: Path) -> None:
    longest = 1000
    sequences = toy_sequences(TASKS * PART_RESIDUES // longest, min_length=longest - 100, max_length=longest)
    write_fasta(tmp_path / "in.fasta", [Record(f"p{i}", each) for i, each in enumerate(sequences)])
    flags = ("--model", str(model), "--pooling", "mean")
    run_array(cluster, tmp_path, "embed", *flags, FASTA="in.fasta", OUT="array.h5")
    assert main(["embed", str(tmp_path / "in.fasta"), str(tmp_path / "one.h5"), *flags]) == 0
    with h5py.File(tmp_path / "array.h5") as array, h5py.File(tmp_path / "one.h5") as one:
        assert dict(array.attrs) == dict(one.attrs) and list(array) == list(one) and len(one) == len(sequences)
        for name in one:
            assert array[name][()].tobytes() == one[name][()].tobytes()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []
    said = [path.read_text() for path in tmp_path.glob("embed-*.out")]
    assert len(said) == TASKS and all("residues/s" in each for each in said), said  # each task had work


def test_generate(cluster: Cluster, model: Path, tmp_path: Path) -> None:
    flags = ("--model", str(model), "--num", "20", "--max-length", "30", "--temperature", "1", "--seed", "5")
    run_array(cluster, tmp_path, "generate", *flags, OUT="array.fasta")
    assert main(["generate", *flags, "--out", str(tmp_path / "one.fasta")]) == 0
    assert (tmp_path / "array.fasta").read_bytes() == (tmp_path / "one.fasta").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_fold(cluster: Cluster, tmp_path: Path) -> None:
    config = replace(TRUNKS["esmfold"], side_chains=True)
    save_fold(tmp_path / "model", model_of(config), FoldFacts(config=config))
    sequences = toy_sequences(9, min_length=8, max_length=60)
    write_fasta(tmp_path / "in.fasta", [Record(f"P{i}", each) for i, each in enumerate(sequences)])
    flags = ("--model", str(tmp_path / "model"), "--format", "both")
    run_array(cluster, tmp_path, "fold", *flags, FASTA="in.fasta", OUT="array")
    fold([str(tmp_path / "in.fasta"), str(tmp_path / "one"), *flags])
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert {path.name for path in (tmp_path / "array").iterdir()} == names | {"slurm"} and len(names) == 20
    for name in names - {"scores.json"}:
        assert (tmp_path / "array" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name
    array, one = (json.loads((tmp_path / out / "scores.json").read_text()) for out in ("array", "one"))
    for each in array + one:
        del each["seconds"]
    assert array == one
