"""What surrounds a training step: drawing its rows, saving what it changed, sharing it among ranks.

    python -m benchmarks.pretrain --parts data save layouts

`data` draws the rows of whole steps from a corpus of the benchmark's FASTA file, under the mixture of objectives,
beside the trainer's step on the same rows; with the smallest model, which asks for them fastest. `save` writes
checkpoints, at once and beside the training. `layouts` shares one batch between two ranks of one thread each, beside
one rank alone: on two cores a perfect layout takes half the wall time and no more processor time.
"""

import dataclasses
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from megatron.core import parallel_state

from benchmarks import protocol
from benchmarks.protocol import Machine, Report, Spread, Timings
from benchmarks.row_memory import fill
from pretrain.checkpoint import Checkpoints
from pretrain.config import BatchConfig, ParallelConfig, PretrainConfig
from pretrain.corpus import Corpus
from pretrain.corpus_building import CorpusConfig, build_corpus
from pretrain.data import Stream
from pretrain.losses import row_size
from pretrain.parallel import process_groups
from pretrain.trainer import Trainer
from xtrimo.config import preset
from xtrimo.packing import Row
from xtrimo.testing import run_distributed

LAYOUTS: dict[str, dict[str, Any]] = {
    "one rank": {},
    "tensor 2": dict(tensor_degree=2),
    "tensor 2, sequence parallel": dict(tensor_degree=2, sequence_parallel=True),
    "pipeline 2": dict(pipeline_degree=2),
    "pipeline 2, 2 virtual stages": dict(pipeline_degree=2, virtual_stages=2),
    "context 2": dict(context_degree=2),
    "data 2": {},
    "data 2, distributed optimizer, overlap": dict(distributed_optimizer=True, overlap=True),
}
LAYOUT_MODEL, LAYOUT_ROWS, LAYOUT_TOKENS = "glm-35m", 4, 512


