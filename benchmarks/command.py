"""`xtrimo embed` as a command: its cold start beside `import torch`, and two threads beside a busy neighbour.

    python -m benchmarks.command --parts start threads

start: CPU-seconds of the whole process for one protein and an 8M model, and of `python -c "import torch"`.
threads: seconds on the clock for some proteins and a 35M model on one thread and on two, while another process keeps
one core busy; beside them two threads that spin while they wait, as OpenMP's do where nobody tells them otherwise.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from benchmarks import protocol
from benchmarks.embed import glm_config
from benchmarks.protocol import Machine, Report, Timings
from xtrimo.checkpoint import save
from xtrimo.fasta import Record, write_fasta
from xtrimo.model import GLM

MOST_SECONDS, MOST_RATIO = 2.0, 1.3
NUM_PROTEINS = {"8M": 1, "35M": 8}


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkConfig:
    """What to time."""

    fasta: Path = protocol.FASTA
    """The file that proteins.txt was drawn from."""
    parts: tuple[Literal["start", "threads"], ...] = ("start", "threads")
    """Tables to make."""
    rounds: int = 5
    """Timed rounds, after one untimed call of every variant."""
    out: Path = Path("runs/benchmarks")
    """Folder of command_PART.{json,md}."""


def main() -> None:
    config = tyro.cli(BenchmarkConfig, description=__doc__)
    tables: dict[str, Callable[[BenchmarkConfig, Path], Report]] = {"start": start, "threads": threads}
    for part in config.parts:
        with tempfile.TemporaryDirectory() as folder:
            report = tables[part](config, Path(folder))
        report.save(config.out, f"command_{part}")
        print(report.to_markdown(), flush=True)


def start(config: BenchmarkConfig, folder: Path) -> Report:
    """Cold start."""
    embed = _command(config, folder, "8M")
    torch = [sys.executable, "-c", "import torch"]
    variants = {
        "import torch": lambda: _run(torch, {"OMP_NUM_THREADS": "1"}),
        "xtrimo embed, one protein, 8M": lambda: _run(embed, {"OMP_NUM_THREADS": "1"}),
    }
    (*_, timings) = protocol.interleave(variants, config.rounds, clock=_cpu_of_children)
    name = "xtrimo embed, one protein, 8M"
    ratio = timings.speedup("import torch", name)  # theirs over mine: embed's seconds over torch's
    seconds = timings.spread(name)
    met = {True: "met", False: "NOT met"}
    return _report(
        "Cold start", timings, "CPU-s",
        f"CPU-seconds, at most {MOST_SECONDS}: {seconds}, {met[seconds.median <= MOST_SECONDS]}",
        f"over `import torch`, at most {MOST_RATIO}: {ratio}, {met[ratio.median <= MOST_RATIO]}",
    )  # fmt: skip


def threads(config: BenchmarkConfig, folder: Path) -> Report:
    """One thread and two, beside a busy neighbour."""
    embed = _command(config, folder, "35M")
    spinning = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "ACTIVE"}
    variants = {
        "one thread": lambda: _run(embed, {"OMP_NUM_THREADS": "1"}),
        "two threads": lambda: _run(embed, {"OMP_NUM_THREADS": "2"}),
        "two threads that spin": lambda: _run(embed, spinning),
    }
    with _busy_neighbour():
        (*_, timings) = protocol.interleave(variants, config.rounds, clock=time.perf_counter)
    faster = timings.speedup("two threads", "one thread")
    spun = timings.speedup("two threads that spin", "one thread")
    return _report(
        "Two threads beside a busy neighbour", timings, "wall s",
        f"two threads against one, at least 1: {faster}, {'met' if faster.median >= 1 else 'NOT met'}",
        f"two that spin against one: {spun}",
    )  # fmt: skip


def _command(config: BenchmarkConfig, folder: Path, size: str) -> list[str]:
    """`xtrimo embed` of a random model and of the first proteins of the list; the model is written here."""
    proteins = [Record(f"p{i}", r.sequence) for i, r in enumerate(protocol.list_proteins(config.fasta))]
    write_fasta(folder / "in.fasta", proteins[: NUM_PROTEINS[size]])
    save(GLM(glm_config(size)), folder / "model")
    verb = [sys.executable, "-m", "xtrimo", "embed", str(folder / "in.fasta"), str(folder / "out.h5")]
    return [*verb, "--model", str(folder / "model"), "--pooling", "mean"]


def _run(command: list[str], environment: Mapping[str, str]) -> None:
    if "-m" in command:
        Path(command[5]).unlink(missing_ok=True)  # a finished file would not be made again
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    subprocess.run(command, env={**inherited, **environment}, check=True, capture_output=True)


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def _busy_neighbour() -> Iterator[None]:
    """A process that never rests."""
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        neighbour.kill()
        neighbour.wait()


def _report(title: str, timings: Timings, unit: str, *notes: str) -> Report:
    rows = [(name, str(timings.spread(name))) for name in timings.seconds]
    return Report(
        title=title, machine=Machine.here(), setting={}, timings=timings, header=("process", unit), rows=rows,
        notes=(*notes, f"{timings.num_rounds} rounds, median (range)"),
    )  # fmt: skip


if __name__ == "__main__":
    main()
