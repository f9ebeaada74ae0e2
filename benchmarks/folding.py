"""Put runs of `xtrimo train-fold` into docs/results.md: figures side by side, curves, and pLDDT against the true lDDT.

    python -m benchmarks.folding RUN RUN ...

The first run is compared with each other one, chain by chain. The text between the page's comments `folding` is
replaced, and docs/folding.png drawn anew. Nothing in the run folders is touched.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.results import DOCS, splice
from xtrimo.figures import COLOURS, GREY, blank, save
from xtrimo.intervals import Estimate, bootstrap_ratio
from xtrimo.training_log import read_metrics

FIGURES = {"lddt": "lDDT", "tm": "TM-score", "precision": "precision of long-range contacts, L/5"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A finished run."""

    name: str
    results: dict[str, Any]
    metrics: list[dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """The run of a folder, named by what it reads."""
        settings = json.loads((folder / "settings.json").read_text())
        model = "amino acids alone" if settings["model"] == "none" else Path(settings["model"]).name
        results = json.loads((folder / "results.json").read_text())
        return cls(name=model, results=results, metrics=read_metrics(folder / "training" / "metrics.jsonl"))

    def chains(self, figure: str) -> np.ndarray:
        """A figure of each chain, NaN where it has none."""
        return np.array([chain[figure] for chain in self.results["test"]["chains"]], dtype=float)


def section(runs: list[Run]) -> str:
    """The Markdown about some runs."""
    first, *others = runs
    rows = ["| reads | steps | " + " | ".join(FIGURES.values()) + " |", "| --- | --- |" + " --- |" * len(FIGURES)]
    for run in runs:
        figures = [str(Estimate(**run.results["test"]["trained"][name])) for name in FIGURES]
        rows.append(f"| {run.name} | {run.results['best_step']:,} | " + " | ".join(figures) + " |")
    figures = [str(Estimate(**first.results["test"]["untrained"][name])) for name in FIGURES]
    rows.append("| untrained | 0 | " + " | ".join(figures) + " |")
    lines = [*rows, "", f"Means over {first.results['test']['num_chains']} chains of clusters not trained on."]
    for other in others:
        gains = ", ".join(f"{label} {_gain(first, other, name)}" for name, label in FIGURES.items())
        lines += ["", f"{first.name} over {other.name}, on the same chains: {gains}."]
    lines += ["", f"pLDDT correlates with the true lDDT by {first.results['test']['correlation']:.2f} over residues."]
    return "\n".join([*lines, "", "![Validation lDDT; pLDDT against the true lDDT](folding.png)"])


def _gain(first: Run, other: Run, figure: str) -> Estimate:
    gains = first.chains(figure) - other.chains(figure)
    gains = gains[np.isfinite(gains)]
    return bootstrap_ratio(gains, np.ones_like(gains))


def draw(runs: list[Run], path: Path) -> None:
    """Curves of validation beside the reliability of the first run."""
    figure, (curves, reliability) = blank(9, 3.5, columns=2)
    for run, colour in zip(runs, COLOURS, strict=False):
        valid = [entry for entry in run.metrics if entry["split"] == "valid"]
        curves.plot([e["step"] for e in valid], [e["figure"] for e in valid], color=colour, label=run.name)
    curves.set(xlabel="step", ylabel="validation lDDT")
    curves.legend()
    bins = runs[0].results["test"]["reliability"]
    reliability.plot([0, 100], [0, 100], color=GREY)
    reliability.scatter([b["plddt"] for b in bins], [b["lddt"] for b in bins],
                        s=[20 + 200 * b["num_residues"] / sum(x["num_residues"] for x in bins) for b in bins],
                        color=COLOURS[0])  # fmt: skip
    reliability.set(xlabel="pLDDT", ylabel="true lDDT", xlim=(0, 100), ylim=(0, 100))
    save(figure, path)


def main() -> None:
    folders = tyro.cli(tyro.conf.Positional[list[Path]])
    runs = [Run.read(folder) for folder in folders]
    page = DOCS / "results.md"
    page.write_text(splice(page.read_text(), "folding", section(runs)))
    draw(runs, DOCS / "folding.png")
    print(f"{page.name} and folding.png are up to date")


if __name__ == "__main__":
    main()
