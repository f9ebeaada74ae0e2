"""What training asks for at each step; and that it learns: a real protein by heart."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from structure.config import PRESETS
from structure.data import Crop, CropSampler, Example, Split, crop
from structure.features import collate
from structure.metrics import compare
from structure.model import FoldModel
from structure.reader import Reader
from structure.train import Trainer, letters
from tests.structure.models import SMALL, chain
from xtrimo.backbone import Backbone
from xtrimo.model import GLM
from xtrimo.states import LiveStates
from xtrimo.testing import toy_config
from xtrimo.training import fit
from xtrimo.training_config import TrainingConfig


def trainer_of(example: Example, lm: Backbone) -> tuple[Trainer, FoldModel]:
    config = replace(SMALL, lm_width=16, num_lm_layers=2, num_lm_maps=4, structure_dropout=0.0, side_chains=True)
    source = LiveStates(lm, (1, 2), pooled=False, maps=True)
    config = replace(config, num_lm_maps=int(source.of_pairs(letters(example))[1].shape[1]))
    torch.manual_seed(0)
    return Trainer(Reader(source, config), Split((example,), (example,), (), {}), config), FoldModel(config)


def test_a_crop_has_the_states_of_the_whole_chain() -> None:
    """What the language model says of a window inside its chain, not of the window alone."""
    torch.manual_seed(3)
    example, lm = chain("4CUP.cif"), GLM(toy_config(num_layers=2, hidden_size=16, ffn_size=32)).eval()
    trainer, _ = trainer_of(example, lm)
    window, where = crop(example, 20, np.random.default_rng(0))
    assert where.start > 0
    whole, part = trainer.protein(example), trainer._cropped(Crop(window, 0, where.start, False, 0))
    for name in ("aatype", "index", "states"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[where])
    np.testing.assert_array_equal(part.maps, whole.maps[where, where])
    np.testing.assert_array_equal(part.aatype, window.aatype)
    np.testing.assert_array_equal(part.index, window.index)
    assert (part.states - trainer.protein(window).states).abs().max() > 1e-3


def test_the_loss_of_a_batch_is_the_sum_over_its_crops() -> None:
    torch.manual_seed(3)
    example = chain()
    trainer, model = trainer_of(example, GLM(toy_config(num_layers=2, hidden_size=16, ffn_size=32)).eval())
    crops = CropSampler([example], 20, 0, clamp_ratio=0.5).batch(0, 3)
    with torch.no_grad():
        each = [float(trainer.loss(model, [(one, True)])[0]) for one in crops]
        both, weight = trainer.loss(model, [(one, True) for one in crops])
        assert weight == 3.0 and float(both) == pytest.approx(sum(each), rel=1e-5) and len(set(each)) == 3
        assert float(trainer.loss(model, [(crops[0], False)])[0]) < each[0]


def test_the_index_of_a_chain_is_the_examples() -> None:
    example = replace(chain(), index=chain().index + np.where(np.arange(70) > 30, 9, 0))
    trainer = Trainer(Reader(None, SMALL), Split((example,), (example,), (), {}), SMALL)
    assert trainer.protein(example).index.tolist() == example.index.tolist()


@pytest.mark.timeout(900)  # a minute of one core that has nothing else to do
def test_a_real_protein_is_learned_by_heart(tmp_path: Path) -> None:
    """All atoms of 70 residues, from the amino acids alone."""
    example, config = chain(), replace(PRESETS["fold-tiny"], side_chains=True, structure_dropout=0.0)
    assert len(example) == 70
    trainer = Trainer(Reader(None, config), Split((example,), (example,), (), {}), config)
    torch.manual_seed(0)
    model = FoldModel(config)
    training = TrainingConfig(steps=180, learning_rate=5e-3, warmup_ratio=0.1, clip_norm=0.1, average=0.9)
    fit(model, trainer.loss, lambda step: [(Crop(example, 0, 0, False, 0), False)], training, tmp_path)
    with torch.no_grad():
        folded = model(collate([trainer.protein(example)]))
    reference = np.where(example.seen[..., None] > 0, example.atoms, np.nan)
    found = compare(folded.atoms[-1, 0].numpy(), reference)
    assert found.tm > 0.9 and found.rmsd_ang < 2, found
