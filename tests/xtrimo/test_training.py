"""The training loop: it learns, it may be killed, and neither pieces nor ranks change what is learned."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from xtrimo import training
from xtrimo.engine import trained
from xtrimo.errors import CheckpointError, ConfigError, TrainingError
from xtrimo.testing import run_distributed
from xtrimo.training import fit, ranks
from xtrimo.training_config import TrainingConfig
from xtrimo.training_log import read_metrics

NUM_ITEMS, BATCH = 32, 8
CONFIG = TrainingConfig(steps=24, learning_rate=3e-2, log_every=1, save_every=5)


def make_module(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 1))


def items() -> list[tuple[Tensor, float]]:
    """Points of several rows each, so that an item's weight is not 1."""
    torch.manual_seed(1)
    return [(x, float(len(x))) for x in (torch.randn(1 + i % 3, 6) for i in range(NUM_ITEMS))]


ITEMS = items()


def batches(step: int) -> list[int]:
    order = np.random.default_rng((3, step // 4)).permutation(NUM_ITEMS)
    return order[step % 4 * BATCH :][:BATCH].tolist()


def loss(module: nn.Module, numbers: Any) -> tuple[Tensor, float]:
    """The squared error of sin(sum(x)), over rows."""
    x = torch.cat([ITEMS[i][0] for i in numbers])
    return (module(x)[:, 0] - x.sum(1).sin()).float().square().sum(), float(len(x))


def total_loss(module: nn.Module) -> float:
    with torch.no_grad():
        total, weight = loss(module.eval(), range(NUM_ITEMS))
    return float(total) / weight


def weights_of(module: nn.Module) -> list[np.ndarray]:
    return [weight.detach().numpy().copy() for weight in trained(module).values()]


def train(folder: Path, *, dropout: float = 0.0, **changes: Any) -> tuple[nn.Module, training.Progress]:
    module = make_module(dropout)
    return module, fit(module, loss, batches, replace(CONFIG, **changes), folder)


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if line["split"] == "train"]


def test_it_learns(tmp_path: Path) -> None:
    before = total_loss(make_module())
    module, progress = train(tmp_path, steps=200)
    assert total_loss(module) < 0.1 * before
    assert progress.step == 200 and len(losses(tmp_path)) == 200


def test_one_step_is_torch_own(tmp_path: Path) -> None:
    """The sum over items, divided by what they weigh, clipped; then AdamW."""
    module, _ = train(tmp_path, steps=1, warmup_ratio=0.0, clip_norm=0.1)
    plain = make_module()
    decayed = [dict(params=[w for w in plain.parameters() if (w.ndim > 1) == wide], weight_decay=0.01 * wide)
               for wide in (True, False)]  # fmt: skip
    optimizer = torch.optim.AdamW(decayed, lr=3e-2)
    total, weight = loss(plain, batches(0))
    (total / weight).backward()
    assert float(nn.utils.clip_grad_norm_(plain.parameters(), 0.1)) > 0.1
    optimizer.step()
    for ours, theirs in zip(weights_of(module), weights_of(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_rate() -> None:
    config = TrainingConfig(steps=100, learning_rate=2.0, warmup_ratio=0.1)
    assert [config.rate(step) for step in (0, 4, 9, 10)] == [0.2, 1.0, 2.0, 2.0]
    assert config.rate(55) == pytest.approx(1.0) and config.rate(99) < 0.001
    assert all(config.rate(step) >= config.rate(step + 1) for step in range(10, 99))


def test_rates_by_name(tmp_path: Path) -> None:
    module, start = make_module(), weights_of(make_module())
    config = replace(CONFIG, steps=1, weight_decay=0.0, warmup_ratio=0.0)
    fit(module, loss, batches, config, tmp_path, rate_of=lambda name: 0.5 if name.startswith("0.") else 1.0)
    moved = [np.abs(a - b).max() for a, b in zip(weights_of(module), start, strict=True)]
    np.testing.assert_allclose(moved, [1.5e-2, 1.5e-2, 3e-2, 3e-2], rtol=1e-3)  # AdamW's first step is its rate


@pytest.mark.parametrize("pieces", [2, 3, 8, 20])
def test_pieces_change_nothing(tmp_path: Path, pieces: int) -> None:
    whole, _ = train(tmp_path / "whole")
    cut, _ = train(tmp_path / "cut", accumulate=pieces)
    for a, b in zip(weights_of(whole), weights_of(cut), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def rank(_: int, folder: Path, changes: dict[str, Any]) -> list[np.ndarray]:
    return weights_of(train(folder, **changes)[0])


@pytest.mark.parametrize(("accumulate", "average"), [(1, 0.0), (2, 0.5)])
def test_ranks_change_nothing(tmp_path: Path, accumulate: int, average: float) -> None:
    alone, _ = train(tmp_path / "alone", average=average)
    both = run_distributed(rank, 2, tmp_path / "both", dict(accumulate=accumulate, average=average))
    for mine, first, second in zip(weights_of(alone), *both, strict=True):
        np.testing.assert_array_equal(first, second)
        np.testing.assert_allclose(mine, first, rtol=0, atol=1e-6)
    np.testing.assert_allclose(losses(tmp_path / "alone"), losses(tmp_path / "both"), rtol=1e-5)


def rank_alone(number: int, folder: Path) -> list[np.ndarray]:
    """One rank trains; the other never calls."""
    if number:
        return []
    module = make_module()
    config = TrainingConfig(steps=5, save_every=5)
    training.fit(module, loss, batches, config, folder, alone=True)
    return weights_of(module)


def test_a_rank_trains_alone(tmp_path: Path) -> None:
    module = make_module()
    training.fit(module, loss, batches, TrainingConfig(steps=5, save_every=5), tmp_path / "one")
    first, second = run_distributed(rank_alone, 2, tmp_path / "both", timeout=60.0)
    assert not second
    for ours, theirs in zip(first, weights_of(module), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def rank_of_early_stop(number: int, folder: Path) -> tuple[int, float]:
    module = make_module()
    config = replace(CONFIG, validate_every=2, patience=3)
    progress = fit(module, loss, batches, config, folder, validate=lambda _: 1.0 if number == 0 else math.nan)
    return progress.step, progress.best


def test_ranks_stop_as_one(tmp_path: Path) -> None:
    """Only the main rank measures; its figure counts on all."""
    assert run_distributed(rank_of_early_stop, 2, tmp_path) == [(8, 1.0)] * 2


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import test_training as t
from xtrimo import training

def batches(step):
    if step == {die}:
        os.kill(os.getpid(), signal.SIGKILL)
    return t.batches(step)

module = t.make_module(0.3)
config = t.replace(t.CONFIG, validate_every=3, average={average})
training.fit(module, t.loss, batches, config, Path({folder!r}), validate=lambda module: -t.total_loss(module))
"""


def run_killed(folder: Path, die: int, average: float) -> int:
    code = KILLED.format(tests=str(Path(__file__).parent), folder=str(folder), die=die, average=average)
    return subprocess.run([sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode


def whole_run(folder: Path, average: float = 0.0) -> tuple[nn.Module, training.Progress]:
    module = make_module(0.3)
    config = replace(CONFIG, validate_every=3, average=average)
    return module, fit(module, loss, batches, config, folder, validate=lambda module: -total_loss(module))


@pytest.mark.parametrize(("average", "deaths"), [(0.0, (3, 13)), (0.5, (13,))])
def test_a_killed_run_goes_on_exactly(tmp_path: Path, average: float, deaths: tuple[int, ...]) -> None:
    """Killed twice, once before the first checkpoint; with dropout, moments, averages, and the best weights so far."""
    whole, expected = whole_run(tmp_path / "whole", average)
    for die in deaths:
        assert run_killed(tmp_path / "killed", die, average) == -signal.SIGKILL
    assert [line["step"] for line in read_metrics(tmp_path / "killed/metrics.jsonl")][-1] == 13  # 10 is saved
    again, progress = whole_run(tmp_path / "killed", average)
    for a, b in zip(weights_of(whole), weights_of(again), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (progress.best, progress.best_step, progress.step) == (expected.best, expected.best_step, 24)

    def told(folder: Path) -> list[dict[str, Any]]:
        lines = read_metrics(folder / "metrics.jsonl")
        return [{name: x for name, x in line.items() if name != "seconds"} for line in lines]

    assert told(tmp_path / "killed") == told(tmp_path / "whole")
    assert len(told(tmp_path / "whole")) == 24 + 8


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    whole, _ = whole_run(tmp_path)
    module = make_module(0.3)

    def refuse(step: int) -> Any:
        raise AssertionError(step)

    progress = fit(module, loss, refuse, replace(CONFIG, validate_every=3), tmp_path, validate=lambda _: 0.0)
    assert progress.step == 24
    for a, b in zip(weights_of(whole), weights_of(module), strict=True):
        np.testing.assert_array_equal(a, b)


def test_dropout_is_a_function_of_the_step(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first, _ = train(tmp_path / "first", dropout=0.5)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    second, _ = train(tmp_path / "second", dropout=0.5)
    other, _ = train(tmp_path / "other", dropout=0.5, seed=1)
    for a, b in zip(weights_of(first), weights_of(second), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(weights_of(first)[0], weights_of(other)[0])
    make_module()  # which seeds as `train` did before its fit
    assert torch.equal(torch.get_rng_state(), state), "the caller's random state has moved"


def test_the_best_weights_are_kept(tmp_path: Path) -> None:
    seen: list[list[np.ndarray]] = []
    figures = [0.1, math.nan, 0.5, 0.4, 0.5, 0.3, 0.9, 1.0]

    def validate(module: nn.Module) -> float:
        assert not module.training and not torch.is_grad_enabled()
        seen.append(weights_of(module))
        return figures[len(seen) - 1]

    module = make_module(0.3)
    progress = fit(module, loss, batches, replace(CONFIG, validate_every=2, patience=3), tmp_path, validate=validate)
    assert (progress.best, progress.best_step, progress.step, len(seen)) == (0.5, 6, 12, 6)
    for best, kept in zip(seen[2], weights_of(module), strict=True):
        np.testing.assert_array_equal(best, kept)
    assert not module.training


def test_bf16_is_close_and_not_the_same(tmp_path: Path) -> None:
    exact, _ = train(tmp_path / "exact", steps=100)
    rough, _ = train(tmp_path / "rough", steps=100, precision="bf16")
    assert all(weight.dtype == torch.float32 for weight in rough.parameters())
    assert max(np.abs(a - b).max() for a, b in zip(weights_of(exact), weights_of(rough), strict=True)) > 0
    assert total_loss(rough) == pytest.approx(total_loss(exact), abs=0.03)
    assert total_loss(rough) < 0.5 * total_loss(make_module())


def test_frozen_weights_stay_and_are_not_saved(tmp_path: Path) -> None:
    module = make_module()
    module[0].requires_grad_(False)
    start = module[0].weight.clone()
    fit(module, loss, batches, CONFIG, tmp_path)
    assert torch.equal(module[0].weight, start)
    assert set(torch.load(tmp_path / "training.pt", weights_only=True)["weights"]) == {"3.weight", "3.bias"}


@pytest.mark.parametrize(
    "break_it, error, words",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:500]), CheckpointError, "remove it to start again"),
        (lambda path: path.write_bytes(b""), CheckpointError, "remove it to start again"),
        (lambda path: torch.save({"config": {}}, path), ConfigError, "another config"),
    ],
)
def test_a_checkpoint_that_cannot_be_used(
    tmp_path: Path, break_it: Callable[[Path], object], error: type[Exception], words: str
) -> None:
    train(tmp_path)
    break_it(tmp_path / "training.pt")
    with pytest.raises(error, match=words):
        train(tmp_path)


def test_another_config_is_refused(tmp_path: Path) -> None:
    train(tmp_path)
    train(tmp_path, log_every=3)
    with pytest.raises(ConfigError, match="learning_rate 0.03 to 0.01"):
        train(tmp_path, learning_rate=1e-2)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    train(tmp_path)
    module = make_module()
    module[0].requires_grad_(False)
    with pytest.raises(ConfigError, match="other weights"):
        fit(module, loss, batches, CONFIG, tmp_path)


def test_a_cut_line_of_metrics_is_left_out(tmp_path: Path) -> None:
    train(tmp_path)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"split": "tr')
    assert [line["step"] for line in read_metrics(path)] == list(range(1, 25))
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_a_gradient_that_is_no_number_ends_it(tmp_path: Path) -> None:
    def bad(module: nn.Module, numbers: Any) -> tuple[Tensor, float]:
        total, weight = loss(module, numbers)
        return total * math.inf, weight

    module = make_module()
    with pytest.raises(TrainingError, match="step 1: .* lower the learning rate"):
        fit(module, bad, batches, CONFIG, tmp_path)
    assert all(bool(weight.isfinite().all()) for weight in module.parameters())


def test_items_that_weigh_nothing_change_only_decay(tmp_path: Path) -> None:
    module, start = make_module(), weights_of(make_module())
    config = replace(CONFIG, weight_decay=0.0)
    fit(module, lambda module, numbers: (loss(module, numbers)[0] * 0, 0.0), batches, config, tmp_path)
    for a, b in zip(weights_of(module), start, strict=True):
        np.testing.assert_array_equal(a, b)


def test_nothing_to_train(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to train"):
        fit(make_module().requires_grad_(False), loss, batches, CONFIG, tmp_path)
    with pytest.raises(ConfigError, match="0 items for 1 ranks"):
        fit(make_module(), loss, lambda step: [], CONFIG, tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        dict(steps=0), dict(accumulate=0), dict(learning_rate=0.0), dict(warmup_ratio=1.5), dict(patience=-1),
        dict(average=1.0), dict(average=-0.1), dict(average=math.nan),
    ],
)  # fmt: skip
def test_impossible_configs(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        replace(CONFIG, **changes)


TORCHRUN = """
import os
from xtrimo.training import ranks
import torch, torch.distributed as dist
with ranks() as (rank, world):
    total = torch.tensor([float(rank + 1)])
    dist.all_reduce(total)
    open(f"{folder}/{rank}", "w").write(f"{world} {total.item()}")
"""


def test_ranks_of_torchrun(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"folder = {str(tmp_path)!r}\n" + TORCHRUN)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", str(script)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["2 3.0"] * 2
    with ranks() as alone:
        assert alone == (0, 1)


def test_metrics_are_json(tmp_path: Path) -> None:
    module = make_module()
    fit(module, loss, batches, replace(CONFIG, validate_every=12), tmp_path, validate=lambda _: math.nan)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {tuple(line) for line in lines if line["split"] == "train"} == {
        ("split", "step", "loss", "gradient_norm", "rate", "seconds")
    }
    assert [line for line in lines if line["split"] == "valid"] == [dict(split="valid", step=step) for step in (12, 24)]
    assert any((tmp_path / "tensorboard").iterdir())
