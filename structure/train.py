"""The verb `train-fold`: chains with coordinates and a language model to a folding model.

The language model's states of all chains are computed once, into a file; a step reads windows of them. FAPE is not
clamped at first: a model that is clamped from the start does not find the fold of even one protein. What is validated
and kept is a moving average of the weights.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from structure.config import PRESETS, FoldConfig
from structure.data import Crop, CropSampler, Example, Split, read_split
from structure.features import Protein, collate
from structure.fold_directory import FoldFacts, save_fold, with_lm
from structure.judging import judge, mean_lddt, report
from structure.losses import BACKBONE_SLOTS, Truth, terms, total
from structure.model import FoldModel
from structure.openfold import constants
from structure.reader import Reader
from xtrimo.backbone import Backbone
from xtrimo.command import ModelOptions
from xtrimo.durable import write_json
from xtrimo.embedding_file import fingerprint
from xtrimo.errors import ConfigError, DataError
from xtrimo.model import counted_from_start
from xtrimo.states import num_maps
from xtrimo.states_file import CacheKey, cached_states
from xtrimo.training import TrainingConfig, fit

logger = logging.getLogger(__name__)

NO_MODEL = "none"
VIOLATION_WEIGHT = 0.1
TRAINING, SETTINGS, RESULTS = "training", "settings.json", "results.json"
FREE = ("out", "data", "cache", "device")
"""What changes how a result is reached, and not the result."""


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

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ConfigError(f"no preset {self.preset!r}; known: {', '.join(PRESETS)}")
        if not 0 <= self.clamp_from_ratio <= 1 or not 0 <= self.violations_from_ratio <= 1:
            raise ConfigError(
                f"clamp_from_ratio {self.clamp_from_ratio} and violations_from_ratio {self.violations_from_ratio} must"
                " lie in 0..1"
            )

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
            validate_every=self.validate_every, average=self.average, seed=self.seed, clip_norm=1.0, save_every=50,
        )  # fmt: skip


def main(args: Sequence[str] | None = None) -> None:
    """`xtrimo train-fold`."""
    import tyro

    from xtrimo.training import ranks

    options = tyro.cli(TrainFoldOptions, prog="xtrimo train-fold", args=args)
    with ranks(options.device) as (rank, _):
        results = train_fold(options)
    if rank == 0:
        print(report(results))
        print(options.out / "model")


def train_fold(options: TrainFoldOptions) -> dict[str, Any]:
    """Train, judge and save; what is in results.json.

    Raises:
        DataError: no chain to learn from.
        ConfigError: a folder with a run of other settings, or what `fit` refuses.
    """
    split = read_split(options.data)
    logger.info(
        "%s: %d chains to train on, %d to validate, %d to test; left out: %s", options.data, len(split.train),
        len(split.valid), len(split.test), dict(split.left_out) or "none",
    )  # fmt: skip
    if not split.valid:
        raise DataError(f"{options.data} has no chain to validate on; expected at least two clusters of chains")
    lm = None if options.model == NO_MODEL else ModelOptions(model=options.model, precision="fp32").load()
    layers = tuple(counted_from_start(options.layers, lm.num_layers)) if lm and options.layers else _all_layers(lm)
    maps = num_maps(lm, layers, letters(split.train[0])) if lm and options.maps else 0
    side_chains = has_side_chains(split.train) if options.side_chains is None else options.side_chains
    config = replace(with_lm(options.shape(), lm, layers, maps), side_chains=side_chains)
    facts = FoldFacts(config=config, lm=options.model if lm else "", lm_hash=fingerprint(lm) if lm else "",
                      lm_layers=layers)  # fmt: skip
    _claim(options, facts)
    reader = _cached_reader(split, lm, facts, options)
    model = _new(config, options.seed).to(options.device)
    sampler = CropSampler(
        split.train, options.crop_length, options.seed, clamp_from=round(options.clamp_from_ratio * options.steps),
        max_recycles=config.max_recycles,
    )  # fmt: skip
    violations_from = round(options.violations_from_ratio * options.steps)
    trainer = Trainer(reader, split, config)
    progress = fit(
        model, trainer.loss, lambda step: trainer.items(sampler, step, options.batch_size, step >= violations_from),
        options.training(), options.out / TRAINING,
        validate=lambda module: mean_lddt(module, split.valid[: options.valid_chains], trainer.protein),
    )  # fmt: skip
    results = {
        "valid_lddt": progress.best, "best_step": progress.best_step, "num_train": len(split.train),
        "left_out": dict(split.left_out),
        "test": judge(model, _new(config, options.seed).to(options.device), split.test or split.valid, trainer.protein),
    }  # fmt: skip
    training = {"data": options.data.name, "steps": progress.best_step, "crop_length": options.crop_length}
    save_fold(options.out / "model", model, replace(facts, training=training))
    write_json(options.out / RESULTS, results)
    return results


class Trainer:
    """What the training loop asks for: the items of a step, and their loss.

    Args:
        reader: gives the language model's states of whole chains.
        split: the chains.
        config: of the model.
    """

    def __init__(self, reader: Reader, split: Split, config: FoldConfig) -> None:
        self.reader, self.split, self.config = reader, split, config

    def items(self, sampler: CropSampler, step: int, batch_size: int, violations: bool) -> list[tuple[Crop, bool]]:
        """The crops of a step, and whether violations cost."""
        return [(crop, violations) for crop in sampler.batch(step, batch_size)]

    def loss(self, module: nn.Module, items: Sequence[tuple[Crop, bool]]) -> tuple[Tensor, float]:
        """The sum of the crops' losses and their number; crops go one by one, so that none is padded."""
        losses = [self._loss(module, crop, violations) for crop, violations in items]
        return torch.stack(losses).sum(), float(len(losses))

    def _loss(self, module: nn.Module, crop: Crop, violations: bool) -> Tensor:
        device = next(module.parameters()).device
        features = collate([self._cropped(crop)]).to(device)
        folded = module(features, num_recycles=crop.num_recycles)
        truth = Truth.of([crop], device=device)
        found = terms(folded, truth, side_chains=self.config.side_chains, violations=violations)
        return total(found, VIOLATION_WEIGHT if violations else 0.0)[0]

    def _cropped(self, crop: Crop) -> Protein:
        """A window, with what the language model says of it inside the whole chain."""
        whole = self.protein(self.split.train[crop.chain])
        part = slice(crop.start, crop.start + len(crop.example))
        return Protein(
            aatype=whole.aatype[part], index=whole.index[part], states=whole.states[part],
            maps=whole.maps[part, part],
        )  # fmt: skip

    def protein(self, example: Example) -> Protein:
        """A whole chain; gaps of its numbering are gaps of the index."""
        return replace(self.reader.read(letters(example), name=example.name), index=example.index)


