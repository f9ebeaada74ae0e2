"""Whole pretraining runs for tests, through the real verb, in forked ranks, with faults put into them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pretrain.corpus_building import CorpusConfig, build_corpus
from xtrimo.config import PRESETS
from xtrimo.testing import run_distributed, toy_config, toy_sequences

STEPS = 8
Fault = Callable[[int], None]
"""Called on each rank, with its number, before the run starts."""


def make_corpus(folder: Path) -> Path:
    """A corpus of 300 toy proteins of a biased composition, so that a few steps have something to learn."""
    fasta = folder / "in.fasta"
    proteins = (s.replace("W", "L").replace("C", "L") for s in toy_sequences(300))
    fasta.write_text("".join(f">{i}\n{protein}\n" for i, protein in enumerate(proteins)))
    build_corpus(CorpusConfig(inputs=(fasta,), out=folder / "corpus", min_length=5, valid_ratio=0.1))
    return folder / "corpus"


def flags(corpus: Path, run: Path, *more: str) -> list[str]:
    """A run of the toy model on two rows a step, with dropout, that saves every second step."""
    return [
        "--corpus", str(corpus), "--out", str(run), "--model", "toy", "--steps", str(STEPS), "--log-every", "1",
        "--save-every", "2", "--validate-every", "4", "--valid-tokens", "500", "--batch.rows", "2",
        "--batch.row-length", "256", "--optimizer.learning-rate", "3e-3", "--dropout", "0.1", *more,
    ]  # fmt: skip


def train(args: list[str], world_size: int = 1, fault: Fault | None = None, timeout: float = 120.0) -> None:
    """Run the verb on every rank; RuntimeError with the first failing rank's story."""
    run_distributed(_train, world_size, args, fault, timeout=timeout)


def _train(rank: int, args: list[str], fault: Fault | None) -> None:
    from pretrain.train import main

    PRESETS["toy"] = toy_config()
    if fault:
        fault(rank)
    main(args)


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> dict[tuple[str, int], list[float]]:
    """All loss figures of a run by (split, step), in order of writing; a step twice would show as a missing one."""
    lines = metrics(run)
    out = {(x["split"], x["step"]): [v for k, v in x.items() if k.startswith(("nats_", "loss"))] for x in lines}
    assert len(out) == len(lines)
    return out
