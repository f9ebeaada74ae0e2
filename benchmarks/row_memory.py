"""Memory of a training step against the length of its packed row: the peak that one step adds, each in a new process.

    python -m benchmarks.row_memory --model glm-1m --lengths 4096 8192 16384

A row holds the proteins of proteins.txt in their order, under the model's objectives in turn. Before the measured step
a step on a row of 256 tokens brings in everything that is there once: code, optimizer state, buffers of gradients. The
high-water mark of the resident memory is then set back (Linux only), so that what is reported is the step's own.
"""

import multiprocessing
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, pairwise
from pathlib import Path

import numpy as np
import tyro

from benchmarks import protocol
from benchmarks.protocol import Machine, Report, Spread, Timings
from pretrain.config import BatchConfig, PretrainConfig
from xtrimo.config import preset
from xtrimo.fasta import Record
from xtrimo.objectives import Fragment, ObjectiveConfig, make_example
from xtrimo.packing import Row, pack
from xtrimo.tokens import encode_residues

WARM_UP = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkConfig:
    """What to measure."""

    fasta: Path = protocol.FASTA
    """The file that proteins.txt was drawn from."""
    model: str = "glm-1m"
    """Preset."""
    lengths: tuple[int, ...] = (4096, 8192, 16384)
    """Tokens of the rows."""
    rounds: int = 3
    """Measurements of each row: what the allocator keeps of what was freed is a matter of chance."""
    out: Path = Path("runs/benchmarks")
    """Folder of row_memory_MODEL.{json,md}."""


@dataclass(frozen=True, slots=True)
class Point:
    """One row, measured some times."""

    num_tokens: int
    num_proteins: int
    before: list[int]
    """Resident bytes before the step."""
    peak: list[int]
    """Most resident bytes during the step."""

    @property
    def added(self) -> Spread:
        """Gigabytes that the step added."""
        return Spread.of([(peak - before) / 1e9 for peak, before in zip(self.peak, self.before, strict=True)])


def main() -> None:
    config = tyro.cli(BenchmarkConfig, description=__doc__)
    protocol.one_thread()
    proteins = protocol.list_proteins(config.fasta)
    fresh = multiprocessing.get_context("spawn")
    points = []
    for num_tokens in config.lengths:
        row = fill(proteins, preset(config.model).objectives, num_tokens)
        short = fill(proteins, preset(config.model).objectives, WARM_UP)
        befores, peaks = [], []
        for _ in range(config.rounds):
            with fresh.Pool(1) as pool:
                before, peak = pool.apply(measure, (config.model, short, row))
            befores.append(before)
            peaks.append(peak)
        points.append(Point(num_tokens, int((row.segments[:, 1] > 1).sum()), befores, peaks))
    report = report_of(config.model, points)
    report.save(config.out, f"row_memory_{config.model}")
    print(report.to_markdown())


def measure(model: str, short: Row, row: Row) -> tuple[int, int]:
    """Resident bytes before a training step on `row` and at most during it; meant for a process of its own."""
    from pretrain.parallel import process_groups
    from pretrain.trainer import Trainer

    protocol.one_thread()
    batch = BatchConfig(rows=1, row_length=len(row.tokens))
    config = PretrainConfig(corpus=Path(), run=Path(), model=model, batch=batch)
    with process_groups(config):
        trainer = Trainer(config)
        trainer.step([short])
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to the present size
        before = high_water_mark()
        trainer.step([row])
        return before, high_water_mark()


def fill(proteins: Sequence[Record], objectives: Sequence[str], num_tokens: int) -> Row:
    """A row of the first proteins that fit, padded to `num_tokens`."""
    rng, size, examples = np.random.default_rng(0), 0, []
    for protein, name in zip(proteins, cycle(objectives), strict=False):
        example = make_example(Fragment(encode_residues(protein.sequence)), name, rng, ObjectiveConfig())
        if size + len(example.tokens) <= num_tokens:
            examples.append(example)
            size += len(example.tokens)
    return pack(examples, multiple=num_tokens)


def high_water_mark() -> int:
    """Most resident bytes since it was last set back."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def report_of(model: str, points: Sequence[Point]) -> Report:
    """The table, with how much each row takes of what the row before took."""
    growth = ["", *(f"{b.added.median / a.added.median:.2f}" for a, b in pairwise(points))]
    rows = [
        (
            f"{point.num_tokens:,}",
            str(point.num_proteins),
            str(point.added),
            f"{point.added.median / point.num_tokens * 1e6:.0f}",
            ratio,
        )
        for point, ratio in zip(points, growth, strict=True)
    ]
    config = preset(model)
    longest = points[-1].num_tokens
    scores = 4 * longest**2 * config.num_heads * config.num_layers
    return Report(
        title=f"Memory of a training step, {model}, fp32, one row",
        machine=Machine.here("megatron-core"),
        setting=dict(model=model, points=[asdict(point) for point in points]),
        timings=Timings({}),
        header=("tokens", "proteins", "step adds, GB", "KB a token", "times the row before"),
        rows=rows,
        notes=(
            f"median (range) of {len(points[0].peak)} processes; resident before the step:"
            f" {points[0].before[0] / 1e9:.2f} GB",
            f"attention scores of {longest:,} x {longest:,} tokens, kept in fp32 for the backward pass, would take"
            f" {scores / 1e9:.0f} GB",
        ),
    )  # fmt: skip


if __name__ == "__main__":
    main()
