"""Process groups: from torchrun's environment, or one process alone, into megatron's parallel state."""

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

from pretrain import cuda_names, fused_adam
from pretrain.config import PretrainConfig

TIMEOUT = datetime.timedelta(minutes=10)


@contextmanager
def process_groups(config: PretrainConfig) -> Iterator[None]:
    """Join the job, lay the groups out, and leave cleanly. Works alone as well as under a launcher.

    An already initialised default process group (a test's) is used as it is and left alone.
    """
    mine = not dist.is_initialized()
    if mine:
        join()
    config.check_ranks(dist.get_world_size())
    cuda_names.redirect()
    fused_adam.install()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=config.parallel.tensor_degree,
        pipeline_model_parallel_size=config.parallel.pipeline_degree,
    )
    model_parallel_cuda_manual_seed(config.seed)
    try:
        yield
    finally:
        parallel_state.destroy_model_parallel()
        if mine:
            dist.destroy_process_group()


def join() -> None:
    """Initialise the default process group: NCCL where there are GPUs, gloo elsewhere."""
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if "WORLD_SIZE" not in os.environ:
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    dist.init_process_group(backend, timeout=TIMEOUT)


def is_main_rank() -> bool:
    """Whether this rank writes the run's files and speaks."""
    return dist.get_rank() == 0


def device() -> torch.device:
    """Where this rank computes."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
