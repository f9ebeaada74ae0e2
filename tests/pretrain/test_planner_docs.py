"""docs/planner.md: its commands are run, its tables are what the planner says now."""

import re
import shlex
from pathlib import Path

import pytest

from pretrain.config import ParallelConfig
from pretrain.hardware import FABRICS, GPUS
from pretrain.plan_time import FITTED
from pretrain.planner import Job, Plan, plan, search
from xtrimo.__main__ import main
from xtrimo.config import preset

PAGE = (Path(__file__).resolve().parents[2] / "docs/planner.md").read_text()


def rows(head: str) -> list[list[str]]:
    """Cells of the table that begins with `head`."""
    lines = PAGE[PAGE.index(f"| {head} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def make_plan(gpus: int, gpu: str, **layout) -> Plan:
    job = Job(
        glm=preset("xtrimopglm-100b"), gpus=gpus, gpu=GPUS[gpu], row_length=2048, rows=4224, tokens=1e12,
        protein_length=2048,
    )  # fmt: skip
    return plan(job, ParallelConfig(distributed_optimizer=True, **layout))


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    lines = re.findall(r"^```bash\n(.*?)\n```$", PAGE, flags=re.MULTILINE)
    assert len(lines) == 4
    for line in lines:
        program, *args = shlex.split(line)
        assert program == "xtrimo" and main(args) == 0, line
    assert Path("days.png").is_file() and '"megawatt_hours"' in capsys.readouterr().out


def test_the_published_run() -> None:
    found = make_plan(768, "a100-40g", tensor_degree=4, pipeline_degree=8, recompute="full")
    assert f"it takes {found.days:.0f} days, at {100 * found.mfu:.1f} % of the peak" in PAGE
    assert f"{100 * found.hfu:.1f} % with what is\ncomputed again" in PAGE
    bad = make_plan(768, "a100-40g", tensor_degree=4, pipeline_degree=8, sequence_parallel=True)
    assert f"it needs {bad.memory.total / 1e9:.1f} GB of 40" in PAGE


def test_todays_machines() -> None:
    table = rows("GPUs | kind")
    assert len(table) == 7
    for gpus, gpu, tensor, pipeline, virtual, data, recompute, *figures in table:
        found = make_plan(
            int(gpus.replace(",", "")), gpu, tensor_degree=int(tensor), pipeline_degree=int(pipeline),
            virtual_stages=int(virtual), sequence_parallel=True, overlap=True, recompute=recompute,
        )  # fmt: skip
        roomy = (p for p in search(found.job) if p.memory.total <= 0.8 * p.capacity)
        assert next(roomy).layout == found.layout and found.data_degree == int(data)
        assert figures == [
            f"{found.memory.total / 1e9:.0f}", f"{found.time.total:.1f}", f"{found.mfu:.1%}", f"{found.days:.1f}",
            f"{found.gpu_hours:,.0f}", f"{found.megawatt_hours:,.0f}",
        ]  # fmt: skip


def test_data_sheets() -> None:
    table = {name: figures for name, *figures in rows("kind | TFLOP/s")}
    assert table == {
        name: [
            f"{x:,.4g}" if x < 1000 else f"{x:,.0f}"
            for x in (g.teraflops, g.memory_gb, g.memory_speed, g.nvlink, FABRICS[g.fabric], g.node_kilowatts)
        ]
        for name, g in GPUS.items()
    }


def test_the_fitted_numbers() -> None:
    assert f"a = {FITTED.arithmetic:g} and b = {FITTED.bandwidth:g} are all that is fitted" in PAGE
