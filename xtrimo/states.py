"""What a head reads: the states of the residues of many proteins laid end to end, and the length of each protein.

    proteins MK, V      states  M K V (3, dim)      lengths  2 1

They come from a model that reads the proteins here and now, gradients included, or from a file (`cache`). Where a head
takes the mean over a protein's residues, that mean may come in their place, as a protein of length 1. A pair head reads
one protein at a time, and attention maps of the asked layers beside its states (`pair_maps`).
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from xtrimo.attention import Attend, within
from xtrimo.backbone import Backbone
from xtrimo.packing import Row, pack
from xtrimo.pair_maps import PairMaps, Watched

States = Float[Tensor, "residue dim"]
Lengths = Int[Tensor, "protein"]
"""Residues of each protein, on the CPU; all are at least 1."""


@runtime_checkable
class Source(Protocol):
    """Where a head's states come from: a module."""

    def __call__(self, sequences: Sequence[str]) -> tuple[States, Lengths]:
        """The states of these proteins, in their order."""

    def of_pairs(self, sequence: str) -> tuple[States, PairMaps | None]:
        """The states of one protein, and its attention maps where the source gives any."""


class LiveStates(nn.Module):
    """States from a backbone; a protein that is there twice is read once.

    Args:
        backbone: an `nn.Module`; its weights get gradients where they ask for them.
        layers: as `Backbone.hidden` counts them; laid side by side.
        pooled: give the mean over each protein's residues in place of them.
        maps: give attention maps of these layers as well, where pairs are asked for.
    """

    def __init__(self, backbone: Backbone, layers: tuple[int, ...], pooled: bool, *, maps: bool = False) -> None:
        super().__init__()
        assert isinstance(backbone, nn.Module)
        self.layers, self.pooled, self.maps = layers, pooled, maps
        self.backbone: Any = backbone  # a Backbone and a Module, which no type says

    def forward(self, sequences: Sequence[str]) -> tuple[States, Lengths]:
        """The states of these proteins, in their order."""
        different = list(dict.fromkeys(sequences))
        row = pack([self.backbone.tokenize(sequence) for sequence in different])
        states = self._read(row, within(torch.from_numpy(row.segments)))
        before, after = self.backbone.words_around
        residues = {
            sequence: torch.arange(start + before, start + length - after)
            for sequence, (start, length, _) in zip(different, row.segments.tolist(), strict=True)
        }
        places = [residues[sequence] for sequence in sequences]
        states, lengths = states[torch.cat(places).to(states.device)], torch.tensor([len(place) for place in places])
        return pooled_states(states, lengths) if self.pooled else (states, lengths)

    def of_pairs(self, sequence: str) -> tuple[States, PairMaps | None]:
        """The states of one protein, and its attention maps where they are asked for and the model has some.

        Maps have gradients, as states do; beside what states take, memory is that of the maps.
        """
        example = self.backbone.tokenize(sequence)
        row = pack([example])
        watched = Watched(
            within(torch.from_numpy(row.segments)), example, self.backbone.words_around,
            self.layers if self.maps else (), self.backbone.num_layers,
        )  # fmt: skip
        states = self._read(row, watched)
        return states[watched.residues], watched.maps()

    def _read(self, row: Row, attend: Attend) -> Float[Tensor, "token dim"]:
        device = self.backbone.device
        tokens, positions = (torch.from_numpy(x).to(device) for x in (row.tokens, row.positions))
        return torch.cat(self.backbone.hidden(tokens, positions, attend, layers=self.layers), dim=1)


def num_maps(backbone: Backbone, layers: tuple[int, ...], sequence: str) -> int:
    """Attention maps that a model gives of these layers, found by reading a protein; 0 where it gives none."""
    with torch.inference_mode():
        _, maps = LiveStates(backbone, layers, pooled=False, maps=True).of_pairs(sequence)
    return 0 if maps is None else maps.shape[1]


def pooled_states(states: States, lengths: Lengths) -> tuple[Float[Tensor, "protein dim"], Lengths]:
    """The mean of each protein, as a protein of one residue."""
    means = torch.segment_reduce(states, "mean", lengths=lengths.to(states.device), unsafe=True)
    return means, torch.ones_like(lengths)
