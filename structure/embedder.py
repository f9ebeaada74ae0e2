"""From a language model's states to what the trunk starts with: numbers per residue and per pair.

    single_i = MLP(sum_l softmax(w)_l state_il) + E[aatype_i]              (Lin et al. 2023, supplement A.3.1)
    pair_ij  = P[index_j - index_i, clipped] (trimul: + A single_i + B single_j) + C maps_ij

The language model stays as it is. Without one, the amino acids alone are read.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from structure.config import MAX_RESIDUES_APART, FoldConfig
from structure.features import Features
from structure.openfold import constants

NUM_TYPES = constants.restype_num + 3
"""ESMFold's table has rows for padding and a mask, which nothing reads here."""


class Embedder(nn.Module):
    """See the module."""

    def __init__(self, config: FoldConfig) -> None:
        super().__init__()
        width = config.single_width
        self.residues = nn.Embedding(NUM_TYPES, width)
        self.has_states, self.has_maps = config.num_lm_layers > 0, config.num_lm_maps > 0
        if self.has_states:
            self.layer_weights = nn.Parameter(torch.zeros(config.num_lm_layers))
            self.mlp = nn.Sequential(
                nn.LayerNorm(config.lm_width), nn.Linear(config.lm_width, width), nn.ReLU(), nn.Linear(width, width)
            )
        if self.has_maps:
            self.maps = nn.Linear(config.num_lm_maps, config.pair_width, bias=False)

    def forward(
        self, features: Features
    ) -> tuple[Float[Tensor, "batch length single"], Float[Tensor, "batch length length pair"] | None]:
        """Single, and pair where maps say something of it."""
        single = self.residues(features.aatype)
        if self.has_states:
            shares = self.layer_weights.softmax(0)
            single = single + self.mlp(torch.einsum("k,blkw->blw", shares, features.states.to(shares.dtype)))
        return single, self.maps(features.maps.to(single.dtype)) if self.has_maps else None


class PairStart(nn.Module):
    """What the trunk `trimul` knows of pairs at first."""

    def __init__(self, config: FoldConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.single_width)
        self.left = nn.Linear(config.single_width, config.pair_width, bias=False)
        self.right = nn.Linear(config.single_width, config.pair_width, bias=False)
        self.product = nn.Linear(config.single_width, 2 * config.pair_width)
        self.mix = nn.Linear(config.pair_width, config.pair_width, bias=False)
        self.apart = nn.Embedding(2 * MAX_RESIDUES_APART + 1, config.pair_width)

    def forward(
        self, single: Float[Tensor, "batch length single"], index: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "batch length length pair"]:
        """Of each pair: how far apart the two are, what either is, and what they are together."""
        x = self.norm(single)
        apart = (index[:, None] - index[:, :, None]).clamp(-MAX_RESIDUES_APART, MAX_RESIDUES_APART)
        p, q = self.product(x).chunk(2, dim=-1)
        pair: Tensor = self.apart(apart + MAX_RESIDUES_APART) + self.left(x)[:, :, None] + self.right(x)[:, None]
        return pair + self.mix(p[:, :, None] * q[:, None])
