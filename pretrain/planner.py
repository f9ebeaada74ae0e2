"""What a training run would take: memory of a GPU, time of a step, days, and the layouts that fit, best first."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pretrain.config import ParallelConfig
from pretrain.hardware import GPU, NODE
from pretrain.plan_memory import RECOMPUTE, Memory, Recompute, memory
from pretrain.plan_time import StepClock, StepTime, Work, ours
from xtrimo.config import GLMConfig
from xtrimo.errors import ConfigError

TENSOR_DEGREES = (1, 2, 4, NODE)  # beyond a node its exchanges would cost more than they save


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What is to be trained, and on what."""

    glm: GLMConfig
    """The model."""
    gpus: int
    """GPUs."""
    gpu: GPU
    """Their kind."""
    row_length: int
    """Tokens of a row, which is one micro-batch."""
    rows: int
    """Rows of a step, over all data-parallel ranks."""
    tokens: float
    """Tokens of the whole run."""
    protein_length: float
    """Tokens that a token sees: the length of its protein, or of the row where it sees the whole."""

    def __post_init__(self) -> None:
        for name in ("gpus", "row_length", "rows", "tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 1 <= self.protein_length <= self.row_length:
            raise ConfigError(
                f"protein_length is {self.protein_length:g}; it must lie in 1..{self.row_length}, the length of a row"
            )
        if self.glm.converted:
            raise ConfigError(f"the model has {self.glm.converted}, of published weights; training does without")

    @property
    def flops(self) -> float:
        """Of the model in the whole run: a backward pass counts twice a forward pass, recomputation nothing."""
        return 3 * self.glm.flops_per_token(self.protein_length) * self.tokens

    def data_degree(self, layout: ParallelConfig) -> int:
        """Data-parallel ranks of a layout.

        Raises:
            ConfigError: it cannot split this model, or share these GPUs and rows; says what could.
        """
        with _adding(lambda: self._degrees(layout)):
            layout.check(self.glm)
        replica = layout.tensor_degree * layout.pipeline_degree * layout.context_degree
        with _adding(lambda: f"--gpus could be {_around(self.gpus, replica)}"):
            degree = layout.data_degree(self.gpus)
        together = degree * (layout.pipeline_degree if layout.virtual_stages > 1 else 1)
        with _adding(lambda: f"--rows could be {_around(self.rows, together)}"):
            layout.check_rows(self.rows, degree)
        if self.row_length % layout.row_multiple:
            raise ConfigError(
                f"row_length {self.row_length} is no multiple of {layout.row_multiple}, the ranks that split its tokens"
            )
        return degree

    def _degrees(self, layout: ParallelConfig) -> str:
        glm = self.glm
        shared = math.gcd(glm.num_heads, glm.ffn_size, glm.vocab_size)
        tensor, pipeline = (
            ", ".join(str(n) for n in range(1, size + 1) if size % n == 0) for size in (shared, glm.num_layers)
        )
        return f"--tensor could be {tensor}, --pipeline x --virtual {pipeline}"


@contextmanager
def _adding(cure: Callable[[], str]) -> Iterator[None]:
    """What could be done, at the end of a refusal."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{error}; {cure()}") from None


def _around(size: int, step: int) -> str:
    """The multiples of `step` next to `size`."""
    below = size // step * step
    return f"{below} or {below + step}" if below else str(step)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A job in one layout."""

    job: Job
    """What is trained."""
    layout: ParallelConfig
    """How."""
    data_degree: int
    """Data-parallel ranks."""
    memory: Memory
    """Bytes of the fullest GPU."""
    time: StepTime
    """Seconds of a step."""

    @property
    def capacity(self) -> float:
        """Bytes of a GPU."""
        return self.job.gpu.memory_gb * 1e9

    @property
    def fits(self) -> bool:
        """Whether a GPU holds it."""
        return self.memory.total <= self.capacity

    @property
    def tokens_per_second(self) -> float:
        """Of all GPUs."""
        return self.job.rows * self.job.row_length / self.time.total

    @property
    def mfu(self) -> float:
        """Model FLOPs a second over the peak of all GPUs."""
        return self.tokens_per_second * self.job.flops / self.job.tokens / self._peak

    @property
    def hfu(self) -> float:
        """The same with what is computed again."""
        glm = self.job.glm
        again = {
            "none": 0.0,
            "selective": 6.0 * glm.hidden_size * glm.ffn_size * glm.num_layers,
            "full": glm.flops_per_token(self.job.protein_length) - 2 * glm.vocab_size * glm.hidden_size,
        }[self.layout.recompute]
        return self.mfu + self.tokens_per_second * again / self._peak

    @property
    def _peak(self) -> float:
        return self.job.gpus * self.job.gpu.teraflops * 1e12

    @property
    def days(self) -> float:
        """Of the whole run, if nothing breaks; held-out batches and checkpoints are not counted."""
        return self.job.tokens / self.tokens_per_second / 86400

    @property
    def gpu_hours(self) -> float:
        """Of the whole run."""
        return self.days * 24 * self.job.gpus

    @property
    def megawatt_hours(self) -> float:
        """At the nodes' most power; cooling and network not counted."""
        return self.gpu_hours * self.job.gpu.node_kilowatts / NODE / 1000

    @property
    def activations(self) -> dict[Recompute, float]:
        """Bytes of activations by recomputation."""
        layouts = (dataclasses.replace(self.layout, recompute=mode) for mode in RECOMPUTE)
        return {layout.recompute: _memory(self.job, layout, self.data_degree).activations for layout in layouts}

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; bytes, seconds."""
        job = self.job
        return {
            "parameters": job.glm.num_params, "gpus": job.gpus, "gpu": job.gpu.name, "fabric": job.gpu.fabric,
            "rows": job.rows, "row_length": job.row_length, "protein_length": job.protein_length,
            "layout": {**dataclasses.asdict(self.layout), "data_degree": self.data_degree},
            "memory": {**dataclasses.asdict(self.memory), "total": self.memory.total, "capacity": self.capacity},
            "activations": self.activations, "fits": self.fits,
            "step": {**dataclasses.asdict(self.time), "total": self.time.total},
            "tokens_per_second": self.tokens_per_second, "mfu": self.mfu, "hfu": self.hfu, "tokens": job.tokens,
            "flops": job.flops, "days": self.days, "gpu_hours": self.gpu_hours, "megawatt_hours": self.megawatt_hours,
        }  # fmt: skip


def plan(job: Job, layout: ParallelConfig) -> Plan:
    """One layout, whether it fits or not.

    Raises:
        ConfigError: see `Job.data_degree`.
    """
    degree = job.data_degree(layout)
    work = Work(
        tokens=job.row_length, length=job.protein_length, rows=job.rows // degree, data_degree=degree
    )  # fmt: skip
    clock = StepClock(ours(job.glm), layout, work, job.gpu)
    return Plan(
        job=job, layout=layout, data_degree=degree, memory=_memory(job, layout, degree), time=clock.step()
    )  # fmt: skip


def _memory(job: Job, layout: ParallelConfig, degree: int) -> Memory:
    return memory(job.glm, layout, row_length=job.row_length, rows=job.rows // degree, data_degree=degree)


def search(job: Job, context_degree: int = 1) -> list[Plan]:
    """The layouts that fit, fastest first: of each split of the model its best interleaving."""
    best: dict[tuple[Any, ...], Plan] = {}
    for layout in _layouts(job, context_degree):
        try:
            degree = job.data_degree(layout)
        except ConfigError:
            continue
        if _memory(job, layout, degree).total > job.gpu.memory_gb * 1e9:
            continue
        found = plan(job, layout)
        key = (layout.tensor_degree, layout.pipeline_degree, layout.recompute)
        if key not in best or found.time.total < best[key].time.total:
            best[key] = found
    return sorted(best.values(), key=lambda found: found.time.total)


def _layouts(job: Job, context: int) -> Iterator[ParallelConfig]:
    layers = job.glm.num_layers
    pipelines = [p for p in range(1, layers + 1) if layers % p == 0]
    for tensor, pipeline, mode in itertools.product(TENSOR_DEGREES, pipelines, RECOMPUTE):
        if job.gpus % (tensor * pipeline * context):
            continue
        groups = layers // pipeline
        for virtual in [v for v in range(1, groups + 1) if groups % v == 0] if pipeline > 1 else [1]:
            yield ParallelConfig(
                tensor_degree=tensor, sequence_parallel=tensor > 1, pipeline_degree=pipeline, virtual_stages=virtual,
                context_degree=context, distributed_optimizer=True, overlap=True, recompute=mode,
            )  # fmt: skip


def cure(bad: Plan) -> str:
    """How far a plan is from fitting, and the changes of one setting, or else the layouts, that would fit."""
    gigabytes = bad.memory.total / 1e9
    over = f"it needs {gigabytes:.1f} GB of {bad.capacity / 1e9:g}, {gigabytes - bad.capacity / 1e9:.1f} GB too many"
    layout = bad.layout
    changes: list[tuple[str, dict[str, Any]]] = [
        ("the distributed optimizer", dict(distributed_optimizer=True)),
        ("--recompute selective", dict(recompute="selective")),
        ("--recompute full", dict(recompute="full")),
        (f"--tensor {2 * layout.tensor_degree}", dict(tensor_degree=2 * layout.tensor_degree, sequence_parallel=True)),
        (f"--pipeline {2 * layout.pipeline_degree}", dict(pipeline_degree=2 * layout.pipeline_degree)),
        (f"--context {2 * layout.context_degree}", dict(context_degree=2 * layout.context_degree)),
    ]
    cures = []
    for name, fields in changes:
        changed = dataclasses.replace(layout, **fields)
        try:
            total = _memory(bad.job, changed, bad.job.data_degree(changed)).total
        except ConfigError:
            continue
        if changed != layout and total <= bad.capacity:
            cures.append(f"{name} ({total / 1e9:.1f} GB)")
    if cures:
        return f"{over}; these fit: {', '.join(cures)}"
    if found := search(bad.job, layout.context_degree):
        best = found[0].layout
        return (
            f"{over}; no single change fits, but --tensor {best.tensor_degree} --pipeline {best.pipeline_degree}"
            f" --virtual {best.virtual_stages} --recompute {best.recompute} does; --search lists more"
        )
    return f"{over}; no layout of {bad.job.gpus} GPUs fits: take more of them, or larger ones"
