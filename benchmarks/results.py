"""Refresh docs/results.md from a training run, finished or not: curves, settings, speed, held-out table.

    python -m benchmarks.results RUN CORPUS

The newest checkpoint is exported and judged on all held-out proteins; the text between the page's two comments with
the run's name is replaced, and docs/RUN.png drawn anew. Nothing in the run folder is touched.
"""

import json
import re
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from pretrain.corpus import Corpus
from pretrain.curves import plot_curves
from pretrain.export import ExportConfig, export_run
from pretrain.held_out import compare, markdown, validation_config
from xtrimo.checkpoint import load
from xtrimo.objectives import ObjectiveConfig
from xtrimo.training_log import read_metrics

DOCS = Path(__file__).resolve().parents[1] / "docs"


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultsConfig:
    """Put a run's results into docs/results.md."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    corpus: tyro.conf.Positional[Path]
    """The corpus it is trained on."""
    valid_tokens: int = 1_000_000
    """Most held-out tokens per objective."""


def section(config: ResultsConfig) -> str:
    """The Markdown about a run."""
    run: dict[str, Any] = json.loads((config.run / "config.json").read_text())
    corpus = Corpus.open(config.corpus)
    with tempfile.TemporaryDirectory() as folder:
        step = export_run(ExportConfig(run=config.run, out=Path(folder) / "model"))
        model = load(Path(folder) / "model")
    judged = validation_config(
        model.config, config.corpus, seed=run["seed"], valid_tokens=config.valid_tokens,
        objective=ObjectiveConfig(**run["objective"]),
    )  # fmt: skip
    results = compare(model, judged)
    name = config.run.name
    metrics = config.run / "metrics.jsonl"
    plot_curves(metrics, DOCS / f"{name}.png")
    batch, optimizer, curriculum = run["batch"], run["optimizer"], run["curriculum"]
    known = "clusters" if corpus.has_clusters else "proteins, each its own cluster: the corpus has no cluster file"
    return f"""\
After {step:,} of {run["steps"]:,} steps: {run["model"]}, {model.config.num_params:,} parameters, {run["precision"]};
{batch["rows"]} rows of up to {batch["row_length"]:,} tokens a step; peak learning rate {optimizer["learning_rate"]:g};
MLM alone for {curriculum["mlm_tokens"]:,} tokens, then a ramp of {curriculum["ramp_tokens"]:,} to
{_mixture(model.config.objectives, curriculum)}.
Corpus: {corpus.meta.train.num_proteins:,} proteins ({corpus.meta.train.num_residues:,} residues) to train on,
{corpus.meta.valid.num_proteins:,} ({corpus.meta.valid.num_residues:,}) held out; split by {corpus.meta.split_rule}.
{_speed(metrics, step)}

![Training and held-out nats of {name}]({name}.png)

{markdown(results)}

Nats per residue label, 95 % bootstrap intervals over {max(r.num_clusters for r in results):,} held-out {known}."""


def _mixture(objectives: tuple[str, ...], curriculum: dict[str, Any]) -> str:
    mlm, smask = curriculum["mlm_share"], curriculum["smask_share"]
    shares = {"mlm": mlm, "gmask": 1 - mlm - smask, "smask": smask}
    return ", ".join(f"{share:.0%} {name}" for name, share in shares.items() if name in objectives)


def _speed(metrics: Path, step: int) -> str:
    entries = read_metrics(metrics)
    training = [entry for entry in entries if entry["split"] == "train" and entry["step"] <= step]
    rates, shares = ([entry[key] for entry in training] for key in ("residues_per_second", "mfu"))
    return (
        f"Speed: median {statistics.median(rates):,.0f} residues/s ({min(rates):,.0f} to {max(rates):,.0f}), MFU"
        f" {statistics.median(shares):.0%} of the matrix product timed when the run started."
    )


def splice(page: str, name: str, text: str) -> str:
    """`page` with the text between its comments `name` and `/name` replaced."""
    pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*(<!-- /{re.escape(name)} -->)", re.DOTALL)
    if not pattern.search(page):
        raise SystemExit(f"docs/results.md has no place for {name}; add the lines <!-- {name} --> and <!-- /{name} -->")
    return pattern.sub(lambda match: f"{match[1]}{text}\n{match[2]}", page)


def main() -> None:
    config = tyro.cli(ResultsConfig)
    page = DOCS / "results.md"
    page.write_text(splice(page.read_text(), config.run.name, section(config)))
    print(f"{page.name} and {config.run.name}.png are up to date")


if __name__ == "__main__":
    main()
