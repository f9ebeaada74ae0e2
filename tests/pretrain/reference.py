"""What every layout must compute: the plain model under torch's AdamW, on batches that mix the three objectives.

Written out from the equations: the plain forward, cross-entropy, clipping, warm-up and cosine.
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from megatron.core import parallel_state

from pretrain.config import BatchConfig, OptimizerConfig, ParallelConfig, PretrainConfig
from xtrimo.attention import attend
from xtrimo.model import GLM
from xtrimo.objectives import OBJECTIVES, Fragment, ObjectiveConfig, make_example
from xtrimo.packing import Row, pack
from xtrimo.testing import toy_sequences
from xtrimo.tokens import encode_residues

STEPS, ROWS = 5, 4


def make_config(parallel: ParallelConfig, **changes) -> PretrainConfig:
    """A run of the toy model (the preset `toy`, which tests register)."""
    optimizer = OptimizerConfig(learning_rate=1e-3, warmup_ratio=0.4, weight_decay=0.1, eps=1e-6, clip_norm=0.2)
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


class Step(NamedTuple):
    """What a run says about one step."""

    loss: float
    norm: float
    nats: dict[str, float]
    """Of each objective."""


def train_plain(steps: int = STEPS) -> tuple[list[Step], dict[str, torch.Tensor]]:
    """Every step of the plain model under torch's AdamW, and its final weights."""
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
    for step in range(steps):
        total = weight = 0.0
        nats: dict[str, list[float]] = {name: [] for name in OBJECTIVES}
        for row in make_rows(step):
            tokens, positions, segments, labels, weights = map(
                torch.from_numpy, (row.tokens, row.positions, row.segments, row.labels, row.weights)
            )
            hidden = model.hidden(
                tokens, positions, lambda _, q, k, v, s=segments: attend(q, k, v, s),
                input_gradient=o.embedding_gradient,
            )[-1]  # fmt: skip
            losses = F.cross_entropy(model.output(hidden), labels, reduction="none")
            total += (losses * weights).sum()
            weight += round(float(weights.sum()))
            for index, name in enumerate(OBJECTIVES):
                nats[name] += losses[(weights > 0) & torch.from_numpy(row.objectives == index)].tolist()
        optimizer.zero_grad()
        loss = total / weight
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), o.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = rate(o, step + 1)
        optimizer.step()
        log.append(Step(loss.item(), norm.item(), {name: float(np.mean(x)) for name, x in nats.items() if x}))
    return log, {name: weight.detach() for name, weight in model.state_dict().items()}


def rate(o: OptimizerConfig, done: int) -> float:
    """The learning rate of step `done`, counted from 1."""
    warm = round(o.warmup_ratio * STEPS)
    if done <= warm:
        return o.learning_rate * done / warm
    cosine = (1 + math.cos(math.pi * (done - warm) / (STEPS - warm))) / 2
    low = o.learning_rate * o.min_learning_rate_ratio
    return low + cosine * (o.learning_rate - low)


def local_rows(step: int) -> list[Row]:
    """The rows of the global batch that this data-parallel rank computes; process groups must be up."""
    share = ROWS // parallel_state.get_data_parallel_world_size()
    first = parallel_state.get_data_parallel_rank() * share
    return make_rows(step)[first : first + share]
