"""The planner's bytes beside the tensors of real training steps: kept for the backward pass, each storage once."""

import weakref
from pathlib import Path

import pytest
import torch

from pretrain.config import BatchConfig, ParallelConfig, PretrainConfig
from pretrain.parallel import process_groups
from pretrain.plan_memory import FRAMEWORK, memory, parameters_per_rank
from pretrain.trainer import Trainer
from tests.pretrain.reference import make_rows
from xtrimo.config import PRESETS, preset
from xtrimo.packing import pad
from xtrimo.testing import run_distributed, toy_config

ROWS, ROW_LENGTH = 4, 512


@pytest.fixture(scope="module", autouse=True)
def toy_preset():
    PRESETS["toy"] = toy_config(hidden_size=128, ffn_size=320)
    yield
    del PRESETS["toy"]


class Kept:
    """Bytes of the storages that autograd holds, now and at most; `apart` are counted elsewhere."""

    def __init__(self, apart: set[int]) -> None:
        self.apart, self.holders = apart, {}
        self.now = self.most = 0

    def pack(self, tensor: torch.Tensor) -> "Held":
        storage = tensor.untyped_storage()
        held, key = Held(tensor), storage.data_ptr()
        if key not in self.apart:
            if not self.holders.get(key):
                self.now += storage.nbytes()
            self.holders[key] = self.holders.get(key, 0) + 1
            self.most = max(self.most, self.now)
            weakref.finalize(held, self.release, key, storage.nbytes())
        return held

    def release(self, key: int, size: int) -> None:
        self.holders[key] -= 1
        if not self.holders[key]:
            self.now -= size


class Held:
    """A tensor that autograd keeps."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def measure(rank: int, layout: dict, precision: str) -> dict[str, int]:
    """Bytes of one rank in its second step: the first one makes the optimizer's state."""
    config = PretrainConfig(
        corpus=Path("none"), run=Path("none"), model="toy", precision=precision, parallel=ParallelConfig(**layout),
        batch=BatchConfig(rows=ROWS, row_length=ROW_LENGTH),
    )  # fmt: skip
    with process_groups(config):
        trainer = Trainer(config)
        share = ROWS // config.check_ranks(torch.distributed.get_world_size())
        rows = [pad(row, ROW_LENGTH) for row in make_rows(0)][:share]
        trainer.step(rows)
        weights = storages(p for chunk in trainer.chunks for p in chunk.parameters())
        kept = Kept(set(weights))
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda held: held.tensor):
            trainer.step(rows)
        parts = trainer.optimizer.chained_optimizers
        state = storages(x for part in parts for x in states(part))
        copies = storages(p for part in parts for group in part.optimizer.param_groups for p in group["params"])
        return {
            "weights": sum(weights.values()),
            "gradients": sum(storages(b.grad_data for chunk in trainer.chunks for b in chunk.buffers).values()),
            "optimizer": sum({k: v for k, v in (state | copies).items() if k not in weights}.values()),
            "kept": kept.most,
        }


def states(part) -> list[torch.Tensor]:
    return [x for values in part.optimizer.state.values() for x in values.values() if x.ndim]


def storages(tensors) -> dict[int, int]:
    """Bytes of the storages behind some tensors, by address."""
    return {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("layout", "ranks", "precision"),
    [
        ({}, 1, "fp32"),
        (dict(recompute="selective"), 1, "fp32"),
        (dict(recompute="full"), 1, "fp32"),
        (dict(tensor_degree=2), 2, "fp32"),
        (dict(tensor_degree=2, sequence_parallel=True, recompute="selective"), 2, "fp32"),
        (dict(pipeline_degree=2), 2, "fp32"),
        (dict(pipeline_degree=2, virtual_stages=2), 2, "fp32"),
        (dict(pipeline_degree=2, recompute="full"), 2, "fp32"),
        (dict(context_degree=2), 2, "fp32"),
        (dict(distributed_optimizer=True), 2, "bf16"),
    ],
    ids=lambda value: " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value),
)
def test_the_tensors_of_a_step(layout, ranks, precision):
    """Within 2 %, each part; bf16 keeps up to 5 % less on a CPU, where attention casts v to a copy of its own."""
    parallel = ParallelConfig(**layout)
    degree = parallel.data_degree(ranks)
    planned = memory(
        preset("toy"), parallel, row_length=ROW_LENGTH, rows=ROWS // degree, data_degree=degree,
        size=4 if precision == "fp32" else 2,
    )  # fmt: skip
    expected = {
        "weights": planned.weights, "gradients": planned.gradients, "optimizer": planned.optimizer,
        "kept": planned.activations + planned.logits,
    }  # fmt: skip
    fullest = max(run_distributed(measure, ranks, layout, precision), key=lambda parts: sum(parts.values()))
    assert expected == pytest.approx(fullest, rel=0.05 if precision == "bf16" else 0.02)


@pytest.mark.parametrize("name", ["glm-8m", "proteinglm-1b", "xtrimopglm-100b"])
def test_stages_hold_the_model(name):
    glm = preset(name)
    for pipeline in (1, 2):
        layout = ParallelConfig(pipeline_degree=pipeline)
        assert sum(parameters_per_rank(glm, layout, stage) for stage in range(pipeline)) == glm.num_params


def test_nothing_grows_with_the_square_of_a_row():
    glm, layout = preset("glm-8m"), ParallelConfig()
    short, long = (
        memory(glm, layout, row_length=n, rows=1, data_degree=1).activations for n in (2048, 8 * 2048)
    )  # fmt: skip
    assert long == pytest.approx(8 * short)


def test_the_allowance_is_on_top():
    planned = memory(preset("glm-8m"), ParallelConfig(), row_length=2048, rows=1, data_degree=1)
    tensors = planned.total - planned.allowance
    assert planned.allowance == pytest.approx(FRAMEWORK + 0.05 * tensors)
