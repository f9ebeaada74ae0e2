"""The one training loop of the plain model, which heads, generator and structure share; it knows no task.

    batches(step)  the items of optimizer step 0, 1, ...: a pure function, so that any step can be done again
    loss(module, items)  -> the sum of the items' losses, and how much that sum weighs (proteins, residues)

The gradient of a step is that of sum / weight over all its items, however these are cut: into `accumulate` pieces that
are computed one after another, and over the ranks that torchrun started. So neither changes what is learned.

A run lives in a folder: `training.pt`, from which a killed run goes on exactly (weights, AdamW's moments, the best
weights so far), and `metrics.jsonl`; TensorBoard's files as well, where that is installed. The rate is a function of
the step, dropout one of seed, step and rank: no random state is saved.
"""

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from xtrimo.durable import differences
from xtrimo.errors import CheckpointError, ConfigError, TrainingError
from xtrimo.training_log import Monitor, StepResult

logger = logging.getLogger(__name__)

CHECKPOINT = "training.pt"
FREE = ("log_every", "save_every")  # what another run of the same folder may change
Items = Sequence[Any]
Loss = Callable[[nn.Module, Items], tuple[Tensor, float]]
Batches = Callable[[int], Items]
Validate = Callable[[nn.Module], float]
"""A figure of the module in eval mode; higher is better, NaN is worse than any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """How a module is trained: AdamW, linear warm-up, cosine decay to nothing."""

    steps: int
    """Optimizer steps, at most."""
    learning_rate: float = 1e-4
    """At its peak."""
    warmup_ratio: float = 0.05
    """Share of the steps in which the rate rises."""
    weight_decay: float = 0.01
    """Decoupled; none on biases, norms and other vectors."""
    clip_norm: float = 1.0
    """Of the gradient of all weights."""
    average: float = 0.0
    """Decay of a moving average of the weights, per step; it is what is validated and kept. 0 keeps the weights."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the matrix products (autocast); weights and sums stay as they are."""
    accumulate: int = 1
    """Pieces that a rank's items of a step are computed in; changes memory, not the result."""
    validate_every: int = 0
    """Steps between validations; 0 validates at the end alone."""
    patience: int = 0
    """Validations in a row that are no better than the best so far before training ends; 0 goes on to the end."""
    seed: int = 0
    """Of dropout; the batches have their own."""
    save_every: int = 100
    """Steps between checkpoints."""
    log_every: int = 10
    """Steps between lines of metrics."""

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be positive")
        if not 0 <= self.average < 1:
            raise ConfigError(f"average is {self.average}; expected a decay from 0 to below 1, such as 0.999")
        if not 0 <= self.warmup_ratio <= 1 or min(self.weight_decay, self.validate_every, self.patience) < 0:
            raise ConfigError(
                f"warmup_ratio {self.warmup_ratio} must lie in 0..1; weight_decay {self.weight_decay}, validate_every"
                f" {self.validate_every} and patience {self.patience} must not be negative"
            )

    def rate(self, step: int) -> float:
        """Learning rate of optimizer step `step`, counted from 0; the first step already learns."""
        warmup = round(self.warmup_ratio * self.steps)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.steps - warmup)))


@dataclass(kw_only=True, slots=True)
class Progress:
    """How far a run is, and the best that it has seen."""

    step: int = 0
    """Optimizer steps done."""
    best: float = -math.inf
    """Highest validation figure."""
    best_step: int = 0
    """Steps done when it was measured."""
    num_worse: int = 0
    """Validations since."""
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    """The trained weights then; empty without validation."""

    def judge(self, figure: float, weights: Mapping[str, Tensor]) -> None:
        """Take in a validation figure and the weights that it is of."""
        if figure > self.best or not self.best_weights:
            self.best, self.best_step, self.num_worse = figure, self.step, 0
            self.best_weights = {name: weight.detach().clone() for name, weight in weights.items()}
        else:
            self.num_worse += 1

    def is_over(self, config: TrainingConfig) -> bool:
        """Whether training ends here."""
        return self.step >= config.steps or 0 < config.patience <= self.num_worse


