"""Loading a published checkpoint of the 1B shapes (fp32) as bf16: anonymous memory and seconds, in a fresh process.

    python -m benchmarks.load

The checkpoint holds random numbers under the published names. It is written once, loaded by processes of their own, and
deleted. Anonymous memory is what the process cannot give back: RssAnon, which its parent reads a thousand times a
second (Linux only); pages of the mapped file are not in it. The first load follows a request to drop the file from the
page cache, the others find it there.
"""

import json
import os
import select
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from safetensors.torch import save_file

from benchmarks import protocol
from benchmarks.protocol import Machine, Report, Spread, Timings
from xtrimo.config import GLMConfig, preset
from xtrimo.model import GLM
from xtrimo.names import pairs
from xtrimo.published import TURN
from xtrimo.rope import frequencies

Layout = Literal["safetensors", "bin"]
BF16_BYTES = 2
CHILD = """
import sys, time
from pathlib import Path
import torch
from xtrimo.backbone import load
from xtrimo import published
torch.set_num_threads(1)
print("ready", flush=True)
sys.stdin.readline()
start = time.perf_counter(), time.process_time()
model = load(Path(sys.argv[1]), dtype=getattr(torch, sys.argv[2]))
print(time.perf_counter() - start[0], time.process_time() - start[1], flush=True)
sys.stdin.readline()
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkConfig:
    """What to measure."""

    model: str = "proteinglm-1b"
    """Preset of a published checkpoint."""
    layouts: tuple[Layout, ...] = ("safetensors", "bin")
    """Kinds of files."""
    rounds: int = 4
    """Loads of each."""
    folder: Path = Path("runs/load")
    """Where the checkpoint is written for the time being; it must not exist."""
    out: Path = Path("runs/benchmarks")
    """Folder of load_MODEL.{json,md}."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """One load in a process of its own."""

    before: int
    """Anonymous bytes with everything imported."""
    peak: int
    """Most anonymous bytes until the model was there."""
    after: int
    """Anonymous bytes with the model there."""
    seconds: float
    cpu_seconds: float


def write_checkpoint(config: GLMConfig, directory: Path, layout: Layout) -> int:
    """A published directory of random fp32 weights; its bytes."""
    directory.mkdir(parents=True)
    shapes = {name: weight.shape for name, weight in GLM(config, seed=None).state_dict().items()}
    state = {theirs: torch.rand(shapes[ours]) for ours, theirs in pairs(config, "published").items()}
    state |= {TURN.format(i=i): frequencies(config) for i in range(config.num_layers)}
    file = directory / ("model.safetensors" if layout == "safetensors" else "pytorch_model.bin")
    if layout == "safetensors":
        save_file({name: weight.clone() if "inv_freq" in name else weight for name, weight in state.items()}, file)
    else:
        torch.save(state, file)
    content = dict(
        model_type="ProteinGLM", num_layers=config.num_layers, hidden_size=config.hidden_size,
        num_attention_heads=config.num_heads, kv_channels=config.head_dim, ffn_hidden_size=config.ffn_size,
        padded_vocab_size=config.vocab_size, seq_length=config.max_length, layernorm_epsilon=config.layer_norm_eps,
        rotary_embedding_2d=config.rotary == "2d", is_causal="mlm" not in config.objectives,
    )  # fmt: skip
    (directory / "config.json").write_text(json.dumps(content))
    return file.stat().st_size


def measure(directory: Path, dtype: str = "bfloat16") -> Load:
    """Load a model directory in a fresh process and watch its anonymous memory.

    Raises:
        RuntimeError: if that process failed.
    """
    command = [sys.executable, "-c", CHILD, str(directory), dtype]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as child:
        assert child.stdin is not None and child.stdout is not None
        if child.stdout.readline() != "ready\n":
            raise RuntimeError("the process that loads did not start")
        before = peak = anonymous_bytes(child.pid)
        child.stdin.write("\n")
        while not select.select([child.stdout], [], [], 0.001)[0]:
            peak = max(peak, anonymous_bytes(child.pid))
        if not (line := child.stdout.readline()):
            raise RuntimeError(f"the process that loads {directory} failed; its error is on stderr")
        after = anonymous_bytes(child.pid)
        child.stdin.write("\n")
    seconds, cpu_seconds = map(float, line.split())
    return Load(before=before, peak=max(peak, after), after=after, seconds=seconds, cpu_seconds=cpu_seconds)


def anonymous_bytes(pid: int) -> int:
    """Resident bytes of a process that are in no file; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


def forget(directory: Path) -> None:
    """Ask the kernel to drop a directory's files from the page cache."""
    for path in directory.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run_layout(config: BenchmarkConfig, layout: Layout) -> tuple[int, list[Load]]:
    """Bytes of the checkpoint, and its loads, the first from the disk."""
    try:
        num_bytes = write_checkpoint(preset(config.model), config.folder, layout)
        forget(config.folder)
        return num_bytes, [measure(config.folder) for _ in range(config.rounds)]
    finally:
        shutil.rmtree(config.folder, ignore_errors=True)


def report_of(config: BenchmarkConfig, results: dict[Layout, tuple[int, list[Load]]]) -> Report:
    """The table of all loads."""
    target = BF16_BYTES * preset(config.model).num_params
    rows = []
    for layout, (num_bytes, loads) in results.items():
        rows.append(
            (
                layout,
                f"{num_bytes / 1e9:.2f}",
                str(Spread.of([load.peak / 1e9 for load in loads])),
                str(Spread.of([load.peak / target for load in loads])),
                f"{loads[0].seconds:.1f}",
                str(Spread.of([load.seconds for load in loads[1:]])),
                str(Spread.of([load.cpu_seconds for load in loads[1:]])),
            )
        )
    return Report(
        title=f"Loading {config.model}, fp32 on the disk, bf16 in memory",
        machine=Machine.here("safetensors"),
        setting=dict(
            model=config.model,
            loads={layout: [asdict(load) for load in loads] for layout, (_, loads) in results.items()},
        ),
        timings=Timings({}),
        header=("file", "GB", "peak RssAnon, GB", "over bf16 bytes", "s, cold file", "s, cached file", "CPU-s"),
        rows=rows,
        notes=(
            f"bf16 bytes: {target / 1e9:.3f} GB; anonymous memory with everything imported and nothing loaded:"
            f" {next(iter(results.values()))[1][0].before / 1e9:.3f} GB, which the peak includes",
            f"median (range) of {config.rounds} processes, one thread",
        ),
    )  # fmt: skip


def main() -> None:
    config = tyro.cli(BenchmarkConfig, description=__doc__)
    if config.folder.exists():
        raise SystemExit(f"{config.folder} exists; the checkpoint would be written there, and deleted")
    protocol.one_thread()
    results = {layout: run_layout(config, layout) for layout in config.layouts}
    report = report_of(config, results)
    report.save(config.out, f"load_{config.model}")
    print(report.to_markdown())


if __name__ == "__main__":
    main()
