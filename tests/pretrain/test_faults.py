"""Faults, each really put into a run: it ends or goes on as told, and the same command then gives the same losses."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain import checkpoint_files, monitor, trainer
from pretrain.corpus import Corpus
from tests.pretrain import runs
from tests.pretrain.runs import STEPS, flags, metrics, train
from xtrimo import stopping


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return runs.make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def unbroken(corpus, tmp_path_factory) -> Path:
    """The same run on two ranks that nothing happens to."""
    run = tmp_path_factory.mktemp("runs") / "unbroken"
    train(flags(corpus, run), 2)
    return run


def at_batch(batch: int, do: Callable[[int], None]) -> runs.Fault:
    """A fault in the forward pass of batch `batch`, counted from 0; `do` is told the row of the global batch."""

    def install(_: int) -> None:
        forward = trainer.Trainer._forward

        def faulty(self, number, rows, model):
            numbered = next(rows)
            if number == batch:
                do(numbered[0])
            return forward(self, number, iter([numbered]), model)

        trainer.Trainer._forward = faulty

    return install


def only(rank: int, fault: runs.Fault) -> runs.Fault:
    """A fault of one rank alone."""
    return lambda mine: fault(mine) if mine == rank else None


def scale_losses(factors: dict[tuple[int, int], float]) -> runs.Fault:
    """Multiply the losses of some (batch, row)."""

    def install(_: int) -> None:
        forward = trainer.Trainer._forward

        def faulty(self, batch, rows, model):
            number, row = next(rows)
            nll, weigh = forward(self, batch, iter([(number, row)]), model)
            return nll * factors.get((batch, number), 1.0), weigh

        trainer.Trainer._forward = faulty

    return install


def kill(number: signal.Signals) -> Callable[[int], None]:
    return lambda _: os.kill(os.getpid(), number)


def test_a_rank_killed_in_the_middle_of_a_step(corpus, unbroken, tmp_path):
    with pytest.raises(RuntimeError, match="rank 1 ended with exit code -9"):
        train(flags(corpus, tmp_path / "run"), 2, only(1, at_batch(4, kill(signal.SIGKILL))))
    train(flags(corpus, tmp_path / "run"), 2)
    assert runs.losses(tmp_path / "run") == runs.losses(unbroken)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_rank_stops_all_of_them_at_one_step(number, corpus, unbroken, tmp_path):
    run = tmp_path / "run"
    train(flags(corpus, run), 2, only(1, at_batch(4, kill(number))))
    assert checkpoint_files.steps(run / "checkpoints")[-1] == 5
    assert (run / stopping.STOPPED).exists() and not (run / stopping.DONE).exists()
    train(flags(corpus, run), 2)
    assert (run / stopping.DONE).exists() and not (run / stopping.STOPPED).exists()
    assert runs.losses(run) == runs.losses(unbroken)


def test_a_stop_file_is_obeyed_once(corpus, unbroken, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / stopping.STOP).touch()
    train(flags(corpus, run), 2)
    assert checkpoint_files.steps(run / "checkpoints") == [1] and not (run / stopping.STOP).exists()
    train(flags(corpus, run), 2)
    assert runs.losses(run) == runs.losses(unbroken)


def test_a_flipped_bit_of_a_checkpoint(corpus, unbroken, tmp_path):
    shutil.copytree(unbroken, run := tmp_path / "run")
    shard = max((run / f"checkpoints/step-{STEPS:08}").glob("*.distcp"), key=lambda path: path.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    log = tmp_path / "log"
    train(flags(corpus, run), 2, only(0, lambda _: log_to(log)))
    assert f"step-{STEPS:08} is passed over" in log.read_text() and shard.name in log.read_text()
    assert runs.losses(run) == runs.losses(unbroken)


def log_to(path: Path) -> None:
    import logging

    logging.getLogger().addHandler(logging.FileHandler(path))


def test_a_gradient_that_is_not_finite_is_skipped_and_counted(corpus, unbroken, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    nan = scale_losses({(3, 1): float("nan")})

    def fault(rank: int) -> None:
        nan(rank)
        if rank == 0:
            log_to(log)

    train(flags(corpus, run), 2, fault)
    assert "step 4: skipped, the gradient is not finite" in log.read_text()
    assert "(seed 0, step 3, row 1)" in log.read_text()
    counts = {x["step"]: x["num_skipped"] for x in metrics(run) if x["split"] == "train"}
    assert counts == {step: int(step >= 4) for step in range(1, STEPS + 1)}
    same = {key: value for key, value in runs.losses(unbroken).items() if key[1] < 4}
    assert {key: value for key, value in runs.losses(run).items() if key[1] < 4} == same
    assert all(len(value) > 1 for key, value in runs.losses(run).items() if key != ("train", 4))


def test_skipped_in_a_row_it_stops_with_the_state_of_before(corpus, unbroken, tmp_path):
    run, stop = tmp_path / "run", kill(signal.SIGUSR1)
    broken = scale_losses({(batch, 0): float("inf") for batch in range(3, STEPS)})
    message = r"step 6: 3 steps in a row had no finite gradient.*\(seed 0, step 5, row 0\).*after step 3.*batches 3-5"
    train(flags(corpus, run, "--fault.max-skipped", "3"), 2, lambda rank: (broken(rank), at_batch(4, stop)(rank)))
    assert checkpoint_files.steps(run / "checkpoints") == [4, 5]  # asked to stop after two of them
    with pytest.raises(RuntimeError, match=message):
        train(flags(corpus, run, "--fault.max-skipped", "3"), 2, broken)
    assert checkpoint_files.steps(run / "checkpoints") == [3]
    train(flags(corpus, run, "--fault.max-skipped", "3"), 2)
    assert runs.losses(run) == runs.losses(unbroken)


def test_a_rank_that_hangs_ends_the_job_with_all_stacks(corpus, unbroken, tmp_path):
    run = tmp_path / "run"
    sleep = only(1, at_batch(4, lambda _: time.sleep(1000)))
    with pytest.raises(RuntimeError, match="ended with exit code 1"):
        train(flags(corpus, run, "--fault.hang-seconds", "10"), 2, sleep, timeout=60)
    stacks = [(run / f"stacks/rank-{rank:05}.txt").read_text() for rank in range(2)]
    assert "Timeout (0:00:10)!" in stacks[1] and "in <lambda>" in stacks[1].splitlines()[2]  # the sleep
    assert "_run" in stacks[0]  # it waits in the step, be it told by its own timer or by the other's end
    train(flags(corpus, run), 2)
    assert runs.losses(run) == runs.losses(unbroken)
    assert "Timeout" in (run / "stacks/rank-00001.txt").read_text()  # kept: a requeued job would erase it at once


SPIKES = ("--fault.spike-window", "3", "--fault.spike-nats", "2")


def test_a_spike_is_reported(corpus, unbroken, tmp_path):
    log = tmp_path / "log"
    spike = scale_losses({(4, 0): 3.0})

    def fault(rank: int) -> None:
        spike(rank)
        log_to(log)

    train(flags(corpus, tmp_path / "run", *SPIKES), 1, fault)
    assert "step 5: the loss spiked to" in log.read_text() and "batch 4" in log.read_text()
    assert log.read_text().count("spiked") == 1


def test_a_spike_is_rolled_back_and_its_batches_left_out(corpus, tmp_path):
    """As the published run did at steps 115,800 to 116,100: the result is that of a run that never saw them."""
    spike, run = scale_losses({(5, 0): 3.0}), tmp_path / "run"
    train(flags(corpus, run, *SPIKES, "--fault.roll-back"), 2, spike)
    assert (run / "left_out.json").read_text() == "[[4, 5]]"
    train(flags(corpus, tmp_path / "never", "--fault.skip-batches", "4-5"), 2)
    assert runs.losses(run) == runs.losses(tmp_path / "never")


def test_batches_left_out_later_go_back_to_before_them(corpus, unbroken, tmp_path):
    shutil.copytree(unbroken, run := tmp_path / "run")
    train(flags(corpus, run, "--fault.skip-batches", "7-7"), 2)
    train(flags(corpus, run), 2)  # remembered
    train(flags(corpus, tmp_path / "never", "--fault.skip-batches", "7-7"), 2)
    assert runs.losses(run) == runs.losses(tmp_path / "never")
    with pytest.raises(
        RuntimeError, match="no checkpoint to go on from: .*it has seen batches that are to be left out"
    ):
        train(flags(corpus, run, "--fault.skip-batches", "0-1"), 2)
    train(flags(corpus, run), 2)  # the mistake is not remembered


def test_a_run_that_spikes_whatever_is_left_out_ends(corpus, tmp_path):
    spike = scale_losses({(batch, 0): 1.0 + 3 * (batch >= 4) for batch in range(100)})
    with pytest.raises(RuntimeError, match="TrainingError: the loss spiked after each of 5 returns to step 4"):
        train(flags(corpus, tmp_path / "run", *SPIKES, "--fault.roll-back"), 1, spike)


def test_a_damaged_shard_of_the_corpus(corpus, unbroken, tmp_path):
    shutil.copytree(corpus, copy := tmp_path / "corpus")
    shard = copy / Corpus.open(copy).meta.train.shards[0].name
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(RuntimeError, match=f"CorpusError.*{shard.name}"):
        train(flags(copy, tmp_path / "run", "--steps", "40"), 1)
    shutil.copy(corpus / shard.name, shard)
    shutil.rmtree(tmp_path / "run")
    train(flags(copy, tmp_path / "run"), 2)
    assert runs.losses(tmp_path / "run") == runs.losses(unbroken)


def test_a_full_disk_at_a_line_of_metrics(corpus, unbroken, tmp_path):
    log = tmp_path / "log"

    def fault(_: int) -> None:
        log_to(log)
        open_files = monitor.Monitor._open

        def onto_a_full_disk(self, done):
            open_files(self, done)
            self._metrics = Path("/dev/full").open("a")  # noqa: SIM115

        monitor.Monitor._open = onto_a_full_disk

    train(flags(corpus, tmp_path / "run"), 1, fault)
    assert "the metrics of step 3 are lost: No space left on device" in log.read_text()
    assert (tmp_path / "run" / stopping.DONE).exists()


def test_fp16_lowers_its_scale_until_it_fits(corpus, tmp_path):
    """A scale far too large: steps are skipped, each with half the scale, until gradients are finite."""

    def enlarge(_: int) -> None:
        init = trainer.Trainer.__init__

        def larger(self, config):
            init(self, config)
            self.optimizer.chained_optimizers[0].grad_scaler._scale.fill_(2.0**16)

        trainer.Trainer.__init__ = larger

    small = ("--batch.rows", "1", "--batch.row-length", "64", "--valid-tokens", "1", "--save-every", "20")
    more = ("--precision", "fp16", "--fault.max-skipped", "20", "--steps", "14")
    train(flags(corpus, tmp_path / "run", *small, *more), 1, enlarge)
    counts = [x["num_skipped"] for x in metrics(tmp_path / "run") if x["split"] == "train"]
    assert 1 < counts[-1] < 15 and counts[-1] == counts[-4]
    found = [x["loss"] for x in metrics(tmp_path / "run") if x["split"] == "train"]
    assert found[-1] < found[0]
