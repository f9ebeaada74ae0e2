"""Small folding models and chains for the tests of this folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from structure.config import FoldConfig
from structure.data import Example, example
from structure.features import Features, Protein, collate
from structure.fold_directory import Pipeline
from structure.model import FoldModel
from structure.reader import Reader
from xtrimo.chains import read_structure

FILES = Path(__file__).parent / "files"
SMALL = FoldConfig(
    single_width=16, pair_width=8, num_blocks=2, num_single_heads=2, num_pair_heads=2, structure_width=16,
    structure_pair_width=8, num_structure_layers=2, num_point_heads=2, point_head_width=4, angle_width=8,
    confidence_width=8,
)  # fmt: skip
TRUNKS: dict[str, FoldConfig] = {
    "trimul": SMALL,
    "esmfold": replace(SMALL, trunk="esmfold", max_recycles=1),
}


def model_of(config: FoldConfig, *, seed: int = 0, spread: float = 0.3) -> FoldModel:
    """A model whose every weight matters: a new one has branches that add nothing."""
    torch.manual_seed(seed)
    model = FoldModel(config)
    for weight in model.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=spread)
    return model.eval()


def pipeline(config: FoldConfig, *, seed: int = 0) -> Pipeline:
    """A small model that reads amino acids alone."""
    return Pipeline(model=model_of(config, seed=seed), reader=Reader(None, config), name="toy")


def protein(length: int, *, seed: int = 0, config: FoldConfig = SMALL) -> Protein:
    """Random residues, with random states and maps where the config reads some."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    maps = torch.randn(length, length, config.num_lm_maps, generator=generator)
    return Protein(
        aatype=rng.integers(0, 20, length), index=np.arange(length),
        states=torch.randn(length, config.num_lm_layers, config.lm_width, generator=generator),
        maps=maps + maps.transpose(0, 1),
    )  # fmt: skip


def batch(*proteins: Protein, length: int = 0) -> Features:
    """Collated."""
    return collate(proteins, length)


def chain(name: str = "1A8O.cif") -> Example:
    """The first chain of a file."""
    return example(next(iter(read_structure(FILES / name))))


def unlike(features: Features, **changes: Any) -> Features:
    """The same features but for some."""
    return Features(**{name: getattr(features, name) for name in Features.__slots__} | changes)
