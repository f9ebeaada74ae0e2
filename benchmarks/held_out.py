"""How well a model directory predicts held-out residues, beside unigram, bigram and 3-gram: a Markdown table.

    python -m benchmarks.held_out MODEL_DIR CORPUS

Mean nats per residue label with 95 % bootstrap intervals over clusters, on the rows that training validates on;
pretrain/held_out.py says which labels count. --seed is that of the training run, whose masks it fixes.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from pretrain.corpus import Corpus
from pretrain.held_out import compare, markdown, validation_config
from xtrimo.checkpoint import load


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutConfig:
    """Judge a model directory on the held-out proteins of a corpus."""

    model: tyro.conf.Positional[Path]
    """Model directory."""
    corpus: tyro.conf.Positional[Path]
    """Corpus directory, whose training proteins the n-grams are fitted on."""
    seed: int = 0
    """Seed of the training run."""
    valid_tokens: int = 1_000_000
    """Most tokens per objective."""


def main() -> None:
    config = tyro.cli(HeldOutConfig)
    model = load(config.model)
    run = validation_config(model.config, config.corpus, seed=config.seed, valid_tokens=config.valid_tokens)
    results = compare(model, run)
    clusters = max(result.num_clusters for result in results)
    known = (
        "of the cluster file" if Corpus.open(config.corpus).has_clusters else "(no cluster file: each protein is one)"
    )
    print(f"{markdown(results)}\n")
    print(f"Nats per residue label, 95 % bootstrap intervals over {clusters:,} held-out clusters {known}.")
    print(f"Model: {model.config.source or config.model.name}, {model.config.num_params:,} parameters.")


if __name__ == "__main__":
    main()
