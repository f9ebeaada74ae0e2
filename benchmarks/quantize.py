"""A model in 8 and 4 bits beside fp32: bytes on the disk, resident memory, time to read proteins and to write one.

    python -m benchmarks.quantize

The model has fresh weights: memory and time do not depend on them (what is lost does; `xtrimo quantize` measures that).
Each form is loaded by `xtrimo.load` in a process of its own, which reads some proteins and writes some. Memory is
VmRSS, mapped files included, beyond what the process has with everything imported.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from benchmarks import protocol
from benchmarks.protocol import Machine, Report, Timings
from xtrimo.checkpoint import save
from xtrimo.config import Quantization, preset
from xtrimo.conversion import Source, write_model
from xtrimo.model import GLM
from xtrimo.quantizing import quantized

CHILD = """
import json, sys, time
from pathlib import Path
import torch
import xtrimo
from generate import sample
from xtrimo import embed, load
from xtrimo.testing import toy_sequences
torch.set_num_threads(1)
def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))
proteins = toy_sequences(12, min_length=300, max_length=340)
before = resident()
model = load(sys.argv[1])
embed(model, proteins[:1], pooling="mean")
start = time.process_time()
embed(model, proteins, pooling="mean")
read = time.process_time() - start
held = resident() - before
start = time.process_time()
written = sample(model, num=6, batch_size=1, max_length=40, seed=1)
write = time.process_time() - start
words = sum(len(one.sequence) + 1 for one in written)
print(json.dumps(dict(resident=held, read=sum(map(len, proteins)) / read, written=words / write)))
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkConfig:
    """What to measure."""

    model: str = "glm-150m"
    """Preset; int4 needs even sides."""
    folder: Path = Path("runs/quantize")
    """Where the directories are written for the time being; it must not exist."""
    out: Path = Path("runs/benchmarks")
    """Folder of quantize_MODEL.{json,md}."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """One form of the model."""

    on_disk: int
    """Bytes of its weights files."""
    resident: int
    """Bytes of memory, loaded and after reading."""
    read: float
    """Residues per CPU-second, embedding."""
    written: float
    """Residues and ends per CPU-second, one protein at a time."""


FORMS: tuple[Quantization, ...] = ("none", "int8", "int8-dynamic", "int4")


def measure(directory: Path) -> Form:
    """Load a model directory in a fresh process and use it."""
    command = [sys.executable, "-c", CHILD, str(directory)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    on_disk = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    return Form(on_disk=on_disk, **json.loads(said))


def run(config: BenchmarkConfig) -> dict[str, Form]:
    """All forms."""
    try:
        model = GLM(preset(config.model)).eval()
        save(model, config.folder / "none")
        for form in FORMS[1:]:
            write_model(Source.of(quantized(model, form)), config.folder / form)
        return {form: measure(config.folder / form) for form in FORMS}
    finally:
        shutil.rmtree(config.folder, ignore_errors=True)


def report_of(config: BenchmarkConfig, results: dict[str, Form]) -> Report:
    """The table of all forms."""
    plain = results["none"]
    rows = [
        (
            "fp32" if name == "none" else name, f"{of.on_disk / 1e6:.0f}", f"{of.resident / 1e6:.0f}",
            f"{of.resident / plain.resident:.2f}", f"{of.read:.0f}", f"{of.read / plain.read:.2f}", f"{of.written:.1f}",
            f"{of.written / plain.written:.2f}",
        )
        for name, of in results.items()
    ]  # fmt: skip
    return Report(
        title=f"{config.model} in fewer bits, fp32 activations",
        machine=Machine.here("safetensors"),
        setting=dict(model=config.model, forms={name: asdict(of) for name, of in results.items()}),
        timings=Timings({}),
        header=("form", "MB on disk", "MB in memory", "of fp32", "read, residues/CPU-s", "x", "written, /CPU-s", "x"),
        rows=rows,
        notes=("12 proteins of 300 to 340 residues read, 6 of at most 40 written one at a time; one thread",),
    )


def main() -> None:
    config = tyro.cli(BenchmarkConfig, description=__doc__)
    if config.folder.exists():
        raise SystemExit(f"{config.folder} exists; the models would be written there, and deleted")
    protocol.one_thread()
    report = report_of(config, run(config))
    report.save(config.out, f"quantize_{config.model}")
    print(report.to_markdown())


if __name__ == "__main__":
    main()
