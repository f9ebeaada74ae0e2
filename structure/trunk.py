"""The two trunks: what they make of single and pair before the structure module reads them.

trimul    pairs alone, by `triangle.PairBlock`s; the residues stay as embedded
esmfold   Lin et al. 2023: triangle attention and a track of residues beside it (`folding_block`), recycled
"""

from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from structure.config import MAX_RESIDUES_APART, FoldConfig
from structure.embedder import PairStart
from structure.features import Features
from structure.folding_block import FoldingBlock
from structure.openfold import RelativePosition, TrunkConfig, constants
from structure.triangle import PairBlock

Single = Float[Tensor, "batch length single"]
Pair = Float[Tensor, "batch length length pair"]
NUM_RECYCLED_BINS, FIRST_EDGE_ANG, LAST_EDGE_ANG = 15, 3.375, 21.375


class Trunk(Protocol):
    """What a model calls: a module."""

    def __call__(
        self, single: Single, pair: Pair | None, features: Features, last: "Recycled | None", chunk: int | None
    ) -> tuple[Single, Pair]:
        """Single and pair after all blocks.

        Args:
            single, pair: as embedded.
            last: of the pass before.
            chunk: cuts the work over pairs, and saves memory; without gradients alone.
        """


class Recycled:
    """What a pass leaves to the next one: single, pair, and the atoms."""

    def __init__(self, single: Single, pair: Pair, atoms: Float[Tensor, "batch length 14 3"]) -> None:
        self.single, self.pair, self.atoms = single, pair, atoms


class TrimulTrunk(nn.Module):
    """See the module."""

    def __init__(self, config: FoldConfig) -> None:
        super().__init__()
        self.start = PairStart(config)
        self.blocks = nn.ModuleList(PairBlock(config.pair_width) for _ in range(config.num_blocks))

    def forward(
        self, single: Single, pair: Pair | None, features: Features, last: Recycled | None, chunk: int | None
    ) -> tuple[Single, Pair]:
        """See Trunk; a single pass, `last` is None."""
        z = self.start(single, features.index)
        z = z if pair is None else z + pair
        mask = pair_mask(features.mask)
        for block in self.blocks:
            z = block(z, mask, chunk)
        return single, z


class EsmFoldTrunk(nn.Module):
    """See the module."""

    def __init__(self, config: FoldConfig) -> None:
        super().__init__()
        self.apart = RelativePosition(
            TrunkConfig(
                pairwise_state_dim=config.pair_width,
                pairwise_head_width=config.pair_width // config.num_pair_heads,
                position_bins=MAX_RESIDUES_APART,
            )
        )
        self.blocks = nn.ModuleList(
            FoldingBlock(
                config.single_width, config.pair_width, config.num_single_heads, config.num_pair_heads,
                dropout=config.dropout,
            )
            for _ in range(config.num_blocks)
        )  # fmt: skip
        self.recycle_single = nn.LayerNorm(config.single_width)
        self.recycle_pair = nn.LayerNorm(config.pair_width)
        self.recycle_distance = nn.Embedding(NUM_RECYCLED_BINS, config.pair_width)
        nn.init.zeros_(self.recycle_distance.weight[0])

    def forward(
        self, single: Single, pair: Pair | None, features: Features, last: Recycled | None, chunk: int | None
    ) -> tuple[Single, Pair]:
        """See Trunk."""
        before = single if last is None else last.single
        z = single.new_zeros(*single.shape[:2], single.shape[1], self.recycle_pair.normalized_shape[0])
        single = single + self.recycle_single(torch.zeros_like(before) if last is None else last.single)
        z = self.recycle_pair(z if last is None else last.pair)
        z += self.recycle_distance(_bins(features, last))
        if pair is not None:
            z += pair
        z += self.apart(features.index, mask=features.mask.bool())
        mask = pair_mask(features.mask)
        for block in self.blocks:
            single, z = block(single, z, features.mask, mask, chunk)
        return single, z


def _bins(features: Features, last: Recycled | None) -> Int[Tensor, "batch length length"]:
    """The bin of each pair's distance between (virtual) C-betas in the pass before; 0 in the first."""
    batch, length = features.aatype.shape
    if last is None:
        return torch.zeros(batch, length, length, dtype=torch.long, device=features.aatype.device)
    known = features.aatype != constants.unk_restype_index  # ESMFold has no atoms of X: they lie at the origin
    n, ca, c = (last.atoms[..., :3, :] * known[..., None, None]).unbind(-2)
    b, d = ca - n, c - ca
    # not `geometry.virtual_cb`: published weights have seen these places, and a bin's edge forgives nothing
    cb = ca - 0.58273431 * b.cross(d, dim=-1) + 0.56802827 * b - 0.54067466 * d
    edges = torch.linspace(FIRST_EDGE_ANG, LAST_EDGE_ANG, NUM_RECYCLED_BINS - 1, device=cb.device) ** 2
    squares = (cb[:, None] - cb[:, :, None]).pow(2).sum(-1, keepdim=True)
    return (squares > edges).sum(-1)


def pair_mask(mask: Float[Tensor, "batch length"]) -> Float[Tensor, "batch length length"]:
    """1 for pairs of two residues."""
    return mask[:, :, None] * mask[:, None]


def in_bf16(trunk: nn.Module) -> None:
    """Let the blocks of a trunk take their products in bf16; pairs, residues, norms and embeddings stay in fp32."""
    for layer in trunk.get_submodule("blocks").modules():
        if isinstance(layer, nn.Linear):
            layer.to(torch.bfloat16)


TRUNKS: dict[str, type[TrimulTrunk] | type[EsmFoldTrunk]] = {"trimul": TrimulTrunk, "esmfold": EsmFoldTrunk}
