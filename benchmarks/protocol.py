"""How every benchmark here measures: the same proteins, one thread, CPU-seconds, interleaved rounds, median and range.

All variants live in one process and each round calls every one of them once, in a fresh shuffled order; only ratios
*within* a round are compared, so that a slow spell of the machine hits both sides. CPU-seconds of the process, not
wall time, because the other cores are rarely idle. A matrix product is timed as a variant like any other; the share of
the peak (MFU) that a variant reaches is its FLOP rate over the best one of the product in the same run.

The proteins are 1,000 names drawn once from a FASTA file (`python -m benchmarks.protocol FASTA` repeats the draw). A
benchmark that cannot afford them all takes a subset stratified by length, in an order whose padding at batch 8 is that
of the whole list: what a peer wastes on padding must not depend on the subset.
"""

import dataclasses
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from xtrimo.errors import CorpusError
from xtrimo.fasta import Record, read_fasta

NAMES = Path(__file__).with_name("proteins.txt")
FASTA = Path("../shared/data/corpus/sample.fasta.gz")
NUM_PROTEINS, LENGTHS, SEED = 1000, range(30, 1023), 0
PEER_BATCH = 8
GEMM_SIZE = 2048


def one_thread() -> None:
    """Hold this process to one thread."""
    import torch

    torch.set_num_threads(1)


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and range over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g}..{self.high:.3g})"


@dataclass(frozen=True, slots=True)
class Timings:
    """CPU-seconds of each variant, one value a round; entry i of every variant is of the same round."""

    seconds: dict[str, list[float]]

    @property
    def num_rounds(self) -> int:
        """Timed rounds."""
        return len(next(iter(self.seconds.values())))

    def spread(self, name: str) -> Spread:
        """CPU-seconds of a call."""
        return Spread.of(self.seconds[name])

    def speedup(self, name: str, baseline: str) -> Spread:
        """How many times faster than the baseline, round by round."""
        pairs = zip(self.seconds[name], self.seconds[baseline], strict=True)
        return Spread.of([theirs / mine for mine, theirs in pairs])

    def share_of_peak(self, name: str, flops: float, product: str, product_flops: float) -> Spread:
        """FLOP rate over the best one that the matrix product reached in any round.

        The best, since a product takes a second and a step many: in a slow second it would flatter the step.
        """
        peak = product_flops / min(self.seconds[product])
        return Spread.of([flops / seconds / peak for seconds in self.seconds[name]])


def interleave(
    variants: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    seed: int = SEED,
    clock: Callable[[], float] = time.process_time,
    warm: Mapping[str, Callable[[], object]] | None = None,
) -> Iterator[Timings]:
    """Time every variant once a round, in shuffled order, after one untimed call of each.

    Yields what is known after each round, so that a benchmark that is stopped keeps its finished rounds.

    Args:
        warm: what is called untimed in place of the variants, where these take minutes.
    """
    for run in (warm or variants).values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    rng = random.Random(seed)
    for _ in range(rounds):
        for name in rng.sample(list(variants), len(variants)):
            start = clock()
            variants[name]()
            seconds[name].append(clock() - start)
        yield Timings({name: list(values) for name, values in seconds.items()})


@dataclass(frozen=True, slots=True)
class Gemm:
    """The yardstick: a square matrix product in one dtype, repeated; call it as a variant."""

    run: Callable[[], object]
    flops: float
    """Of one call."""


def gemm(dtype: Any, size: int = GEMM_SIZE, repeats: int = 4) -> Gemm:
    """`repeats` products of two `size` x `size` matrices of a torch dtype."""
    import torch

    a, b = (torch.randn(size, size).to(dtype) for _ in "ab")
    return Gemm(lambda: [a @ b for _ in range(repeats)], repeats * 2.0 * size**3)


def draw_names(fasta: Path) -> list[str]:
    """The names in proteins.txt: a uniform draw, in random order, among the proteins of a usual length."""
    names = [record.name for record in read_fasta(fasta, unknown="skip") if len(record.sequence) in LENGTHS]
    return random.Random(SEED).sample(names, NUM_PROTEINS)


def list_proteins(fasta: Path, names: Path = NAMES) -> list[Record]:
    """The fixed proteins in the order of the list.

    Raises:
        CorpusError: when the FASTA file lacks some of them.
    """
    wanted = names.read_text().split()
    known = set(wanted)
    found = {record.name: record for record in read_fasta(fasta) if record.name in known}
    if missing := [name for name in wanted if name not in found]:
        raise CorpusError(
            f"{fasta} lacks {len(missing)} of the {len(wanted)} proteins in {names.name}, e.g. {missing[0]};"
            " give the file that the list was drawn from"
        )
    return [found[name] for name in wanted]


def padding_factor(lengths: Sequence[int], batch: int = PEER_BATCH) -> float:
    """Multiplied over real tokens when the sequences are padded in order, `batch` at a time."""
    batches = [lengths[i : i + batch] for i in range(0, len(lengths), batch)]
    return sum(len(part) * max(part) for part in batches) / sum(lengths)


def stratified(lengths: Sequence[int], num: int) -> list[int]:
    """Indices of `num` proteins, the middle ones of `num` equal slices by length.

    Of seeded shuffles the first is taken whose padding factor is within 1 % of the whole list's, or else the nearest.
    """
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    chosen = [by_length[int((i + 0.5) * len(lengths) / num)] for i in range(num)]
    whole = padding_factor(lengths)
    best: tuple[float, list[int]] = (float("inf"), [])
    for seed in range(1000):
        order = random.Random(seed).sample(chosen, num)
        error = abs(padding_factor([lengths[i] for i in order]) / whole - 1)
        best = min(best, (error, order))
        if best[0] < 0.01:
            break
    return best[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Where a benchmark ran."""

    cpu: str
    cores: int
    threads: int
    load_average: float
    """Runnable processes over the last minute, before the first round."""
    versions: dict[str, str]

    @classmethod
    def here(cls, *packages: str) -> "Machine":
        import torch

        return cls(
            cpu=_cpu_name(), cores=os.cpu_count() or 1, threads=torch.get_num_threads(),
            load_average=os.getloadavg()[0],
            versions={"python": platform.python_version()} | {p: version(p) for p in ("torch", *packages)},
        )  # fmt: skip

    def __str__(self) -> str:
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return f"{self.cpu}, {self.cores} cores, {self.threads} thread; {versions}; load {self.load_average:.1f}"


def _cpu_name() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown CPU"


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a benchmark says: one table, and everything that was measured."""

    title: str
    machine: Machine
    setting: dict[str, Any]
    """What was compared, as JSON-ready facts."""
    timings: Timings
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: tuple[str, ...] = ()

    def to_markdown(self) -> str:
        lines = [f"### {self.title}", "", str(self.machine), ""]
        lines += ["| " + " | ".join(row) + " |" for row in (self.header, ("---",) * len(self.header), *self.rows)]
        return "\n".join([*lines, "", *(f"* {note}" for note in self.notes)]) + "\n"

    def save(self, folder: Path, name: str) -> None:
        """Write `name`.json (every round) and `name`.md (the table)."""
        folder.mkdir(parents=True, exist_ok=True)
        facts = dataclasses.asdict(self)
        (folder / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")
        (folder / f"{name}.md").write_text(self.to_markdown())


if __name__ == "__main__":
    print("\n".join(draw_names(Path(sys.argv[1]))))
