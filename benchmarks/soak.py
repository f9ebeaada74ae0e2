"""A pretraining run on two ranks that is killed again and again, beside the same run left in peace.

    python -m benchmarks.soak --kills 50

Each attempt is the same command. At a random moment of it, from the first import to the last save, one of the ranks is
killed (SIGKILL) and takes the other with it. In the end every loss and every weight must be those of the unbroken run,
to the bit.
"""

import json
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

import pretrain.loop  # noqa: F401  # so that the forked ranks need not import megatron
from benchmarks.protocol import Machine
from pretrain.checkpoint_files import path_of, steps
from pretrain.corpus_building import CorpusConfig, build_corpus
from pretrain.export import read_weights
from pretrain.train import main as run_verb
from xtrimo.config import preset
from xtrimo.log import configure
from xtrimo.testing import run_distributed, toy_sequences

MODEL = "glm-1m"


@dataclass(frozen=True, kw_only=True, slots=True)
class SoakConfig:
    """How often, how long."""

    kills: int = 50
    """Attempts that are killed before the last one is let through."""
    steps: int = 400
    """Steps of the run."""
    save_every: int = 4
    """Steps between checkpoints."""
    seed: int = 0
    """Draws the moments and the victims."""
    flags: tuple[str, ...] = ("--parallel.distributed-optimizer", "--dropout", "0.1")
    """More flags of `xtrimo pretrain`."""
    out: Path = Path("runs/benchmarks")
    """Folder of soak.{json,md}."""


def main() -> None:
    config = tyro.cli(SoakConfig, description=__doc__)
    configure()
    with tempfile.TemporaryDirectory() as folder:
        result = run_both(config, Path(folder))
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / "soak.json").write_text(json.dumps(result, indent=1) + "\n")
    table = to_markdown(config, result)
    (config.out / "soak.md").write_text(table)
    print(table)


def run_both(config: SoakConfig, folder: Path) -> dict[str, Any]:
    """Run both in `folder`; the moments of the kills, and whether all ends equal."""
    corpus = folder / "corpus"
    fasta = folder / "in.fasta"
    fasta.write_text("".join(f">{i}\n{s}\n" for i, s in enumerate(toy_sequences(300))))
    build_corpus(CorpusConfig(inputs=(fasta,), out=corpus, min_length=5, valid_ratio=0.1))
    peaceful, killed = folder / "peaceful", folder / "killed"
    began = time.perf_counter()
    run_distributed(attempt, 2, command(config, corpus, peaceful), None, timeout=3600.0)
    seconds = time.perf_counter() - began
    rng = random.Random(config.seed)
    moments: list[dict[str, Any]] = []
    while len(moments) < config.kills:
        # two thirds of them late enough for some progress, so that the run neither ends early nor stands still
        delay = rng.uniform(0.0, 3 * seconds / config.kills)
        before = last_step(killed)
        try:
            run_distributed(attempt, 2, command(config, corpus, killed), (rng.randrange(2), delay), timeout=3600.0)
            break  # done before its time
        except RuntimeError:
            moments.append({"after_seconds": delay, "during": moment(killed, before), "step": last_step(killed)})
    run_distributed(attempt, 2, command(config, corpus, killed), None, timeout=3600.0)
    return {
        "kills": moments, "seconds_unbroken": seconds, "losses_equal": losses(peaceful) == losses(killed),
        "weights_equal": weights_equal(peaceful, killed, config.steps), "machine": str(Machine.here("megatron-core")),
    }  # fmt: skip


def command(config: SoakConfig, corpus: Path, run: Path) -> list[str]:
    """The one command, but for the run folder."""
    return [
        "--corpus", str(corpus), "--out", str(run), "--model", MODEL, "--steps", str(config.steps),
        "--save-every", str(config.save_every), "--validate-every", "20", "--valid-tokens", "500", "--log-every", "1",
        "--batch.rows", "2", "--batch.row-length", "128", *config.flags,
    ]  # fmt: skip


def attempt(rank: int, flags: Sequence[str], kill: tuple[int, float] | None) -> None:
    """One rank of one attempt; with `kill` = (victim, seconds) it may be its last."""
    if kill and rank == kill[0]:
        timer = threading.Timer(kill[1], os.kill, (os.getpid(), signal.SIGKILL))
        timer.daemon = True
        timer.start()
    run_verb(flags)


def last_step(run: Path) -> int:
    """The newest checkpoint's step."""
    return max(steps(run / "checkpoints"), default=0)


def moment(run: Path, before: int) -> str:
    """What the run was doing when it was killed."""
    if list((run / "checkpoints").glob(".*.tmp")):
        return "writing or removing a checkpoint"
    lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
    logged = max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)
    return "steps" if logged > before else "starting or loading"


def losses(run: Path) -> list[Any]:
    """Every loss of a run, in order."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [[x["split"], x["step"], *(v for k, v in x.items() if k.startswith(("nats_", "loss")))] for x in lines]


def weights_equal(a: Path, b: Path, step: int) -> bool:
    """Whether two runs ended with the same bits."""
    one, other = (read_weights(path_of(run / "checkpoints", step), preset(MODEL)) for run in (a, b))
    return all(torch.equal(weight, other[name]) for name, weight in one.items())


def to_markdown(config: SoakConfig, result: dict[str, Any]) -> str:
    """The table of the kills, and the verdict."""
    counts = Counter(kill["during"] for kill in result["kills"])
    rows = [f"| {during} | {count} |" for during, count in counts.most_common()]
    verdict = {True: "equal to the bit", False: "DIFFERENT"}
    return "\n".join(
        [
            f"{MODEL}, {config.steps} steps on two ranks, a checkpoint every {config.save_every} steps,"
            f" `{' '.join(config.flags)}`; {result['machine']}",
            "", "| killed while | times |", "| --- | --- |", *rows, f"| all | {len(result['kills'])} |", "",
            f"* all losses of the run: {verdict[result['losses_equal']]}",
            f"* final weights: {verdict[result['weights_equal']]}",
            "",
        ]
    )  # fmt: skip


if __name__ == "__main__":
    main()
