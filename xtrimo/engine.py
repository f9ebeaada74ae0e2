"""What takes the steps of the training loop: gradients, clipping, AdamW, and how these are kept; and torch's own.

An engine computes the gradient of a sum of losses, piece by piece and on all ranks. What the sum weighs is known only
at the end, so that `step` divides by it. `xtrimo/deepspeed_engine.py` has the other engine.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from xtrimo.errors import ConfigError
from xtrimo.training_config import TrainingConfig

T = TypeVar("T")
Work = Callable[[nn.Module], T]
Weights = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What an engine trains, and on which rank of how many."""

    module: nn.Module
    """Its weights that ask for a gradient are trained."""
    config: TrainingConfig
    """How."""
    rate_of: Callable[[str], float]
    """The share of the learning rate that the weight of a name gets."""
    rank: int
    """This process."""
    world: int
    """Processes that train as one."""

    def __post_init__(self) -> None:
        if not trained(self.module):
            raise ConfigError("no weight of the module asks for a gradient, so there is nothing to train")

    @property
    def device(self) -> torch.device:
        """Of the trained weights."""
        return next(iter(trained(self.module).values())).device

    def adamw(self) -> torch.optim.AdamW:
        """The optimizer; a group has its share of the rate, and only matrices decay."""
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for name, weight in trained(self.module).items():
            decay = self.config.weight_decay if weight.ndim > 1 else 0.0
            groups.setdefault((self.rate_of(name), decay), []).append(weight)
        return torch.optim.AdamW(
            [dict(params=group, share=share, weight_decay=decay) for (share, decay), group in groups.items()],
            lr=self.config.learning_rate, fused=True,
        )  # fmt: skip


@runtime_checkable
class Engine(Protocol):
    """A module on the ranks, and how its weights move."""

    in_parts: bool
    """A rank holds its part of each weight: a forward pass is the work of all ranks, each calling the same layers."""

    @property
    def weights(self) -> Weights:
        """What this rank holds of each trained weight; writing into it writes the module."""

    def facts(self) -> dict[str, Any]:
        """What has to be the same for a checkpoint to be read."""

    def figure(self, work: Work[float]) -> float:
        """What `work` makes of the module by forward passes."""

    def add_gradient(self, work: Work[tuple[Tensor, float]], *, last: bool) -> tuple[Tensor, float]:
        """Call `work`, which gives a sum of losses and what it weighs, and add the gradient of the sum.

        Args:
            last: the step has no further piece.
        """

    def step(self, weight: float, rate: float) -> float:
        """Divide the gradient, over all ranks, by `weight`, clip it, and move the weights at this rate.

        Returns:
            The norm of the gradient before it was clipped; where it is not finite, nothing the weights say counts.
        """

    def save(self, folder: Path, step: int, own: Mapping[str, Weights]) -> dict[str, Any]:
        """Keep the state after a step, with more tensors of the shapes of `weights`; called on all ranks.

        Returns:
            What the main rank is to keep of it in the run's own file, which makes this checkpoint the one that counts.
        """

    def saved(self, folder: Path, step: int) -> None:
        """The run's own file is of this step now: what was kept of others may go. On the main rank."""

    def load(self, folder: Path, step: int, state: Mapping[str, Any]) -> Mapping[str, Weights]:
        """Go back to where `save` was called, given what it returned.

        Returns:
            The further tensors.

        Raises:
            ConfigError: other weights were trained.
        """

    def close(self) -> None:
        """Leave the module as any other, whole on each rank; called on all ranks."""


class Root(nn.Module):
    """A module whose forward pass is whatever is done with another: what DDP and DeepSpeed wrap.

    Args:
        module: the other.
        precision: makes the context of each forward pass.
    """

    def __init__(self, module: nn.Module, precision: Callable[[], AbstractContextManager[object]]) -> None:
        super().__init__()
        self.module, self.precision = module, precision

    def forward(self, work: Work[Any]) -> Any:
        with self.precision():
            return work(self.module)


def precision(job: Job, *, cache: bool = True) -> Callable[[], AbstractContextManager[object]]:
    """The autocast of a job; without `cache`, no weight is kept in bf16 beside itself."""
    device, enabled = job.device.type, job.config.precision == "bf16"
    return lambda: torch.autocast(device, torch.bfloat16, enabled=enabled, cache_enabled=cache)


class TorchEngine:
    """A copy of the module on each rank (DistributedDataParallel), and torch's AdamW."""

    in_parts = False

    def __init__(self, job: Job) -> None:
        self.job, self.weights = job, trained(job.module)
        root = Root(job.module, precision(job))
        self.root: nn.Module = DistributedDataParallel(root) if job.world > 1 else root
        self.optimizer = job.adamw()

    def facts(self) -> dict[str, Any]:
        return {"name": "torch"}

    def figure(self, work: Work[float]) -> float:
        found: float = (self.root.module if isinstance(self.root, DistributedDataParallel) else self.root)(work)
        return found

    def add_gradient(self, work: Work[tuple[Tensor, float]], *, last: bool) -> tuple[Tensor, float]:
        # only the last piece of a step adds the ranks' gradients up
        wait = isinstance(self.root, DistributedDataParallel) and not last
        with self.root.no_sync() if wait else nullcontext():  # type: ignore[operator]
            total, weight = self.root(work)
            total.backward()
        return total.detach(), weight

    def step(self, weight: float, rate: float) -> float:
        # DistributedDataParallel has divided the sum over ranks by their number
        gradients = [each.grad for each in self.weights.values() if each.grad is not None]
        torch._foreach_mul_(gradients, self.job.world / weight if weight else 0.0)
        norm = float(nn.utils.clip_grad_norm_(self.weights.values(), self.job.config.clip_norm))
        if math.isfinite(norm):
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group["share"]
            self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def save(self, folder: Path, step: int, own: Mapping[str, Weights]) -> dict[str, Any]:
        return {"weights": self.weights, "optimizer": self.optimizer.state_dict(), "own": dict(own)}

    def saved(self, folder: Path, step: int) -> None:
        """Nothing is kept elsewhere."""

    def load(self, folder: Path, step: int, state: Mapping[str, Any]) -> Mapping[str, Weights]:
        if state["weights"].keys() != self.weights.keys():
            raise ConfigError(f"{folder} is of a run that trained other weights; choose another folder")
        copy(state["weights"], self.weights)
        self.optimizer.load_state_dict(state["optimizer"])
        own: dict[str, Weights] = state["own"]
        return own

    def close(self) -> None:
        """The module is as it was."""


def trained(module: nn.Module) -> dict[str, Tensor]:
    """The weights that ask for a gradient, by name."""
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}


def copy(source: Weights, target: Weights) -> None:
    """Write what `source` has into the tensors of the same name."""
    with torch.no_grad():
        for name, weight in source.items():
            target[name].copy_(weight)
