"""The megatron model and trainer, in every layout, against the plain model and torch's AdamW (reference.py)."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from pretrain.config import ParallelConfig
from pretrain.model import shard
from pretrain.parallel import process_groups
from pretrain.trainer import Trainer
from tests.pretrain.reference import STEPS, Step, local_rows, make_config, make_rows, train_plain
from xtrimo import names
from xtrimo.names import state_to_megatron
from xtrimo.testing import run_distributed

TP2, PP2, CP2 = dict(tensor_degree=2), dict(pipeline_degree=2), dict(context_degree=2)
SP, VPP2 = dict(sequence_parallel=True), dict(virtual_stages=2)
ZERO, OVERLAP = dict(distributed_optimizer=True), dict(overlap=True)
LAYOUTS = {
    "alone": (1, {}),
    "recompute full": (1, dict(recompute="full")),
    "recompute selective": (1, dict(recompute="selective")),
    "tp2": (2, TP2),
    "tp2 sp": (2, TP2 | SP),
    "tp2 sp recompute full": (2, TP2 | SP | dict(recompute="full")),
    "pp2": (2, PP2),
    "pp2 vpp2": (2, PP2 | VPP2),
    "cp2": (2, CP2),
    "dp2": (2, {}),
    "dp2 overlap": (2, OVERLAP),
    "dp2 distopt": (2, ZERO),
    "dp2 distopt overlap": (2, ZERO | OVERLAP),
    "tp2 sp pp2": (4, TP2 | SP | PP2),
    "tp2 sp cp2": (4, TP2 | SP | CP2),
    "cp2 pp2 vpp2 recompute selective": (4, CP2 | PP2 | VPP2 | dict(recompute="selective")),
    "tp2 sp pp2 dp2 distopt": (8, TP2 | SP | PP2 | ZERO),
}
Log = list[Step]


@pytest.fixture(scope="module")
def plain():
    return train_plain()


def train(
    rank: int, parallel: ParallelConfig, state: dict[str, torch.Tensor], sabotage: Callable[[Trainer], None] | None
) -> tuple[Log, float]:
    """Each step of a layout, and this rank's largest deviation from the reference's final weights."""
    config = make_config(parallel)
    with process_groups(config):
        trainer = Trainer(config)
        if sabotage:
            sabotage(trainer)
        log = []
        for step in range(STEPS):
            result = trainer.step(local_rows(step))
            assert result.losses.num_tokens == sum(len(row.tokens) for row in make_rows(step))
            log.append(Step(result.losses.loss, result.gradient_norm, result.losses.nats))
        with trainer.whole_weights():
            worst = deviation(trainer, state)
    return log, worst


def deviation(trainer: Trainer, state: dict[str, torch.Tensor]) -> float:
    """The largest difference between this rank's weights and its part of the plain model's."""
    expected = state_to_megatron(state, trainer.config.glm)
    return max(
        float((weight - shard(name, expected[core.global_name(name)], weight)).abs().max())
        for core in trainer.cores
        for name, weight in core.named_parameters()
    )


def differences(got: Log, log: Log) -> tuple[float, float, float]:
    """Largest difference of losses, gradient norms and per-objective nats."""
    assert [step.nats.keys() for step in got] == [step.nats.keys() for step in log]
    nats = [abs(a.nats[name] - b.nats[name]) for a, b in zip(got, log, strict=True) for name in b.nats]
    loss, norm = np.abs(np.array([step[:2] for step in got]) - np.array([step[:2] for step in log])).max(axis=0)
    return float(loss), float(norm), max(nats)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_trains_like_plain_pytorch(layout, plain):
    world_size, degrees = LAYOUTS[layout]
    log, state = plain
    for got, worst in run_distributed(train, world_size, ParallelConfig(**degrees), state, None):
        loss, norm, nats = differences(got, log)
        print(f"{layout}: loss {loss:.1e}, gradient norm {norm:.1e}, weights {worst:.1e}, nats {nats:.1e}")
        assert max(loss, nats, worst) < 1e-6
        assert norm < 1e-6 * max(1.0, max(step.norm for step in log))


def leave_norms_unreduced(trainer: Trainer) -> None:
    for core in trainer.cores:
        for weight in core.parameters():
            weight.sequence_parallel = False


def decay_everything(trainer: Trainer) -> None:
    for group in trainer.optimizer.param_groups:
        group["wd_mult"] = 1.0


def leave_qk_unpermuted(trainer: Trainer) -> None:
    reorder = names._reorder_qk
    names._reorder_qk = lambda weight, *_: weight
    try:
        for core in trainer.cores:
            core.draw_weights(trainer.config.seed)
    finally:
        names._reorder_qk = reorder


def leave_gradients_unclipped(trainer: Trainer) -> None:
    trainer.config = dataclasses.replace(
        trainer.config, optimizer=dataclasses.replace(trainer.config.optimizer, clip_norm=1e9)
    )


@pytest.mark.parametrize(
    ("sabotage", "layout"),
    [
        (leave_gradients_unclipped, "alone"),
        (leave_norms_unreduced, "tp2 sp"),
        (decay_everything, "alone"),
        (leave_qk_unpermuted, "alone"),
    ],
)
def test_a_mistake_is_seen(sabotage, layout, plain):
    world_size, degrees = LAYOUTS[layout]
    log, state = plain
    got = run_distributed(train, world_size, ParallelConfig(**degrees), state, sabotage)
    worst = max(deviation for _, deviation in got)
    print(f"{sabotage.__name__}: loss {differences(got[0][0], log)[0]:.1e}, weights {worst:.1e}")
    assert worst > 1e-5


def train_in(rank: int, precision: str, parallel: ParallelConfig) -> list[tuple[float, float]]:
    config = make_config(parallel, precision=precision)
    with process_groups(config):
        trainer = Trainer(config)
        results = [trainer.step(local_rows(step)) for step in range(STEPS)]
        return [(result.losses.loss, result.gradient_norm) for result in results]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("layout", ["dp2 distopt overlap", "tp2 sp"])
def test_half_precision_follows_fp32(precision, layout, plain):
    """bf16 keeps 8 bits: losses and norms agree to some parts in a thousand, so no scale is left in a gradient."""
    expected = [step[:2] for step in plain[0]]
    for got in run_distributed(train_in, 2, precision, ParallelConfig(**LAYOUTS[layout][1])):
        np.testing.assert_allclose(got, expected, atol=2e-2, rtol=0)
        assert got != expected
