"""`xtrimo plan` beside history: seconds of a step as published, and as predicted by a fit that has not seen the run.

    python -m benchmarks.planner

Two numbers are fitted (pretrain/plan_time.py, FITTED) by least squares of the logarithms, to the runs whose layout is
published in full. Each of these is predicted by a fit to the others, and by a fit to the other sources alone. Checks
take no part in any fit: runs of which a part of the layout is not stated, and trials of layouts on one cluster, whose
order shows whether a search would have chosen well.

The figures are read where `source` says; runs of which only FLOP/s are published are turned into seconds by the
publication's own count of FLOPs.
"""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from scipy.optimize import least_squares

from benchmarks.protocol import Machine, Report, Timings
from pretrain.config import ParallelConfig
from pretrain.hardware import GPU, GPUS
from pretrain.plan_time import OURS, Efficiency, Passes, StepClock, Transformer, Work

A100, JEAN_ZAY = GPUS["a100-80g"], dataclasses.replace(GPUS["a100-80g"], fabric="opa")
KORTHIKANTI = "Korthikanti et al. 2022, table 5; seconds and layouts as in calculon-ai/calculon, validation/seqsel/tab5"
NARAYANAN = "Narayanan et al. 2021, table 1: Megatron-LM README of 2021, examples/sc21/run_table_1.sh"
GLM = "THUDM/GLM-130B logs/main-log-en.md, 5 May 2022: 88.5 s a step (DGX-A100 network taken)"
BLOOM = "bigscience train/tr11-176B-ml/README.md: 104.70 s a step"
TRIALS = "bigscience train/tr11-176B-ml/chronicles-prequel.md, 25 February 2022"
ESM2 = "NVIDIA/bionemo-framework esm2_native_te/README.md, ESM-2 15B, packed bf16, read off the bars"
ESM2_OLD = "NVIDIA/bionemo-framework docs/models/ESM-2, model scaling, read off the bars; micro-batch not stated"
MEGATRON_H100 = "Megatron-LM README of July 2024; micro-batch, interleaving and recomputation not stated"

FUSED_2021 = Passes(hidden=11, heads=0, ffn=2, scores=6.5)
"""Megatron-LM of 2021: norm 2 h, fused bias, dropout and sum 3.5 h, twice; fused bias and gelu 2 f; scores written by
their product, read and written by the fused softmax and by dropout with its mask, read by the next product."""
FLASH = Passes(hidden=11, heads=0, ffn=2)
"""Fused layers whose attention keeps no scores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedRun:
    """A run as it was published."""

    name: str
    """What it is called here."""
    source: str
    """Where the figures are from."""
    seconds: float
    """Of a step."""
    model: Transformer
    """Its shape."""
    layout: ParallelConfig
    """Its layout."""
    work: Work
    """What a data-parallel rank did in a step."""
    gpu: GPU
    """What it ran on."""

    def predict(self, efficiency: Efficiency) -> float:
        """Seconds of a step."""
        return StepClock(self.model, self.layout, self.work, self.gpu, efficiency).step().total


def fit(runs: Sequence[PublishedRun]) -> Efficiency:
    """The pair, each at most 1, with the least squared logarithms of predicted over published, to three digits."""

    def logarithms(pair: Sequence[float]) -> list[float]:
        return [math.log(run.predict(Efficiency(*pair)) / run.seconds) for run in runs]

    found = least_squares(logarithms, (0.7, 0.9), bounds=(0.1, 1), diff_step=0.005, xtol=1e-4).x
    return Efficiency(*(round(float(value), 3) for value in found))


def leave_one_out(runs: Sequence[PublishedRun]) -> dict[str, float]:
    """Relative error of each run's prediction by a fit to all others."""
    return {run.name: error(run, fit([other for other in runs if other is not run])) for run in runs}


def error(run: PublishedRun, efficiency: Efficiency) -> float:
    """Relative error of the predicted seconds; positive is too slow."""
    return run.predict(efficiency) / run.seconds - 1


