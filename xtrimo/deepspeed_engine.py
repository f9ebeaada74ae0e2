"""DeepSpeed's ZeRO as an engine of the training loop: moments, gradients and weights are shared out among the ranks.

    zero 1   each rank keeps AdamW's moments of its part of the weights
    zero 2   and the gradients of that part alone
    zero 3   and that part of the weights; layers are gathered when they are called, and let go

What is learned is what torch's engine learns, to rounding. DeepSpeed takes the mean of a gradient over ranks, and over
as many pieces as it was told; the loop wants a sum divided by what it weighs, which is known when all pieces are done.
So losses go in as they are, and the factor as the loss scale, by which DeepSpeed divides before it clips. AdamW is
torch's own: DeepSpeed's would be compiled at first use.

    FOLDER/deepspeed.json         the settings as DeepSpeed was given them
    FOLDER/deepspeed/step-00000050/   its checkpoint, and this loop's weights beside it; counts once training.pt says so

ZeRO: Rajbhandari et al. 2020, arXiv:1910.02054.
"""

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from xtrimo.durable import sync, write_json
from xtrimo.engine import Job, Root, Weights, Work, precision, trained
from xtrimo.errors import ConfigError

SETTINGS, CHECKPOINTS = "deepspeed.json", "deepspeed"


def settings(job: Job) -> dict[str, Any]:
    """DeepSpeed's JSON of a job: ours, then the user's over it."""
    config, engine = job.config, job.config.engine
    zero: dict[str, Any] = {"stage": engine.zero}
    if engine.zero == 3:
        zero["stage3_param_persistence_threshold"] = 0  # parts are then all there is of a weight between steps
    if engine.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if engine.offload == "weights":
        zero["offload_param"] = {"device": "cpu"}
    ours = {
        "train_micro_batch_size_per_gpu": 1,  # of no effect: the loop hands out items itself
        "gradient_accumulation_steps": config.accumulate,
        "gradient_clipping": config.clip_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "wall_clock_breakdown": False,
    }
    return merged(ours, engine.overrides())