def letters(example: Example) -> str:
    """Its residues, X where unknown."""
    return "".join(constants.restypes_with_x[number] for number in example.aatype)


def has_side_chains(examples: Sequence[Example]) -> bool:
    """Whether most of the chains have atoms beyond C-beta."""
    return sum(bool(example.seen[:, BACKBONE_SLOTS:].any()) for example in examples) > len(examples) / 2


def _all_layers(lm: Backbone | None) -> tuple[int, ...]:
    return tuple(range(lm.num_layers + 1)) if lm else ()


def _new(config: FoldConfig, seed: int) -> FoldModel:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return FoldModel(config)


def _cached_reader(split: Split, lm: Backbone | None, facts: FoldFacts, options: TrainFoldOptions) -> Reader:
    """A reader of the file of all chains' states, which is computed first if need be."""
    if lm is None:
        return Reader(None, facts.config)
    chains = list(
        dict.fromkeys(letters(example) for part in (split.train, split.valid, split.test) for example in part)
    )
    key = CacheKey(model_hash=facts.lm_hash, dtype=str(torch.float32), layers=facts.lm_layers, pooled=False)
    folder = options.cache or options.out / "states"
    folder.mkdir(parents=True, exist_ok=True)
    return Reader(cached_states(folder, lm, key, chains, num_maps=facts.config.num_lm_maps), facts.config)


def _claim(options: TrainFoldOptions, facts: FoldFacts) -> None:
    """Make a folder this run's, or find it so.

    Raises:
        ConfigError: it is of a run with other settings.
    """
    asked = {name: getattr(options, name) for name in options.__slots__ if name not in FREE}
    settings = json.loads(json.dumps({**asked, **asdict(facts)}))
    path = options.out / SETTINGS
    if path.exists():
        theirs = json.loads(path.read_text("utf-8"))
        if changed := [f"{name} {theirs.get(name)} to {settings[name]}" for name in settings
                       if theirs.get(name) != settings[name]]:  # fmt: skip
            raise ConfigError(f"{options.out} is of a run with other settings ({'; '.join(changed)}); choose another")
    else:
        options.out.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)
