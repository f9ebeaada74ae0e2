"""How a module is trained, and what computes its steps: the settings of the training loop."""

import importlib.util
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from xtrimo.errors import ConfigError, MissingExtraError

OURS = {
    "train_batch_size": "the loop weighs items itself; --batch-size sets how many a step has",
    "train_micro_batch_size_per_gpu": "the loop weighs items itself; --batch-size sets how many a step has",
    "gradient_accumulation_steps": "--accumulate sets it",
    "managed_gradient_accumulation": "the loop says where a step ends",
    "prescale_gradients": "the loop weighs gradients itself",
    "gradient_predivide_factor": "the loop weighs gradients itself",
    "gradient_clipping": "it follows from the training's own clip norm",
    "optimizer": "AdamW is the loop's, as without DeepSpeed",
    "scheduler": "the rate is a function of the step",
    "fp16": "--precision sets it",
    "bf16": "--precision sets it",
    "amp": "--precision sets it",
    "torch_autocast": "--precision sets it",
    "checkpoint": "checkpoints are switched by the loop, so that a kill leaves a whole one",
    "zero_allow_untested_optimizer": "AdamW is torch's own",
    "zero_force_ds_cpu_optimizer": "AdamW is torch's own",
    "zero_optimization.stage": "--zero sets it",
    "zero_optimization.offload_optimizer.device": "--offload sets it",
    "zero_optimization.offload_param.device": "--offload sets it",
    "zero_optimization.stage3_param_persistence_threshold": "of each weight, parts alone are kept and averaged",
}
"""Keys of DeepSpeed's JSON that are not a user's, and why; a dot leads into a section."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOptions:
    """What computes the steps; it changes memory and speed, not what is learned."""

    name: Annotated[Literal["torch", "deepspeed"], arg(name="engine")] = "torch"
    """torch has a copy of all on each rank; deepspeed shares it out among them (ZeRO)."""
    zero: Literal[1, 2, 3] = 2
    """deepspeed: ranks share AdamW's moments (1), gradients too (2), weights too (3)."""
    offload: Literal["none", "optimizer", "weights"] = "none"
    """deepspeed: keep AdamW's moments, or with --zero 3 the weights as well, in the memory of the CPU."""
    deepspeed_json: Path | None = None
    """deepspeed: a file of its settings, put over ours; those that the training decides are refused."""

    def __post_init__(self) -> None:
        if self.name == "torch":
            if (self.zero, self.offload, self.deepspeed_json) != (2, "none", None):
                raise ConfigError("zero, offload and deepspeed_json are deepspeed's; give --engine deepspeed too")
            return
        if self.offload == "weights" and self.zero != 3:
            raise ConfigError(f"offload weights with zero {self.zero}: the weights are shared out by zero 3 alone")
        if importlib.util.find_spec("deepspeed") is None:
            raise MissingExtraError(
                "engine deepspeed needs deepspeed, which is not installed; run: pip install 'xtrimo[deepspeed]'"
            )
        self.overrides()  # what it refuses

    def check_batch(self, num_items: int, world: int) -> None:
        """Refuse a step that ranks cannot share.

        Raises:
            ConfigError: the ranks share the weights out, and would not have as many items each.
        """
        if self.name == "deepspeed" and self.zero == 3 and num_items % world:
            raise ConfigError(
                f"a batch of {num_items} items for {world} ranks that share the weights out: each has to call the same"
                " layers, so all need as many items; take another batch size, or zero 2"
            )

    def overrides(self) -> dict[str, Any]:
        """The user's settings of DeepSpeed; none without a file.

        Raises:
            ConfigError: no such file, no JSON object, or a key that is not the user's.
        """
        if self.deepspeed_json is None:
            return {}
        try:
            found = json.loads(self.deepspeed_json.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.deepspeed_json} is no file of DeepSpeed's settings ({error})") from error
        if not isinstance(found, dict):
            raise ConfigError(f"{self.deepspeed_json} holds {type(found).__name__}; expected one JSON object")
        for name in _leaves(found):
            path = f"{name}."
            if why := next((OURS[key] for key in OURS if path.startswith(f"{key}.") or f"{key}.".startswith(path)), ""):
                raise ConfigError(f"{self.deepspeed_json} sets {name}, which is not for it: {why}; leave it out")
        return found


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The names of all values, with dots.

    >>> _leaves({"a": 1, "b": {"c": 2, "d": {}}})
    ['a', 'b.c']
    """
    found = []
    for key, value in settings.items():
        found += _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return found


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
    engine: EngineOptions = EngineOptions()
    """What computes the steps."""

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
