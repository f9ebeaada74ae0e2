"""A trained head as a directory: `head.json`, `head.safetensors`, and what was trained of the model under it.

    head.json            the task, the model by name and hash, the shape of the head, classes, scale, intervals
    head.safetensors     weights of the head; mean and whitening of the states
    adapter/             lora: the adapter, as peft reads it
    backbone.safetensors full: the weights of the model

The model itself is not copied: it is loaded by its name again, and must still have the same hash.
"""

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from heads import tasks
from heads.modules import HeadConfig, Scale
from heads.molecules import Kind
from heads.predictor import Predictor
from heads.rows import Dataset
from heads.tasks import Columns, Task
from xtrimo.adaptation import Method, load_adapted, save_adapted
from xtrimo.backbone import Backbone
from xtrimo.durable import write_json
from xtrimo.embedding_file import fingerprint
from xtrimo.errors import CheckpointError
from xtrimo.states import LiveStates

HEAD, HEAD_WEIGHTS = "head.json", "head.safetensors"
FORMAT = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadFacts:
    """What head.json holds."""

    task: Task
    model: str
    model_hash: str
    method: Method
    layers: tuple[int, ...]
    config: HeadConfig
    classes: tuple[str, ...]
    scale: Scale | None
    """Of the values of a regression, or of rewards."""
    residuals: tuple[float, float] | None
    """Regression: truth minus prediction of the validation rows, at 2.5 % and 97.5 %."""
    molecules: Kind | None
    """smiles or names."""
    data_hash: str
    seed: int

    @classmethod
    def of(cls, dataset: Dataset, predictor: Predictor, settings: dict[str, Any]) -> "HeadFacts":
        """The facts of a trained head."""
        return cls(
            task=dataset.task, model=settings["model"], model_hash=settings["model_hash"], method=settings["method"],
            layers=tuple(settings["layers"]), config=predictor.config, classes=dataset.classes,
            scale=predictor.scale, residuals=_residuals(dataset, predictor), molecules=predictor.molecules,
            data_hash=settings["data_hash"], seed=settings["seed"],
        )  # fmt: skip

    def of_one(self) -> "HeadFacts":
        """The facts of the same head as it judges a protein alone: of a preference, its reward is a value."""
        if self.task.target != "preference":
            return self
        return replace(self, task=replace(self.task, target="regression", columns=Columns()), scale=Scale())

    def write(self, folder: Path) -> None:
        """Write head.json."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain |= {"task": tasks.to_dict(self.task), "config": asdict(self.config)}
        plain |= {"scale": asdict(self.scale) if self.scale else None}
        write_json(folder / HEAD, {"format": FORMAT, **plain})

    @classmethod
    def read(cls, folder: Path) -> "HeadFacts":
        """Read head.json.

        Raises:
            CheckpointError: there is none, or one that is not ours.
        """
        path = folder / HEAD
        if not path.is_file():
            raise CheckpointError(f"{folder} holds no trained head: it has no {HEAD} (`xtrimo finetune` writes one)")
        try:
            content = json.loads(path.read_text("utf-8"))
            if content.pop("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}, the one this version reads")
            content |= {"task": tasks.from_dict(content["task"]), "config": HeadConfig(**content["config"])}
            content |= {"scale": Scale(**content["scale"]) if content["scale"] else None}
            content |= {name: tuple(content[name]) for name in ("layers", "classes")}
            content |= {"residuals": tuple(content["residuals"]) if content["residuals"] else None}
            return cls(**content)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{path} is not the description of a head: {error}") from error


def _residuals(dataset: Dataset, predictor: Predictor) -> tuple[float, float] | None:
    """See HeadFacts; None without validation rows."""
    if predictor.scale is None or not dataset.valid:
        return None
    answer = predictor.predict(dataset.valid)
    low, high = np.quantile(answer.truth - answer.prediction, (0.025, 0.975)).tolist()
    return low, high


def save_head(folder: Path, facts: HeadFacts, predictor: Predictor) -> None:
    """Write a head directory; head.json last."""
    own = {n: w.detach().cpu().contiguous() for n, w in predictor.state_dict().items() if not n.startswith("source.")}
    save_file(own, folder / HEAD_WEIGHTS)
    if isinstance(predictor.source, LiveStates):
        save_adapted(predictor.source.backbone, facts.method, folder)
    facts.write(folder)


def load_head(folder: Path, facts: HeadFacts, model: Backbone) -> Predictor:
    """The predictor of a head directory on its model, ready to predict.

    Raises:
        CheckpointError: another model than the head was trained on, or weights that are missing or do not fit.
    """
    if fingerprint(model) != facts.model_hash:
        raise CheckpointError(
            f"{folder} was trained on {facts.model} with other weights than this model has; give the model in --model"
        )
    assert isinstance(model, torch.nn.Module)
    load_adapted(model, facts.method, folder)
    pooled = facts.config.pooling == "mean" and facts.config.level in ("sequence", "molecule")
    source = LiveStates(model, facts.layers, pooled, maps=facts.config.num_maps > 0)
    predictor = Predictor(facts.task, source, facts.config, scale=facts.scale, molecules=facts.molecules)
    try:
        weights = load_file(folder / HEAD_WEIGHTS)
        missing, unexpected = predictor.load_state_dict(weights, strict=False)
        if wrong := [name for name in (*missing, *unexpected) if not name.startswith("source.")]:
            raise ValueError(f"weights that are missing or unexpected: {', '.join(wrong[:5])}")
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{folder / HEAD_WEIGHTS} does not fit: {error}") from error
    return predictor.to(model.device).eval()
