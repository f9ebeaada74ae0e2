"""The one training loop of the plain model, which heads, generator and structure share; it knows no task.

    batches(step)  the items of optimizer step 0, 1, ...: a pure function, so that any step can be done again
    loss(module, items)  -> the sum of the items' losses, and how much that sum weighs (proteins, residues)

The gradient of a step is that of sum / weight over all its items, however these are cut: into `accumulate` pieces that
are computed one after another, and over the ranks that torchrun started. So neither changes what is learned, nor does
the engine that computes the steps (`engine`: torch's, or DeepSpeed's).

A run lives in a folder: `training.pt`, from which a killed run goes on exactly (weights, AdamW's moments, the best
weights so far), and `metrics.jsonl`; TensorBoard's files as well, where that is installed. It can be asked to stop
(`stopping`). The rate is a function of the step, dropout one of seed, step and rank: no random state is saved.
"""

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from xtrimo.durable import differences
from xtrimo.engine import Engine, Job, TorchEngine, Weights, copy
from xtrimo.errors import CheckpointError, ConfigError, StoppedError, TrainingError
from xtrimo.stopping import StopRequest
from xtrimo.training_config import TrainingConfig
from xtrimo.training_log import Monitor, StepResult

logger = logging.getLogger(__name__)

CHECKPOINT = "training.pt"
FREE = ("log_every", "save_every", "engine")  # what another run of the same folder may change; the engine tells itself
Items = Sequence[Any]
Loss = Callable[[nn.Module, Items], tuple[Tensor, float]]
Batches = Callable[[int], Items]
Validate = Callable[[nn.Module], float]
"""A figure of the module in eval mode; higher is better, NaN is worse than any."""


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
    """The trained weights then, or this rank's parts of them; empty without validation."""

    def judge(self, figure: float, weights: Weights) -> None:
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
        validate: on the main rank, or on all where weights lie in parts; the weights of its highest figure are kept.
        rate_of: the share of the learning rate that the weight of this name gets.
        alone: this process trains by itself, though it is one of several ranks.

    Raises:
        ConfigError: nothing to train, fewer items than ranks, or a folder with a run of another config or engine.
        CheckpointError: a folder whose checkpoint cannot be read.
        TrainingError: a gradient that is no longer a number.
        StoppedError: asked to stop; what was done is saved.
    """
    folder = Path(folder)
    rank, world = (0, 1) if alone else _rank_and_world()
    job = Job(module=module, config=config, rate_of=rate_of, rank=rank, world=world)
    with StopRequest(folder, job.device, alone=alone) as stop:
        stepper = _Stepper(job, loss, _engine(job, folder))
        progress = _resume(folder, stepper)
        _train(folder, stepper, progress, batches, validate, stop)
        over = progress.is_over(config)
        if over:
            copy(progress.best_weights or stepper.kept, stepper.engine.weights)
        stepper.engine.close()
        module.eval()
        stop.leave_word(over)
    if not over:
        raise StoppedError(
            f"{folder}: asked to stop ({stop.why or 'by another rank'}), saved after step {progress.step:,} of"
            f" {config.steps:,}; the same command goes on"
        )
    return progress


def _train(
    folder: Path, stepper: "_Stepper", progress: Progress, batches: Batches, validate: Validate | None,
    stop: StopRequest,
) -> None:  # fmt: skip
    """Take steps until the run is over, or asked to stop and saved."""
    config, device = stepper.job.config, stepper.job.device
    cuda = [device] if device.type == "cuda" else []
    with Monitor(folder, config.steps, progress.step, config.log_every) as monitor, torch.random.fork_rng(cuda):
        stopped = False
        while not (stopped or progress.is_over(config)):
            result = stepper.step(batches(progress.step), progress.step)
            progress.step += 1
            monitor.step(progress.step, result)
            due = config.validate_every and progress.step % config.validate_every == 0
            if validate and (due or progress.step == config.steps):
                figure = stepper.judged_by(validate)
                progress.judge(figure, stepper.kept)
                monitor.validation(progress.step, figure)
            stopped = stop.heard()
            if stopped or progress.step % config.save_every == 0 or progress.is_over(config):
                _save(folder, stepper, progress)


def _engine(job: Job, folder: Path) -> Engine:
    if job.config.engine.name == "torch":
        return TorchEngine(job)
    from xtrimo.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(job, folder)


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


class _Stepper:
    """One step of one rank, and what is validated and kept."""

    def __init__(self, job: Job, loss: Loss, engine: Engine) -> None:
        self.job, self.loss, self.engine = job, loss, engine
        job.module.zero_grad()  # of whatever was done before
        average = job.config.average
        self.averages = {name: weight.detach().clone() for name, weight in engine.weights.items() if average}

    def step(self, items: Items, step: int) -> StepResult:
        """Optimizer step `step` on a global batch, of which this rank takes its share."""
        job, config = self.job, self.job.config
        self._check(items)
        torch.manual_seed(hash((config.seed, step, job.rank)) % 2**63)  # of a tuple of ints: ever the same
        job.module.train()
        sums = torch.zeros(2, dtype=torch.float64, device=job.device)  # loss and weight, over pieces, then ranks
        pieces = cut(items[job.rank :: job.world], min(config.accumulate, len(items) // job.world))
        for number, piece in enumerate(pieces, start=1):
            total, weight = self.engine.add_gradient(_bound(self.loss, piece), last=number == len(pieces))
            sums += torch.stack((total.double(), sums.new_tensor(weight)))
        if job.world > 1:
            dist.all_reduce(sums)
        value, weight = sums.tolist()
        rate = config.rate(step)
        norm = self.engine.step(weight, rate) if math.isfinite(value) else math.nan
        if not math.isfinite(norm):
            raise TrainingError(
                f"step {step + 1}: the loss is {value / max(weight, 1):.4g} and its gradient has norm {norm}; lower the"
                f" learning rate of {config.learning_rate:g}, or take precision fp32"
            )
        self._follow(step)
        return StepResult(value / weight if weight else 0.0, norm, rate)

    def _check(self, items: Items) -> None:
        world = self.job.world
        if len(items) < world:
            raise ConfigError(f"a batch of {len(items)} items for {world} ranks; each needs at least one")
        self.job.config.engine.check_batch(len(items), world)

    @property
    def kept(self) -> Weights:
        """The weights that are validated and kept."""
        return self.averages or self.engine.weights

    def _follow(self, step: int) -> None:
        """Move the averages; those of the first steps are of few weights, and follow faster."""
        if self.averages:
            decay = min(self.job.config.average, (1 + step) / (10 + step))
            own = [weight.detach() for weight in self.engine.weights.values()]
            torch._foreach_lerp_(list(self.averages.values()), own, 1 - decay)

    def judged_by(self, validate: Validate) -> float:
        """The main rank's figure of the kept weights, on all ranks."""
        figure = torch.zeros(1, dtype=torch.float64, device=self.job.device)
        if self.job.rank == 0 or self.engine.in_parts:
            self.job.module.eval()
            own = {name: weight.detach().clone() for name, weight in self.engine.weights.items() if self.averages}
            copy(self.averages, self.engine.weights)
            with torch.no_grad():
                figure[0] = self.engine.figure(validate)
            copy(own, self.engine.weights)
        if self.job.world > 1:
            dist.broadcast(figure, 0)
        value = float(figure)
        return -math.inf if math.isnan(value) else value


