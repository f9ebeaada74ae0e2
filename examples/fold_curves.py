"""Learning curves of folding: against the number of chains to train on, and against the language model it reads.

    python examples/fold_curves.py ARCHIVE --models SMALL LARGE --out OUT

ARCHIVE is one of `xtrimo train-fold` whose chains say which of them are train, valid and test. All runs take as many
steps of as many crops; with the most chains no chain is seen twice, with fewer it is every chain 4, 16, 64 times. The
fewer chains are among the more. Each number of chains is trained on once with the first of the models, and the most of
them with each other one, and with none: amino acids alone.

    OUT/chains/NUM.npz    the archive of so many chains
    OUT/MODEL-NUM/        a run of `xtrimo train-fold`; one that is finished is not repeated
    OUT/fold_curves.md    the page, with fold_curves.png; OUT/fold_curves.json its figures
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tyro.conf import Positional

from examples.fold_chains import write_archive
from structure.judging import FIGURES
from structure.train import train_fold
from structure.train_command import NO_MODEL, TrainFoldOptions
from xtrimo import figures
from xtrimo.chains import read_chains
from xtrimo.durable import write_json, write_text
from xtrimo.errors import DataError
from xtrimo.intervals import Estimate
from xtrimo.log import configure
from xtrimo.pages import Section, to_markdown
from xtrimo.training_log import read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEWER = 4
"""Times as few chains, from one size to the next."""
LABELS = {"lddt": "lDDT", "tm": "TM-score", "precision": "long-range contacts, L/5"}

logger = logging.getLogger("xtrimo.examples")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Train a folding model on more and more chains, and with larger language models."""

    archive: Positional[Path]
    """Chains with splits: an archive (.npz)."""
    models: tuple[str, ...]
    """Language models, the smallest first, as `xtrimo train-fold --model` takes them."""
    out: Path
    """Folder of the page and of the runs."""
    preset: str = "fold-tiny"
    """Shape of the folding model."""
    steps: int = 400
    """Optimizer steps of each run."""
    batch_size: int = 4
    """Crops of a step."""
    sizes: int = 4
    """Numbers of chains; each is a quarter of the next."""
    validate_every: int = 100
    """Steps between validations."""
    valid_chains: int = 20
    """Chains that are folded to validate."""
    test_chains: int = 200
    """Chains to judge on, at most."""

    def counts(self) -> list[int]:
        """Numbers of chains, the smallest first."""
        return [self.steps * self.batch_size // FEWER**power for power in reversed(range(self.sizes))]

    def run(self, model: str, num: int) -> TrainFoldOptions:
        """A run of `xtrimo train-fold`."""
        name = Path(model).name
        return TrainFoldOptions(
            data=self.out / "chains" / f"{num}.npz", model=model, out=self.out / f"{name}-{num}", preset=self.preset,
            steps=self.steps, batch_size=self.batch_size, validate_every=self.validate_every,
            valid_chains=self.valid_chains, test_chains=self.test_chains,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """What a run gave, on the test chains."""

    model: str
    chains: int
    """To train on."""
    figures: dict[str, Estimate]
    """By `LABELS`."""
    valid: list[float]
    """lDDT at each validation."""


def write_archives(options: Options) -> None:
    """The smaller archives.

    Raises:
        DataError: too few chains, or none that is held out.
    """
    chains = list(read_chains(options.archive))
    train = [chain for chain in chains if chain.split == "train"]
    held_out = [chain for chain in chains if chain.split in ("valid", "test")]
    most = options.counts()[-1]
    if len(train) < most or not held_out:
        raise DataError(
            f"{options.archive} has {len(train):,} chains to train on and {len(held_out):,} held out; expected"
            f" {most:,} or more, one for each of {options.steps:,} x {options.batch_size} crops, and some held out"
        )
    order = np.random.default_rng(0).permutation(len(train))
    for num in options.counts():
        path = options.out / "chains" / f"{num}.npz"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            own = [*(train[number] for number in order[:num]), *held_out]
            write_archive(path, own, [str(chain.split) for chain in own])


def point(options: Options, model: str, num: int) -> Point:
    """The figures of a run, which is trained first if need be."""
    asked = options.run(model, num)
    logger.info("%s on %d chains", asked.model, num)
    found: dict[str, Any] = train_fold(asked)["test"]["trained"]
    metrics = read_metrics(asked.out / "training" / "metrics.jsonl")
    return Point(
        model="amino acids alone" if model == NO_MODEL else Path(model).name, chains=num,
        figures={LABELS[name]: Estimate(**found[name]) for name in FIGURES if name in found},
        valid=[entry["figure"] for entry in metrics if entry["split"] == "valid"],
    )  # fmt: skip


def picture(by_size: Sequence[Point], by_model: Sequence[Point]) -> "Figure":
    """lDDT and TM-score against chains, and with each language model."""
    figure, (left, right) = figures.blank(9, 3.5, columns=2)
    for axes, points, places in (
        (left, by_size, [point.chains for point in by_size]), (right, by_model, list(range(len(by_model)))),
    ):  # fmt: skip
        for name, colour in zip(("lddt", "tm"), figures.COLOURS, strict=False):
            found = [point.figures[LABELS[name]] for point in points]
            reach = [[each.value - each.low for each in found], [each.high - each.value for each in found]]
            axes.errorbar(
                places, [each.value for each in found], yerr=reach, marker="o", capsize=3, color=colour,
                label=LABELS[name],
            )  # fmt: skip
        axes.set(ylabel="mean over test chains")
    left.legend()
    left.set(xscale="log", xlabel=f"chains to train on, with {by_size[0].model}")
    right.set(xticks=range(len(by_model)), xlabel=f"read by the folding model, {by_model[0].chains:,} chains")
    right.set_xticklabels([point.model for point in by_model])
    return figure


def rows(points: Sequence[Point], times: int) -> list[list[str]]:
    """A table; `times` is the number of crops."""
    table = [["reads", "chains", "crops of each", *LABELS.values(), "validation lDDT at its best"]]
    for each in points:
        cells = [str(each.figures.get(label, "")) for label in LABELS.values()]
        table.append([each.model, f"{each.chains:,}", f"{times / each.chains:g}", *cells, f"{max(each.valid):.3f}"])
    return table


def main(args: Sequence[str] | None = None) -> int:
    """Write the page; the exit status."""
    import tyro

    options = tyro.cli(Options, args=args)
    configure()
    write_archives(options)
    counts = options.counts()
    first, *others = options.models
    by_size = [point(options, first, num) for num in counts]
    alone, *larger = (point(options, model, counts[-1]) for model in (NO_MODEL, *others))
    by_model = [alone, by_size[-1], *larger]
    image = figures.save(picture(by_size, by_model), options.out / "fold_curves.png")
    num_crops = options.steps * options.batch_size
    text = (
        f"{options.preset}, {options.steps:,} steps of {options.batch_size} crops each. Means over held-out chains, in"
        " brackets 95 % bootstrap intervals over them."
    )
    sections = [
        Section(title="Folding against data", text=text, table=rows(by_size, num_crops),
                images=[("lDDT and TM-score against chains and language model", image)]),
        Section(title="Folding against the language model", text=f"All on {counts[-1]:,} chains, none seen twice.",
                table=rows(by_model, num_crops)),
    ]  # fmt: skip
    write_text(options.out / "fold_curves.md", to_markdown(sections, options.out))
    facts = [
        {"model": each.model, "chains": each.chains, "valid": each.valid,
         "figures": {name: figure.value for name, figure in each.figures.items()}}
        for each in (*by_size, *by_model)
    ]  # fmt: skip
    write_json(options.out / "fold_curves.json", facts)
    print(options.out / "fold_curves.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
