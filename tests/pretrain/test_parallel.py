"""Who a rank is: what launchers say, and the chunk of a row it reads."""

import os
import subprocess
import sys

import pytest

from pretrain.parallel import ranks_of_srun

STEP = {
    "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": "node7",
    "SLURM_JOB_ID": "123456", "SLURM_STEP_ID": "7",
}  # fmt: skip


def test_a_task_of_srun_knows_its_rank():
    assert ranks_of_srun(STEP) == {
        "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node7", "MASTER_PORT": "25607",
    }  # fmt: skip
    assert ranks_of_srun(STEP | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1"})["MASTER_ADDR"] == "10.0.0.1"


@pytest.mark.parametrize("env", [{}, {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}])
def test_a_process_outside_a_step_is_alone(env):
    """The second is the environment of a batch script, which no other task will join."""
    assert ranks_of_srun(env) == {}


def test_scontrol_names_the_first_of_many_nodes(tmp_path, monkeypatch):
    (tmp_path / "scontrol").write_text('#!/bin/sh\n[ "$3" = "node[03-04]" ] && printf "node03\\nnode04\\n"\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert ranks_of_srun(STEP | {"SLURM_STEP_NODELIST": "node[03-04]"})["MASTER_ADDR"] == "node03"


def test_tasks_of_srun_meet():
    code = (
        "from pretrain.parallel import join\nimport torch, torch.distributed as dist\njoin(60)\n"
        "x = torch.ones(1) * (1 + dist.get_rank())\ndist.all_reduce(x)\nassert x == 3\ndist.destroy_process_group()"
    )
    port = str(20000 + os.getpid() % 20000)
    env = os.environ | STEP | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "127.0.0.1", "MASTER_PORT": port}
    tasks = [
        subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], env=env | {"SLURM_PROCID": str(rank)})
        for rank in range(2)
    ]
    assert [task.wait(timeout=120) for task in tasks] == [0, 0]
