"""The pretraining loop: resume, step, validate, save; the same on one CPU process and on every rank of a job."""

import logging
import math
from pathlib import Path

from megatron.core import parallel_state

from pretrain import checkpoint
from pretrain.config import PretrainConfig
from pretrain.corpus import Corpus
from pretrain.data import Stream, validation_rows
from pretrain.monitor import Monitor
from pretrain.parallel import is_main_rank, process_groups
from pretrain.trainer import Losses, StepResult, Trainer
from xtrimo.errors import CheckpointError, TrainingError
from xtrimo.packing import Row

logger = logging.getLogger(__name__)


def pretrain(config: PretrainConfig) -> Losses:
    """Train, or go on training, until `config.steps`; the last validation's losses.

    Raises:
        CorpusError: if the corpus cannot be read.
        CheckpointError: if the run folder holds a run with other settings, or something else.
        TrainingError: if the loss is not finite; the checkpoints are those of before.
    """
    _check_folder(config.run)
    corpus = Corpus.open(config.corpus)
    facts = config.what_fixes_the_run() | {"corpus": corpus.fingerprint}
    with process_groups(config):
        stream = Stream(corpus, config)
        rank, ranks = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
        held_out = {name: rows[rank::ranks] for name, rows in validation_rows(corpus, config).items()}
        trainer = Trainer(config)
        checkpoints = config.run / "checkpoints"
        done = checkpoint.load(trainer, checkpoints, facts)
        if is_main_rank():
            _write_config(config)
            logger.info("%s, %d parameters, from step %d", config.model, config.glm.num_params, done)
        with Monitor(config, done) as monitor:
            losses = _validate(trainer, held_out) if done == config.steps else None
            for step in range(done, config.steps):
                result = trainer.step(stream.step(step, rank, ranks))
                _check_finite(step + 1, result)
                monitor.step(step + 1, result)
                last = step + 1 == config.steps
                if last or (config.validate_every and (step + 1) % config.validate_every == 0):
                    losses = _validate(trainer, held_out)
                    if losses.nats:
                        monitor.validation(step + 1, losses)
                if last or (step + 1) % config.save_every == 0:
                    checkpoint.save(trainer, checkpoints, step + 1, facts)
                    monitor.restart_clock()
    assert losses is not None  # the last step validates
    return losses


def _validate(trainer: Trainer, held_out: dict[str, list[Row]]) -> Losses:
    return trainer.evaluate([row for rows in held_out.values() for row in rows])


def _check_folder(run: Path) -> None:
    """Refuse to train into a folder that holds something else, such as a model directory."""
    ours = {"config.json", "config.tmp", "checkpoints", "metrics.jsonl", "metrics.tmp", "tensorboard"}
    found = {path.name for path in run.iterdir()} if run.is_dir() else set()
    if found - ours or ("config.json" in found and '"curriculum"' not in (run / "config.json").read_text()):
        raise CheckpointError(
            f"{run} is no run folder: it holds {', '.join(sorted(found - ours)[:3]) or 'another config.json'};"
            " choose another --out"
        )


def _check_finite(step: int, result: StepResult) -> None:
    loss, norm = result.losses.loss, result.gradient_norm
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise TrainingError(
            f"step {step}: the loss is {loss}, the gradient norm {norm}; nothing of it was saved. Lower the learning"
            " rate or warm up longer, in a new run folder"
        )


def _write_config(config: PretrainConfig) -> None:
    config.run.mkdir(parents=True, exist_ok=True)
    path: Path = config.run / "config.json"
    work = path.with_suffix(".tmp")
    work.write_text(config.to_json())
    work.rename(path)
