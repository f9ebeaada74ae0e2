"""A training step on a packed row of 16,384 tokens of short proteins: every tensor is linear in the row."""

from pathlib import Path

import numpy as np
import pytest

from pretrain.config import BatchConfig, ParallelConfig, PretrainConfig
from pretrain.parallel import process_groups
from pretrain.trainer import Trainer
from xtrimo.config import PRESETS
from xtrimo.objectives import OBJECTIVES, Fragment, ObjectiveConfig, make_example
from xtrimo.packing import Row, pack
from xtrimo.testing import Largest, run_distributed, toy_config, toy_sequences
from xtrimo.tokens import encode_residues

NUM_TOKENS = 16_384
TOY = toy_config(num_layers=2)
NUMBERS_A_TOKEN = max(TOY.vocab_size, 2 * TOY.ffn_size, 3 * TOY.hidden_size)
"""The widest thing the model computes of a token: logits, value and gate of the feed-forward layer, or q, k and v."""


@pytest.fixture(scope="module", autouse=True)
def toy_preset():
    PRESETS["toy"] = TOY
    yield
    del PRESETS["toy"]


def long_row() -> Row:
    """Proteins of 30 to 300 residues under every objective in turn, and some padding."""
    rng, names = np.random.default_rng(0), tuple(OBJECTIVES)
    examples, size = [], 0
    for i, sequence in enumerate(toy_sequences(200, min_length=30, max_length=300)):
        example = make_example(Fragment(encode_residues(sequence)), names[i % len(names)], rng, ObjectiveConfig())
        if size + len(example.tokens) < NUM_TOKENS:
            examples.append(example)
            size += len(example.tokens)
    assert NUM_TOKENS - size < 300
    return pack(examples, multiple=NUM_TOKENS)


def step(rank: int, config: PretrainConfig, row: Row) -> tuple[int, int]:
    """The most elements of any tensor in a training step, and the tokens it counted."""
    with process_groups(config):
        trainer = Trainer(config)
        with Largest() as largest:
            losses = trainer.step([row]).losses
    return largest.elements, losses.num_tokens


@pytest.mark.timeout(200)
@pytest.mark.parametrize("degree", [1, 2])
def test_nothing_grows_with_the_square_of_the_row(degree):
    """Alone, and on two context-parallel ranks: half of the row each, and the keys and values of all of it."""
    config = PretrainConfig(
        corpus=Path("none"), run=Path("none"), model="toy", batch=BatchConfig(rows=1, row_length=NUM_TOKENS),
        parallel=ParallelConfig(context_degree=degree),
    )  # fmt: skip
    row = long_row()
    bound = max(NUMBERS_A_TOKEN // degree, 2 * TOY.hidden_size) * NUM_TOKENS
    assert len(row.segments) > 90 and config.glm.num_params < bound < NUM_TOKENS**2 / 50
    for largest, num_tokens in run_distributed(step, degree, config, row):
        assert num_tokens > NUM_TOKENS - 300
        assert largest == bound  # reached, so the recorder saw the step
