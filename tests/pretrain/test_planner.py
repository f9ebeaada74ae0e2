"""What a plan says: sums that must hold, schedules played out, refusals with a cure, and the verb."""

import dataclasses
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.config import ParallelConfig
from pretrain.hardware import GPUS, find_gpu
from pretrain.plan_command import main
from pretrain.plan_time import FITTED, Efficiency, StepClock, Work, ours
from pretrain.planner import Job, cure, plan, search
from xtrimo.__main__ import main as xtrimo
from xtrimo.config import preset
from xtrimo.errors import ConfigError

PAPER = ["xtrimopglm-100b", "--gpus", "768", "--gpu", "a100-40g"]
LAYOUT = dict(tensor_degree=4, sequence_parallel=True, pipeline_degree=8, distributed_optimizer=True, overlap=True)


def make_job(**changes) -> Job:
    facts = dict(
        glm=preset("xtrimopglm-100b"), gpus=768, gpu=GPUS["a100-40g"], row_length=2048, rows=4224, tokens=1e12,
        protein_length=2048,
    )  # fmt: skip
    return Job(**(facts | changes))


def make_layout(**changes) -> ParallelConfig:
    return ParallelConfig(**(LAYOUT | changes))


def clock(layout: ParallelConfig, **changes) -> StepClock:
    facts = dict(tokens=2048, length=2048, rows=176, data_degree=24)
    return StepClock(ours(preset("xtrimopglm-100b")), layout, Work(**(facts | changes)), GPUS["a100-40g"])


def test_the_published_run_took_as_many_flops():
    assert make_job().flops == pytest.approx(6.2e23, rel=0.01)


def played_out(stages: int, rows: int, forward: float, backward: float) -> float:
    """Seconds of 1F1B, pass by pass: a stage that holds as many rows as follow it turns to its oldest one."""
    ended: dict[tuple[str, int, int], float] = {("f", -1, row): 0.0 for row in range(rows)}
    clocks, begun = [0.0] * stages, [[0, 0] for _ in range(stages)]
    while begun[0][1] < rows:
        for stage in range(stages):
            f, b = begun[stage]
            back = f == rows or f - b == stages - stage
            row = b if back else f
            if stage == stages - 1 and back:
                needed = ("f", stage, row)
            else:
                needed = ("b", stage + 1, row) if back else ("f", stage - 1, row)
            if row < rows and needed in ended:
                clocks[stage] = max(clocks[stage], ended[needed]) + (backward if back else forward)
                ended["b" if back else "f", stage, row] = clocks[stage]
                begun[stage][back] += 1
    return max(clocks)


@pytest.mark.parametrize(("stages", "rows"), [(1, 3), (2, 2), (4, 4), (4, 9), (8, 20)])
def test_the_bubble_is_that_of_the_schedule(stages, rows):
    layout = make_layout(pipeline_degree=stages, overlap=False)
    step = clock(layout, rows=rows).step()
    parts = step.products + step.attention + step.elementwise + step.tensor
    row = parts / rows  # of a stage; the output layer of 128 rows is next to nothing
    assert parts + step.bubble == pytest.approx(played_out(stages, rows, row / 3, row * 2 / 3), rel=1e-3)


def test_parts_behave():
    """Each setting moves the part that it is for, the right way."""
    plain = clock(make_layout()).step()
    assert clock(make_layout(virtual_stages=3)).step().bubble == pytest.approx(plain.bubble / 3)
    assert clock(make_layout(sequence_parallel=False)).step().elementwise > plain.elementwise
    assert plain.recompute == 0
    selective, full = (clock(make_layout(recompute=mode)).step().recompute for mode in ("selective", "full"))
    assert 0 < selective < full < plain.total / 2
    assert clock(make_layout(overlap=False)).step().data > plain.data
    assert clock(make_layout(context_degree=2)).step().context > 0 == plain.context
    half = Efficiency(*(value / 2 for value in FITTED))
    slow = StepClock(ours(preset("xtrimopglm-100b")), make_layout(), clock(make_layout()).work, GPUS["a100-40g"], half)
    assert slow.step().total == pytest.approx(2 * plain.total, rel=0.01)


