"""What a head reads: the states of the residues of many proteins laid end to end, and the length of each protein.

    proteins MK, V      states  M K V (3, dim)      lengths  2 1

They come from a model that reads the proteins here and now, gradients included, or from a file (`cache`). Where a head
takes the mean over a protein's residues, that mean may come in their place, as a protein of length 1.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from xtrimo.attention import within
from xtrimo.backbone import Backbone
from xtrimo.packing import pack

States = Float[Tensor, "residue dim"]
Lengths = Int[Tensor, "protein"]
"""Residues of each protein, on the CPU; all are at least 1."""


class LiveStates(nn.Module):
    """States from a backbone; a protein that is there twice is read once.

    Args:
        backbone: an `nn.Module`; its weights get gradients where they ask for them.
        layers: as `Backbone.hidden` counts them; laid side by side.
        pooled: give the mean over each protein's residues in place of them.
    """

    def __init__(self, backbone: Backbone, layers: tuple[int, ...], pooled: bool) -> None:
        super().__init__()
        assert isinstance(backbone, nn.Module)
        self.layers, self.pooled = layers, pooled
        self.backbone: Any = backbone  # a Backbone and a Module, which no type says

    def forward(self, sequences: Sequence[str]) -> tuple[States, Lengths]:
        """The states of these proteins, in their order."""
        different = list(dict.fromkeys(sequences))
        row = pack([self.backbone.tokenize(sequence) for sequence in different])
        device = self.backbone.device
        tokens, positions = (torch.from_numpy(x).to(device) for x in (row.tokens, row.positions))
        attend = within(torch.from_numpy(row.segments))
        states = torch.cat(self.backbone.hidden(tokens, positions, attend, layers=self.layers), dim=1)
        before, after = self.backbone.words_around
        residues = {
            sequence: torch.arange(start + before, start + length - after)
            for sequence, (start, length, _) in zip(different, row.segments.tolist(), strict=True)
        }
        places = [residues[sequence] for sequence in sequences]
        states, lengths = states[torch.cat(places).to(device)], torch.tensor([len(place) for place in places])
        return pooled_states(states, lengths) if self.pooled else (states, lengths)


def pooled_states(states: States, lengths: Lengths) -> tuple[Float[Tensor, "protein dim"], Lengths]:
    """The mean of each protein, as a protein of one residue."""
    means = torch.segment_reduce(states, "mean", lengths=lengths.to(states.device), unsafe=True)
    return means, torch.ones_like(lengths)
