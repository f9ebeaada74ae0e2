"""The verb `scaling`: held-out loss of training runs against compute, and what tasks gain with it.

    OUT/scaling.md, scaling.json, scaling.png

Compute is 6 x weights x tokens read, as scaling studies count it. A run's losses are those of its own metrics.jsonl:
closing words and visible mlm labels included, on its own held-out proteins, so they compare runs on one corpus.

Beside them stands the best loss at each compute of the published family of small protein models ("Training
Compute-Optimal Protein Language Models", Cheng et al., NeurIPS 2024; training logs at cxysteven/ScalingProteinLM):
other proteins and another vocabulary, so a distance from it is a guide to how a run goes, and no comparison of models.
A power law, nats = a C^-b, is fitted to it. It says nothing below the least compute that was published: drawn out to
small runs it would soon be above the 3.0 nats of twenty letters drawn at random.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from jaxtyping import Float

from pretrain.config import BatchConfig
from pretrain.data import rows_before
from xtrimo.answer import give
from xtrimo.config import GLMConfig
from xtrimo.durable import write_text
from xtrimo.errors import CheckpointError, ConfigError, MissingExtraError
from xtrimo.pages import Section, to_markdown
from xtrimo.training_log import read_metrics

PUBLISHED = {
    "mlm": ((1e18, 2.396), (3e18, 2.348), (1e19, 2.282), (3e19, 2.215), (1e20, 2.133), (3e20, 2.055), (1e21, 1.976),
            (3.4e21, 1.875), (1.72e22, 1.805)),
    "clm": ((1e18, 2.621), (3e18, 2.577), (6e18, 2.535), (1e19, 2.51), (3e19, 2.435), (1e20, 2.361), (3e20, 2.288),
            (1e21, 2.211), (3.4e21, 2.109), (1.15e22, 2.013)),
}  # fmt: skip
"""(FLOPs, nats a token): the lowest validation loss at that compute."""
THEIRS = {"mlm": "mlm", "gmask": "clm", "causal": "clm"}
"""Which of them an objective is held against."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalingConfig:
    """Hold training runs against each other and the published curve."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders of `xtrimo pretrain`."""
    out: Path
    """Folder for scaling.md, scaling.json and scaling.png."""
    objective: Literal["mlm", "gmask", "causal"] = "mlm"
    """Whose held-out nats."""
    abilities: tuple[str, ...] = ()
    """RUN=FOLDER, each: what `xtrimo bench` wrote about the model of that run, at its last loss."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """Where a run stood at a validation."""

    step: int
    """Optimizer steps done."""
    tokens: float
    """Read until then."""
    flops: float
    """6 x weights x tokens."""
    nats: float
    """Of the held-out labels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """A run's held-out losses."""

    name: str
    """Of the run's folder."""
    model: str
    """Preset or file that it was started with."""
    num_params: int
    """Its weights."""
    points: tuple[Point, ...]
    """In the order of the steps."""
    abilities: Mapping[str, tuple[str, float]]
    """(metric, figure) of each task."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerLaw:
    """nats = a C^-b."""

    a: float
    """Nats at one FLOP."""
    b: float
    """Relative fall of the nats with the logarithm of compute."""

    def nats(self, flops: Float[np.ndarray, " point"] | float) -> Any:
        """The loss at that compute."""
        return self.a * np.asarray(flops) ** -self.b

    @classmethod
    def fit(cls, points: Sequence[tuple[float, float]]) -> "PowerLaw":
        """Least squares between logarithms."""
        flops, nats = np.log(np.asarray(points, dtype=np.float64)).T
        slope, at_one = np.polyfit(flops, nats, 1)
        return cls(a=float(np.exp(at_one)), b=float(-slope))


def main(args: Sequence[str] | None = None) -> None:
    """The verb `xtrimo scaling`."""
    config = tyro.cli(ScalingConfig, args=args, prog="xtrimo scaling")
    curves = read(config)
    config.out.mkdir(parents=True, exist_ok=True)
    law = PowerLaw.fit(PUBLISHED[THEIRS[config.objective]])
    picture = config.out / "scaling.png"
    _draw(curves, config.objective, law, picture)
    text = to_markdown(report(curves, config.objective, law, picture), config.out)
    facts = {"objective": config.objective, "published": asdict(law), "runs": [asdict(curve) for curve in curves]}
    write_text(config.out / "scaling.md", text)
    write_text(config.out / "scaling.json", json.dumps(facts, indent=1) + "\n")
    give(facts, text)


def read(config: ScalingConfig) -> list[Curve]:
    """The runs, each with the results that `abilities` names for it.

    Raises:
        CheckpointError: a folder that is no run, or that has held nothing out yet.
        ConfigError: results of a run that was not given, or a folder without any.
    """
    known: dict[Path, dict[str, tuple[str, float]]] = {run.resolve(): {} for run in config.runs}
    for pair in config.abilities:
        run, equals, folder = pair.partition("=")
        if not equals or Path(run).resolve() not in known:
            given = ", ".join(map(str, config.runs))
            raise ConfigError(f"abilities {pair!r}: expected RUN=FOLDER, the run one of {given}")
        known[Path(run).resolve()] |= read_abilities(Path(folder))
    return [read_run(run, config.objective, known[run.resolve()]) for run in config.runs]


def read_run(run: Path, objective: str, abilities: Mapping[str, tuple[str, float]]) -> Curve:
    """The held-out losses of one run folder.

    Raises:
        CheckpointError: as `read`.
    """
    try:
        facts: dict[str, Any] = json.loads((run / "config.json").read_text())
        glm, batch = GLMConfig.from_dict(facts["glm"]), BatchConfig(**facts["batch"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{run} is no run folder of `xtrimo pretrain` ({error})") from error
    entries = read_metrics(run / "metrics.jsonl")
    steps, tokens = _tokens_read([entry for entry in entries if entry["split"] == "train"], batch)
    points = []
    for entry in entries:
        if entry["split"] == "valid" and f"nats_{objective}" in entry:
            read = float(np.interp(entry["step"], steps, tokens))
            flops = 6 * glm.num_params * read
            points.append(Point(step=entry["step"], tokens=read, flops=flops, nats=entry[f"nats_{objective}"]))
    if not points:
        raise CheckpointError(
            f"{run / 'metrics.jsonl'} has no held-out nats of {objective} yet; train with --validate-every, on a corpus"
            " that holds proteins out, or ask for another --objective"
        )
    model = str(facts["model"])
    return Curve(name=run.name, model=model, num_params=glm.num_params, points=tuple(points), abilities=abilities)


def _tokens_read(lines: Sequence[Mapping[str, Any]], batch: BatchConfig) -> tuple[list[int], list[float]]:
    """Steps done at each line, from none on, and the tokens read until then.

    Lines of earlier versions do not tell how many these were; their rows count as full.
    """
    steps, tokens = [0], [0.0]
    for line in lines:
        step, num = line["step"], line["step"] - steps[-1]
        full = (rows_before(batch, step) - rows_before(batch, steps[-1])) * batch.row_length
        tokens.append(tokens[-1] + (line["step_tokens"] * num if "step_tokens" in line else full))
        steps.append(step)
    return steps, tokens


def read_abilities(folder: Path) -> dict[str, tuple[str, float]]:
    """(metric, figure) of each task that `xtrimo bench` wrote into a folder.

    Raises:
        ConfigError: there is none.
    """
    found = {}
    for path in sorted(folder.glob("*/model/results.json")):
        result = json.loads(path.read_text())
        found[str(result["task"])] = (str(result["metric"]), float(result["value"]))
    if not found:
        raise ConfigError(f"{folder} has no TASK/model/results.json; give the folder that `xtrimo bench --out` wrote")
    return found


def report(curves: Sequence[Curve], objective: str, law: PowerLaw, picture: Path) -> list[Section]:
    """Two tables: each run at its end, and its tasks."""
    (low, _), *_, (high, _) = PUBLISHED[THEIRS[objective]]
    first = [("run", "model", "weights", "tokens", "FLOPs", f"{objective}, nats", "published curve there")]
    for curve in curves:
        last = curve.points[-1]
        first.append((
            curve.name, curve.model, f"{curve.num_params:,}", f"{last.tokens:,.0f}", f"{last.flops:.3g}",
            f"{last.nats:.3f}", f"{float(law.nats(last.flops)):.3f}" if low <= last.flops <= high else "-",
        ))  # fmt: skip
    text = (
        f"Held-out nats of {objective} at the end of each run. The published curve, {law.a:.3g} C^-{law.b:.4f} from"
        f" {low:.3g} to {high:.3g} FLOPs, is of other proteins: a guide, no comparison."
    )
    sections = [Section(title="Loss against compute", text=text, table=first, images=[("Scaling", picture)])]
    ranked = sorted((curve for curve in curves if curve.abilities), key=lambda curve: -curve.points[-1].nats)
    if ranked:
        tasks = sorted({task for curve in ranked for task in curve.abilities})
        table = [("task", "metric", *(f"{curve.name} ({curve.points[-1].nats:.3f})" for curve in ranked))]
        for task in tasks:
            metric = next(curve.abilities[task][0] for curve in ranked if task in curve.abilities)
            table.append((task, metric, *(_figure(curve, task) for curve in ranked)))
        said = f"The figure of each task, the run with the highest {objective} nats first."
        sections.append(Section(title="Ability against loss", text=said, table=table))
    return sections


def _figure(curve: Curve, task: str) -> str:
    return f"{curve.abilities[task][1]:.3f}" if task in curve.abilities else "-"


def _draw(curves: Sequence[Curve], objective: str, law: PowerLaw, png: Path) -> None:
    """Loss against compute; beside it, where known, the tasks against the loss."""
    try:
        from xtrimo.figures import COLOURS, GREY, blank, save

        figure, axes = blank(11, 4.4, columns=2)
    except ModuleNotFoundError as error:
        raise MissingExtraError("a plot needs matplotlib; run: pip install 'xtrimo[pretrain]'") from error
    theirs = np.asarray(PUBLISHED[THEIRS[objective]])
    compute, ability = axes
    compute.plot(theirs[:, 0], law.nats(theirs[:, 0]), color=GREY, linewidth=1)
    compute.plot(theirs[:, 0], theirs[:, 1], "o", color=GREY, markersize=4, label="published, best at each compute")
    for number, curve in enumerate(curves):
        at = [(point.flops, point.nats) for point in curve.points]
        colour = COLOURS[number % len(COLOURS)]
        compute.plot(*zip(*at, strict=True), color=colour, marker=".", label=f"{curve.name}, {curve.num_params:,}")
    compute.set(xscale="log", xlabel="FLOPs, 6 x weights x tokens", ylabel=f"held-out nats, {objective}")
    compute.legend(frameon=False, fontsize="small")
    ranked = sorted((curve for curve in curves if curve.abilities), key=lambda curve: curve.points[-1].nats)
    for number, task in enumerate(sorted({task for curve in ranked for task in curve.abilities})):
        at = [(c.points[-1].nats, c.abilities[task][1]) for c in ranked if task in c.abilities]
        marker = "os^Dv"[number // len(COLOURS) % 5]
        ability.plot(*zip(*at, strict=True), marker=marker, color=COLOURS[number % len(COLOURS)], label=task)
    if ranked:
        ability.set(xlabel=f"held-out nats, {objective}; less is better", ylabel="figure of the task")
        ability.invert_xaxis()
        ability.legend(frameon=False, fontsize="x-small", ncols=2, loc="center left", bbox_to_anchor=(1, 0.5))
    else:
        ability.set_visible(False)
    save(figure, png)
