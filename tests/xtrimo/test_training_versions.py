"""Run folders of earlier versions go on."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.xtrimo.test_training import weights_of, whole_run
from xtrimo.errors import StoppedError
from xtrimo.stopping import STOP


@pytest.mark.parametrize("average", [0.0, 0.5])
def test_a_checkpoint_of_before_there_were_engines(tmp_path: Path, average: float) -> None:
    """Best weights stood among the progress, averages (before, none) beside the weights, and no engine was named."""
    whole, expected = whole_run(tmp_path / "whole", average)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / STOP).touch()
    with pytest.raises(StoppedError):
        whole_run(tmp_path / "run", average)
    path = tmp_path / "run/training.pt"
    state = torch.load(path, weights_only=True)
    own = state.pop("own")
    del state["engine"]
    state["progress"]["best_weights"] = own["best_weights"]
    if average:
        state["averages"] = own["averages"]
    else:
        del state["config"]["average"]
    torch.save(state, path)
    again, progress = whole_run(tmp_path / "run", average)
    for a, b in zip(weights_of(whole), weights_of(again), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (progress.best, progress.best_step) == (expected.best, expected.best_step)
