"""One cluster, one corpus and one unbroken run for all tests of this folder."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.slurm.cluster import ROOT, Cluster, until, why_not
from xtrimo.fasta import Record, write_fasta
from xtrimo.testing import toy_sequences

SLURM = ROOT / "slurm"
XTRIMO = f"PYTHONPATH={ROOT} {sys.executable} -m xtrimo"
STEPS = 40
TRAIN = (
    "--model", "glm-1m", "--log-every", "1", "--save-every", "10", "--validate-every", "0", "--valid-tokens", "100",
    "--batch.rows", "2", "--batch.row-length", "128", "--dropout", "0.1",
)  # fmt: skip
TWO_BY_TWO = ("--steps", str(STEPS), "--parallel.tensor-degree", "2")
"""On two nodes with two ranks each."""


class Chain(NamedTuple):
    """A job for each step from a FASTA file to new proteins; each waits for the one before to succeed."""

    folder: Path
    corpus: str
    pretrain: str
    export: str
    generate: str


def log_of(folder: Path, name: str) -> str:
    """What the jobs of a name have said."""
    return "\n".join(path.read_text() for path in sorted(folder.glob(f"{name}-*.out")))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Skips where there can be none."""
    if reason := why_not():
        pytest.skip(reason)
    before = signal.signal(signal.SIGTERM, lambda *_: pytest.exit("ended by SIGTERM"))  # leaves no daemon behind
    try:
        with Cluster() as started:
            yield started
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def chain(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """Submitted all at once; who needs the end of one waits for it."""
    folder = tmp_path_factory.mktemp("chain")
    write_fasta(folder / "in.fasta", [Record(str(i), each) for i, each in enumerate(toy_sequences(200))])
    corpus = cluster.submit(
        "--job-name=corpus", "--output=%x-%j.out", "--wrap",
        f"{XTRIMO} corpus in.fasta --out corpus --min-length 5 --valid-ratio 0.1", cwd=folder,
    )  # fmt: skip
    pretrain = cluster.submit(
        "--job-name=pretrain", "--nodes=2", f"--dependency=afterok:{corpus},singleton", SLURM / "pretrain.sbatch",
        "--corpus", "corpus", *TRAIN, *TWO_BY_TWO, cwd=folder, RUN="run", RANKS_PER_NODE=2,
        SOME_API_KEY="not-for-others", REMOTE="https://me:not-for-others@example.org/a",
    )  # fmt: skip
    export = cluster.submit(
        "--job-name=export", "--output=%x-%j.out", f"--dependency=afterok:{pretrain}", "--wrap",
        f"{XTRIMO} export run model", cwd=folder,
    )  # fmt: skip
    generate = cluster.submit(
        "--job-name=generate", f"--dependency=afterok:{export}", "--array=1-2", SLURM / "generate.sbatch",
        "--model", "model", "--num", "5", "--max-length", "20", cwd=folder, OUT="new.fasta",
    )  # fmt: skip
    return Chain(folder, corpus, pretrain, export, generate)


@pytest.fixture(scope="session")
def unbroken(cluster: Cluster, chain: Chain) -> Path:
    """The chain's run, once it has ended."""
    ended = cluster.wait(chain.pretrain)
    assert ended.state == "COMPLETED" and ended.restarts == 0, log_of(chain.folder, "pretrain")
    return chain.folder / "run"


def wait_for_steps(run: Path, num: int, folder: Path, seconds: float = 300) -> None:
    """Return when a run has logged so many lines."""
    metrics = run / "metrics.jsonl"

    def happened() -> bool:
        return metrics.exists() and len(metrics.read_text().splitlines()) >= num

    until(happened, seconds, lambda: log_of(folder, "*"))
