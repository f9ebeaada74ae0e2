"""The scripts as text, dry runs, nodes that are not healthy, and work that fails."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.slurm.cluster import PATH, ROOT, Cluster
from tests.slurm.conftest import SLURM, log_of

pytestmark = pytest.mark.timeout(300)
SCRIPTS = sorted(path.stem for path in SLURM.glob("*.sbatch"))
BASH = [*SLURM.glob("*.sbatch"), *SLURM.glob("*.sh"), ROOT / "tests/slurm/install.sh"]
NEEDS = dict(RUN="run", FASTA="in.fasta", OUT="out")


def dry_run(script: str, cwd: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return subprocess.run(
        ["bash", SLURM / f"{script}.sbatch", *args], env={**plain, "XTRIMO_HOME": str(ROOT), "DRY_RUN": "1", **env},
        cwd=cwd, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("path", BASH, ids=lambda path: path.name)
def test_bash_reads_it(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="no shellcheck; `make test-slurm` installs it")
def test_shellcheck_finds_nothing() -> None:
    done = subprocess.run(["shellcheck", "-x", *BASH], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_dry_run_prints_the_command_and_touches_nothing(script: str, tmp_path: Path) -> None:
    done = dry_run(script, tmp_path, "--model", "a b", **NEEDS)
    assert done.returncode == 0, done.stderr
    command = done.stdout.splitlines()[-1]
    assert command.startswith("srun ") and f" -m xtrimo {script} " in command and command.endswith("--model a\\ b ")
    assert not list(tmp_path.iterdir())


def test_a_dry_run_shows_containers_shares_and_other_verbs(tmp_path: Path) -> None:
    said = dry_run("embed", tmp_path, CONTAINER="x.sif", CONTAINER_MOUNTS="/data:/data", **NEEDS).stdout
    assert " apptainer exec --nv --bind /data:/data x.sif python -m xtrimo embed in.fasta out --shard 1/1" in said
    said = dry_run("pretrain", tmp_path, CONTAINER="org/image", RANKS_PER_NODE="8", **NEEDS).stdout
    assert "--container-image=org/image" in said and "--nproc-per-node=8" in said
    said = dry_run("finetune", tmp_path, VERB="train-fold", **NEEDS).stdout
    assert " -m xtrimo train-fold --out run " in said
    array = dict(SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="5", SLURM_ARRAY_TASK_MIN="5", SLURM_ARRAY_TASK_MAX="5")
    said = dry_run("fold", tmp_path, **NEEDS, **array, SLURM_ARRAY_TASK_COUNT="1", SHARES="8").stdout
    assert " --shard 5/8 " in said


def test_an_array_with_holes_is_refused(tmp_path: Path) -> None:
    array = dict(SLURM_ARRAY_TASK_ID="1", SLURM_ARRAY_TASK_MIN="1", SLURM_ARRAY_TASK_MAX="5")
    done = dry_run("fold", tmp_path, **NEEDS, **array, SLURM_ARRAY_TASK_COUNT="2")
    assert done.returncode == 2 and "2 tasks from 1 to 5" in done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_is_missing_is_named(script: str, tmp_path: Path) -> None:
    done = dry_run(script, tmp_path)
    assert done.returncode != 0 and any(f"{name}: " in done.stderr for name in NEEDS)


def test_a_node_that_is_not_healthy_is_left_out(cluster: Cluster, tmp_path: Path) -> None:
    """It is the first that SLURM takes. There is no such model: with all nodes healthy the step fails, and is tried as
    often as RETRIES says."""
    first = "mkdir sick && echo $SLURMD_NODENAME > sick/node; test $(cat sick/node) != $SLURMD_NODENAME"
    job = cluster.submit(
        "--job-name=sick", SLURM / "generate.sbatch", "--model", "none-such", cwd=tmp_path, OUT="new.fasta",
        HEALTH_CHECK=first, RETRIES=1,
    )  # fmt: skip
    ended = cluster.wait(job)
    said = log_of(tmp_path, "sick")
    sick = (tmp_path / "sick/node").read_text().strip()
    assert (ended.state, ended.restarts, ended.excluded) == ("FAILED", 2, sick), said
    assert ended.nodes != sick and f"{sick}: HEALTH_CHECK failed" in said and f"not healthy: {sick}" in said
    assert said.count("failed with all nodes healthy; back into the queue") == 1
    assert (tmp_path / "new.fasta.slurm/failures.txt").read_text().count(job) == 2


def test_restarts_have_an_end(cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.submit(
        "--job-name=hopeless", SLURM / "generate.sbatch", "--model", "none-such", cwd=tmp_path, OUT="new.fasta",
        HEALTH_CHECK="false", MAX_RESTARTS=1,
    )  # fmt: skip
    ended = cluster.wait(job)
    assert (ended.state, ended.restarts) == ("FAILED", 1), log_of(tmp_path, "hopeless")
    assert "no restart any more after 1" in log_of(tmp_path, "hopeless")


def test_packages_are_there_or_it_says_why_not(tmp_path: Path) -> None:
    """Without apt-get nothing is installed, and it is no failure."""
    for name in ("bash", "id", "tail"):
        found = shutil.which(name, path=PATH)
        assert found
        (tmp_path / name).symlink_to(found)
    script = (ROOT / "tests/slurm/install.sh").read_text().replace(":/usr/sbin", "")
    done = subprocess.run(["bash", "-c", script], env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0 and "no apt-get" in done.stdout
