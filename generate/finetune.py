"""The verb `finetune-generator`: a model learns to write what tags ask for, without forgetting how it wrote before.

    OUT/settings.json   what decides the outcome
    OUT/training/       the run, which a kill does not end
    OUT/model/          the model directory: the tags are words of its config, adapters are merged into the weights
    OUT/results.json    held-out nats before and after: of the tagged proteins, with their tags and without, and of the
                        replayed ones

The embedding of a new tag begins as pretraining left its row, which no text ever used, and is learned; under `lora`
nothing else of the embedding is.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn
from torch.nn.utils import parametrize
from tyro.conf import OmitArgPrefixes, Positional

from generate.members import fact
from generate.tags import Rule, Tags
from generate.tuning import (
    Mix,
    Purpose,
    Subject,
    balanced,
    few,
    fingerprint_of,
    held_out,
    is_held_out,
    judged,
    load_generator,
    loss,
    mean_nats,
    read_replay,
    room,
)
from xtrimo import checkpoint
from xtrimo.adaptation import adapt, merge
from xtrimo.answer import give
from xtrimo.durable import write_json
from xtrimo.embedding_file import fingerprint
from xtrimo.errors import ConfigError, DataError
from xtrimo.fasta import Record, read_fasta
from xtrimo.intervals import Estimate
from xtrimo.model import GLM
from xtrimo.run_folder import RESULTS, TRAINING, claim
from xtrimo.tokens import encode_residues
from xtrimo.training import fit, main_rank, ranks
from xtrimo.training_config import EngineOptions, TrainingConfig

logger = logging.getLogger(__name__)

RATES = {"lora": 1e-3, "full": 3e-4}
FREE = ("out", "file", "replay", "device", "engine")
"""Options that change how a result is reached, or are told by what they hold."""
SAVE_EVERY = 100  # steps


@dataclass(frozen=True, kw_only=True, slots=True)
class TuningOptions:
    """Fine-tune a generator on tagged proteins."""

    file: Positional[Path]
    """FASTA file whose headers say name=value. Proteins with split=valid are validated on, those with split=test left
    out; without such words, one in twenty is validated on."""
    model: str
    """Model directory of a GLM that generates, or a name on the Hugging Face Hub."""
    out: Path
    """Folder of the run; an existing one is gone on with."""
    tags: tuple[str, ...] = ("family",)
    """Names in the headers that become tags; of numbers with the edges of their bins, as in length=100,200,400."""
    only: tuple[str, ...] = ()
    """Of the first name in --tags, these values alone: other proteins are left out. All by default."""
    least: int = 20
    """Proteins that must have a tag, for it to be learned."""
    purpose: Purpose = "writing"
    """What most examples teach: writing whole proteins, as in pretraining; or filling gaps of known length, by masks
    that hide whole spans. Training is validated on the same."""
    method: Literal["lora", "full"] = "lora"
    """lora trains adapters beside the linear layers, and the tags; full trains all."""
    replay: Path | None = None
    """FASTA file of proteins like those of pretraining, to be trained on without tags."""
    replay_ratio: float = 0.25
    """Share of a step's proteins that is replayed."""
    drop_ratio: float = 0.1
    """Chance of a protein to be shown none of its tags, and of each of several to be missing."""
    balance: float = 0.0
    """How evenly clusters of relatives, of 30 % identity, come up: from 0, as large as they are, to 1, all alike. The
    few of a rare kind then are not drowned by the many of another."""
    substitutions: float = 0.0
    """Up to this share of a tagged protein's residues is replaced by alike ones, where they are shown and not where
    they are asked for: a few proteins are then not learned by heart as soon."""
    steps: int = 1000
    """Optimizer steps, at most."""
    batch_size: int = 16
    """Proteins of a step, over all ranks."""
    learning_rate: float | None = None
    """By default 1e-3 for lora, 3e-4 for full."""
    rank: int = 16
    """lora: rank, and scale, of the adapters."""
    validate_every: int = 100
    """Steps between validations."""
    valid_proteins: int = 200
    """Validated on, at most."""
    patience: int = 0
    """Validations without a better one before training ends; 0 never ends it early."""
    accumulate: int = 1
    """Pieces that a step's proteins are computed in, to save memory."""
    seed: int = 0
    """Of the examples and the adapters."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the matrix products."""
    device: str = "cpu"
    """Where to run, such as cuda; under torchrun each rank takes its own."""
    engine: OmitArgPrefixes[EngineOptions] = EngineOptions()
    """What computes the steps of training."""

    def __post_init__(self) -> None:
        for name in ("replay_ratio", "drop_ratio", "substitutions"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        if not 0 <= self.balance <= 1:
            raise ConfigError(f"balance is {self.balance}; it must be from 0 to 1")
        if min(self.least, self.batch_size, self.valid_proteins) < 1:
            raise ConfigError(
                f"least {self.least}, batch_size {self.batch_size} and valid_proteins {self.valid_proteins} must be at"
                " least 1"
            )
        if self.replay and round(self.replay_ratio * self.batch_size) == self.batch_size:
            raise ConfigError(f"replay_ratio {self.replay_ratio} leaves no tagged protein in {self.batch_size}")

    def training(self) -> TrainingConfig:
        """The training loop's settings."""
        return TrainingConfig(
            steps=self.steps, learning_rate=self.learning_rate or RATES[self.method], precision=self.precision,
            accumulate=self.accumulate, validate_every=self.validate_every, patience=self.patience, seed=self.seed,
            save_every=SAVE_EVERY, engine=self.engine,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Proteins:
    """What is trained and judged on."""

    train: list[Subject]
    """Tagged."""
    chances: Float64[np.ndarray, "train"] | None
    """Of those to be drawn; None for all alike."""
    valid: list[Subject]
    """Tagged and held out."""
    replay: list[Subject]
    """Untagged."""
    replay_valid: list[Subject]
    """Untagged and held out."""
    left_out: dict[str, int]
    """How many, by why."""


def main(args: Sequence[str] | None = None) -> None:
    """The verb `xtrimo finetune-generator`."""
    options = tyro.cli(TuningOptions, args=args, prog="xtrimo finetune-generator")
    with ranks(options.device) as (rank, world):
        options.engine.check_batch(options.batch_size, world)
        results = tune(options)
    if rank == 0:
        tagged, untagged = results["tagged"]["after"], results["tagged"]["after, without tags"]
        lines = [
            f"held-out nats, {name}: {_shown(tagged[name])} with tags, {_shown(untagged[name])} without"
            for name in tagged
        ]
        give(results, "\n".join((*lines, f"{options.out / 'model'}: {' '.join(results['tags'])}")))


def _shown(figure: dict[str, float]) -> str:
    return str(Estimate(**figure))


def tune(options: TuningOptions) -> dict[str, Any]:
    """Train, save the model and judge it; what is in results.json.

    Raises:
        ConfigError: a model that does not generate, a folder with a run of other settings, or what tags and `fit`
            refuse.
        DataError, FastaError, SequenceError: nothing to train or validate on, or files that cannot be read.
    """
    base = load_generator(options.model, options.device)
    if options.purpose == "filling" and "mlm" not in base.config.objectives:
        raise ConfigError(f"{options.model} does not fill masks; tune it for writing, or take one trained on mlm")
    rules = [Rule.parse(text) for text in options.tags]
    records = _chosen(options, rules)
    seen = [record for record in records if fact(record, "split") != "test"]
    tags, rare = Tags.found(rules, base.config.control_words, seen, options.least)
    if rare:
        logger.warning("too rare to be learned (--least %d): %s", options.least, dict(rare.most_common(20)))
    proteins = _proteins(records, tags, base, options)
    settings = _settings(options, tags, proteins, fingerprint(base))
    if finished := claim(options.out, settings):
        return finished
    before = {"tagged": _figures(base, _untagged(proteins.valid)), "replay": _figures(base, proteins.replay_valid)}
    model, mix = _prepared(base, tags, proteins, options)
    examples = held_out(
        proteins.valid, _judged_by(model.config.objectives, options.purpose), model.config, 0, options.purpose
    )
    progress = fit(
        model, loss, mix, options.training(), options.out / TRAINING,
        validate=lambda module: -mean_nats(model, examples).value,
    )  # fmt: skip
    if not main_rank():
        return {}
    _finish(model, options)
    results = {
        "tags": list(tags.added), "num_train": len(proteins.train), "num_valid": len(proteins.valid),
        "num_replay": len(proteins.replay), "left_out": proteins.left_out, "best_step": progress.best_step,
        "tagged": {
            "before": before["tagged"], "after": _figures(model, proteins.valid),
            "after, without tags": _figures(model, _untagged(proteins.valid)),
        },
        "replay": {"before": before["replay"], "after": _figures(model, proteins.replay_valid)},
    }  # fmt: skip
    write_json(options.out / RESULTS, results)
    return results


def _judged_by(objectives: Sequence[str], purpose: Purpose) -> str:
    """The objective whose held-out nats choose the weights."""
    return "mlm" if purpose == "filling" else "gmask" if "gmask" in objectives else "causal"


def _chosen(options: TuningOptions, rules: Sequence[Rule]) -> list[Record]:
    """The records, of which `only` names those wanted."""
    records = list(read_fasta(options.file, unknown="skip"))
    if not options.only:
        return records
    wanted = {f"<{rules[0].name}={value}>" for value in options.only}
    had = {word for record in records for word in rules[0].words(record)}
    if lacking := sorted(wanted - had):
        raise DataError(f"{options.file} has no protein of {', '.join(lacking)}; only names values of {rules[0].name}")
    return [record for record in records if wanted & set(rules[0].words(record))]


def _proteins(records: Sequence[Record], tags: Tags, base: GLM, options: TuningOptions) -> Proteins:
    """Who is trained on and who validates.

    Raises:
        DataError: nobody, on one side.
    """
    most = room(base.config, max((len(tags.ids(record)) for record in records), default=0))
    left_out = {"in split=test": 0, f"longer than {most:,} residues": 0, "without a tag": 0}
    has_splits = any(fact(record, "split") for record in records)
    train, valid = list[Subject](), list[Subject]()
    for record in records:
        split = fact(record, "split") if has_splits else ("valid" if is_held_out(record) else "train")
        subject = Subject(encode_residues(record.sequence, name=record.name), tags.ids(record))
        reasons = (split == "test", len(subject.residues) > most, not len(subject.tags))
        if any(reasons):
            left_out[list(left_out)[reasons.index(True)]] += 1
        else:
            (valid if split == "valid" else train).append(subject)
    if not train or not valid:
        raise DataError(
            f"{options.file}: {len(train)} proteins to train on and {len(valid)} to validate on, left out {left_out};"
            " expected some of each"
        )
    replay, replay_valid = read_replay(options.replay, most, options.valid_proteins)
    logger.info("%d proteins to train on, %d to validate; left out: %s", len(train), len(valid), left_out)
    return Proteins(
        train=train, chances=balanced(train, options.balance), valid=few(valid, options.valid_proteins),
        replay=replay, replay_valid=replay_valid, left_out=left_out,
    )  # fmt: skip


def _untagged(subjects: Sequence[Subject]) -> list[Subject]:
    return [Subject(subject.residues) for subject in subjects]


def _settings(options: TuningOptions, tags: Tags, proteins: Proteins, model_hash: str) -> dict[str, Any]:
    """All that decides the result, as JSON has it."""
    asked = {name: value for name, value in asdict(options).items() if name not in FREE}
    data_hash = fingerprint_of(proteins.train, proteins.valid, proteins.replay, proteins.replay_valid)
    drawn = "" if proteins.chances is None else hashlib.blake2b(proteins.chances.tobytes(), digest_size=16).hexdigest()
    own = {"drawn": drawn, "control_words": tags.control_words, "model_hash": model_hash, "data_hash": data_hash}
    return {**asked, **own}


class _Rows(nn.Module):
    """A matrix of which some rows are learned, and the others stay."""

    rows: Tensor

    def __init__(self, matrix: Float[Tensor, "row dim"], rows: Int[Tensor, "learned"]) -> None:
        super().__init__()
        self.register_buffer("rows", rows, persistent=False)
        self.learned = nn.Parameter(matrix[rows].detach().clone())

    def forward(self, matrix: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
        return matrix.index_copy(0, self.rows, self.learned)


def _prepared(base: GLM, tags: Tags, proteins: Proteins, options: TuningOptions) -> tuple[GLM, Mix]:
    """The model as it is trained, and its examples. The base is used up."""
    base.config = replace(base.config, control_words=tags.control_words)
    adapt(base, options.method, rank=options.rank, alpha=options.rank, seed=options.seed)
    if options.method == "lora" and len(tags.new_rows):
        rows = torch.from_numpy(tags.new_rows.astype(np.int64)).to(base.device)
        parametrize.register_parametrization(base.embedding, "weight", _Rows(base.embedding.weight, rows))
    mix = Mix(
        subjects=proteins.train, replay=proteins.replay, config=base.config, batch_size=options.batch_size,
        replay_ratio=options.replay_ratio, drop_ratio=options.drop_ratio, seed=options.seed,
        purpose=options.purpose, chances=proteins.chances, substitutions=options.substitutions,
    )  # fmt: skip
    return base, mix


def _finish(model: GLM, options: TuningOptions) -> None:
    """Merge what was learned beside the weights, and write the model directory."""
    if parametrize.is_parametrized(model.embedding):
        parametrize.remove_parametrizations(model.embedding, "weight", leave_parametrized=True)
    merge(model)
    source = f"{model.config.source or Path(options.model).name}; tuned on {options.file.name}"
    model.config = replace(model.config, source=source)
    notes = f"Tuned by {options.method} for {options.steps:,} steps on the tagged proteins of `{options.file.name}`."
    checkpoint.save(model, options.out / "model", notes=notes)


def _figures(model: GLM, subjects: Sequence[Subject]) -> dict[str, dict[str, float]]:
    """`judged`, as JSON has it."""
    return {name: asdict(nats) for name, nats in judged(model, subjects).items()}
