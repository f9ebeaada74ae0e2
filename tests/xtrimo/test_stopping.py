"""A run is asked to stop: by a file, by a signal, by the command line; it goes on to the same numbers."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.xtrimo.test_training import CONFIG, batches, losses, make_module, train, weights_of, whole_run
from tests.xtrimo.test_training import loss as loss_of
from xtrimo.errors import StoppedError
from xtrimo.stopping import DONE, STOP, STOPPED, StopRequest
from xtrimo.testing import run_distributed
from xtrimo.training import fit
from xtrimo.training_log import read_metrics

SLOW = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
import torch
torch.set_num_threads(1)
from xtrimo import training
from tests.xtrimo import test_training as t

def batches(step):
    time.sleep(0.1 if step else 0.0)
    return t.batches(step)

config = t.replace(t.CONFIG, validate_every=3)
try:
    module = t.make_module(0.3)
    training.fit(module, t.loss, batches, config, Path({folder!r}), validate=lambda module: -t.total_loss(module))
except training.StoppedError as error:
    sys.exit(75)
"""


def words(folder: Path) -> set[str]:
    return {name for name in (STOP, STOPPED, DONE) if (folder / name).exists()}


def same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("how", [STOP, "SIGTERM"])
def test_a_real_process_stops_and_goes_on_exactly(tmp_path: Path, how: str) -> None:
    whole, _ = whole_run(tmp_path / "whole")
    folder = tmp_path / "run"
    code = SLOW.format(root=str(Path(__file__).parents[2]), folder=str(folder))
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 60
    while not read_metrics(folder / "metrics.jsonl") and time.monotonic() < deadline:
        time.sleep(0.01)
    if how == STOP:
        (folder / STOP).touch()
    else:
        process.send_signal(getattr(signal, how))
    assert process.wait(60) == 75 and words(folder) == {STOPPED}
    done = torch.load(folder / "training.pt", weights_only=True)["progress"]["step"]
    assert 1 <= done < 24 and len(losses(folder)) == done
    again, _ = whole_run(folder)
    assert same(weights_of(whole), weights_of(again)) and words(folder) == {DONE}
    assert losses(folder) == losses(tmp_path / "whole")


def test_a_file_is_obeyed_once_and_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / STOP).touch()
    with pytest.raises(
        StoppedError, match=r"asked to stop \(STOP\), saved after step 1 of 24; the same command goes on"
    ):
        train(tmp_path)
    assert words(tmp_path) == {STOPPED}
    assert train(tmp_path)[1].step == 24 and words(tmp_path) == {DONE}


def test_a_request_in_the_last_step_comes_too_late(tmp_path: Path) -> None:
    def asks(step: int) -> list[int]:
        if step == CONFIG.steps - 1:
            (tmp_path / STOP).touch()
        return batches(step)

    fit(make_module(), loss_of, asks, CONFIG, tmp_path)
    assert words(tmp_path) == {DONE}


def rank(number: int, folder: Path, at: int) -> tuple[str, list[np.ndarray]]:
    """Rank 1 alone is sent a signal before a step."""

    def asked(step: int) -> list[int]:
        if number == 1 and step == at:
            os.kill(os.getpid(), signal.SIGUSR1)
        return batches(step)

    module = make_module(0.3)
    try:
        fit(module, loss_of, asked, CONFIG, folder)
    except StoppedError as error:
        return str(error), []
    return "", weights_of(module)


def test_a_signal_to_one_rank_stops_all_at_one_step(tmp_path: Path) -> None:
    (_, whole), _ = run_distributed(rank, 2, tmp_path / "whole", -1)
    first, second = run_distributed(rank, 2, tmp_path / "run", 6)
    assert "asked to stop (by another rank), saved after step 7" in first[0] and "(SIGUSR1)" in second[0]
    assert words(tmp_path / "run") == {STOPPED}
    (_, again), _ = run_distributed(rank, 2, tmp_path / "run", -1)
    assert same(whole, again) and losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_handlers_are_put_back_and_threads_listen_to_the_file_alone(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    train(tmp_path / "main")
    assert signal.getsignal(signal.SIGTERM) is before
    heard: list[bool] = []

    def listen() -> None:
        with StopRequest(tmp_path, torch.device("cpu")) as stop:
            heard.append(stop.heard())
            (tmp_path / STOP).touch()
            heard.append(stop.heard())

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert heard == [False, True]
