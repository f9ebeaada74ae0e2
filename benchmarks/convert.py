"""Converting a published checkpoint of the 1B shapes (fp32) each way: anonymous memory and seconds, in fresh processes.

    python -m benchmarks.convert

The checkpoint holds random numbers under the published names, and all is deleted at the end; 15 GB of disk are needed
at a time. Anonymous memory is what a process cannot give back (RssAnon, see benchmarks/load.py), here beyond what it
has with everything imported. The target is 1.25x the largest weights file that is written.
"""

import select
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from benchmarks import protocol
from benchmarks.load import anonymous_bytes, forget, write_checkpoint
from benchmarks.protocol import Machine, Report, Timings
from xtrimo.config import preset

CHILD = """
import sys, time
import torch
from xtrimo.conversion import main
torch.set_num_threads(1)
print("ready", flush=True)
sys.stdin.readline()
start = time.perf_counter(), time.process_time()
main(sys.argv[1:])
print("done", time.perf_counter() - start[0], time.process_time() - start[1], flush=True)
sys.stdin.readline()
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkConfig:
    """What to measure."""

    model: str = "proteinglm-1b"
    """Preset of a published checkpoint."""
    folder: Path = Path("runs/convert")
    """Where the directories are written for the time being; it must not exist."""
    out: Path = Path("runs/benchmarks")
    """Folder of convert_MODEL.{json,md}."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """One conversion."""

    source: str
    target: str
    flags: tuple[str, ...]


WAYS = (
    Way(source="published", target="ours", flags=("--shard-size", "5GB")),
    Way(source="ours", target="back", flags=("--to", "proteinglm", "--shard-size", "5GB")),
    Way(source="published", target="shards", flags=("--shard-size", "500MB")),
    Way(source="published", target="half", flags=("--dtype", "bf16", "--shard-size", "5GB")),
    Way(source="published", target="half shards", flags=("--dtype", "bf16", "--shard-size", "500MB")),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversion:
    """How one went, in a process of its own."""

    grown: int
    """Most anonymous bytes beyond those with everything imported."""
    largest: int
    """Bytes of the largest weights file written."""
    seconds: float
    cpu_seconds: float
    digest: str
    """Of the weights."""


def measure(source: Path, out: Path, flags: tuple[str, ...]) -> Conversion:
    """Convert a model directory in a fresh process and watch its anonymous memory.

    Raises:
        RuntimeError: if that process failed.
    """
    command = [sys.executable, "-c", CHILD, str(source), str(out), *flags]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as child:
        assert child.stdin is not None and child.stdout is not None
        if child.stdout.readline() != "ready\n":
            raise RuntimeError("the process that converts did not start")
        before = peak = anonymous_bytes(child.pid)
        child.stdin.write("\n")
        while not select.select([child.stdout], [], [], 0.001)[0]:
            peak = max(peak, anonymous_bytes(child.pid))
        said = {}
        while line := child.stdout.readline():
            name, *values = line.split()
            said[name] = values
            if name == "done":
                child.stdin.write("\n")
    if "done" not in said:
        raise RuntimeError(f"the process that converts {source} failed; its error is on stderr")
    seconds, cpu_seconds = map(float, said["done"])
    return Conversion(
        grown=peak - before, largest=max(file.stat().st_size for file in out.glob("*.safetensors")),
        seconds=seconds, cpu_seconds=cpu_seconds, digest=said["weights_sha256"][0],
    )  # fmt: skip


def run(config: BenchmarkConfig) -> dict[str, Conversion]:
    """All ways, each copy deleted when nothing is made of it any more."""
    results = {}
    try:
        write_checkpoint(preset(config.model), config.folder / "published", "safetensors")
        for way in WAYS:
            source, out = config.folder / way.source, config.folder / way.target
            forget(source)
            results[f"{way.source} to {way.target}"] = measure(source, out, way.flags)
            if way.target != "ours":
                shutil.rmtree(out)
    finally:
        shutil.rmtree(config.folder, ignore_errors=True)
    return results


def report_of(config: BenchmarkConfig, results: dict[str, Conversion]) -> Report:
    """The table of all ways."""
    rows = [
        (
            way, " ".join(next(w.flags for w in WAYS if f"{w.source} to {w.target}" == way)), f"{of.largest / 1e9:.2f}",
            f"{of.grown / 1e9:.3f}", f"{of.grown / of.largest:.2f}", f"{of.seconds:.1f}", f"{of.cpu_seconds:.1f}",
            of.digest[:12],
        )
        for way, of in results.items()
    ]  # fmt: skip
    return Report(
        title=f"Converting {config.model}, fp32",
        machine=Machine.here("safetensors"),
        setting=dict(model=config.model, ways={way: asdict(of) for way, of in results.items()}),
        timings=Timings({}),
        header=("way", "flags", "largest file, GB", "RssAnon grown, GB", "over largest", "s", "CPU-s", "digest"),
        rows=rows,
        notes=("one process each, its source dropped from the page cache before; one thread",),
    )


def main() -> None:
    config = tyro.cli(BenchmarkConfig, description=__doc__)
    if config.folder.exists():
        raise SystemExit(f"{config.folder} exists; the copies would be written there, and deleted")
    protocol.one_thread()
    report = report_of(config, run(config))
    report.save(config.out, f"convert_{config.model}")
    print(report.to_markdown())


if __name__ == "__main__":
    main()
