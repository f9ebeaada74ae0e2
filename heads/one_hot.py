"""The floor of a pair head without a model: the same head, trained by the same loop, on one-hot residues.

What it reaches is what letters and separation say to a head of this shape; what a model adds shows above it. It reads
one_hot alone: no windows, no maps. So as to be done in two minutes of one core it sees few proteins: NUM_PROTEINS drawn
from those to learn from, each once; of one seed, so always the same.
"""

import logging
import tempfile
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from heads.composition import numbers
from heads.modules import HeadConfig
from heads.predictor import Predictor
from heads.rows import Dataset
from heads.selection import batches
from xtrimo.pair_maps import PairMaps
from xtrimo.states import Lengths, States
from xtrimo.training import fit
from xtrimo.training_config import TrainingConfig

logger = logging.getLogger(__name__)

NUM_LETTERS = 21  # the last stands for all that are none of the twenty
NUM_PROTEINS = 1400
BATCH_SIZE = 4
LEARNING_RATE = 3e-3
SEED = 0


class OneHot(nn.Module):
    """One-hot residues as a source of states."""

    def forward(self, sequences: Sequence[str]) -> tuple[States, Lengths]:
        """A 1 for each residue's letter."""
        codes = torch.from_numpy(np.concatenate([numbers(sequence) for sequence in sequences]))
        states = nn.functional.one_hot(codes, NUM_LETTERS).float()
        return states, torch.tensor([len(sequence) for sequence in sequences])

    def of_pairs(self, sequence: str) -> tuple[States, PairMaps | None]:
        """The same of one protein; no maps."""
        return self([sequence])[0], None


def predict(dataset: Dataset) -> tuple[Float[np.ndarray, "pair"], str]:
    """P(contact) of every pair of the test proteins, and how."""
    known = (*dataset.train, *dataset.valid)
    chosen = np.random.default_rng(SEED).permutation(len(known))[:NUM_PROTEINS]
    rows = [known[place] for place in np.sort(chosen)]
    size = min(BATCH_SIZE, len(rows))
    steps = -(-len(rows) // size)
    with torch.random.fork_rng([]):
        torch.manual_seed(SEED)
        predictor = Predictor(dataset.task, OneHot(), HeadConfig(level="pair", width=NUM_LETTERS))
    config = TrainingConfig(
        steps=steps, learning_rate=LEARNING_RATE, seed=SEED, save_every=steps, log_every=steps
    )  # fmt: skip
    logger.info("a pair head on one-hot residues: %d steps", steps)
    with tempfile.TemporaryDirectory() as folder:
        fit(predictor, lambda _, items: predictor.loss(items), batches(rows, size, SEED), config, folder, alone=True)
    said = np.concatenate(list(predictor.answers(dataset.test)))
    return said, f"a pair head on one-hot residues of {len(rows):,} proteins, each read once"