def fit(
    module: nn.Module,
    loss: Loss,
    batches: Batches,
    config: TrainingConfig,
    folder: str | os.PathLike[str],
    *,
    validate: Validate | None = None,
    rate_of: Callable[[str], float] = lambda name: 1.0,
    alone: bool = False,
) -> Progress:
    """Train the weights of `module` that ask for a gradient, or go on where a run of this folder was killed.

    Each of these weights takes part in every loss. At the end the module has the best weights, in eval mode.

    Args:
        loss: called with the module and some items of a batch; the sum of their losses, and that sum's weight.
        batches: the items of a step, at least one for each rank; called on every rank.
        validate: on the main rank; the weights of its highest figure are kept.
        rate_of: the share of the learning rate that the weight of this name gets.
        alone: this process trains by itself, though it is one of several ranks.

    Raises:
        ConfigError: nothing to train, fewer items than ranks, or a folder with a run of another config.
        CheckpointError: a folder whose checkpoint cannot be read.
        TrainingError: a gradient that is no longer a number.
    """
    folder = Path(folder)
    stepper = _Stepper(module, loss, config, rate_of, (0, 1) if alone else _rank_and_world())
    progress = _resume(folder, stepper)
    cuda = [stepper.device] if stepper.device.type == "cuda" else []
    with Monitor(folder, config.steps, progress.step, config.log_every) as monitor, torch.random.fork_rng(cuda):
        while not progress.is_over(config):
            result = stepper.step(batches(progress.step), progress.step)
            progress.step += 1
            monitor.step(progress.step, result)
            due = config.validate_every and progress.step % config.validate_every == 0
            if validate and (due or progress.step == config.steps):
                figure = stepper.judged_by(validate)
                progress.judge(figure, stepper.kept)
                monitor.validation(progress.step, figure)
            if progress.step % config.save_every == 0 or progress.is_over(config):
                _save(folder, stepper, progress)
    take(module, progress.best_weights or stepper.kept)
    module.eval()
    return progress


def trained(module: nn.Module) -> dict[str, Tensor]:
    """The weights that ask for a gradient, by name."""
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}


def take(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy these weights into the module's trained ones."""
    own = trained(module)
    with torch.no_grad():
        for name, weight in weights.items():
            own[name].copy_(weight)


@contextmanager
def ranks(device: str | torch.device = "cpu") -> Iterator[tuple[int, int]]:
    """This process' rank and their number: the process group that torchrun asks for, or one process alone.

    NCCL on CUDA, where the rank's device is set as the current one; gloo elsewhere.
    """
    opened = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if opened:
        on_cuda = torch.device(device).type == "cuda"
        if on_cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if on_cuda else "gloo")
    try:
        yield _rank_and_world()
    finally:
        if opened:
            dist.destroy_process_group()


def main_rank() -> bool:
    """Whether this process writes what all ranks share."""
    return _rank_and_world()[0] == 0


def _rank_and_world() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


class _Summed(nn.Module):
    """The loss as the forward pass of a module, which is what DistributedDataParallel wraps."""

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.module, self.loss = module, loss

    def forward(self, items: Items) -> tuple[Tensor, float]:
        return self.loss(self.module, items)


