"""A folding model as a directory: `config.json`, `model.safetensors` and `MODEL_CARD.md`.

    config.json   the shape; the language model by name, hash and layers, which is not copied; how it was trained

The language model is loaded by its name again, and must still have the same hash. A directory of ESMFold as
transformers has it (`EsmForProteinFolding`) is read as well: see `published`.
"""

import json
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from structure.config import FoldConfig
from structure.model import FoldModel
from structure.reader import Reader
from structure.trunk import in_bf16
from xtrimo.backbone import Backbone, Limited
from xtrimo.command import ModelOptions, check_device
from xtrimo.durable import write_json, write_text
from xtrimo.embedding_file import fingerprint
from xtrimo.errors import CheckpointError, ConfigError
from xtrimo.states import LiveStates

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "MODEL_CARD.md"
FORMAT = "xtrimo-fold-1"


@dataclass(frozen=True, kw_only=True, slots=True)
class FoldFacts:
    """What config.json holds."""

    config: FoldConfig
    lm: str = ""
    """The language model's directory or name; empty for none."""
    lm_hash: str = ""
    """Of its weights, `embedding_file.fingerprint`."""
    lm_layers: tuple[int, ...] = ()
    """Whose states are mixed."""
    training: dict[str, Any] = field(default_factory=dict)
    """Data, steps and figures, for the reader."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Pipeline:
    """A folding model and what reads proteins for it."""

    model: FoldModel
    reader: Reader
    name: str


def save_fold(directory: Path, model: FoldModel, facts: FoldFacts) -> None:
    """Write a directory; config.json last."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.detach().cpu().contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, directory / WEIGHTS)
    write_text(directory / CARD, _card(facts))
    write_json(directory / CONFIG, {"format": FORMAT, **asdict(facts)})


def read_facts(directory: Path) -> FoldFacts:
    """What a directory says of its model.

    Raises:
        CheckpointError: no folding model of ours is there.
    """
    path = directory / CONFIG
    try:
        content = json.loads(path.read_text("utf-8"))
        if content.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        content["config"], content["lm_layers"] = FoldConfig(**content["config"]), tuple(content["lm_layers"])
        return FoldFacts(**content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{directory} is no folding model ({error}); `xtrimo train-fold` writes one") from error


def load_fold(
    path: str | PathLike[str], *, lm: str = "", device: str = "cpu", precision: Literal["fp32", "bf16"] = "fp32"
) -> Pipeline:
    """A folding model with its language model, ready to fold.

    Args:
        path: a directory of `xtrimo train-fold`, or of ESMFold.
        lm: where the language model is now; by default where it was.
        precision: of the products of the trunk's blocks; all else is fp32.

    Raises:
        CheckpointError: no model, weights that do not fit, or another language model than it was trained on.
        ConfigError: `lm` for a model that asks for none, or a device that is not here.
    """
    from structure.published import is_esmfold, load_esmfold

    check_device(device)
    directory = Path(path)
    if is_esmfold(directory):
        if lm:
            raise ConfigError(f"{directory} is ESMFold, which has its language model in it; leave out --lm {lm}")
        return _in(precision, load_esmfold(directory, device=device))
    facts = read_facts(directory)
    model = read_model(directory, facts.config)
    reader = _reader(facts, lm, device, directory)
    return _in(precision, Pipeline(model=model.to(device).eval(), reader=reader, name=name_of(directory)))


def read_model(directory: Path, config: FoldConfig) -> FoldModel:
    """The weights of a directory, in a model of this shape.

    Raises:
        CheckpointError: no weights, or of another shape.
    """
    model = FoldModel(config)
    try:
        model.load_state_dict(load_file(directory / WEIGHTS))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"{directory / WEIGHTS} cannot be read, or does not fit {CONFIG} ({error}); copy the directory again from"
            " where it was trained"
        ) from error
    return model


def _in(precision: str, pipeline: Pipeline) -> Pipeline:
    if precision == "bf16":
        in_bf16(pipeline.model.trunk)
    return pipeline


def name_of(directory: Path) -> str:
    """What predictions call a model: its directory, or the run that `train-fold` has put it in."""
    place = directory.resolve()
    return place.parent.name if place.name == "model" else place.name


def _reader(facts: FoldFacts, lm: str, device: str, directory: Path) -> Reader:
    if not facts.lm:
        if lm:
            raise ConfigError(f"{directory} reads amino acids alone; leave out --lm {lm}")
        return Reader(None, facts.config)
    try:
        language_model = ModelOptions(model=lm or facts.lm, precision="fp32", device=device).load()
    except CheckpointError as error:
        raise CheckpointError(
            f"{directory} reads the language model {facts.lm}, which cannot be loaded ({error}); say in --lm where it"
            " is now"
        ) from error
    if fingerprint(language_model) != facts.lm_hash:
        raise CheckpointError(
            f"{directory} was trained on {facts.lm} with other weights than {lm or facts.lm} has; give its language"
            " model in --lm"
        )
    return live_reader(language_model, facts.lm_layers, facts.config)


def live_reader(lm: Backbone, layers: tuple[int, ...], config: FoldConfig) -> Reader:
    """A reader that asks the language model."""
    assert isinstance(lm, torch.nn.Module)
    source = LiveStates(lm.eval(), layers, pooled=False, maps=config.num_lm_maps > 0)
    places = lm.learned_places if isinstance(lm, Limited) else None
    around = sum(lm.words_around)
    return Reader(source, config, max_length=places - around if places else 0, trained_length=lm.max_length - around)


def with_lm(config: FoldConfig, lm: Backbone | None, layers: tuple[int, ...], num_maps: int) -> FoldConfig:
    """The config of a folding model that reads so many layers and maps of a language model."""
    if lm is None:
        return config
    return replace(config, lm_width=lm.width, num_lm_layers=len(layers), num_lm_maps=num_maps)


def _card(facts: FoldFacts) -> str:
    kind = "all heavy atoms" if facts.config.side_chains else "backbone and C-beta atoms"
    trained = "\n".join(f"* {name}: {value}" for name, value in facts.training.items())
    reads = f"{facts.lm} (layers {', '.join(map(str, facts.lm_layers))})" if facts.lm else "amino acids alone"
    return f"""# A folding model of xtrimo

Sequence to structure: {kind}, with pLDDT, PAE and pTM. Trunk {facts.config.trunk}, {facts.config.num_blocks} blocks.
It reads {reads}.

{trained}

A prediction is a hypothesis: look at pLDDT and PAE before you believe it.
"""
