"""The verb `xtrimo plan`: what a training run would take, before a GPU is asked for."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro
from tyro.conf import Positional

from pretrain.config import ParallelConfig
from pretrain.hardware import FABRICS, find_gpu
from pretrain.plan_memory import RECOMPUTE, Recompute
from pretrain.planner import Job, Plan, cure, plan, search
from xtrimo.config import PRESETS, GLMConfig
from xtrimo.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = 10  # layouts of a search
Rows = Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanConfig:
    """What would be trained, on what, and how it would be shared."""

    model: Positional[str]
    """Preset, or the config.json of a model directory or of a run."""
    gpus: int
    """GPUs, in nodes of eight."""
    gpu: str
    """a100-40g, a100-80g, h100, h200 or b200."""
    fabric: str | None = None
    """Network between nodes: opa, hdr or ndr; by default that of NVIDIA's own systems."""
    tensor: int = 1
    """Ranks that split each weight (pretrain: --parallel.tensor-degree)."""
    pipeline: int = 1
    """Ranks that split the layers (--parallel.pipeline-degree)."""
    virtual: int = 1
    """Groups of layers that each pipeline rank holds (--parallel.virtual-stages)."""
    context: int = 1
    """Ranks that split the tokens of a row (--parallel.context-degree)."""
    recompute: Recompute = "none"
    """Activations computed again in the backward pass (--parallel.recompute)."""
    sequence_parallel: bool = True
    """Split norms and residuals by tokens over the tensor ranks, if there are several."""
    distributed_optimizer: bool = True
    """Shard optimizer state over the data-parallel ranks."""
    overlap: bool = True
    """Exchange gradients and weights while computing."""
    row_length: int | None = None
    """Tokens of a row, which is one micro-batch; by default the longest that the model is made for."""
    rows: int = 4224
    """Rows of a step, over all data-parallel ranks; GLM-130B and xTrimoPGLM trained on 4224."""
    protein_length: float | None = None
    """Tokens that a token sees, its protein's; by default the whole row, as in the published run."""
    tokens: float = 1e12
    """Tokens of the whole run."""
    search: bool = False
    """Rank the layouts that fit, instead of planning the given one; of the latter --context is kept."""
    json: bool = False
    """Print JSON: a plan, or a list of plans."""
    plot: Path | None = None
    """Draw days against GPUs here, a PNG."""


def main(args: Sequence[str] | None = None) -> None:
    """The verb `xtrimo plan`."""
    config = tyro.cli(PlanConfig, args=args, prog="xtrimo plan")
    job = _job(config)
    if config.search:
        plans = search(job, config.context)
        if not plans:
            raise ConfigError(
                f"no layout of {job.gpus} {job.gpu.name} holds the model and shares {job.rows} rows equally; take more"
                " GPUs, larger ones, or another number of rows"
            )
    else:
        plans = [plan(job, _layout(config))]
    if config.plot:
        plot_days(plans[0], config.plot)
    if config.json:
        facts = [found.to_dict() for found in plans]
        print(json.dumps(facts if config.search else facts[0], indent=1))
    else:
        _print(plans, config.search)
    if not plans[0].fits:
        raise ConfigError(cure(plans[0]))


def _layout(config: PlanConfig) -> ParallelConfig:
    return ParallelConfig(
        tensor_degree=config.tensor, sequence_parallel=config.sequence_parallel and config.tensor > 1,
        pipeline_degree=config.pipeline, virtual_stages=config.virtual, context_degree=config.context,
        distributed_optimizer=config.distributed_optimizer, overlap=config.overlap, recompute=config.recompute,
    )  # fmt: skip


def _job(config: PlanConfig) -> Job:
    glm = read_shape(config.model)
    row_length = config.row_length or glm.max_length
    return Job(
        glm=glm, gpus=config.gpus, gpu=find_gpu(config.gpu, config.fabric), row_length=row_length, rows=config.rows,
        tokens=config.tokens, protein_length=config.protein_length or row_length,
    )  # fmt: skip


def read_shape(name: str) -> GLMConfig:
    """A preset, or the model of a config file or of the directory that holds one.

    Raises:
        ConfigError: it is neither.
    """
    if name in PRESETS:
        return PRESETS[name]
    path = Path(name)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise ConfigError(f"{name} is no preset ({', '.join(PRESETS)}), and there is no such file")
    try:
        content = json.loads(path.read_text("utf-8"))
        content = content.get("glm", content)  # a run's config spells its model out
        return GLMConfig.from_dict({key: value for key, value in content.items() if key not in ("format", "files")})
    except (AttributeError, TypeError, ValueError) as error:  # also ConfigError and JSON's
        raise ConfigError(f"{path} does not describe a model: {error}") from error


def _print(plans: Sequence[Plan], ranked: bool) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    first = plans[0]
    console.print(_table("run", _run_rows(first)))
    if ranked:
        head = ("tensor", "pipeline", "virtual", "data", "recompute", "GB", "s a step", "MFU", "days")
        console.print(_table(f"{len(plans)} layouts fit; the fastest", [_ranked(p) for p in plans[:SHOWN]], head))
    console.print(_table("memory of the fullest GPU, GB", _memory_rows(first)))
    console.print(_table("a step", _step_rows(first)))
    console.print("xtrimo pretrain " + " ".join(_flags(first)), soft_wrap=True)


