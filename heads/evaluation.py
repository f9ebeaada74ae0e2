"""The verb `evaluate`: a trained head on labelled proteins, by every metric that fits, and what of them it has seen."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from heads import metrics
from heads.answers import Predictions
from heads.finetune import find_data
from heads.head_directory import HeadFacts
from heads.leaks import Leaks, find_leaks
from heads.prediction import open_head
from heads.rows import Dataset, data_hash, read
from heads.selection import cropped
from xtrimo.answer import give
from xtrimo.durable import write_json
from xtrimo.errors import ConfigError
from xtrimo.intervals import Estimate

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateOptions:
    """Test a trained head."""

    head: Positional[Path]
    """Folder that `xtrimo finetune` wrote."""
    data: Path = Path("data")
    """A file of labelled proteins, or the folder that holds that of the head's task."""
    every: bool = False
    """Test on every row, for a file that has no splits, in place of its test rows."""
    model: str | None = None
    """The model that the head stands on, if it is no longer where it was."""
    out: Path | None = None
    """Folder for results.json and predictions.npz of this evaluation."""
    leaks: bool = True
    """Look for the test rows among those to train on."""
    device: str = "cpu"
    """Where to run, such as cuda."""


def main(args: Sequence[str] | None = None) -> None:
    """`xtrimo evaluate`."""
    import tyro

    options = tyro.cli(EvaluateOptions, prog="xtrimo evaluate", args=args)
    facts = HeadFacts.read(options.head)
    # the words of its classes, in the order that the head knows
    which = replace(facts.task, classes=facts.classes)
    path = find_data(options.data, which.name)
    dataset = read(path, which, seed=facts.seed, only="test" if options.every else None)
    model = options.model or facts.model
    predictor, most = open_head(options.head, facts, model, options.device)
    dataset = cropped(dataset, most)
    if not dataset.test:
        raise ConfigError(f"{path} has no test rows; --every tests on all")
    predictions = predictor.predict(dataset.test)
    estimates = {name: metrics.evaluate(name, predictions) for name in metrics.applicable(predictions)}
    leaks = find_leaks(dataset) if options.leaks and not options.every else None
    lines = [f"{which.name}: {len(dataset.test):,} rows of {path.name}, {facts.method} on {model}"]
    for name, estimate in estimates.items():
        lines.append(f"  {'*' if name == which.metric else ' '} {metrics.METRICS[name].title:<28} {estimate}")
    answer = {
        "task": which.name, "metric": which.metric, "num_test": len(dataset.test), "data": path, "model": model,
        "method": facts.method, "metrics": estimates, "leaks": str(leaks) if leaks else None,
    }  # fmt: skip
    give(answer, "\n".join((*lines, f"  {leaks}") if leaks else lines))
    if options.out:
        write(options.out, facts, dataset, predictions, estimates, leaks)


def write(
    out: Path,
    facts: HeadFacts,
    dataset: Dataset,
    predictions: Predictions,
    estimates: dict[str, Estimate],
    leaks: Leaks | None,
) -> None:
    """An evaluation as a folder, as a run of `finetune` has it, and every metric that fits."""
    out.mkdir(parents=True, exist_ok=True)
    predictions.save(out / "predictions.npz")
    results: dict[str, Any] = {
        "task": facts.task.name, "metric": facts.task.metric, **asdict(estimates[facts.task.metric]),
        "num_test": len(dataset.test),
        "model": facts.model, "model_hash": facts.model_hash, "method": facts.method, "seed": facts.seed,
        "data_hash": data_hash(dataset), "left_out": dataset.left_out, "num_cut": dataset.num_cut,
        "classes": list(facts.classes), "leaks": leaks.to_dict() if leaks else {}, "baselines": {},
        "metrics": {name: asdict(estimate) for name, estimate in estimates.items()}, "predictions": "predictions.npz",
    }  # fmt: skip
    write_json(out / "results.json", results)
