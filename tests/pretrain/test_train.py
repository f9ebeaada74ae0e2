"""The trainer through its real entry points: it learns, survives a kill, resumes bitwise, exports what it trained."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

import xtrimo
from pretrain.checkpoint import Checkpoints
from pretrain.checkpoint_files import steps
from pretrain.config import BatchConfig, OptimizerConfig, PretrainConfig
from pretrain.corpus import Corpus
from pretrain.export import ExportConfig, export_run
from tests.pretrain import runs
from tests.pretrain.runs import losses, train
from xtrimo.errors import CheckpointError
from xtrimo.testing import run_distributed, toy_sequences

STEPS = 6


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return runs.make_corpus(tmp_path_factory.mktemp("corpus"))


def flags(corpus: Path, run: Path) -> list[str]:
    """A run of a real preset, which a process of its own knows too."""
    return runs.flags(
        corpus, run, "--model", "glm-1m", "--steps", str(STEPS), "--validate-every", "3", "--batch.rows", "1"
    )


@pytest.fixture(scope="module")
def unbroken(corpus, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "unbroken"
    train(flags(corpus, run))
    return run


def test_loss_goes_down(unbroken):
    found = losses(unbroken)
    assert found["train", STEPS][0] < found["train", 1][0] - 0.3


def test_run_folder_is_complete(unbroken):
    assert steps(unbroken / "checkpoints") == [4, 6]
    assert list((unbroken / "tensorboard").glob("events.*"))
    metrics = [json.loads(line) for line in (unbroken / "metrics.jsonl").read_text().splitlines()]
    assert {"residues_per_second", "mfu", "seconds_left", "gradient_norm", "lr"} <= set(metrics[0])
    assert {"nats_mlm", "nats_gmask", "nats_smask", "ppl_mlm"} <= set(metrics[-1])


def test_killed_run_resumes_bitwise(corpus, unbroken, tmp_path):
    run = tmp_path / "killed"
    command = [sys.executable, "-m", "xtrimo", "pretrain", *flags(corpus, run)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_checkpoint(run, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = steps(run / "checkpoints")
    assert done and done[-1] < STEPS, "the run was to be killed in the middle"
    (run / "checkpoints" / ".step-00000099.tmp").mkdir()  # what a kill during a save leaves behind
    train(flags(corpus, run))
    assert losses(run) == losses(unbroken)


def test_torchrun_ends_when_a_worker_is_killed_and_resumes(corpus, tmp_path):
    """The real launcher: two tensor-parallel ranks, one killed from outside while it trains."""
    run = tmp_path / "run"
    command = [
        str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc-per-node", "2", "-m", "xtrimo",
        "pretrain", *flags(corpus, run), "--parallel.tensor-degree", "2", "--parallel.sequence-parallel",
    ]  # fmt: skip
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_checkpoint(run, process)
    workers = psutil.Process(process.pid).children()
    workers[-1].send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) != 0
    done = steps(run / "checkpoints")
    assert done and done[-1] < STEPS, "the run was to be killed in the middle"
    assert subprocess.run(command, env=env, capture_output=True, timeout=120).returncode == 0
    train(flags(corpus, tmp_path / "unbroken") + command[-3:], 2)
    assert losses(run) == losses(tmp_path / "unbroken")


def wait_for_checkpoint(run: Path, process: subprocess.Popen) -> None:
    """Until the run has saved for the first time, or has ended."""
    deadline = time.monotonic() + 120
    while not steps(run / "checkpoints") and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)


def test_finished_run_validates_again_and_stops(corpus, unbroken):
    before = losses(unbroken)
    train(flags(corpus, unbroken))
    assert losses(unbroken) == before


def test_a_finished_run_goes_on_with_more_steps(corpus, unbroken, tmp_path):
    shutil.copytree(unbroken, run := tmp_path / "longer")
    train([*flags(corpus, run), "--steps", str(STEPS + 2)])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["lr"] for line in lines if line["split"] == "train"}
    assert list(rates) == list(range(1, STEPS + 3))
    cosine = (1 + math.cos(math.pi * (STEPS + 1) / (STEPS + 2))) / 2  # the schedule of the longer run; no warm-up
    assert rates[STEPS + 1] == pytest.approx(3e-4 + cosine * (3e-3 - 3e-4))


def test_a_metrics_file_cut_by_a_kill_resumes(corpus, unbroken, tmp_path):
    shutil.copytree(unbroken, run := tmp_path / "cut")
    shutil.rmtree(run / f"checkpoints/step-{STEPS:08}")
    metrics = run / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-20])
    train(flags(corpus, run))
    assert losses(run) == losses(unbroken)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--steps", "5"], "has done 6 steps, the run is to have 5"),
        (["--parallel.distributed-optimizer"], "distributed_optimizer: saved False, asked True"),
        (
            ["--optimizer.learning-rate", "1e9", "--steps", "40", "--out", "new"],
            "TrainingError: step .*: 10 steps in a row had no finite gradient",
        ),
        (["--out", "{corpus}"], "is no run folder: it holds meta.json"),
        (["--batch.cluster-balanced", "--out", "new"], "knows no clusters"),
    ],
)
def test_what_cannot_be_trained_is_refused(corpus, unbroken, tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match=message):
        train([*flags(corpus, unbroken), *(word.format(corpus=corpus) for word in change)])


def test_export_names_a_damaged_checkpoint(unbroken, tmp_path):
    shutil.copytree(unbroken, run := tmp_path / "damaged")
    for shard in (run / f"checkpoints/step-{STEPS:08}").glob("*.distcp"):
        shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="step-00000006 cannot be read"):
        export_run(ExportConfig(run=run, out=tmp_path / "model"))
    assert not (tmp_path / "model").exists()


def test_another_corpus_does_not_resume(corpus, unbroken, tmp_path):
    from pretrain.corpus_building import CorpusConfig, build_corpus

    (tmp_path / "in.fasta").write_text("".join(f">{i}\n{s}\n" for i, s in enumerate(toy_sequences(60, seed=5))))
    build_corpus(CorpusConfig(inputs=(tmp_path / "in.fasta",), out=tmp_path / "corpus", min_length=5, valid_ratio=0.1))
    with pytest.raises(RuntimeError, match="other settings.*corpus: saved"):
        train(flags(tmp_path / "corpus", unbroken))


def test_other_settings_do_not_resume(corpus, unbroken):
    with pytest.raises(RuntimeError, match=r"CheckpointError.*trained with other settings.*seed: saved 0, asked 1"):
        train([*flags(corpus, unbroken), "--seed", "1"])


def logits_of_checkpoint(rank: int, run: Path, corpus: Path, row) -> np.ndarray:
    from pretrain.parallel import process_groups
    from pretrain.trainer import Trainer

    config = PretrainConfig(
        corpus=corpus, run=run, model="glm-1m", steps=STEPS, batch=BatchConfig(rows=1, row_length=256),
        optimizer=OptimizerConfig(learning_rate=3e-3), dropout=0.1,
    )  # fmt: skip
    with process_groups(config):
        trainer = Trainer(config)
        facts = config.what_fixes_the_run() | {"corpus": Corpus.open(corpus).fingerprint}
        done, progress = Checkpoints(trainer, run / "checkpoints", facts).load()
        assert done == progress["step"] == STEPS
        core = trainer.cores[0].eval()
        return core(*map(torch.from_numpy, (row.tokens, row.positions, row.segments))).detach().numpy()


def test_export_gives_the_trained_logits(corpus, unbroken, tmp_path):
    from pretrain.data import validation_rows

    config = PretrainConfig(corpus=corpus, run=unbroken, model="glm-1m", batch=BatchConfig(rows=1, row_length=256))
    rows = validation_rows(Corpus.open(corpus), config)
    assert export_run(ExportConfig(run=unbroken, out=tmp_path / "model")) == STEPS
    model = xtrimo.load(tmp_path / "model")
    for row in (rows["mlm"][0], rows["gmask"][0], rows["smask"][0]):
        [expected] = run_distributed(logits_of_checkpoint, 1, unbroken, corpus, row)
        with torch.no_grad():
            got = model(*map(torch.from_numpy, (row.tokens, row.positions, row.segments)))
        np.testing.assert_allclose(got.numpy(), expected, atol=1e-5, rtol=0)


def test_export_needs_torch_alone(unbroken, tmp_path):
    code = (
        "import sys; sys.modules['megatron'] = None\n"
        "from pretrain.export import main\n"
        f"main([{str(unbroken)!r}, {str(tmp_path / 'model')!r}, '--step', '4'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "after 4 steps" in done.stdout and xtrimo.load(tmp_path / "model").config.num_layers == 6


def test_export_names_the_checkpoints_there_are(unbroken, tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 3; it has \[4, 6\]"):
        export_run(ExportConfig(run=unbroken, out=tmp_path / "model", step=3))
    with pytest.raises(CheckpointError, match="it has none"):
        export_run(ExportConfig(run=tmp_path, out=tmp_path / "model"))