def test_no_plan_beats_the_peak():
    for name in GPUS:
        for found in search(make_job(gpu=GPUS[name]))[:5]:
            assert 0.2 < found.mfu <= found.hfu < 0.68
            seconds = found.job.flops / found.job.tokens * 4224 * 2048 / (768 * GPUS[name].teraflops * 1e12 * found.mfu)
            assert found.time.total == pytest.approx(seconds)


def test_collectives_take_the_link_they_cross():
    gpu = GPUS["a100-40g"]
    assert gpu.speed_between(8, 1) == 300e9  # tensor ranks of one node
    assert gpu.speed_between(24, 8) == 25e9  # one rank of the group in a node: one port
    assert gpu.speed_between(24, 4) == 50e9
    assert gpu.speed_between(16, 1) == 200e9
    assert find_gpu("h100", "hdr").speed_between(24, 8) == 25e9


def test_a_search_ranks_what_fits():
    job = make_job()
    found = search(job)
    times = [p.time.total for p in found]
    assert times == sorted(times) and len(found) > 10
    assert all(p.fits and plan(job, p.layout).time == p.time for p in found)
    ours_in_it = [p for p in found if (p.layout.tensor_degree, p.layout.pipeline_degree) == (4, 12)]
    assert ours_in_it and times[0] <= min(p.time.total for p in ours_in_it)
    assert not search(make_job(gpus=8))


@pytest.mark.parametrize(
    ("changes", "layout", "message"),
    [
        (dict(), dict(tensor_degree=3), "num_heads 80 = 3 x 26 .*--tensor could be 1, 2, 4, 8, 16, --pipeline x"),
        (dict(), dict(pipeline_degree=7), "num_layers 72 = 7 x 10 .*--pipeline x --virtual 1, 2, 3, 4, 6"),
        (dict(gpus=1000), dict(), "1000 ranks cannot hold .*--gpus could be 992 or 1024"),
        (dict(gpus=992), dict(), "rows 4224 = 31 x 136 .*--rows could be 4216 or 4247"),
        (dict(rows=24 * 4), dict(virtual_stages=3), "interleaved pipeline.*--rows could be 192"),
        (dict(row_length=2050), dict(), "row_length 2050 is no multiple of 4"),
    ],
)
def test_what_does_not_divide_is_refused_with_what_would(changes, layout, message):
    with pytest.raises(ConfigError, match=message):
        plan(make_job(**changes), make_layout(**layout))


def test_what_does_not_fit_says_by_how_much_and_what_would():
    bad = plan(make_job(), make_layout())
    text = cure(bad)
    assert not bad.fits and text.startswith("it needs 44.2 GB of 40, 4.2 GB too many; these fit: --recompute selective")
    for changes in (dict(recompute="selective"), dict(recompute="full"), dict(tensor_degree=8), dict(context_degree=2)):
        assert plan(make_job(), dataclasses.replace(bad.layout, **changes)).fits
    far = plan(make_job(), ParallelConfig(pipeline_degree=8))
    assert "no single change fits, but --tensor 4 --pipeline 12" in cure(far)
    assert "no layout of 8 GPUs fits" in cure(plan(make_job(gpus=8, rows=64), ParallelConfig(tensor_degree=8)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(gpus=0), "gpus is 0"),
        (dict(protein_length=4096), r"protein_length is 4096; it must lie in 1\.\.2048"),
    ],
)
def test_a_job_without_a_sense_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        make_job(**changes)


