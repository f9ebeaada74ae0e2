"""A report of fine-tuned models: one table and its pictures, as Markdown, as one HTML file, and as PNGs.

Read are the `results.json` and `predictions.npz` that fine-tuning, evaluation and `bench` leave, wherever they lie
below a folder. Figures and intervals are those of the runs; nothing is worked out anew.
"""

import json
import logging
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from heads import pictures
from heads.answers import Predictions
from heads.leaks import Overlap
from heads.metrics import METRICS
from heads.tasks import EXTRAS, TASKS
from xtrimo.answer import give
from xtrimo.errors import DataError, XtrimoError
from xtrimo.figures import save
from xtrimo.intervals import Estimate
from xtrimo.log import warn_once
from xtrimo.pages import Section, to_html, to_markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One evaluation, as its results.json says."""

    folder: Path
    task: str
    metric: str
    model: str
    """Name of the model and method, and of the seed where there are several."""
    estimate: Estimate
    num_test: int
    baselines: Mapping[str, Estimate]
    """The floors of the task, by name."""
    remarks: Mapping[str, str]
    """What else a reader must know: rows left out, leaks between the splits."""
    classes: tuple[str, ...] = ()
    predictions: Path | None = None

    @property
    def title(self) -> str:
        """Of the metric."""
        return METRICS[self.metric].title if self.metric in METRICS else self.metric


def read_results(folder: Path) -> list[Result]:
    """Every evaluation below a folder, by the order of the tasks.

    Raises:
        DataError: no such folder, no results.json in it, or one that cannot be read.
    """
    files = sorted(folder.rglob("results.json"))
    if not files:
        raise DataError(f"{folder} holds no results.json; give the folder that finetune, evaluate or bench wrote to")
    contents = [(file.parent, _json(file)) for file in files]
    twice = Counter((c["task"], _model(c, with_seed=False)) for _, c in contents)
    results = [_result(place, c, with_seed=twice[c["task"], _model(c, with_seed=False)] > 1) for place, c in contents]
    order = {name: number for number, name in enumerate((*TASKS, *EXTRAS))}
    return sorted(results, key=lambda result: (order.get(result.task, len(order)), result.task, result.model))


def write_report(results: Sequence[Result], out: Path) -> list[Path]:
    """Write report.md, report.html and the pictures; returns all files, those two first.

    Raises:
        DataError: predictions that cannot be read.
    """
    out.mkdir(parents=True, exist_ok=True)
    sections = list(_sections(results, out))
    markdown, page = out / "report.md", out / "report.html"
    markdown.write_text(to_markdown(sections, out), encoding="utf-8")
    page.write_text(to_html(sections), encoding="utf-8")
    return [markdown, page, *(path for section in sections for _, path in section.images)]


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text("utf-8"))
        missing = {"task", "metric", "value", "low", "high", "num_test", "model", "method"} - set(content)
        if missing:
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{file} is no result of an evaluation ({error}); evaluate the run again") from error
    checked: dict[str, Any] = content
    return checked


def _model(content: Mapping[str, Any], *, with_seed: bool) -> str:
    seed = f", seed {content.get('seed')}" if with_seed else ""
    return f"{Path(str(content['model'])).name} {content['method']}{seed}"


def _result(folder: Path, content: Mapping[str, Any], *, with_seed: bool) -> Result:
    predictions = folder / str(content.get("predictions") or "predictions.npz")
    remarks = {"left_out": _words(content.get("left_out")), "leaks": _leaks(content.get("leaks"))}
    return Result(
        folder=folder, task=content["task"], metric=content["metric"], model=_model(content, with_seed=with_seed),
        estimate=_estimate(content), num_test=int(content["num_test"]),
        baselines={name: _estimate(value) for name, value in (content.get("baselines") or {}).items()},
        remarks={what: words for what, words in remarks.items() if words},
        classes=tuple(content.get("classes") or ()), predictions=predictions if predictions.is_file() else None,
    )  # fmt: skip


def _estimate(content: Any) -> Estimate:
    """From value, low and high; a bare number has no interval."""
    if not isinstance(content, Mapping):
        content = {"value": content}
    value = _number(content.get("value"))
    low, high = (_number(content.get(end)) for end in ("low", "high"))
    return Estimate(value=value, low=value if math.isnan(low) else low, high=value if math.isnan(high) else high)


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _leaks(value: Any) -> str:
    """What `Leaks.to_dict` wrote, in the words of `Overlap`."""
    if not isinstance(value, Mapping) or "overlaps" not in value:
        return _words(value)
    overlaps = [str(Overlap(**(overlap | {"examples": ()}))) for overlap in value["overlaps"]]
    return f"{'; '.join(overlaps)}, by {value.get('method')}" if overlaps else ""


def _words(value: Any) -> str:
    """A JSON value as a reader takes it; empty where it says nothing."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key.replace('_', ' ')}: {_words(inner)}" for key, inner in value.items() if _words(inner))
    return "" if value is None or value == [] else str(value)


