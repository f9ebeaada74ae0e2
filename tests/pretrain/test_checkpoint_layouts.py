"""A run that changes its layout, or the number of its ranks, between two starts computes what the unbroken one does."""

from pathlib import Path

import numpy as np
import pytest
import torch
from megatron.core import parallel_state

from pretrain.corpus import Corpus
from pretrain.corpus_building import CorpusConfig, build_corpus
from pretrain.data import Stream
from pretrain.model import shard
from tests.pretrain.reference import STEPS, train_plain
from tests.pretrain.toy_runs import toy_run
from xtrimo.names import state_to_megatron
from xtrimo.testing import run_distributed, toy_sequences

TP2, TP4, PP2, CP2 = dict(tensor_degree=2), dict(tensor_degree=4), dict(pipeline_degree=2), dict(context_degree=2)
SP, VPP2 = dict(sequence_parallel=True), dict(virtual_stages=2)
ZERO, OVERLAP = dict(distributed_optimizer=True), dict(overlap=True)
CHANGES = {
    "tp2 -> pp2": (2, TP2, 2, PP2),
    "tp2 pp2 -> tp4": (4, TP2 | PP2, 4, TP4),
    "dp2 -> tp2": (2, {}, 2, TP2),
    "dp2 distopt -> tp2 distopt": (2, ZERO, 2, TP2 | ZERO),
    "pp2 vpp2 -> tp2": (2, PP2 | VPP2, 2, TP2),
    "tp2 -> pp2 vpp2": (2, TP2, 2, PP2 | VPP2),
    "cp2 -> alone": (2, CP2, 1, {}),
    "tp2 sp pp2 distopt -> dp2 distopt overlap": (4, TP2 | SP | PP2 | ZERO, 2, ZERO | OVERLAP),
    "dp2 distopt overlap -> pp2 vpp2 distopt": (2, ZERO | OVERLAP, 2, PP2 | VPP2 | ZERO),
}
BREAK = 3


@pytest.fixture(scope="module")
def plain():
    log, state = train_plain()
    return [step.loss for step in log], state


def until_break(rank: int, folder: Path, layout: dict) -> list[float]:
    with toy_run(folder, layout) as run:
        losses = run.train(0, BREAK)
        run.checkpoints.save(BREAK, {})
        return losses


def from_break(rank: int, folder: Path, layout: dict, state: dict[str, torch.Tensor]) -> tuple[list[float], float]:
    """The losses to the end, and this rank's largest deviation from the reference's final weights."""
    with toy_run(folder, layout, seed=99) as run:  # other fresh weights, so that none goes unloaded unseen
        done, _ = run.checkpoints.load()
        assert done == BREAK
        losses = run.train(done, STEPS)
        expected = state_to_megatron(state, run.trainer.config.glm)
        with run.trainer.whole_weights():
            differences = [
                weight - shard(name, expected[core.global_name(name)], weight)
                for core in run.trainer.cores
                for name, weight in core.named_parameters()
            ]
        return losses, max(float(difference.abs().max()) for difference in differences)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_layout_continues_the_unbroken_run(change, plain, tmp_path):
    ranks_before, before, ranks_after, after = CHANGES[change]
    expected, state = plain
    for losses in run_distributed(until_break, ranks_before, tmp_path, before):
        np.testing.assert_allclose(losses, expected[:BREAK], atol=1e-6, rtol=0)
    for losses, worst in run_distributed(from_break, ranks_after, tmp_path, after, state):
        print(f"{change}: loss {np.abs(np.array(losses) - expected[BREAK:]).max():.1e}, weights {worst:.1e}")
        np.testing.assert_allclose(losses, expected[BREAK:], atol=1e-6, rtol=0)
        assert worst < 1e-6


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "in.fasta").write_text("".join(f">{i}\n{s}\n" for i, s in enumerate(toy_sequences(300))))
    build_corpus(CorpusConfig(inputs=(folder / "in.fasta",), out=folder / "corpus", min_length=5, valid_ratio=0.1))
    return folder / "corpus"


def stream_until(rank: int, folder: Path, corpus: Path, end: int) -> list[tuple[float, list[bytes]]]:
    """Loss and own rows of each step from the newest checkpoint to step `end`, all ranks data parallel."""
    with toy_run(folder) as run:
        stream = Stream(Corpus.open(corpus), run.trainer.config)
        ranks, mine = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
        steps = []
        done, _ = run.checkpoints.load()
        for step in range(done, end):
            rows = list(stream.step(step, mine, ranks))
            loss = run.trainer.step(rows).losses.loss
            steps.append((loss, [row.tokens.tobytes() + row.labels.tobytes() for row in rows]))
        run.checkpoints.save(end, {})
        return steps


def test_fewer_ranks_go_on_with_the_same_batches_in_the_same_order(corpus, tmp_path):
    [unbroken] = run_distributed(stream_until, 1, tmp_path / "unbroken", corpus, STEPS)
    four = run_distributed(stream_until, 4, tmp_path / "elastic", corpus, BREAK)
    two = run_distributed(stream_until, 2, tmp_path / "elastic", corpus, STEPS)
    assert len({row for _, rows in unbroken for row in rows}) == STEPS * 4
    for ranks, part in ((four, unbroken[:BREAK]), (two, unbroken[BREAK:])):
        assert all(len(steps) == len(part) for steps in ranks)
        for shares, (loss, batch) in zip(zip(*ranks, strict=True), part, strict=True):
            assert [row for _, rows in shares for row in rows] == batch
            assert all(abs(other - loss) < 1e-6 for other, _ in shares)
