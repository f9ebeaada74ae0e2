"""The megatron model and trainer against the plain model and torch's AdamW: the same losses, gradients and weights.

The reference is written out here from the equations: the plain forward, cross-entropy, clipping, warm-up and cosine.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pretrain.config import BatchConfig, OptimizerConfig, ParallelConfig, PretrainConfig
from pretrain.model import shard
from pretrain.parallel import process_groups
from pretrain.trainer import Trainer
from xtrimo.attention import attend
from xtrimo.config import PRESETS
from xtrimo.model import GLM
from xtrimo.names import state_to_megatron
from xtrimo.objectives import Fragment, ObjectiveConfig, make_example
from xtrimo.packing import Row, pack
from xtrimo.testing import run_distributed, toy_config, toy_sequences
from xtrimo.tokens import encode_residues

STEPS, ROWS = 5, 4
LAYOUTS = {
    "alone": (1, ParallelConfig()),
    "tp2": (2, ParallelConfig(tensor_degree=2)),
    "pp2": (2, ParallelConfig(pipeline_degree=2)),
    "dp2_distributed_optimizer": (2, ParallelConfig(distributed_optimizer=True)),
}


@pytest.fixture(scope="module", autouse=True)
def toy_preset():
    PRESETS["toy"] = toy_config()
    yield
    del PRESETS["toy"]


def make_config(parallel: ParallelConfig, **changes) -> PretrainConfig:
    optimizer = OptimizerConfig(learning_rate=1e-3, warmup_ratio=0.4, weight_decay=0.1, eps=1e-6)
    batch = BatchConfig(rows=ROWS, row_length=256)
    return PretrainConfig(
        corpus=Path("none"), run=Path("none"), model="toy", steps=STEPS, seed=3, optimizer=optimizer, batch=batch,
        parallel=parallel, **changes,
    )  # fmt: skip


def make_rows(step: int) -> list[Row]:
    """The global batch of a step: every row mixes the three objectives."""
    rng = np.random.default_rng(step)
    objective = ObjectiveConfig()
    rows = []
    for row in range(ROWS):
        proteins = toy_sequences(5, seed=100 * step + row)
        names = ("mlm", "gmask", "smask", "gmask", "mlm")
        rows.append(
            pack(
                [
                    make_example(Fragment(encode_residues(p)), n, rng, objective)
                    for p, n in zip(proteins, names, strict=True)
                ]
            )
        )
    return rows


def reference() -> tuple[list[tuple[float, float]], dict[str, torch.Tensor]]:
    """Losses, gradient norms and final weights of the plain model under torch's AdamW."""
    config = make_config(ParallelConfig())
    o = config.optimizer
    model = GLM(config.glm, seed=config.seed)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [dict(params=matrices, weight_decay=o.weight_decay), dict(params=vectors, weight_decay=0.0)],
        betas=(o.beta1, o.beta2), eps=o.eps,
    )  # fmt: skip
    log = []
    for step in range(STEPS):
        total = weight = 0.0
        for row in make_rows(step):
            tokens, positions, segments, labels, weights = map(
                torch.from_numpy, (row.tokens, row.positions, row.segments, row.labels, row.weights)
            )
            hidden = model.hidden(
                tokens, positions, lambda _, q, k, v, s=segments: attend(q, k, v, s),
                input_gradient=o.embedding_gradient,
            )[-1]  # fmt: skip
            total += (F.cross_entropy(model.output(hidden), labels, reduction="none") * weights).sum()
            weight += round(float(weights.sum()))
        optimizer.zero_grad()
        loss = total / weight
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), o.clip_norm)
        done, warm = step + 1, round(o.warmup_ratio * STEPS)
        low = o.learning_rate * o.min_learning_rate_ratio
        cosine = (1 + math.cos(math.pi * (done - warm) / (STEPS - warm))) / 2
        rate = o.learning_rate * done / warm if done <= warm else low + cosine * (o.learning_rate - low)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        log.append((loss.item(), norm.item()))
    return log, {name: weight.detach() for name, weight in model.state_dict().items()}


def train(
    rank: int, parallel: ParallelConfig, state: dict[str, torch.Tensor]
) -> tuple[list[tuple[float, float]], float]:
    """Losses and norms of a layout, and this rank's largest deviation from the reference's final weights."""
    config = make_config(parallel)
    with process_groups(config):
        from megatron.core import parallel_state

        trainer = Trainer(config)
        ranks, mine = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
        share = ROWS // ranks
        log = []
        for step in range(STEPS):
            result = trainer.step(make_rows(step)[mine * share : (mine + 1) * share])
            log.append((result.losses.loss, result.gradient_norm))
        expected = state_to_megatron(state, config.glm)
        worst = max(
            float((weight - shard(name, expected[trainer.core.global_name(name)], weight)).abs().max())
            for name, weight in trainer.core.named_parameters()
        )
    return log, worst


@pytest.fixture(scope="module")
def plain():
    return reference()


def train_bf16(rank: int, parallel: ParallelConfig) -> list[float]:
    config = make_config(parallel, precision="bf16")
    with process_groups(config):
        trainer = Trainer(config)
        share = ROWS // 2
        return [trainer.step(make_rows(step)[rank * share : (rank + 1) * share]).losses.loss for step in range(STEPS)]


def test_bf16_follows_fp32(plain):
    """bf16 keeps 8 bits: the losses agree to a few parts in a thousand."""
    expected = [loss for loss, _ in plain[0]]
    for got in run_distributed(train_bf16, 2, ParallelConfig(distributed_optimizer=True)):
        np.testing.assert_allclose(got, expected, atol=2e-2, rtol=0)
        assert got != expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_trains_like_plain_pytorch(layout, plain):
    world_size, parallel = LAYOUTS[layout]
    log, state = plain
    for got, worst in run_distributed(train, world_size, parallel, state):
        loss, norm = np.abs(np.array(got) - np.array(log)).max(axis=0)
        print(f"{layout}: loss {loss:.1e}, gradient norm {norm:.1e}, weights {worst:.1e}")
        np.testing.assert_allclose([loss for loss, _ in got], [loss for loss, _ in log], atol=1e-6, rtol=0)
        np.testing.assert_allclose([norm for _, norm in got], [norm for _, norm in log], atol=1e-6, rtol=1e-6)
        assert worst < 1e-6