def _sections(results: Sequence[Result], out: Path) -> Iterator[Section]:
    yield Section(
        title="Results",
        text="A figure stands with its 95 % bootstrap interval over proteins; the best of a row is bold. Floors use the"
        " letters of the proteins alone.",
        table=_table(results),
        images=list(_bars(results, out)),
    )
    for result in results:
        yield Section(
            title=f"{result.task}: {result.model}",
            text=". ".join(
                [f"{result.title} {result.estimate} on {result.num_test:,} test rows"]
                + [f"{what.replace('_', ' ').capitalize()}: {words}" for what, words in result.remarks.items()]
            )
            + ".",
            images=list(_pictures(result, out)),
        )


def _floors(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(name for result in results for name in result.baselines))


def _by_task(results: Sequence[Result]) -> dict[tuple[str, str], dict[str, Estimate]]:
    """(task, metric) -> model or floor -> figure."""
    table: dict[tuple[str, str], dict[str, Estimate]] = {}
    for result in results:
        table.setdefault((result.task, result.metric), {})[result.model] = result.estimate
    for result in results:  # after all models, so that those come first
        table[result.task, result.metric].update(result.baselines)
    return table


def _table(results: Sequence[Result]) -> list[list[str]]:
    models = list(dict.fromkeys(result.model for result in results))
    num_test = {(result.task, result.metric): result.num_test for result in results}
    rows = [["task", "metric", "test rows", *models, "floors"]]
    for (task, metric), figures in _by_task(results).items():
        is_larger_better = metric not in METRICS or METRICS[metric].larger_is_better
        defined = [estimate.value for estimate in figures.values() if not math.isnan(estimate.value)]
        best = (max if is_larger_better else min)(defined, default=math.nan)
        cells = {name: _cell(estimate, estimate.value == best) for name, estimate in figures.items()}
        floors = ", ".join(f"{name} {cell}" for name, cell in cells.items() if name not in models)
        title = METRICS[metric].title if metric in METRICS else metric
        rows.append([task, title, f"{num_test[task, metric]:,}", *(cells.get(name, "") for name in models), floors])
    return rows


def _cell(estimate: Estimate, is_best: bool) -> str:
    if math.isnan(estimate.value):
        return "not defined"
    has_interval = estimate.low < estimate.high
    text = str(estimate) if has_interval else f"{estimate.value:.3f}"
    return f"**{text}**" if is_best else text


def _bars(results: Sequence[Result], out: Path) -> Iterator[tuple[str, Path]]:
    """One picture of all metrics of which larger is better, one for each of the others."""
    groups: dict[str, dict[str, dict[str, Estimate]]] = {}
    for (task, metric), figures in _by_task(results).items():
        is_larger_better = metric not in METRICS or METRICS[metric].larger_is_better
        title = METRICS[metric].title if metric in METRICS else metric
        axis = "metric of the task (larger is better)" if is_larger_better else f"{title} (smaller is better)"
        defined = {name: estimate for name, estimate in figures.items() if not math.isnan(estimate.value)}
        if defined:
            groups.setdefault(axis, {})[f"{task}\n{title}"] = defined
    for number, (axis, group) in enumerate(groups.items()):
        path = out / f"bars{number or ''}.png"
        yield f"{axis}, by task", save(pictures.bars(group, _floors(results), axis), path)


def _pictures(result: Result, out: Path) -> Iterator[tuple[str, Path]]:
    if result.predictions is None:
        warn_once(logger, "%s: no predictions.npz, so there are no pictures of it", result.folder)
        return
    predictions = Predictions.load(result.predictions)
    stem = re.sub(r"\W+", "-", f"{result.task} {result.model}").strip("-")
    figures: dict[str, Figure] = {}
    if predictions.of == "contacts":
        figures["contacts"] = pictures.contact_maps(predictions)
    elif predictions.of == "values":
        figures["scatter"] = pictures.scatter(predictions, f"{result.title} {result.estimate}")
    elif predictions.of == "preferences":
        figures["calibration"] = pictures.calibration(predictions, ())
    else:
        classes = result.classes or tuple(str(number) for number in range(predictions.prediction.shape[1]))
        figures["confusion"] = pictures.confusion(predictions, classes)
        figures["calibration"] = pictures.calibration(predictions, classes)
    for what, figure in figures.items():
        yield f"{what} of {result.task}, {result.model}", save(figure, out / f"{stem}-{what}.png")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportOptions:
    """A report of all evaluations below a folder: tables and pictures, as Markdown, HTML and PNG."""

    runs: Positional[Path]
    """Folder with the results of finetune, evaluate or bench, in it or below."""
    out: Path | None = None
    """Folder to write to; by default report/ in `runs`."""


def main(args: Sequence[str] | None = None) -> None:
    """`xtrimo report`."""
    import tyro

    options = tyro.cli(ReportOptions, prog="xtrimo report", args=args)
    results = read_results(options.runs)
    out = options.out or options.runs / "report"
    try:
        files = write_report(results, out)
    except OSError as error:
        raise XtrimoError(f"{out} cannot be written: {error.strerror or error}; choose another --out") from error
    text = f"{len(results)} results; {files[0]}, {files[1]} and {len(files) - 2} pictures"
    give({"results": len(results), "files": files}, text)
