"""What a pair head reads of a model's attention: the maps of the asked layers, one row a pair of residues.

    protein of 3 residues    rows  1-1 1-2 1-3 2-2 2-3 3-3 (pair, map)

A map is made symmetric and corrected (`correct_maps`), and then brought to a spread of 1, because from map to
map they differ a thousandfold; so the upper triangle is all there is to it, and 16 bits hold it. The maps of layer i
are those of block i, by whose output states are counted as well; layer 0, the embedding, has none.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from xtrimo.attention import Attend, Heads, shares
from xtrimo.model import counted_from_start
from xtrimo.objectives import Example

PairMaps = Float[Tensor, "pair map"]


class Watched:
    """Attention that keeps, of some layers, how much each residue of one protein looks at each other.

    Args:
        attend: what mixes values; it stays as it is.
        example: the protein, alone in its row.
        words_around: of the model, which are left out.
        layers: as `Backbone.hidden` counts them.
        num_layers: of the model.
    """

    def __init__(
        self, attend: Attend, example: Example, words_around: tuple[int, int], layers: tuple[int, ...], num_layers: int
    ) -> None:
        self.attend, self.example = attend, example
        self.residues = slice(words_around[0], len(example.tokens) - words_around[1])
        blocks = [place - 1 for place in counted_from_start(layers, num_layers) if place > 0]
        self.found: dict[int, Float[Tensor, "head length length"] | None] = dict.fromkeys(blocks)

    def __call__(self, layer: int, q: Heads, k: Heads, v: Heads) -> Heads:
        if layer in self.found:
            self.found[layer] = shares(q, k, self.example.prefix)[:, self.residues, self.residues]
        return self.attend(layer, q, k, v)

    def maps(self) -> PairMaps | None:
        """What was seen, in the order of the layers; None where the model has shown none of them."""
        seen = [weights for weights in self.found.values() if weights is not None]
        return pair_rows(torch.cat(seen)) if seen else None


def correct_maps(maps: Float[Tensor, "map length length"]) -> Float[Tensor, "map length length"]:
    """Symmetric, with the average product correction; a map of zeros stays one."""
    symmetric = maps + maps.transpose(1, 2)
    rows = symmetric.sum(2, keepdim=True)
    total = rows.sum(1, keepdim=True)
    return symmetric - rows * rows.transpose(1, 2) / torch.where(total == 0, 1.0, total)


def pair_rows(maps: Float[Tensor, "map length length"]) -> PairMaps:
    """Maps as the model gave them to what a pair head reads, in fp32; see the module."""
    corrected = correct_maps(maps.float())
    if maps.shape[1] == 1:  # one number has no spread, and says nothing
        return torch.zeros_like(corrected[:, 0, 0])[None]
    scaled = corrected / corrected.std((1, 2), keepdim=True).clamp(min=1e-9)
    first, second = torch.triu_indices(maps.shape[1], maps.shape[1], device=maps.device)
    return scaled[:, first, second].T.contiguous()


def num_pairs(length: int) -> int:
    """Rows of a protein of so many residues: its pairs, each residue with itself among them."""
    return length * (length + 1) // 2
