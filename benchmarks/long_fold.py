"""A long protein through folding models: seconds, memory, and whether its atoms depend on how the work is cut.

    python -m benchmarks.long_fold                                    # fold-tiny, uncut as memory allows and by 1 row
    python -m benchmarks.long_fold --presets fold-8m --chunks auto    # 20 blocks of pairs, half an hour

Random weights, each of which matters, without a language model. Every fold has a process of its own; its memory is all
that is resident at the peak, Python and the weights included, and its limit is what `--most-gb` leaves it.
"""

import hashlib
import multiprocessing
import resource
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks import protocol
from benchmarks.fold import spread_weights
from benchmarks.protocol import Machine, Report, Timings
from benchmarks.row_memory import high_water_mark
from structure.config import PRESETS
from structure.fold_directory import Pipeline
from structure.folding import fold
from structure.model import FoldModel
from structure.reader import Reader
from xtrimo.testing import toy_sequences


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkConfig:
    """What to measure."""

    presets: tuple[str, ...] = ("fold-tiny",)
    """Shapes of models."""
    blocks: int = 0
    """Of the trunk, at most; 0 for all."""
    recycles: int | None = None
    """Times that the trunk's output is fed back; by default the preset's."""
    length: int = 1500
    """Residues."""
    chunks: tuple[str, ...] = ("auto", "1")
    """Rows of pairs at a time, each a fold of its own."""
    most_gb: float = 20.0
    """Address space of a fold, past which it fails."""
    out: Path = Path("runs/benchmarks")
    """Folder of long_fold_LENGTH.{json,md}."""


def main() -> None:
    config = tyro.cli(BenchmarkConfig, description=__doc__)
    rows: list[tuple[str, ...]] = []
    seconds, facts = {}, []
    for preset in config.presets:
        for chunk in config.chunks:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found = pool.apply(measured, (config, preset, chunk))
            facts.append(found)
            seconds[f"{preset}, {chunk}"] = [found["seconds"]]
            rows.append((
                preset, f"{found['blocks']} of {PRESETS[preset].num_blocks}", str(found["passes"]), chunk,
                f"{found['seconds']:.0f}", f"{found['bytes'] / 2**30:.1f}", found["digest"],
            ))  # fmt: skip
            print(rows[-1], flush=True)
    report = Report(
        title=f"{config.length:,} residues", machine=Machine.here(), timings=Timings(seconds), rows=rows,
        setting={"length": config.length, "folds": facts},
        header=("model", "blocks", "passes", "chunk", "CPU-s", "GiB", "digest of atoms, pLDDT and PAE"),
        notes=(f"random weights, no language model; one round, one process each of at most {config.most_gb:g} GB",),
    )  # fmt: skip
    report.save(config.out, f"long_fold_{config.length}")
    print(report.to_markdown())


def measured(config: BenchmarkConfig, preset: str, chunk: str) -> dict[str, Any]:
    """One fold, meant for a process of its own."""
    protocol.one_thread()
    limit = int(config.most_gb * 1e9)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    full = PRESETS[preset]
    shape = replace(full, num_blocks=min(config.blocks or full.num_blocks, full.num_blocks))
    torch.manual_seed(0)
    model = FoldModel(shape).eval()
    spread_weights(model.trunk)
    pipeline = Pipeline(model=model, reader=Reader(None, shape), name=preset)
    (sequence,) = toy_sequences(1, min_length=config.length, max_length=config.length)
    start = time.process_time()
    (said,) = fold(pipeline, [sequence], num_recycles=config.recycles, chunk=None if chunk == "auto" else int(chunk))
    seconds = time.process_time() - start
    digest = hashlib.blake2b(digest_size=6)
    for array in (said.atoms, said.plddt, said.pae_ang):
        digest.update(array.tobytes())
    return {
        "preset": preset, "chunk": chunk, "blocks": shape.num_blocks, "passes": said.num_recycles + 1,
        "seconds": seconds, "bytes": high_water_mark(), "digest": digest.hexdigest(),
    }  # fmt: skip


if __name__ == "__main__":
    main()