def _gpt(layers: int, hidden: int, heads: int, *, vocab: int = 51200, **changes: Any) -> Transformer:
    facts: dict[str, Any] = dict(
        num_layers=layers, hidden_size=hidden, num_heads=heads, ffn_size=4 * hidden, gated=False, vocab_size=vocab,
        passes=FUSED_2021, selective="attention",
    )  # fmt: skip
    return Transformer(**(facts | changes))


class Share(NamedTuple):
    """How a step's sequences are shared."""

    data: int
    """Data-parallel ranks."""
    batch: int
    """Sequences of a step."""
    micro: int = 1
    """Of a micro-batch."""
    length: int = 2048
    """Tokens of a sequence."""
    gradient_size: int = 2
    """Bytes of a gradient as it is exchanged."""


def _run(
    name: str, source: str, seconds: float, model: Transformer, layout: ParallelConfig, share: Share, gpu: GPU = A100
) -> PublishedRun:
    work = Work(
        tokens=share.micro * share.length, length=share.length, rows=share.batch // (share.data * share.micro),
        data_degree=share.data, gradient_size=share.gradient_size, sends_split=source in (KORTHIKANTI, NARAYANAN),
    )  # fmt: skip
    return PublishedRun(name=name, source=source, seconds=seconds, model=model, layout=layout, work=work, gpu=gpu)


def _korthikanti() -> list[PublishedRun]:
    """Four sizes, each with full recomputation, and with that of attention and sequence parallelism."""
    table = [  # name, shape, pipeline, interleaving, batch, micro-batch, seconds of the two
        ("22B", (48, 6144, 64), 1, 1, 4, 4, 1.42, 1.10),
        ("175B", (96, 12288, 96), 8, 3, 64, 1, 18.13, 13.75),
        ("530B", (105, 20480, 128), 35, 3, 280, 1, 49.05, 37.83),
        ("1T", (128, 25600, 160), 64, 1, 512, 1, 94.42, 71.49),
    ]
    runs = []
    for name, shape, pipeline, virtual, batch, micro, full, selective in table:
        degrees: dict[str, Any] = dict(tensor_degree=8, pipeline_degree=pipeline, virtual_stages=virtual)
        for kind, seconds, layout in (
            ("full", full, ParallelConfig(**degrees, recompute="full")),
            ("selective", selective, ParallelConfig(**degrees, recompute="selective", sequence_parallel=True)),
        ):
            label = f"Megatron-LM 2022 {name} {kind}"
            runs.append(_run(label, KORTHIKANTI, seconds, _gpt(*shape), layout, Share(1, batch, micro)))
    return runs


def _narayanan() -> list[PublishedRun]:
    """Ten sizes; teraFLOP/s a GPU by equation 3 there, which counts full recomputation."""
    table = [  # name, shape, GPUs, tensor, pipeline, interleaving, batch, micro-batch, teraFLOP/s a GPU
        ("1.7B", (24, 2304, 24), 32, 1, 1, 1, 512, 16, 137),
        ("3.6B", (30, 3072, 32), 64, 2, 1, 1, 512, 16, 138),
        ("7.5B", (36, 4096, 32), 128, 4, 1, 1, 512, 16, 142),
        ("18B", (40, 6144, 48), 256, 8, 1, 1, 1024, 8, 135),
        ("39B", (48, 8192, 64), 512, 8, 2, 1, 1536, 4, 138),
        ("76B", (60, 10240, 80), 1024, 8, 4, 3, 1792, 2, 140),
        ("145B", (80, 12288, 96), 1536, 8, 8, 2, 2304, 2, 148),
        ("310B", (96, 16384, 128), 1920, 8, 16, 2, 2160, 1, 155),
        ("530B", (105, 20480, 128), 2520, 8, 35, 3, 2520, 1, 163),
        ("1T", (128, 25600, 160), 3072, 8, 64, 1, 3072, 1, 163),
    ]
    runs = []
    for name, (layers, h, heads), gpus, tensor, pipeline, virtual, batch, micro, teraflops in table:
        flops = 96 * batch * 2048 * layers * h * h * (1 + 2048 / (6 * h) + 51200 / (16 * layers * h))
        layout = ParallelConfig(
            tensor_degree=tensor, pipeline_degree=pipeline, virtual_stages=virtual, recompute="full",
            overlap=pipeline == 1,  # there torch's DDP, else Megatron's own, which waited
        )  # fmt: skip
        seconds, data = flops / (gpus * teraflops * 1e12), gpus // (tensor * pipeline)
        model = _gpt(layers, h, heads)
        label = f"Megatron-LM 2021 {name}"
        runs.append(_run(label, NARAYANAN, seconds, model, layout, Share(data, batch, micro)))
    return runs