def _table(title: str, rows: Rows, head: Sequence[str] = ()) -> "Table":
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE, show_header=bool(head), padding=(0, 1, 0, 0))
    for name in head:
        table.add_column(name, no_wrap=True, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def _run_rows(p: Plan) -> Rows:
    job, layout, fabric = p.job, p.layout, p.job.gpu.fabric
    return [
        ("parameters", f"{job.glm.num_params:,}"),
        ("GPUs", f"{job.gpus} {job.gpu.name}, nodes joined by {fabric} ({FABRICS[fabric]:g} GB/s a GPU)"),
        ("layout", f"tensor {layout.tensor_degree} x pipeline {layout.pipeline_degree}"
                   f" x context {layout.context_degree} x data {p.data_degree}"),
        ("a step", f"{job.rows:,} rows of {job.row_length:,} tokens"),
        ("tokens", f"{job.tokens:.3g}"),
        ("FLOPs", f"{job.flops:.3g}"),
        ("days", f"{p.days:.1f}"),
        ("GPU-hours", f"{p.gpu_hours:,.0f}"),
        ("MWh", f"{p.megawatt_hours:,.0f} at the nodes' most power"),
        ("MFU, HFU", f"{p.mfu:.1%}, {p.hfu:.1%}"),
        ("tokens a second", f"{p.tokens_per_second:,.0f}"),
    ]  # fmt: skip


def _memory_rows(p: Plan) -> Rows:
    kept = p.activations
    modes = "  ".join(f"{mode} {kept[mode] / 1e9:.1f}" for mode in RECOMPUTE)
    rows = [(name, f"{size / 1e9:.1f}") for name, size in dataclasses.asdict(p.memory).items()]
    total = ("total", f"{p.memory.total / 1e9:.1f} of {p.capacity / 1e9:g}")
    return [*rows, total, ("activations, by recompute", modes)]


def _step_rows(p: Plan) -> Rows:
    parts: dict[str, Any] = dataclasses.asdict(p.time)
    rows = [(name, f"{s:.2f} s", f"{s / p.time.total:.1%}") for name, s in parts.items() if s]
    return [*rows, ("total", f"{p.time.total:.2f} s", "")]


def _ranked(p: Plan) -> Sequence[str]:
    layout = p.layout
    degrees = (layout.tensor_degree, layout.pipeline_degree, layout.virtual_stages)
    return (
        *map(str, degrees), str(p.data_degree), layout.recompute, f"{p.memory.total / 1e9:.1f}", f"{p.time.total:.1f}",
        f"{p.mfu:.1%}", f"{p.days:.1f}",
    )  # fmt: skip


def _flags(p: Plan) -> list[str]:
    """What sets this layout in `xtrimo pretrain`."""
    flags = [f"--batch.rows {p.job.rows}", f"--batch.row-length {p.job.row_length}", "--precision bf16"]
    usual = ParallelConfig()
    for name, value in dataclasses.asdict(p.layout).items():
        flag = f"--parallel.{name.replace('_', '-')}"
        if value != getattr(usual, name):
            flags.append(flag if value is True else f"{flag} {value}")
    return flags


def plot_days(first: Plan, path: Path) -> None:
    """Days of the run against GPUs: of this layout with more or fewer data-parallel ranks, and of the best layouts."""
    from xtrimo.figures import COLOURS, GREY, blank, save

    job, replica = first.job, first.job.gpus // first.data_degree
    figure, axes = blank(6.5, 4.2)
    best = {}
    for gpus in (job.gpus * 2**i // 8 for i in range(7)):
        if gpus and (found := search(dataclasses.replace(job, gpus=gpus), first.layout.context_degree)):
            best[gpus] = found[0].days
    shares = [n for n in range(1, 8 * first.data_degree + 1) if job.rows % n == 0]
    plans = []
    for share in shares:
        try:
            plans.append(plan(dataclasses.replace(job, gpus=share * replica), first.layout))
        except ConfigError:  # an interleaved pipeline cannot share these rows
            continue
    fitting = [p for p in plans if p.fits]
    ideal = [first.days * job.gpus / gpus for gpus in best]
    axes.plot(list(best), ideal, color=GREY, linestyle="--", label="in proportion")
    if fitting:
        points = [(p.job.gpus, p.days) for p in fitting]
        axes.plot(*zip(*points, strict=True), color=COLOURS[1], marker=".", label="this layout, more data parallelism")
    axes.plot(list(best), list(best.values()), color=COLOURS[0], marker="o", label="best layout")
    axes.set(xscale="log", yscale="log", xlabel=f"{job.gpu.name} GPUs", ylabel=f"days for {job.tokens:.3g} tokens")
    axes.grid(alpha=0.2, which="both")
    axes.legend(frameon=False, fontsize="small")
    save(figure, path)
