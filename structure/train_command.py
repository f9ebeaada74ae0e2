"""The verb `train-fold`, before any model is made: what is large is imported when it runs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tyro.conf import OmitArgPrefixes

from structure.config import PRESETS, FoldConfig
from xtrimo.answer import give
from xtrimo.errors import ConfigError
from xtrimo.training import ranks
from xtrimo.training_config import EngineOptions, TrainingConfig

NO_MODEL = "none"
CLIP_NORM = 0.1
"""As AlphaFold 2 has it (supplement 1.11.3)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainFoldOptions:
    """Train a folding model on chains with coordinates."""

    data: Path
    """An archive of chains (.npz), or a folder of mmCIF and PDB files."""
    model: str
    """Language model that it reads: a directory, a name on the Hugging Face Hub, or antiberty; none for amino acids
    alone."""
    out: Path
    """Folder of the run; the trained model is in it as `model`."""
    start_from: Path | None = None
    """A trained folding model of the same shape and language model, whose weights this training begins with; new ones
    by default."""
    preset: str = "fold-tiny"
    """Shape of the folding model: fold-tiny, fold-8m or fold-150m."""
    trunk: Literal["trimul", "esmfold"] | None = None
    """Another trunk than the preset's."""
    layers: tuple[int, ...] = ()
    """Whose states are mixed, with learned shares: 0 is the embedding, -1 the last. By default all."""
    maps: bool = False
    """Let pairs read the attention maps of these layers as well."""
    side_chains: bool | None = None
    """Train on side chains; by default where the data has any."""
    steps: int = 4000
    """Optimizer steps."""
    batch_size: int = 4
    """Crops of a step, over all ranks."""
    crop_length: int = 128
    """Residues of a crop, at most."""
    learning_rate: float = 1e-3
    """At its peak."""
    clamp_from_ratio: float = 0.5
    """Share of the steps in which FAPE is not clamped; from then on, nine crops of ten are."""
    violations_from_ratio: float = 0.75
    """Share of the steps after which violated bonds and clashing atoms cost."""
    average: float = 0.999
    """Decay of the moving average of the weights."""
    valid_chains: int = 40
    """Chains that are folded to validate, at most."""
    test_chains: int = 200
    """Chains that the trained model is judged on, at most."""
    validate_every: int = 250
    """Steps between validations."""
    accumulate: int = 1
    """Pieces that a step's crops are computed in, to save memory."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the trunk's matrix products; the structure module stays in fp32."""
    seed: int = 0
    """Of the weights, the crops and dropout."""
    device: str = "cpu"
    """Where to run, such as cuda; under torchrun each rank takes its own."""
    cache: Path | None = None
    """Folder of the language model's states, which other runs on the same chains share; by default in the run."""
    engine: OmitArgPrefixes[EngineOptions] = EngineOptions()
    """What computes the steps of training."""

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ConfigError(f"no preset {self.preset!r}; known: {', '.join(PRESETS)}")
        if not 0 <= self.clamp_from_ratio <= 1 or not 0 <= self.violations_from_ratio <= 1:
            raise ConfigError(
                f"clamp_from_ratio {self.clamp_from_ratio} and violations_from_ratio {self.violations_from_ratio} must"
                " lie in 0..1"
            )
        if min(self.batch_size, self.crop_length, self.valid_chains, self.test_chains) < 1 or self.seed < 0:
            raise ConfigError(
                f"batch_size {self.batch_size}, crop_length {self.crop_length}, valid_chains {self.valid_chains} and"
                f" test_chains {self.test_chains} must be at least 1, seed {self.seed} not negative"
            )
        if self.model == NO_MODEL and (self.layers or self.maps):
            raise ConfigError("layers and maps are of a language model, and model is none; leave them out, or name one")
        self.training()  # what it refuses

    def shape(self) -> FoldConfig:
        """The preset, with another trunk if one was asked for."""
        config = PRESETS[self.preset]
        if self.trunk is None or self.trunk == config.trunk:
            return config
        if self.trunk == "trimul":
            return replace(config, trunk="trimul", max_recycles=0, dropout=0.0)
        return replace(config, trunk="esmfold", max_recycles=3)

    def training(self) -> TrainingConfig:
        """The training loop's settings."""
        return TrainingConfig(
            steps=self.steps, learning_rate=self.learning_rate, precision=self.precision, accumulate=self.accumulate,
            validate_every=self.validate_every, average=self.average, seed=self.seed,
            clip_norm=CLIP_NORM, save_every=50, engine=self.engine,
        )  # fmt: skip


def main(args: Sequence[str] | None = None) -> None:
    """`xtrimo train-fold`."""
    import tyro

    options = tyro.cli(TrainFoldOptions, prog="xtrimo train-fold", args=args)
    from structure.judging import report  # seconds, which a question for help does not wait for
    from structure.train import train_fold

    with ranks(options.device) as (rank, world):
        options.engine.check_batch(options.batch_size, world)
        results = train_fold(options)
    if rank == 0:
        give({**results, "model": options.out / "model"}, f"{report(results)}\n{options.out / 'model'}")