class _Stepper:
    """Module and optimizer of one rank, and one step."""

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        config: TrainingConfig,
        rate_of: Callable[[str], float],
        rank_and_world: tuple[int, int],
    ) -> None:
        self.module, self.config = module, config
        self.weights = trained(module)
        if not self.weights:
            raise ConfigError("no weight of the module asks for a gradient, so there is nothing to train")
        self.device = next(iter(self.weights.values())).device
        self.averages = {name: weight.detach().clone() for name, weight in self.weights.items() if config.average}
        self.rank, self.world = rank_and_world
        summed = _Summed(module, loss)
        self.summed = DistributedDataParallel(summed) if self.world > 1 else summed
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for name, weight in self.weights.items():
            groups.setdefault((rate_of(name), config.weight_decay if weight.ndim > 1 else 0.0), []).append(weight)
        self.optimizer = torch.optim.AdamW(
            [dict(params=group, share=share, weight_decay=decay) for (share, decay), group in groups.items()],
            lr=config.learning_rate, fused=True,
        )  # fmt: skip

    def step(self, items: Items, step: int) -> StepResult:
        """Optimizer step `step` on a global batch, of which this rank takes its share."""
        if len(items) < self.world:
            raise ConfigError(f"a batch of {len(items)} items for {self.world} ranks; each needs at least one")
        torch.manual_seed(hash((self.config.seed, step, self.rank)) % 2**63)  # of a tuple of ints: ever the same
        self.module.train()
        self.optimizer.zero_grad()
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)  # loss and weight, over pieces, then ranks
        pieces = _cut(items[self.rank :: self.world], self.config.accumulate)
        for number, piece in enumerate(pieces, start=1):
            with self._exchange(number == len(pieces)):
                with self._precision():
                    total, weight = self.summed(piece)
                total.backward()
            sums += torch.stack((total.detach().double(), sums.new_tensor(weight)))
        if self.world > 1:
            dist.all_reduce(sums)
        value, count = sums.tolist()
        # DistributedDataParallel has divided the sum over ranks by their number
        gradients = [weight.grad for weight in self.weights.values() if weight.grad is not None]
        torch._foreach_mul_(gradients, self.world / count if count else 0.0)
        norm = float(nn.utils.clip_grad_norm_(self.weights.values(), self.config.clip_norm))
        if not math.isfinite(norm):
            raise TrainingError(
                f"step {step + 1}: the loss is {value / max(count, 1):.4g} and its gradient has norm {norm}; lower the"
                f" learning rate of {self.config.learning_rate:g}, or take precision fp32"
            )
        rate = self.config.rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        self.optimizer.step()
        self._follow(step)
        return StepResult(value / count if count else 0.0, norm, rate)

    @property
    def kept(self) -> dict[str, Tensor]:
        """The weights that are validated and kept."""
        return self.averages or self.weights

    def _follow(self, step: int) -> None:
        """Move the averages; those of the first steps are of few weights, and follow faster."""
        if self.averages:
            decay = min(self.config.average, (1 + step) / (10 + step))
            own = [weight.detach() for weight in self.weights.values()]
            torch._foreach_lerp_(list(self.averages.values()), own, 1 - decay)

    def judged_by(self, validate: Validate) -> float:
        """The main rank's figure of the kept weights, on all ranks."""
        figure = torch.zeros(1, dtype=torch.float64, device=self.device)
        if self.rank == 0:
            self.module.eval()
            own = {name: weight.detach().clone() for name, weight in self.weights.items() if self.averages}
            take(self.module, self.averages)
            with torch.no_grad(), self._precision():
                figure[0] = validate(self.module)
            take(self.module, own)
        if self.world > 1:
            dist.broadcast(figure, 0)
        value = float(figure)
        return -math.inf if math.isnan(value) else value

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def _exchange(self, last: bool) -> AbstractContextManager[object]:
        """Only the last piece of a step adds the ranks' gradients up."""
        if isinstance(self.summed, DistributedDataParallel) and not last:
            return self.summed.no_sync()
        return nullcontext()


def _cut(items: Items, pieces: int) -> list[Items]:
    """At most so many pieces of at least one item, in order."""
    size = math.ceil(len(items) / pieces)
    return [items[start : start + size] for start in range(0, len(items), size)]


def _identity(config: TrainingConfig) -> dict[str, Any]:
    return {name: value for name, value in asdict(config).items() if name not in FREE}


def _save(folder: Path, stepper: _Stepper, progress: Progress) -> None:
    """Replace the checkpoint: written beside it, brought to the disk, renamed."""
    if stepper.rank:
        return
    work, target = folder / f".{CHECKPOINT}.{os.getpid()}", folder / CHECKPOINT
    state = {
        "config": _identity(stepper.config), "weights": stepper.weights, "optimizer": stepper.optimizer.state_dict(),
        "averages": stepper.averages, "progress": {name: getattr(progress, name) for name in Progress.__slots__},
    }  # fmt: skip
    try:
        with work.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(work, target)
    finally:
        work.unlink(missing_ok=True)


def _resume(folder: Path, stepper: _Stepper) -> Progress:
    """Put the module and the optimizer where a run of this folder was; at the start, if there was none.

    Raises:
        ConfigError, CheckpointError: as `fit`.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return Progress()
    try:
        state = torch.load(path, map_location=stepper.device, weights_only=True)
        theirs, ours = state["config"], _identity(stepper.config)
        theirs = {"average": 0.0, **theirs}  # which earlier versions had no field for
        if changed := differences(theirs, ours):
            raise ConfigError(
                f"{path} is of a run with another config ({'; '.join(changed)}); repeat that, or choose another folder"
            )
        if state["weights"].keys() != stepper.weights.keys():
            raise ConfigError(f"{path} is of a run that trained other weights; choose another folder")
        take(stepper.module, state["weights"])
        for name, weight in state.get("averages", {}).items():
            stepper.averages[name].copy_(weight)
        stepper.optimizer.load_state_dict(state["optimizer"])
        progress = Progress(**state["progress"])
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise CheckpointError(f"{path} cannot be read ({error}); remove it to start again") from error
    logger.info("%s: goes on after step %d", folder, progress.step)
    return progress