def merged(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Both, section by section; theirs where both have a value.

    >>> merged({"a": 1, "b": {"c": 2}}, {"b": {"d": 3}, "a": 4})
    {'a': 4, 'b': {'c': 2, 'd': 3}}
    """
    both = {**ours, **theirs}
    for key in ours.keys() & theirs.keys():
        if isinstance(ours[key], dict) and isinstance(theirs[key], dict):
            both[key] = merged(ours[key], theirs[key])
    return both


class DeepSpeedEngine:
    """An engine, as `xtrimo.engine` has it.

    Args:
        job: what is trained.
        folder: of the run; the settings are written there.

    Raises:
        ConfigError: a rank that trains by itself, a device that DeepSpeed does not see, or settings it refuses.
    """

    def __init__(self, job: Job, folder: Path) -> None:
        self.job, self.in_parts = job, job.config.engine.zero == 3
        if not dist.is_initialized():  # DeepSpeed asks for a group, be it of one, and holds on to the first it has seen
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
        if dist.get_world_size() != job.world:
            raise ConfigError(f"deepspeed trains on all {dist.get_world_size()} ranks or on none; take engine torch")
        content = settings(job)
        if job.rank == 0:
            write_json(folder / SETTINGS, content)
        self.names = {id(weight): name for name, weight in trained(job.module).items()}
        root = Root(job.module, precision(job, cache=not self.in_parts))
        self.zero = _initialize(job, root, content)

    @property
    def weights(self) -> Weights:
        own = trained(self.job.module)
        return {name: _part(weight) for name, weight in own.items()} if self.in_parts else own

    def facts(self) -> dict[str, Any]:
        engine = self.job.config.engine
        return {"name": "deepspeed", "zero": engine.zero, "offload": engine.offload, "ranks": self.job.world}

    def figure(self, work: Work[float]) -> float:
        # the hooks expect tensors of a forward pass
        found = float(self.zero.module(lambda module: torch.tensor(work(module), dtype=torch.float64)))
        if self.in_parts:
            self.zero.optimizer.empty_partition_cache()  # what was gathered may not be what the next step is of
        return found

    def add_gradient(self, work: Work[tuple[Tensor, float]], *, last: bool) -> tuple[Tensor, float]:
        self.zero.set_gradient_accumulation_boundary(last)
        total, weight = self.zero(work)
        self.zero.backward(total, scale_wrt_gas=False)
        return total.detach(), weight

    def step(self, weight: float, rate: float) -> float:
        optimizer = self.zero.optimizer
        for group in optimizer.param_groups:
            group["lr"] = rate * group["share"]
        optimizer.loss_scale = weight / self.job.world if weight else 1.0  # gradients are means over ranks by now
        self.zero.step()
        optimizer.loss_scale = 1.0
        return float(self.zero.get_global_grad_norm())

    def save(self, folder: Path, step: int, own: Mapping[str, Weights]) -> dict[str, Any]:
        root, tag = folder / CHECKPOINTS, _tag(step)
        if self.job.rank == 0:
            shutil.rmtree(root / tag, ignore_errors=True)  # which a kill has left
            root.mkdir(exist_ok=True)
        dist.barrier()
        self.zero.save_checkpoint(str(root), tag, save_latest=False, exclude_frozen_parameters=True)
        if self.in_parts or self.job.rank == 0:
            torch.save(dict(own), self._own(folder, step))
        for path in (*(root / tag).iterdir(), root / tag, root, folder):
            sync(path)
        dist.barrier()  # all ranks have written before the main one says that it counts
        return {"trained": list(self.names.values())}

    def saved(self, folder: Path, step: int) -> None:
        for path in (folder / CHECKPOINTS).glob("step-*"):
            if path.name != _tag(step):
                shutil.rmtree(path)

    def load(self, folder: Path, step: int, state: Mapping[str, Any]) -> Mapping[str, Weights]:
        if state["trained"] != list(self.names.values()):
            raise ConfigError(f"{folder} is of a run that trained other weights; choose another folder")
        path, _ = self.zero.load_checkpoint(str(folder / CHECKPOINTS), _tag(step), load_module_strict=False)
        if path is None:
            raise OSError(f"{folder / CHECKPOINTS / _tag(step)} is not whole")
        own: dict[str, Weights] = torch.load(self._own(folder, step), map_location=self.job.device, weights_only=True)
        return own

    def close(self) -> None:
        module = self.job.module
        weights = {id(weight): _whole(weight) for weight in module.parameters()}
        self.zero.destroy()
        for owner in module.modules():  # ZeRO 3 has given each its own kind of dictionary and of weights
            owner._parameters = {
                name: None if weight is None else weights[id(weight)] for name, weight in owner._parameters.items()
            }
        del self.zero

    def _own(self, folder: Path, step: int) -> Path:
        return folder / CHECKPOINTS / _tag(step) / f"loop-{self.job.rank if self.in_parts else 0}.pt"


def _part(weight: Tensor) -> Tensor:
    part: Tensor = weight.ds_tensor  # type: ignore[attr-defined]
    return part


def _tag(step: int) -> str:
    return f"step-{step:08}"


def _whole(weight: Tensor) -> nn.Parameter:
    """A weight as torch has it, of memory of its own."""
    import deepspeed

    with deepspeed.zero.GatheredParameters([weight]):
        return nn.Parameter(weight.detach().clone(), weight.requires_grad)


def _initialize(job: Job, root: nn.Module, content: dict[str, Any]) -> Any:
    """DeepSpeed's engine; nothing is compiled, and nothing said on stdout."""
    kind = job.device.type
    os.environ.setdefault("DS_ACCELERATOR", kind)
    os.environ.setdefault("LOCAL_RANK", str(job.device.index or 0))  # asked for, also where torchrun has set none
    import deepspeed

    logger = logging.getLogger("DeepSpeed")
    logger.handlers.clear()  # its own writes to stdout
    logger.propagate = True
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # C++ for gloo, which it would compile for minutes
    found = deepspeed.accelerator.get_accelerator().device_name()
    if found != kind:
        raise ConfigError(f"the weights are on {kind}, and DeepSpeed works on {found}; see DS_ACCELERATOR")
    try:
        return deepspeed.initialize(model=root, optimizer=job.adamw(), config=content)[0]
    except (ValueError, TypeError, AssertionError, RuntimeError) as error:
        raise ConfigError(f"DeepSpeed refuses its settings ({error}); see {SETTINGS} in the run's folder") from error
