"""The moving average of the weights: its recurrence, what is validated and kept, and that learning goes on without it.

That it survives kills and is one on all ranks is tested in `test_training`.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.xtrimo.test_training import CONFIG, batches, loss, losses, make_module, train, weights_of
from xtrimo.errors import ConfigError
from xtrimo.training import fit

Seen = list[list[np.ndarray]]


def watched(folder: Path, figures: Sequence[float] = range(24), **changes: Any) -> tuple[nn.Module, Seen]:
    """The trained module, and the weights that validation saw after each step."""
    seen: Seen = []

    def validate(module: nn.Module) -> float:
        seen.append(weights_of(module))
        return float(figures[len(seen) - 1])

    module = make_module()
    fit(module, loss, batches, replace(CONFIG, validate_every=1, **changes), folder, validate=validate)
    return module, seen


def apart(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))


def test_the_average_is_its_recurrence_and_what_is_validated(tmp_path: Path) -> None:
    """a <- d a + (1 - d) w after each step; d grows to 0.5, which it has from the eighth step on."""
    _, weights = watched(tmp_path / "plain")
    module, averages = watched(tmp_path / "averaged", average=0.5)
    expected = [value.astype(np.float64) for value in weights_of(make_module())]
    for step, (plain, ours) in enumerate(zip(weights, averages, strict=True)):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, plain, strict=True)]
        assert apart(ours, expected) < 1e-6 and apart(ours, plain) > 1e-4, step
    assert apart(weights_of(module), averages[-1]) == 0
    told = [losses(tmp_path / name) for name in ("plain", "averaged")]
    assert told[0] == told[1] and len(told[0]) == 24  # learning itself goes on with its own weights


def test_the_best_average_is_kept(tmp_path: Path) -> None:
    module, averages = watched(tmp_path / "best", [0.0] * 9 + [1.0] + [0.5] * 14, average=0.5)
    assert apart(weights_of(module), averages[9]) == 0 < apart(averages[9], averages[-1])
    last, _ = train(tmp_path / "last", average=0.5)  # not validated
    assert apart(weights_of(last), averages[-1]) == 0


def test_an_average_of_nothing_keeps_the_weights(tmp_path: Path) -> None:
    module, weights = watched(tmp_path / "plain", average=0.0)
    state = torch.load(tmp_path / "plain/training.pt", weights_only=True)
    assert state["own"]["averages"] == {} and apart(weights_of(module), weights[-1]) == 0
    assert apart([value.detach().numpy() for value in state["weights"].values()], weights[-1]) == 0
    barely, averages = watched(tmp_path / "barely", average=1e-12)
    assert apart(weights_of(barely), weights_of(module)) < 1e-9 and len(averages) == 24
    with pytest.raises(ConfigError, match="average 0.0 to 0.5"):
        train(tmp_path / "plain", validate_every=1, average=0.5)