def _bound(loss: Loss, items: Items) -> Callable[[nn.Module], tuple[Tensor, float]]:
    return lambda module: loss(module, items)


def cut(items: Items, pieces: int) -> list[Items]:
    """So many pieces, in order, whose lengths differ by one at most.

    >>> cut("abcde", 3)
    ['ab', 'cd', 'e']
    """
    size, longer = divmod(len(items), pieces)
    ends = [number * size + min(number, longer) for number in range(pieces + 1)]
    return [items[start:end] for start, end in zip(ends, ends[1:], strict=False)]


def _identity(config: TrainingConfig) -> dict[str, Any]:
    return {name: value for name, value in asdict(config).items() if name not in FREE}


def _save(folder: Path, stepper: _Stepper, progress: Progress) -> None:
    """Replace the checkpoint: written beside it, brought to the disk, renamed."""
    scalars = {name: getattr(progress, name) for name in Progress.__slots__}
    own = {"averages": stepper.averages, "best_weights": scalars.pop("best_weights")}
    kept = stepper.engine.save(folder, progress.step, own)
    if stepper.job.rank:
        return
    work, target = folder / f".{CHECKPOINT}.{os.getpid()}", folder / CHECKPOINT
    config = _identity(stepper.job.config)
    try:
        with work.open("wb") as file:
            torch.save({"config": config, "engine": stepper.engine.facts(), "progress": scalars, **kept}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(work, target)
    finally:
        work.unlink(missing_ok=True)
    stepper.engine.saved(folder, progress.step)


def _resume(folder: Path, stepper: _Stepper) -> Progress:
    """Put the module and the optimizer where a run of this folder was; at the start, if there was none.

    Raises:
        ConfigError, CheckpointError: as `fit`.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return Progress()
    try:
        state = _as_written_now(torch.load(path, map_location=stepper.job.device, weights_only=True))
        _check_run(path, state, stepper)
        own = stepper.engine.load(folder, state["progress"]["step"], state)
        for name, weight in own["averages"].items():
            stepper.averages[name].copy_(weight)
        progress = Progress(**state["progress"], best_weights=dict(own["best_weights"]))
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise CheckpointError(f"{path} cannot be read ({error}); remove it to start again") from error
    logger.info("%s: goes on after step %d", folder, progress.step)
    return progress


def _as_written_now(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint of an earlier version, which had one engine, and at first no averages, in this one's words."""
    if "engine" in state:
        return state
    progress = dict(state.get("progress", {}))
    own = {"averages": state.get("averages", {}), "best_weights": progress.pop("best_weights", {})}
    config = {"average": 0.0, **state["config"]}
    return {**state, "config": config, "engine": {"name": "torch"}, "progress": progress, "own": own}


def _check_run(path: Path, state: Mapping[str, Any], stepper: _Stepper) -> None:
    """Refuse a checkpoint of another config or engine."""
    ours = {"config": _identity(stepper.job.config), "engine": stepper.engine.facts()}
    for what, asked in ours.items():
        if changed := differences(state[what], asked):
            raise ConfigError(
                f"{path} is of a run with another {what} ({'; '.join(changed)}); repeat that, or choose another folder"
            )
