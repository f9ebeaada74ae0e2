"""One pretraining run as data: model, batches, curriculum, optimizer, layout, housekeeping. The command line is this.

Everything is checked before a process group exists: an impossible run dies at once, naming both numbers and the rule.
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from xtrimo.config import GLMConfig, preset
from xtrimo.errors import ConfigError
from xtrimo.objectives import OBJECTIVES, ObjectiveConfig


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchConfig:
    """How many tokens a step sees."""

    row_length: int = 4096
    """Most tokens in a packed row; a row is one micro-batch, and longer proteins are cropped to it."""
    rows: int = 4
    """Rows in a full batch, over all data-parallel ranks."""
    cluster_balanced: bool = False
    """Draw the clusters of a source, not its proteins, with equal chance; needs a corpus built with a cluster file."""
    start_rows: int = 0
    """Rows of the first step when the batch ramps up; 0 starts with the full batch."""
    ramp_increment: int = 0
    """Rows added at each stage of the ramp."""
    ramp_rows: int = 0
    """Rows consumed by the whole ramp, shared equally by its stages."""

    def __post_init__(self) -> None:
        _require(self.row_length >= 16, f"row_length is {self.row_length}; a row needs at least 16 tokens")
        _require(self.rows >= 1, f"rows is {self.rows}; a batch needs at least 1")
        _require(
            bool(self.start_rows) or not (self.ramp_increment or self.ramp_rows),
            f"ramp_increment {self.ramp_increment} and ramp_rows {self.ramp_rows} need start_rows, which is 0: no ramp",
        )
        if self.start_rows:
            _require(self.start_rows > 0, f"start_rows is {self.start_rows}; it must not be negative")
            steps = self.rows - self.start_rows
            ok = steps > 0 < self.ramp_increment and steps % self.ramp_increment == 0 and self.ramp_rows > 0
            _require(ok, f"the ramp from {self.start_rows} to {self.rows} rows by {self.ramp_increment} over"
                         f" {self.ramp_rows} rows does not close: rows - start_rows must be a positive multiple of"
                         " ramp_increment, and ramp_rows positive")  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class CurriculumConfig:
    """Two stages: masked language modelling alone, then the mixture, with a linear ramp between.

    The published 100B run was unstable where it switched objectives; a smooth change of the mixing ratio cured it.
    """

    mlm_tokens: int = 0
    """Tokens of the first stage, MLM only (a model without MLM skips it)."""
    ramp_tokens: int = 0
    """Tokens over which the mixture fades in."""
    mlm_share: float = 0.2
    """Share of MLM in the second stage; the rest goes to gMASK, sMASK or causal."""
    smask_share: float = 0.2
    """Share of sMASK in the second stage."""

    def __post_init__(self) -> None:
        _require(min(self.mlm_tokens, self.ramp_tokens) >= 0, "mlm_tokens and ramp_tokens must not be negative")
        _require(
            self.mlm_share >= 0 and self.smask_share >= 0 and self.mlm_share + self.smask_share <= 1,
            f"mlm_share {self.mlm_share} and smask_share {self.smask_share} must be in 0..1 and not exceed 1 together",
        )

    def final_shares(self, model: GLMConfig) -> dict[str, float]:
        """Share of each objective in the second stage; shares of objectives the model lacks go to the others."""
        rest = 1 - self.mlm_share - self.smask_share
        shares = {"mlm": self.mlm_share, "smask": self.smask_share, "gmask": rest, "causal": rest}
        if "gmask" in model.objectives:  # causal is gmask without a source: one of them takes the rest
            shares["causal"] = 0.0
        known = {name: shares[name] if name in model.objectives else 0.0 for name in OBJECTIVES}
        total = sum(known.values())
        _require(total > 0, f"no share is left for the model's objectives {model.objectives}")
        return {name: share / total for name, share in known.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW with decoupled decay (none on biases and norms), linear warm-up and cosine decay."""

    learning_rate: float = 1e-3
    """Peak learning rate."""
    min_learning_rate_ratio: float = 0.1
    """Last learning rate, as a share of the peak."""
    warmup_ratio: float = 0.025
    """Share of the steps that warm up."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices."""
    beta1: float = 0.9
    """Decay of Adam's first moment."""
    beta2: float = 0.95
    """Decay of Adam's second moment."""
    eps: float = 1e-8
    """Adam's epsilon."""
    clip_norm: float = 1.0
    """Largest global gradient norm."""
    embedding_gradient: float = 0.1
    """Scale of the gradient that reaches the input embedding (GLM-130B's embedding-gradient shrink)."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "eps", "clip_norm"):
            value = getattr(self, name)
            _require(0 < value < math.inf, f"{name} is {value}; it must be positive and finite")
        for name in ("beta1", "beta2"):
            _require(0 <= getattr(self, name) < 1, f"{name} is {getattr(self, name)}; it must be in 0..1, below 1")
        _require(0 <= self.weight_decay < math.inf, f"weight_decay is {self.weight_decay}; it must not be negative")
        for name in ("min_learning_rate_ratio", "warmup_ratio", "embedding_gradient"):
            _require(0 <= getattr(self, name) <= 1, f"{name} is {getattr(self, name)}; it must be in 0..1")


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """How the ranks share the work; what tensor, pipeline and context do not use is data parallel."""

    tensor_degree: int = 1
    """Ranks that split each weight."""
    sequence_parallel: bool = False
    """Split also norms, dropout and residuals, by tokens, over the tensor ranks."""
    pipeline_degree: int = 1
    """Ranks that split the layers."""
    virtual_stages: int = 1
    """Groups of layers that each pipeline rank holds; more than 1 interleaves them, so that ranks wait less."""
    context_degree: int = 1
    """Ranks that split the tokens of a row."""
    distributed_optimizer: bool = False
    """Shard optimizer state over the data-parallel ranks (ZeRO-1)."""
    overlap: bool = False
    """Exchange gradients (and, with the distributed optimizer, weights) while computing."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations computed again in the backward pass: none, the feed-forwards', or all but each layer's input."""

    def __post_init__(self) -> None:
        for name in ("tensor_degree", "pipeline_degree", "virtual_stages", "context_degree"):
            _require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        _require(
            self.tensor_degree > 1 or not self.sequence_parallel,
            "sequence_parallel splits tokens over the tensor ranks, and tensor_degree is 1; raise it, or use"
            " context_degree",
        )
        _require(
            self.pipeline_degree > 1 or self.virtual_stages == 1,
            f"virtual_stages {self.virtual_stages} interleave a pipeline, and pipeline_degree is 1",
        )

    @property
    def row_multiple(self) -> int:
        """Tokens of a row come in multiples of this, so that every rank has the same number."""
        return self.context_degree * (self.tensor_degree if self.sequence_parallel else 1)

    def data_degree(self, world_size: int) -> int:
        """Data-parallel ranks of a job of `world_size` ranks.

        Raises:
            ConfigError: with the sum spelled out, when the ranks do not divide.
        """
        degrees = {"tensor": self.tensor_degree, "pipeline": self.pipeline_degree, "context": self.context_degree}
        shard = math.prod(degrees.values())
        _require(
            world_size % shard == 0,
            f"{world_size} ranks cannot hold {' x '.join(f'{name} {n}' for name, n in degrees.items())} = {shard}"
            " ranks a replica; use a multiple",
        )
        return world_size // shard

    def check(self, model: GLMConfig) -> None:
        """Refuse a model that these degrees cannot split."""
        for name in ("num_heads", "ffn_size", "vocab_size"):
            _require_split(name, getattr(model, name), "tensor_degree", self.tensor_degree)
        stages = "pipeline_degree" if self.virtual_stages == 1 else "pipeline_degree x virtual_stages ="
        _require_split("num_layers", model.num_layers, stages, self.pipeline_degree * self.virtual_stages)

    def check_rows(self, rows: int, degree: int) -> None:
        """Refuse a batch of `rows` that `degree` data-parallel ranks cannot share, or interleave."""
        _require_split("a batch of rows", rows, "data-parallel ranks", degree)
        if self.virtual_stages > 1:
            what = f"{rows} rows over {degree} data-parallel ranks, rows of one rank"
            _require_split(what, rows // degree, "an interleaved pipeline of degree", self.pipeline_degree)


def _require_split(what: str, size: int, splitter: str, degree: int) -> None:
    whole, rest = divmod(size, degree)
    _require(
        rest == 0 and whole > 0, f"{what} {size} = {degree} x {whole} + {rest}: {splitter} {degree} cannot split it"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class FaultConfig:
    """What to do when something goes wrong in a long run."""

    max_skipped: int = 10
    """Steps in a row without a finite gradient before the run stops; each of them changes no weight."""
    hang_seconds: float = 1800.0
    """Seconds without a finished step before every rank writes where it stands and ends; 0 waits for ever."""
    spike_nats: float = 1.0
    """A loss this far above the running median is reported as a spike."""
    spike_window: int = 50
    """Steps of the running median; there are no spikes before it is full."""
    roll_back: bool = False
    """At a spike, go back to the newest checkpoint before it and leave out the batches from there to the spike."""
    skip_batches: tuple[str, ...] = ()
    """Batches to leave out, as FIRST-LAST counted from 0; going back to a checkpoint from before them if need be."""

    def __post_init__(self) -> None:
        for name in ("max_skipped", "spike_window"):
            _require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        _require(self.hang_seconds >= 0, f"hang_seconds is {self.hang_seconds}; it must not be negative")
        _require(self.spike_nats > 0, f"spike_nats is {self.spike_nats}; it must be positive")
        for text in self.skip_batches:
            first, dash, last = text.partition("-")
            ok = bool(dash) and first.isdecimal() and last.isdecimal() and int(first) <= int(last)
            _require(ok, f"skip_batches got {text!r}; it must be FIRST-LAST, such as 115800-116100")


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig:
    """A pretraining run. The same command on an existing run folder resumes it."""

    corpus: Path
    """Corpus directory written by `xtrimo corpus`."""
    run: Annotated[Path, arg(name="out")]  # --run would be read by torchrun, as short for its --run-path
    """Run folder: config, checkpoints, metrics."""
    model: str = "glm-8m"
    """Preset: glm-1m, glm-8m, glm-35m, glm-150m, or the shape of a published checkpoint (see xtrimo/config.py)."""
    steps: int = 1000
    """Optimizer steps of the whole run."""
    seed: int = 0
    """Draws weights, data order and masks."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of weights and activations; below fp32 the optimizer keeps fp32 copies, fp16 scales the loss."""
    dropout: float = 0.0
    """Chance that a value of a sublayer's output is dropped in training."""
    validate_every: int = 100
    """Steps between validations; 0 validates only at the end."""
    valid_tokens: int = 50_000
    """Tokens of held-out proteins per objective and validation."""
    save_every: int = 100
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 2
    """Checkpoints kept, the newest ones."""
    keep_every: int = 0
    """Checkpoints at multiples of this step are kept for good; 0 keeps none for good."""
    async_save: bool = False
    """Write checkpoints in a process beside the training."""
    log_every: int = 10
    """Steps between log lines and metrics."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    fault: FaultConfig = field(default_factory=FaultConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "keep", "log_every", "save_every", "valid_tokens"):
            _require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("validate_every", "keep_every"):
            _require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; it must not be negative")
        _require(0 <= self.dropout < 1, f"dropout is {self.dropout}; it must be in 0..1, below 1")
        _require(0 <= self.seed < 2**63, f"seed is {self.seed}; it must be at least 0 and below 2**63")
        _require(
            self.objective.reverse_ratio < 1, "reverse_ratio is 1; some samples must read forward, as generation does"
        )
        _require(
            not self.glm.converted,
            f"{self.model} has {self.glm.converted}, of published weights; training does without",
        )
        self.parallel.check(self.glm)
        self.curriculum.final_shares(self.glm)

    @property
    def glm(self) -> GLMConfig:
        """The model as this run trains it: the preset, with its row length and reading directions."""
        ratio = self.objective.reverse_ratio
        known = preset(self.model)
        directions = known.directions if ratio > 0 else ("forward",)
        return dataclasses.replace(known, max_length=self.batch.row_length, directions=directions)

    def check_ranks(self, world_size: int) -> int:
        """Data-parallel degree of a job of `world_size` ranks; refuses batches it cannot share equally."""
        degree = self.parallel.data_degree(world_size)
        batch = self.batch
        sizes = {batch.rows, *((batch.start_rows, batch.ramp_increment) if batch.start_rows else ())}
        for size in sorted(sizes):
            self.parallel.check_rows(size, degree)
        return degree

    def to_json(self) -> str:
        """The config as a file of the run folder, with the model spelled out."""
        return json.dumps({**dataclasses.asdict(self), "glm": self.glm.to_dict()}, indent=1, default=str) + "\n"

    def what_fixes_the_run(self) -> dict[str, Any]:
        """The part that a resumed run must share with the run it continues: all but places, rhythm and degrees.

        Whether the optimizer is sharded is in it: megatron reads neither kind of checkpoint into the other.
        """
        kept = ("model", "glm", "seed", "precision", "dropout", "batch", "objective", "curriculum", "optimizer")
        facts: dict[str, Any] = json.loads(self.to_json())
        return {name: facts[name] for name in kept} | {"distributed_optimizer": self.parallel.distributed_optimizer}
