"""The verb `bench`: many tasks with one model, beside the same model with random weights and the simple baselines.

    OUT/TASK/model/     a run of `finetune`: results.json, predictions.npz, the head
    OUT/TASK/twin/      the same with random weights, drawn by the seed
    OUT/states/         hidden states, which runs on the same proteins share
    OUT/bench.md        the table

Killed, the same command goes on: a finished run is found by its results.json, whose settings must be the same. A task
that cannot be run is said and left out, and the rest goes on.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from heads import metrics
from heads.answers import Predictions
from heads.finetune import FinetuneOptions, find_data, finetune_on, load_plain
from heads.metrics import METRICS
from heads.modules import Pooling
from heads.rows import read
from heads.tasks import TASKS, Task, task
from xtrimo import checkpoint
from xtrimo.adaptation import Method
from xtrimo.answer import give
from xtrimo.command import replacing
from xtrimo.errors import XtrimoError
from xtrimo.intervals import Estimate
from xtrimo.model import GLM

logger = logging.getLogger(__name__)

TABLE = "bench.md"


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchOptions:
    """Fine-tune one model for many tasks; one table."""

    model: str
    """Model directory; a name on the Hugging Face Hub, org/name or org/name@revision; or antiberty."""
    out: Path
    """Folder of all runs; an existing one is gone on with."""
    tasks: tuple[str, ...] = ("all",)
    """Names of tasks; all stands for the eighteen."""
    data: Path = Path("data")
    """Folder with the file of each task."""
    method: Method = "probe"
    """As in finetune: probe, lora or full."""
    max_rows: int = 0
    """At most so many rows of each split, drawn by the seed; 0 takes all."""
    pooling: Pooling = "mean"
    """How a protein's states become one: their mean, or weighed by what is learned."""
    layers: tuple[int, ...] = (-1,)
    """Whose states, and for pairs attention maps, are read, side by side: 0 is the embedding, -1 the last."""
    epochs: float = 15.0
    """Passes over the training rows, at most."""
    batch_size: int = 16
    """Rows of a step."""
    learning_rate: float | None = None
    """By default that of the method."""
    seed: int = 0
    """Of the heads, the order of the rows, and the random twin."""
    twin: bool = True
    """Run the same model with random weights beside it, where it is a GLM."""
    baselines: bool = True
    """Put simple baselines beside the results."""
    leaks: bool = True
    """Look for test proteins among those trained on."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the matrix products."""
    device: str = "cpu"
    """Where to run, such as cuda."""

    def run(self, name: str, model: str, kind: str) -> FinetuneOptions:
        """The settings of one run; `kind` is model or twin."""
        is_twin = kind == "twin"
        return FinetuneOptions(
            task=name, model=model, method=self.method, out=self.out / name / kind, max_rows=self.max_rows,
            pooling=self.pooling, layers=self.layers, epochs=self.epochs, batch_size=self.batch_size,
            learning_rate=self.learning_rate, seed=self.seed, precision=self.precision, device=self.device,
            cache=self.out / "states", baselines=self.baselines and not is_twin, leaks=self.leaks and not is_twin,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line of the table: a task, or another way to have it from the same model."""

    task: Task
    way: str = ""
    """What answers in place of a trained head."""
    model: Estimate
    num_test: int
    twin: Estimate | None
    gain: Estimate | None
    """Model over twin, on the same rows."""
    floors: dict[str, Estimate]

    def to_dict(self) -> dict[str, Any]:
        """Its figures by name."""
        facts = {name: getattr(self, name) for name in ("way", "num_test", "model", "twin", "gain", "floors")}
        return {"task": self.task.name, "metric": self.task.metric, **facts, "reaches_floors": self.reaches_floors}

    @property
    def best_floor(self) -> float | None:
        """The figure of the best baseline."""
        best = max if METRICS[self.task.metric].larger_is_better else min
        return best((floor.value for floor in self.floors.values()), default=None)

    @property
    def reaches_floors(self) -> bool | None:
        """Whether the model is at least as good as every baseline; None where there is none."""
        if self.best_floor is None:
            return None
        ahead = self.model.value - self.best_floor
        return ahead >= 0 if METRICS[self.task.metric].larger_is_better else ahead <= 0


def main(args: Sequence[str] | None = None) -> None:
    """`xtrimo bench`."""
    import tyro

    options = tyro.cli(BenchOptions, prog="xtrimo bench", args=args)
    lines, failed = bench_tasks(options)
    give({"lines": [line.to_dict() for line in lines], "failed": failed}, table(lines, options))
    if failed:
        raise XtrimoError("; ".join(f"{name}: {error}" for name, error in failed.items()))


def bench_tasks(options: BenchOptions) -> tuple[list[Line], dict[str, str]]:
    """Every task in turn, the table written anew after each; the lines, and what could not be run and why.

    Raises:
        ConfigError: a task that is not known.
        CheckpointError: no such model.
    """
    names = list(TASKS) if options.tasks == ("all",) else list(options.tasks)
    tasks = [task(name) for name in names]
    options.out.mkdir(parents=True, exist_ok=True)
    twin = save_twin(options) if options.twin else None
    lines: list[Line] = []
    failed: dict[str, str] = {}
    for number, which in enumerate(tasks, start=1):
        logger.info("%d of %d: %s", number, len(tasks), which.name)
        try:
            lines.extend(_run(which, options, twin))
        except XtrimoError as error:
            logger.error("%s: %s", which.name, error)
            failed[which.name] = str(error)
        with replacing(options.out / TABLE) as partial:
            partial.write_text(table(lines, options, failed), "utf-8")
    return lines, failed


def save_twin(options: BenchOptions) -> str | None:
    """A model directory like the model's, with random weights; None where it is no GLM, or a quantized one."""
    model = load_plain(options.model, options.device)
    if not isinstance(model, GLM) or model.config.quantization != "none":
        logger.warning("%s is no GLM that can be drawn anew; there will be no random twin", options.model)
        return None
    folder = options.out / f"twin-{options.seed}"
    if not folder.is_dir():
        checkpoint.save(GLM(model.config, seed=options.seed), folder, notes="Random weights, never trained.")
    return str(folder)


def _run(which: Task, options: BenchOptions, twin: str | None) -> list[Line]:
    """One task with the model and its twin, as far as it is not done already; for contacts a second line."""
    path = find_data(options.data, which.name)
    dataset = read(path, which, seed=options.seed)
    logger.info("%s", dataset)
    ours, theirs = (
        finetune_on(dataset, load_plain(model, options.device), options.run(which.name, model, kind)) if model else None
        for model, kind in ((options.model, "model"), (twin, "twin"))
    )
    assert ours
    lines = [_line(which, options.out, ours, theirs)]
    if ours.get("regression"):
        regressed = (theirs or {}).get("regression")
        lines.append(_line(which, options.out, ours["regression"], regressed, way="regression of attention"))
    return lines


def _line(which: Task, out: Path, ours: dict[str, Any], theirs: dict[str, Any] | None, *, way: str = "") -> Line:
    """The figures of the model and its twin, and how much better the model is by the predictions that they name."""
    gain = None
    if theirs:
        said, random = (Predictions.load(out / which.name / kind / ours["predictions"]) for kind in ("model", "twin"))
        gain = metrics.difference(which.metric, said, random)
    return Line(
        task=which, way=way, model=_estimate(ours), num_test=ours["num_test"],
        twin=_estimate(theirs) if theirs else None, gain=gain,
        floors={name: _estimate(floor) for name, floor in ours.get("baselines", {}).items()},
    )  # fmt: skip


def _estimate(results: dict[str, Any]) -> Estimate:
    return Estimate(value=results["value"], low=results["low"], high=results["high"])


def table(lines: Iterable[Line], options: BenchOptions, failed: dict[str, str] | None = None) -> str:
    """The lines as Markdown, with what they add up to."""
    lines = list(lines)
    head = ("task", "metric", "test rows", "model", "random weights", "gain (paired)", "baselines")
    rows = [head, tuple("---" for _ in head)]
    for line in lines:
        name = line.task.name + " (proxy)" * line.task.proxy + " (partial)" * line.task.partial
        name += f", {line.way}" if line.way else ""
        floors = ", ".join(f"{name} {floor.value:.3f}" for name, floor in line.floors.items())
        rows.append((
            name, line.task.metric, f"{line.num_test:,}", str(line.model), str(line.twin or "-"),
            str(line.gain or "-"), floors or "-",
        ))  # fmt: skip
    text = [f"# {options.method} on {options.model}, seed {options.seed}", ""]
    text += ["| " + " | ".join(row) + " |" for row in rows]
    twinned = [line for line in lines if line.gain and not line.way]
    if twinned:
        surely = sum(line.gain.low > 0 for line in twinned if line.gain)
        text += ["", f"Better than random weights beyond luck (paired interval above 0): {surely} of {len(twinned)}."]
    floored = [line for line in lines if line.reaches_floors is not None]
    if floored:
        reached = sum(line.reaches_floors or False for line in floored)
        text += ["", f"At least as good as every baseline: {reached} of {len(floored)}."]
    text += [f"\nNot run: {name}: {error}" for name, error in (failed or {}).items()]
    return "\n".join(text) + "\n"
