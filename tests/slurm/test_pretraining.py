"""Pretraining on two nodes with two ranks each, stopped in every way that a cluster knows."""

import time
from pathlib import Path

import pytest

from tests.pretrain.runs import losses
from tests.slurm.cluster import Cluster, until
from tests.slurm.conftest import SLURM, STEPS, TRAIN, TWO_BY_TWO, Chain, log_of, wait_for_steps

pytestmark = pytest.mark.timeout(600)


def submit(cluster: Cluster, chain: Chain, folder: Path, *args: str) -> str:
    return cluster.submit(
        "--job-name=broken", "--nodes=2", "--signal=B:USR1@60", *args, SLURM / "pretrain.sbatch",
        "--corpus", chain.folder / "corpus", *TRAIN, *TWO_BY_TWO, cwd=folder, RUN="run", RANKS_PER_NODE=2,
        HEALTH_SECONDS=40,
    )  # fmt: skip


def test_stopped_and_preempted_it_ends_with_the_losses_of_an_unbroken_run(
    cluster: Cluster, chain: Chain, unbroken: Path, tmp_path: Path
) -> None:
    job = submit(cluster, chain, tmp_path, "--nodelist=n1,n2")
    run = tmp_path / "run"
    wait_for_steps(run, 3, tmp_path)
    cluster.run("scancel", "--batch", "--signal=USR1", job)  # what SLURM itself sends before the limit
    until(lambda: cluster.job(job).restarts == 1, 300, lambda: log_of(tmp_path, "broken"))
    first = len(losses(run))
    assert 3 <= first < STEPS and (run / "STOPPED").exists() and not (run / "STOP").exists()
    wait_for_steps(run, first + 2, tmp_path)
    urgent = cluster.submit("--partition=urgent", "--nodelist=n1,n2", "--exclusive", "--wrap", "true", cwd=tmp_path)
    assert cluster.wait(urgent).state == "COMPLETED"
    ended = cluster.wait(job)
    said = log_of(tmp_path, "broken")
    assert (ended.state, ended.restarts, ended.excluded) == ("COMPLETED", 2, "(null)"), said
    assert losses(run) == losses(unbroken) and (run / "DONE").exists() and not (run / "STOPPED").exists()
    assert said.count("got USR1") == 2 and said.count("back into the queue") == 2


def test_what_ran_is_written_down_without_secrets(unbroken: Path, chain: Chain) -> None:
    records = unbroken / "slurm"
    first = records / f"{chain.pretrain}.0"
    assert (first / "nodes.txt").read_text().split() == ["n1", "n2"]
    assert (first / "script.sh").read_text() == (SLURM / "pretrain.sbatch").read_text()
    assert "megatron-core==" in (first / "packages.txt").read_text()
    assert f"JobId={chain.pretrain} " in (first / "job.txt").read_text()
    environment = (first / "environment.txt").read_text()
    assert "\nRUN=run\n" in environment and "REMOTE=" in environment and "not-for-others" not in environment
    for rank in range(4):
        assert (records / f"logs/rank-{rank:05}.log").exists()
    assert f"train step {STEPS}:" in (records / "logs/rank-00000.log").read_text()


def test_a_node_that_dies_is_replaced(cluster: Cluster, chain: Chain, unbroken: Path, tmp_path: Path) -> None:
    """It goes on from its last checkpoint, on the spare node."""
    job = submit(cluster, chain, tmp_path)
    run = tmp_path / "run"
    until(lambda: (run / "checkpoints/step-00000010").is_dir(), 300, lambda: log_of(tmp_path, "broken"))
    assert cluster.job(job).nodes == "n[1-2]"
    cluster.kill_node("n2")
    try:
        ended = cluster.wait(job)
        said = log_of(tmp_path, "broken")
        assert (ended.state, ended.restarts, ended.nodes) == ("COMPLETED", 1, "n[1,3]"), said
        assert losses(run) == losses(unbroken), said
    finally:
        cluster.start_node("n2")
        cluster.wait_for_nodes()


def test_a_time_limit_ends_no_run_and_scancel_does(
    cluster: Cluster, chain: Chain, unbroken: Path, tmp_path: Path
) -> None:
    """A run of more steps than any minute holds. SLURM looks at limits each 30 s, so the signal comes early or late."""
    job = cluster.submit(
        "--job-name=limited", "--time=1", "--signal=B:USR1@20", SLURM / "pretrain.sbatch",
        "--corpus", chain.folder / "corpus", *TRAIN, "--steps", "100000", cwd=tmp_path, RUN="run",
    )  # fmt: skip
    until(lambda: cluster.job(job).restarts == 1, 300, lambda: log_of(tmp_path, "limited"))
    said = log_of(tmp_path, "limited")
    assert "got USR1" in said and "asked to stop (STOP): saved after step" in said
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=10")
    done = len(losses(tmp_path / "run"))
    wait_for_steps(tmp_path / "run", done + 1, tmp_path)
    cluster.run("scancel", job)
    assert cluster.wait(job).state == "CANCELLED"
    time.sleep(8)  # longer than the pause before a requeued job starts
    assert cluster.job(job)[:2] == ("CANCELLED", 1), log_of(tmp_path, "limited")
