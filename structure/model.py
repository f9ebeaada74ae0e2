"""The folding model, in the order of its forward pass: embedder, trunk, structure module, confidence.

    single, pair  = embedder(states of the language model, amino acids)
    single, pair  = trunk(single, pair)                                     once, and again for each recycle
    frames, atoms = structure module(single, pair), always in fp32          AlphaFold 2, algorithm 20
    distogram, PAE from pair; pLDDT from the structure module's states

`num_recycles` counts how often the trunk's output is fed back: 0 is one pass, n are n + 1.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from structure.confidence import Confidence
from structure.config import FoldConfig
from structure.embedder import Embedder
from structure.features import Features
from structure.geometry import Frames
from structure.initialisation import initialise
from structure.openfold import Rigid, StructureModule, StructureModuleConfig, constants
from structure.trunk import TRUNKS, Recycled, Trunk


@dataclass(frozen=True, kw_only=True, eq=False)  # no slots: ZeRO 3 looks into what a module gives by vars()
class Folded:
    """What a pass gives; of padding, numbers without meaning."""

    frames: Frames
    """[layer batch length], of the backbone after each layer of the structure module, in angstrom."""
    group_frames: Frames
    """[batch length 8], of all rigid groups after the last layer."""
    angles: Float[Tensor, "layer batch length 7 2"]
    """Sine and cosine of omega, phi, psi, chi1..4."""
    raw_angles: Float[Tensor, "layer batch length 7 2"]
    """The same before they were brought to length 1."""
    atoms: Float[Tensor, "layer batch length 14 3"]
    """In angstrom, in OpenFold's 14 slots."""
    distogram: Float[Tensor, "batch length length 64"]
    """Logits of the distance between C-betas."""
    lddt: Float[Tensor, "batch length 37 50"]
    """Logits of each atom's lDDT."""
    pae: Float[Tensor, "batch length length 64"]
    """Logits of the aligned error of each pair."""
    single: Float[Tensor, "batch length single"]
    pair: Float[Tensor, "batch length length pair"]


def with_atoms(aatype: Int[Tensor, "batch length"]) -> Int[Tensor, "batch length"]:
    """Residue types as the structure module builds them: one that is unknown has the atoms of alanine, not none."""
    return torch.where(aatype == constants.unk_restype_index, constants.restype_order["A"], aatype)


class FoldModel(nn.Module):
    """See the module."""

    def __init__(self, config: FoldConfig) -> None:
        super().__init__()
        self.config = config
        self.embedder = Embedder(config)
        self.trunk = TRUNKS[config.trunk](config)
        self.single_in = nn.Linear(config.single_width, config.structure_width)
        self.pair_in = nn.Linear(config.pair_width, config.structure_pair_width)
        self.structure = StructureModule(
            StructureModuleConfig(
                sequence_dim=config.structure_width, pairwise_dim=config.structure_pair_width,
                ipa_dim=config.point_head_width, num_heads_ipa=config.num_point_heads, resnet_dim=config.angle_width,
                num_blocks=config.num_structure_layers, dropout_rate=config.structure_dropout,
            )
        )  # fmt: skip
        self.confidence = Confidence(config)
        initialise(self)

    def forward(self, features: Features, *, num_recycles: int = 0, chunk: int | None = None) -> Folded:
        """Fold a batch.

        Args:
            num_recycles: times that the trunk's output is fed back; only the last pass has gradients.
            chunk: cuts the work over pairs, and saves memory; without gradients alone.
        """
        embedded, maps = self.embedder(features)
        trunk: Trunk = self.trunk
        last = None
        for number in range(num_recycles + 1):
            with torch.set_grad_enabled(torch.is_grad_enabled() and number == num_recycles):
                single, pair = trunk(embedded, maps, features, last, chunk)
                moved = self._move(single, pair, features)
                last = Recycled(single.detach(), pair.detach(), moved["positions"][-1].detach())
        frames = Rigid.from_tensor_7(moved["frames"])
        groups = moved["sidechain_frames"][-1]
        return Folded(
            frames=Frames(frames.get_rots().get_rot_mats(), frames.get_trans()),
            group_frames=Frames(groups[..., :3, :3], groups[..., :3, 3]),
            angles=moved["angles"], raw_angles=moved["unnormalized_angles"], atoms=moved["positions"],
            distogram=self.confidence.distogram_logits(pair), lddt=self.confidence.lddt_logits(moved["states"][-1]),
            pae=self.confidence.pae(pair), single=single, pair=pair,
        )  # fmt: skip

    def _move(self, single: Tensor, pair: Tensor, features: Features) -> dict[str, Tensor]:
        """The structure module, in fp32: half precision rounds a place far from the origin by whole angstroms."""
        inputs = {"single": self.single_in(single).float(), "pair": self.pair_in(pair).float()}
        aatype = with_atoms(features.aatype)
        with torch.autocast(single.device.type, enabled=False):
            moved: dict[str, Tensor] = self.structure(inputs, aatype, features.mask.float())
        return moved
