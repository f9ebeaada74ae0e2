"""How many pairs a reward model needs, and whether its beliefs are as good as their word; one page.

    python examples/reward_curves.py TABLE --model MODEL --out OUT

TABLE holds measured proteins: columns seq, label, and split if it has one. The measurement plays the reward that nobody
knows: what is learned from is pairs of proteins, better and worse, both of one split, so that no protein is on two
sides. Each protein of train is paired once before any is paired again, and smaller numbers of pairs are the first of
larger ones; of test each protein is in one pair. Equal measurements make no pair.

OUT gets reward_curves.md, .json and .png, calibration.png of the most pairs, and PAIRS/, a run of `xtrimo finetune` for
each number; one that is finished is not repeated. The floor is a linear reward from the composition, of the same pairs.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tyro.conf import Positional

from heads.answers import Predictions
from heads.finetune import FinetuneOptions, finetune_on, load_plain
from heads.metrics import METRICS, applicable, evaluate
from heads.pictures import calibration
from heads.rows import Dataset, Row, read
from heads.tasks import Columns, custom_task
from xtrimo import figures
from xtrimo.adaptation import Method
from xtrimo.durable import write_json
from xtrimo.errors import DataError
from xtrimo.intervals import Estimate
from xtrimo.log import configure
from xtrimo.pages import Section, to_markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger("xtrimo.examples")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Learn rewards from more and more pairs of measured proteins."""

    table: Positional[Path]
    """Measured proteins: a file that `xtrimo finetune --target regression` reads."""
    model: str
    """Model directory, or a name as in `xtrimo finetune`."""
    out: Path
    """Folder of the page and of the runs."""
    pairs: tuple[int, ...] = (32, 128, 512, 2048)
    """Numbers of pairs to train on, the smallest first."""
    judged: int = 1000
    """Pairs of test, and of valid, at most."""
    method: Method = "probe"
    """As in `xtrimo finetune`."""
    epochs: float = 15.0
    """Passes over the pairs, at most."""
    seed: int = 0
    """Of the pairs and the heads."""
    device: str = "cpu"
    """Where to run, such as cuda."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """What so many pairs gave."""

    pairs: int
    proteins: int
    figures: dict[str, Estimate]
    """By name of metric, on the test pairs."""
    floor: Estimate
    """Order by composition."""


def paired(rows: Sequence[Row], num: int, seed: int, *, again: bool = False) -> tuple[Row, ...]:
    """At most `num` different pairs, the better first, of as many different proteins as can be.

    Args:
        again: pair proteins that are in a pair already, once all are.
    """
    found: dict[tuple[str, str], Row] = {}
    rng = np.random.default_rng(seed)
    limit = 4 * num // max(1, len(rows) // 2) + 4 if again else 1  # of small sets all pairs may be found before
    for _ in range(limit):
        order = rng.permutation(len(rows))
        for one, other in zip(order[::2], order[1::2], strict=False):
            worse, better = sorted((rows[one], rows[other]), key=lambda row: float(np.asarray(row.label)))
            if better.label != worse.label and better.sequence != worse.sequence:
                pair = Row(sequence=better.sequence, second=worse.sequence, label=1.0, name=better.name)
                found.setdefault((pair.sequence, pair.second), pair)
    return tuple(islice(found.values(), num))


def pairs_of(measured: Dataset, options: Options) -> Dataset:
    """The same splits as pairs.

    Raises:
        DataError: too few proteins to make the pairs asked for.
    """
    task = custom_task(
        f"{measured.task.name}_pairs", level="sequence", target="preference",
        columns=Columns(sequence="better", second="worse"),
    )  # fmt: skip
    train = paired(measured.train, max(options.pairs), options.seed, again=True)
    valid, test = (paired(rows, options.judged, options.seed) for rows in (measured.valid, measured.test))
    if len(train) < max(options.pairs) or not test:
        raise DataError(
            f"{len(measured.train)} proteins to train on and {len(measured.test)} to test make {len(train)} and"
            f" {len(test)} pairs; ask for fewer in --pairs, or give more proteins"
        )
    return replace(measured, task=task, train=train, valid=valid, test=test)


def point(dataset: Dataset, num: int, options: Options) -> Point:
    """Learn from the first `num` pairs, and judge."""
    few, out = replace(dataset, train=dataset.train[:num]), options.out / str(num)
    logger.info("learning from %d pairs", num)
    asked = FinetuneOptions(
        task=dataset.task.name, model=options.model, method=options.method, out=out, epochs=options.epochs,
        seed=options.seed, device=options.device, leaks=False,
    )  # fmt: skip
    results = finetune_on(few, load_plain(options.model, options.device), asked)
    said, floor = Predictions.load(out / results["predictions"]), results["baselines"]["composition"]
    return Point(
        pairs=num, proteins=len({protein for row in few.train for protein in (row.sequence, row.second)}),
        figures={name: evaluate(name, said) for name in applicable(said)},
        floor=Estimate(value=floor["value"], low=floor["low"], high=floor["high"]),
    )  # fmt: skip


def picture(points: Sequence[Point]) -> "Figure":
    """Order and log loss against the number of pairs."""
    figure, panels = figures.blank(9.0, 3.8, columns=2)
    for axes, name, chance in zip(panels, ("order", "log_loss"), (0.5, np.log(2)), strict=True):
        lines: dict[str, list[Any]] = {figures.COLOURS[0]: [each.figures[name] for each in points]}
        if name == "order":
            lines[figures.GREY] = [each.floor for each in points]
        for colour, estimates in lines.items():
            heights = [estimate.value for estimate in estimates]
            ends = [[e.value - e.low for e in estimates], [e.high - e.value for e in estimates]]
            label = "composition" if colour == figures.GREY else "reward model"
            axes.errorbar([each.pairs for each in points], heights, np.maximum(ends, 0), color=colour, marker="o",
                          capsize=3, label=label)  # fmt: skip
        axes.axhline(chance, color="black", linewidth=0.8, linestyle="--", label="chance")
        axes.set(xscale="log", xlabel="pairs to learn from", ylabel=METRICS[name].title)
        axes.grid(alpha=0.3)
    panels[0].legend(frameon=False, fontsize="small")
    return figure


def main(args: Sequence[str] | None = None) -> int:
    """Write the page; the exit status."""
    import tyro

    options = tyro.cli(Options, args=args)
    configure()
    name = options.table.name.partition(".")[0]
    measured = read(options.table, custom_task(name, level="sequence", target="regression"), seed=options.seed)
    dataset = pairs_of(measured, options)
    options.out.mkdir(parents=True, exist_ok=True)
    points = [point(dataset, num, options) for num in sorted(options.pairs)]
    last = Predictions.load(options.out / str(points[-1].pairs) / "predictions.npz")
    images = [
        ("order and log loss against pairs", figures.save(picture(points), options.out / "reward_curves.png")),
        ("calibration of the most pairs", figures.save(calibration(last, ()), options.out / "calibration.png")),
    ]
    names = list(points[0].figures)
    rows = [["pairs", "proteins", *(METRICS[name].title for name in names), "composition, in order"]]
    rows += [[f"{p.pairs:,}", f"{p.proteins:,}", *(str(p.figures[n]) for n in names), str(p.floor)] for p in points]
    text = (
        f"Rewards learned from pairs of {options.table.name} by {options.method} on {Path(options.model).name}, seed"
        f" {options.seed}; judged on {len(dataset.test):,} pairs of proteins that were not learned from. Chance is 0.5"
        " of order and 0.693 of log loss."
    )
    page = options.out / "reward_curves.md"
    page.write_text(to_markdown([Section(title="Reward curves", text=text, table=rows, images=images)], options.out))
    write_json(options.out / "reward_curves.json", {"points": [asdict(each) for each in points]})
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