def _esm2(layers: int, hidden: int, heads: int) -> Transformer:
    return _gpt(layers, hidden, heads, vocab=64, passes=FLASH)


def published() -> list[PublishedRun]:
    """The runs whose layout is known."""
    glm = Transformer(
        num_layers=70, hidden_size=12288, num_heads=96, ffn_size=32768, gated=True, vocab_size=150528,
        passes=OURS._replace(scores=FUSED_2021.scores), selective="feed-forward", ends_count=True,
    )  # fmt: skip
    bloom = _gpt(70, 14336, 112, vocab=250880, ends_count=True)
    sharded = ParallelConfig(distributed_optimizer=True, overlap=True)  # as FSDP within a node; weights too, unseen
    zero: dict[str, Any] = dict(tensor_degree=4, recompute="full", distributed_optimizer=True)
    node, esm2 = Share(8, 96, 12, 1024), _esm2(48, 5120, 40)
    return [
        *_korthikanti(),
        *_narayanan(),
        _run("GLM-130B", GLM, 88.5, glm, ParallelConfig(pipeline_degree=8, **zero), Share(24, 4224), GPUS["a100-40g"]),
        _run("BLOOM-176B", BLOOM, 104.7, bloom, ParallelConfig(pipeline_degree=12, **zero),
             Share(8, 2048, 2, gradient_size=4), JEAN_ZAY),
        _run("ESM-2 15B H200", ESM2, 12 * 1024 / 5910, esm2, sharded, node, GPUS["h200"]),
        _run("ESM-2 15B B200", ESM2, 12 * 1024 / 11790, esm2, sharded, node, GPUS["b200"]),
    ]  # fmt: skip


def trials() -> list[PublishedRun]:
    """One model of 181B in seven layouts on 384 GPUs, on one day."""
    model = _gpt(72, 14336, 64, vocab=250880)
    table = [  # tensor, pipeline, data, micro-batch, batch, seconds
        (8, 6, 8, 4, 2048, 114.11),
        (8, 12, 4, 4, 2048, 117.07),
        (8, 12, 4, 2, 2048, 128.82),
        (4, 12, 8, 4, 2048, 111.89),
        (4, 12, 8, 2, 2048, 110.48),
        (2, 12, 16, 2, 2048, 112.50),
        (2, 24, 8, 1, 2048, 119.53),
    ]
    return [
        _run(f"BigScience 181B tp{t} pp{p} micro {micro}", TRIALS, seconds, model,
             ParallelConfig(tensor_degree=t, pipeline_degree=p, recompute="full", distributed_optimizer=True),
             Share(data, batch, micro), JEAN_ZAY)
        for t, p, data, micro, batch, seconds in table
    ]  # fmt: skip