def data(fasta: Path, rounds: int) -> Report:
    """CPU-seconds of drawing a step's rows, against the step."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        build_corpus(CorpusConfig(inputs=(fasta,), out=corpus))
        config = make_config("glm-1m", corpus=corpus)
        stream, steps = Stream(Corpus.open(corpus), config), iter(range(10**6))
        rows = list(stream.step(next(steps)))  # also plans the epoch
        with process_groups(config):
            trainer = Trainer(config)
            timings = last_of(
                protocol.interleave(
                    {"draw": lambda: list(stream.step(next(steps))), "step": lambda: trainer.step(rows)}, rounds
                )
            )
    tokens = sum(float(row_size(row, config.glm)[0]) for row in rows)
    rates = {name: tokens / timings.spread(name).median for name in ("draw", "step")}
    return Report(
        title="Drawing the data", machine=Machine.here("megatron-core"), timings=timings,
        setting=dict(model=config.model, tokens=tokens),
        header=("what", "CPU-s", "tokens a CPU-s"),
        rows=[(name, str(timings.spread(name)), f"{rate:,.0f}") for name, rate in rates.items()],
        notes=(f"drawing is {timings.speedup('draw', 'step')} times as fast as training glm-1m, asked: at least 20",),
    )  # fmt: skip


def save(models: tuple[str, ...], rounds: int) -> Report:
    """Wall seconds of a checkpoint against its bytes."""
    rows: list[tuple[str, ...]] = []
    seconds: dict[str, list[float]] = {}
    for model in models:
        config = make_config(model)
        with process_groups(config), tempfile.TemporaryDirectory(dir=".") as folder:
            took, waited, num_bytes = _save_repeatedly(config, Path(folder), rounds)
        seconds |= {model: took, f"{model}, beside": waited}
        rate = Spread.of([num_bytes / 1e6 / one for one in took])
        rows.append((model, f"{num_bytes / 1e6:,.0f}", str(Spread.of(took)), str(rate), str(Spread.of(waited))))
    return Report(
        title="Saving", machine=Machine.here("megatron-core"), timings=Timings(seconds), setting={},
        header=("model", "MB", "seconds", "MB/s", "seconds that training waits for an asynchronous save"), rows=rows,
        notes=("weights, both moments of AdamW; written, flushed to the disk and checksummed by one rank",),
    )  # fmt: skip


def _save_repeatedly(config: PretrainConfig, folder: Path, rounds: int) -> tuple[list[float], list[float], int]:
    trainer = Trainer(config)
    took: list[float] = []
    waited: list[float] = []
    for step in range(1, rounds + 1):
        for times, asynchronous in ((took, False), (waited, True)):
            trainer.config = dataclasses.replace(config, async_save=asynchronous)
            checkpoints = Checkpoints(trainer, folder / str(asynchronous), {})
            began = time.perf_counter()
            checkpoints.save(step, {})
            times.append(time.perf_counter() - began)
            checkpoints.finish()
    newest = max(folder.glob("*/step-*"))
    return took, waited, sum(file.stat().st_size for file in newest.rglob("*"))


def layouts(fasta: Path, rounds: int) -> Report:
    """Wall and processor seconds of one step, each layout in processes of its own, in shuffled rounds."""
    wall: dict[str, list[float]] = {name: [] for name in LAYOUTS}
    cpu: dict[str, list[float]] = {name: [] for name in LAYOUTS}
    proteins, objectives = protocol.list_proteins(fasta), preset(LAYOUT_MODEL).objectives
    batch = [fill(proteins[i::LAYOUT_ROWS], objectives, LAYOUT_TOKENS) for i in range(LAYOUT_ROWS)]
    order = random.Random(protocol.SEED)
    for _ in range(rounds):
        for name in order.sample(list(LAYOUTS), len(LAYOUTS)):
            ranks = run_distributed(_time_step, 1 + (name != "one rank"), LAYOUTS[name], batch, timeout=600.0)
            wall[name].append(max(seconds for seconds, _ in ranks))
            cpu[name].append(sum(seconds for _, seconds in ranks))
    walls, cpus = Timings(wall), Timings(cpu)
    rows = [
        (name, str(walls.spread(name)), str(walls.speedup(name, "one rank")), str(cpus.spread(name)),
         str(cpus.speedup("one rank", name)))
        for name in LAYOUTS
    ]  # fmt: skip
    return Report(
        title=f"Layouts of two ranks, {LAYOUT_MODEL}", machine=Machine.here("megatron-core"), timings=walls,
        setting=dict(cpu_seconds=cpu),
        header=("layout", "wall s a step", "times as fast as one rank", "CPU-s of all ranks", "x one rank"), rows=rows,
        notes=(f"{LAYOUT_ROWS} rows of {LAYOUT_TOKENS} tokens, one thread a rank; {rounds} rounds, median (range)",),
    )  # fmt: skip


def _time_step(rank: int, degrees: dict[str, Any], rows: list[Row]) -> tuple[float, float]:
    """Wall and processor seconds of a step on this rank."""
    config = make_config(LAYOUT_MODEL, parallel=ParallelConfig(**degrees))
    with process_groups(config):
        share = len(rows) // parallel_state.get_data_parallel_world_size()
        mine = parallel_state.get_data_parallel_rank() * share
        trainer = Trainer(config)
        trainer.step(rows[mine : mine + share])
        wall, cpu = time.perf_counter(), time.process_time()
        trainer.step(rows[mine : mine + share])
        return time.perf_counter() - wall, time.process_time() - cpu


def make_config(model: str, **changes: Any) -> PretrainConfig:
    """A run of `model` with 4 rows of 4,096 tokens a step, whose folders nobody reads."""
    settings: dict[str, Any] = dict(corpus=Path(), run=Path(), model=model, batch=BatchConfig(rows=4)) | changes
    return PretrainConfig(**settings)


def last_of(rounds: Any) -> Timings:
    """What is known after the last round."""
    *_, last = rounds
    timings: Timings = last
    return timings
