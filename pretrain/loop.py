"""The pretraining loop: resume, step, validate, save; the same on one CPU process and on every rank of a job."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron.core import parallel_state

from pretrain.checkpoint import Checkpoints
from pretrain.config import PretrainConfig
from pretrain.corpus import Corpus
from pretrain.data import Stream, validation_rows
from pretrain.guard import Guard
from pretrain.losses import Losses
from pretrain.monitor import Monitor
from pretrain.parallel import device, is_main_rank, process_groups
from pretrain.skipping import FILE as LEFT_OUT
from pretrain.skipping import Skips
from pretrain.trainer import Trainer
from pretrain.watchdog import Watchdog
from xtrimo.durable import write_text
from xtrimo.errors import CheckpointError, TrainingError
from xtrimo.stopping import DONE, STOP, STOPPED, StopRequest

logger = logging.getLogger(__name__)

MAX_ROLL_BACKS = 5  # to one checkpoint; a run that spikes again and again needs another setting, not fewer batches


def pretrain(config: PretrainConfig) -> Losses | None:
    """Train, or go on training, until `config.steps`; the last validation's losses, or None if asked to stop before.

    Raises:
        CorpusError: if the corpus cannot be read.
        CheckpointError: if the run folder holds a run with other settings, or something else; if none of its
            checkpoints is intact, or one cannot be written.
        TrainingError: if no step gives a finite gradient any more, or the loss spikes however many batches are left
            out; the checkpoints are those of before.
    """
    _check_folder(config.run)
    corpus = Corpus.open(config.corpus)
    facts = config.what_fixes_the_run() | {"corpus": corpus.fingerprint}
    with process_groups(config):
        skips = Skips(config.run, config.fault.skip_batches)
        with StopRequest(config.run, device()) as stop, Watchdog(config.run, config.fault.hang_seconds) as watchdog:
            run = _Run(config, corpus, facts, skips, watchdog)
            began = [run.done]
            while not run.go_on(stop):
                run.resume()
                began.append(run.done)
                if began.count(run.done) > 1 + MAX_ROLL_BACKS:
                    raise TrainingError(
                        f"the loss spiked after each of {MAX_ROLL_BACKS} returns to step {run.done}, whatever batches"
                        " were left out; train with a lower learning rate in a new run folder"
                    )
            stop.leave_word(run.done == config.steps)
            return run.losses


class _Run:
    """From a checkpoint to the end, a request to stop, or a return to an earlier checkpoint."""

    def __init__(
        self, config: PretrainConfig, corpus: Corpus, facts: Mapping[str, Any], skips: Skips, watchdog: Watchdog
    ) -> None:
        self.config, self.skips, self.watchdog = config, skips, watchdog
        self.stream = Stream(corpus, config)
        self.rank = parallel_state.get_data_parallel_rank()
        self.ranks = parallel_state.get_data_parallel_world_size()
        self.held_out = [
            row for rows in validation_rows(corpus, config).values() for row in rows[self.rank :: self.ranks]
        ]
        self.trainer = Trainer(config)
        self.checkpoints = Checkpoints(self.trainer, config.run / "checkpoints", facts)
        self.losses: Losses | None = None
        self.resume()
        if config.fault.roll_back and not self.done:
            self._save(0)  # to have something to go back to

    def resume(self) -> None:
        """Go to the newest checkpoint of this history; a new run stays where it is."""
        self.done, progress = self.checkpoints.load(self.skips.agree_with)
        self.saved = self.done
        self.guard = Guard(self.config, progress)
        self.skips.keep()  # now that they are known to leave something to go on from
        self.watchdog.beat()
        if is_main_rank():
            write_text(self.config.run / "config.json", self.config.to_json())
            logger.info("%s, %d parameters, from step %d", self.config.model, self.config.glm.num_params, self.done)

    def go_on(self, stop: StopRequest) -> bool:
        """Train; False after a spike that is to be undone, otherwise True with the state saved."""
        with Monitor(self.config, self.done) as monitor:
            if self.done == self.config.steps:
                self._validate()
            while self.done < self.config.steps:
                if self._step(monitor) and self.config.fault.roll_back:
                    self._leave_out_since_saved()
                    return False
                last = self.done == self.config.steps
                if last or (self.config.validate_every and self.done % self.config.validate_every == 0):
                    monitor.validation(self.done, self._validate())
                self.checkpoints.poll()
                stopped = stop.heard() and not last
                if last or stopped or self.done % self.config.save_every == 0:
                    self._save(self.done)
                    monitor.restart_clock()
                if stopped:
                    logger.warning("asked to stop (%s): saved after step %d", stop.why or "by another rank", self.done)
                    self.losses = None
                    break
            self.checkpoints.finish()
        return True

    def _step(self, monitor: Monitor) -> bool:
        """One step; whether its loss is a spike."""
        batch = self.skips.batch(self.done)
        result = self.trainer.step(self.stream.step(batch, self.rank, self.ranks), batch)
        self.watchdog.beat()
        self.done += 1
        spike = self.guard.is_spike(self.done, batch, result)
        monitor.step(self.done, result, self.guard.num_skipped)
        if self.guard.is_lost:
            kept = self.done - len(self.guard.skipped)
            if kept != self.saved:
                self._save(kept)
            self.checkpoints.finish()
            raise self.guard.lost(result, kept)
        return spike

    def _leave_out_since_saved(self) -> None:
        self.checkpoints.finish()
        first, last = self.skips.history(self.saved)["end"], self.skips.batch(self.done - 1)
        logger.warning("back to step %d, leaving out batches %d-%d", self.saved, first, last)
        self.skips.add([(first, last)])
        self.skips.keep()

    def _save(self, step: int) -> None:
        progress = {"step": step, "history": self.skips.history(step), **self.guard.progress(step)}
        self.checkpoints.save(step, progress)
        self.saved = step
        self.watchdog.beat()

    def _validate(self) -> Losses:
        self.losses = self.trainer.evaluate(self.held_out)
        self.watchdog.beat()
        return self.losses


def _check_folder(run: Path) -> None:
    """Refuse to train into a folder that holds something else, such as a model directory."""
    ours = {"config.json", "checkpoints", "metrics.jsonl", "tensorboard", "stacks", "slurm",
            LEFT_OUT, STOP, STOPPED, DONE}  # fmt: skip
    found = {path.name for path in run.iterdir() if path.suffix != ".tmp"} if run.is_dir() else set()
    if found - ours or ("config.json" in found and '"curriculum"' not in (run / "config.json").read_text()):
        raise CheckpointError(
            f"{run} is no run folder: it holds {', '.join(sorted(found - ours)[:3]) or 'another config.json'};"
            " choose another --out"
        )