def unstated() -> list[PublishedRun]:
    """Runs of which a part of the layout is taken for granted: micro-batches, interleaving, nothing recomputed."""
    sharded = ParallelConfig(distributed_optimizer=True, overlap=True)
    runs = [
        _run(f"ESM-2 {name} {gpu}", ESM2_OLD, 16 * 1024 / speed, _esm2(*shape), sharded,
             Share(16, 256, 16, 1024), GPUS[gpu])
        for name, shape, gpu, speed in (
            ("3B", (36, 2560, 40), "a100-80g", 11_000),
            ("3B", (36, 2560, 40), "h100", 26_800),
            ("650M", (33, 1280, 20), "a100-80g", 42_670),
            ("650M", (33, 1280, 20), "h100", 95_870),
        )
    ]  # fmt: skip
    table = [  # name, shape, GPUs, tensor, pipeline, batch, teraFLOP/s a GPU
        ("1.7B", (24, 2048, 16), 48, 1, 1, 192, 408.8),
        ("7.1B", (30, 4096, 32), 96, 2, 1, 192, 465.9),
        ("16B", (32, 6144, 48), 192, 4, 1, 192, 489.1),
        ("32B", (48, 7168, 56), 384, 8, 1, 192, 459.6),
        ("70B", (84, 8192, 64), 768, 8, 2, 384, 419.7),
        ("119B", (92, 10240, 80), 1536, 8, 4, 768, 420.5),
        ("177B", (96, 12288, 96), 2304, 8, 6, 1152, 432.8),
        ("314B", (96, 16384, 128), 3072, 8, 8, 1536, 474.4),
        ("462B", (112, 18432, 144), 6144, 8, 16, 3072, 459.9),
    ]
    for name, (layers, h, heads), gpus, tensor, pipeline, batch, teraflops in table:
        flops = 72 * batch * 4096 * layers * h * h * (1 + 4096 / (6 * h) + 131072 / (12 * layers * h))
        layout = ParallelConfig(
            tensor_degree=tensor, pipeline_degree=pipeline, sequence_parallel=tensor > 1, distributed_optimizer=True,
            overlap=True, virtual_stages=layers // pipeline if pipeline > 1 else 1,
        )  # fmt: skip
        runs.append(
            _run(f"Megatron-LM 2024 {name}", MEGATRON_H100, flops / (gpus * teraflops * 1e12),
                 _gpt(layers, h, heads, vocab=131072, passes=FLASH), layout,
                 Share(48, batch, 1 if pipeline > 1 else 4, 4096, gradient_size=4), GPUS["h100"])
        )  # fmt: skip
    return runs


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkConfig:
    """Where to write."""

    out: Path = Path("runs/benchmarks")
    """Folder of planner.{json,md}."""


def main() -> None:
    config = tyro.cli(BenchmarkConfig, description=__doc__)
    report = compare()
    report.save(config.out, "planner")
    print(report.to_markdown())


def compare() -> Report:
    """All runs, predicted and published."""
    runs = published()
    fitted = fit(runs)
    alone = leave_one_out(runs)
    by_others = {source: fit([run for run in runs if run.source != source]) for source in {run.source for run in runs}}
    rows = [
        (*_cells(run, fitted), f"{alone[run.name]:+.1%}", f"{error(run, by_others[run.source]):+.1%}", run.source)
        for run in runs
    ]
    errors = [abs(value) for value in alone.values()]
    checks = [*trials(), *unstated()]
    rows += [(*_cells(run, fitted), "not fitted", "", run.source) for run in checks]
    off = [abs(error(run, fitted)) for run in checks]
    return Report(
        title="The planner's seconds of a step beside published ones",
        machine=Machine.here(),
        setting=dict(arithmetic=fitted.arithmetic, bandwidth=fitted.bandwidth),
        timings=Timings({}),
        header=("run", "published, s", "predicted, s", "error", "leave one out", "leave its source out", "source"),
        rows=rows,
        notes=(
            f"fitted to {len(runs)} runs: arithmetic {fitted.arithmetic}, bandwidth {fitted.bandwidth}",
            f"leave one out: median {statistics.median(errors):.1%}, worst {max(errors):.1%}",
            f"{len(checks)} checks: median {statistics.median(off):.1%}, worst {max(off):.1%}",
        ),
    )


def _cells(run: PublishedRun, fitted: Efficiency) -> tuple[str, ...]:
    return run.name, f"{run.seconds:.2f}", f"{run.predict(fitted):.2f}", f"{error(run, fitted):+.1%}"


if __name__ == "__main__":
    main()
