"""Process groups: from torchrun's or srun's environment, or one process alone, into megatron's parallel state."""

import datetime
import hashlib
import math
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
from megatron.core import parallel_state as parallel_state  # which examples read from here
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

from pretrain import cuda_names, fused_adam
from pretrain.config import PretrainConfig


@contextmanager
def process_groups(config: PretrainConfig) -> Iterator[None]:
    """Join the job, lay the groups out, and leave cleanly. Works alone as well as under a launcher.

    An already initialised default process group (a test's) is used as it is and left alone.
    """
    mine = not dist.is_initialized()
    if mine:
        join(config.fault.hang_seconds)
    config.check_ranks(dist.get_world_size())
    cuda_names.redirect()
    fused_adam.install()
    parallel = config.parallel
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor_degree,
        pipeline_model_parallel_size=parallel.pipeline_degree,
        virtual_pipeline_model_parallel_size=parallel.virtual_stages if parallel.virtual_stages > 1 else None,
        context_parallel_size=parallel.context_degree,
        distributed_timeout_minutes=_patience(config.fault.hang_seconds),
    )
    model_parallel_cuda_manual_seed(config.seed)
    try:
        yield
    finally:
        parallel_state.destroy_model_parallel()
        if mine:
            dist.destroy_process_group()


def join(hang_seconds: float) -> None:
    """Initialise the default process group: NCCL where there are GPUs, gloo elsewhere.

    The ranks are those of torchrun's environment, else those of an srun step, else this process alone.
    """
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if "WORLD_SIZE" not in os.environ:
        os.environ |= ranks_of_srun(os.environ)
    if "WORLD_SIZE" not in os.environ:
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    dist.init_process_group(backend, timeout=datetime.timedelta(minutes=_patience(hang_seconds)))


def _patience(hang_seconds: float) -> int:
    """Minutes that a collective waits: longer than the watchdog, which knows better what to do; a year without one."""
    return math.ceil(2 * hang_seconds / 60) if hang_seconds else 365 * 24 * 60


def ranks_of_srun(env: Mapping[str, str]) -> dict[str, str]:
    """torchrun's variables for a task of an srun step of several; empty elsewhere, as in the batch script itself."""
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) == 1:
        return {}
    nodes = env["SLURM_STEP_NODELIST"]
    if "[" in nodes or "," in nodes:  # SLURM's own notation, as in node[03-17,21]
        ask = ["scontrol", "show", "hostnames", nodes]
        nodes = subprocess.run(ask, check=True, capture_output=True, text=True).stdout
    port = 100 * int(env["SLURM_JOB_ID"]) + int(env["SLURM_STEP_ID"])  # steps of one job may run at the same time
    return {
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": env["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": env["SLURM_LOCALID"],
        "MASTER_ADDR": env.get("MASTER_ADDR", nodes.split()[0]),
        "MASTER_PORT": env.get("MASTER_PORT", str(20000 + port % 20000)),
    }


def chunk(num_tokens: int) -> slice:
    """The tokens of a row that this context-parallel rank reads."""
    share = num_tokens // parallel_state.get_context_parallel_world_size()
    start = parallel_state.get_context_parallel_rank() * share
    return slice(start, start + share)


def seed_dropout(seed: int, batch: int, row: int, stage: int) -> None:
    """Start the random streams of one row on one chunk of the model.

    A function of its place alone, so that a resumed run, or one on other data-parallel ranks, drops the same values;
    tensor ranks share a stream where they hold the same values, and megatron gives them one each where they do not.
    """
    place = (seed, batch, row, parallel_state.get_pipeline_model_parallel_rank(), stage,
             parallel_state.get_context_parallel_rank())  # fmt: skip
    digest = hashlib.blake2b(repr(place).encode(), digest_size=4).digest()
    model_parallel_cuda_manual_seed(int.from_bytes(digest, "little"))


def is_main_rank() -> bool:
    """Whether this rank writes the run's files and speaks."""
    return dist.get_rank() == 0


def device() -> torch.device:
    """Where this rank computes."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