def test_json(capsys):
    main([*PAPER, "--tensor", "4", "--pipeline", "8", "--recompute", "full", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert list(facts) == [
        "parameters", "gpus", "gpu", "fabric", "rows", "row_length", "protein_length", "layout", "memory",
        "activations", "fits", "step", "tokens_per_second", "mfu", "hfu", "tokens", "flops", "days", "gpu_hours",
        "megawatt_hours",
    ]  # fmt: skip
    assert facts["parameters"] == preset("xtrimopglm-100b").num_params and facts["fits"]
    for whole in ("memory", "step"):
        parts = {k: v for k, v in facts[whole].items() if k not in ("total", "capacity")}
        assert facts[whole]["total"] == pytest.approx(sum(parts.values()))
    assert facts["days"] == pytest.approx(1e12 / facts["tokens_per_second"] / 86400)
    assert facts["megawatt_hours"] == pytest.approx(facts["gpu_hours"] * 6.5 / 8 / 1000)
    assert facts["activations"]["full"] == facts["memory"]["activations"] < facts["activations"]["selective"]
    main([*PAPER, "--search", "--json"])
    assert [p["fits"] for p in json.loads(capsys.readouterr().out)][:3] == [True] * 3


def test_tables_and_a_plot(capsys, tmp_path: Path):
    main([*PAPER, "--search", "--plot", str(tmp_path / "days.png")])
    said = capsys.readouterr().out
    assert "100,425,486,336" in said and "layouts fit" in said and "…" not in said
    assert "--parallel.tensor-degree" in said
    assert (tmp_path / "days.png").read_bytes().startswith(b"\x89PNG")


def test_the_flags_it_prints_are_those_of_pretrain(capsys):
    import tyro

    from pretrain.config import PretrainConfig

    main(["glm-8m", "--gpus", "8", "--gpu", "h100", "--rows", "64", "--tensor", "4", "--pipeline", "2"])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("xtrimo pretrain"))
    flags = [*line.split()[2:], "--corpus", "c", "--out", "r", "--model", "glm-8m"]
    config = tyro.cli(PretrainConfig, args=flags)
    assert config.parallel == ParallelConfig(**(LAYOUT | dict(pipeline_degree=2)))
    assert (config.batch.rows, config.batch.row_length, config.check_ranks(8)) == (64, 2048, 1)


def test_a_model_by_its_config(tmp_path: Path, capsys):
    glm = preset("glm-8m")
    (tmp_path / "config.json").write_text(json.dumps({"format": "any", **glm.to_dict(), "files": {}}))
    (tmp_path / "run.json").write_text(json.dumps({"curriculum": {}, "glm": glm.to_dict()}))
    for place in (tmp_path, tmp_path / "config.json", tmp_path / "run.json"):
        main([str(place), "--gpus", "1", "--gpu", "h100", "--json"])
        assert json.loads(capsys.readouterr().out)["parameters"] == glm.num_params
    (tmp_path / "bad.json").write_text("[1]")
    with pytest.raises(ConfigError, match="does not describe a model"):
        main([str(tmp_path / "bad.json"), "--gpus", "1", "--gpu", "h100"])


def test_what_does_not_fit_is_shown_and_fails(capsys):
    assert xtrimo(["plan", *PAPER, "--tensor", "4", "--pipeline", "8"]) == 2
    shown = capsys.readouterr()
    assert "44.2 of 40" in shown.out and "these fit: --recompute selective" in shown.err
    for flags, message in (
        (["--gpu", "p100"], "no GPU 'p100'; known: a100-40g"),
        (["--gpu", "h100", "--fabric", "string"], "no fabric 'string'; known: opa, hdr, ndr"),
    ):
        assert xtrimo(["plan", "glm-8m", "--gpus", "8", *flags]) == 2
        assert message in capsys.readouterr().err
    assert xtrimo(["plan", "nothing", "--gpus", "8", "--gpu", "h100"]) == 2
    assert xtrimo(["plan", "xtrimopglm-100b", "--gpus", "8", "--gpu", "h100", "--search"]) == 2


def test_it_is_quick_and_needs_no_torch():
    code = (
        "import sys; from pretrain.plan_command import main; main(sys.argv[1:]);"
        " sys.exit(bool({'torch', 'megatron', 'matplotlib'} & set(sys.modules)))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run([sys.executable, "-c", code, *PAPER, "--search"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 1
