"""What a folding model is trained on: one number per protein, out of its terms.

    1/2 (FAPE of CA, mean over layers) + 1/2 (FAPE of all atoms) + torsions/2 + 0.3 distogram + 0.01 pLDDT + 0.1 PAE
    + violation_weight * violations

Both FAPE are clamped at 10 angstrom where the crop says so (AlphaFold 2, supplement 1.9, equation 7; the weight of the
PAE is that of its fine-tuning). Atoms that were not seen take part in no term.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor

from structure.aligned_errors import all_atom_fape, backbone_fape, pae_loss
from structure.angles import torsion_loss
from structure.data import Crop
from structure.distogram import distogram_loss
from structure.features import padded
from structure.geometry import (
    CA,
    CB,
    C,
    Frames,
    N,
    backbone_frames,
    rename_ambiguous,
    rigid_group_frames,
    torsions,
    virtual_cb,
)
from structure.lddt import lddt_atom37, lddt_ca, plddt_loss
from structure.model import Folded
from structure.openfold import constants
from structure.violations import violation_loss

CLAMP_ANG = 10.0
CA_COLUMN = constants.atom_order["CA"]
"""Its pLDDT stands for the residue: as in AlphaFold 2, it predicts the lDDT of C-alphas among C-alphas."""
BACKBONE_SLOTS = 5
"""N, CA, C, O, CB: what a model without side chains writes."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Truth:
    """What was seen of the proteins of a batch."""

    aatype: Int[Tensor, "batch length"]
    index: Int[Tensor, "batch length"]
    mask: Float[Tensor, "batch length"]
    """1 where there is a residue."""
    atoms: Float[Tensor, "batch length 14 3"]
    """In angstrom."""
    seen: Float[Tensor, "batch length 14"]
    clamp_ang: Float[Tensor, "batch"]
    """At which FAPE is clamped; inf where not."""

    @classmethod
    def of(cls, crops: Sequence[Crop], *, device: torch.device, length: int = 0) -> "Truth":
        """A batch, padded to the longest."""
        examples = [crop.example for crop in crops]
        length = max(length, *map(len, examples))
        columns = {
            name: padded([torch.from_numpy(getattr(example, name)) for example in examples], length).to(device)
            for name in ("aatype", "index", "atoms", "seen")
        }
        return cls(
            **columns, mask=padded([torch.ones(len(example)) for example in examples], length).to(device),
            clamp_ang=torch.tensor([CLAMP_ANG if crop.clamp else torch.inf for crop in crops], device=device),
        )  # fmt: skip

    @property
    def backbone(self) -> Float[Tensor, "batch length"]:
        """1 where N, CA and C were seen."""
        return self.seen[..., [N, CA, C]].prod(-1)

    def beta(self) -> tuple[Float[Tensor, "batch length 3"], Float[Tensor, "batch length"]]:
        """C-beta, or where it would be by the backbone; and 1 where either is known."""
        virtual = virtual_cb(*(self.atoms[..., slot, :] for slot in (N, CA, C)))
        real = self.seen[..., CB]
        return torch.where(real[..., None] > 0, self.atoms[..., CB, :], virtual), torch.maximum(real, self.backbone)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Terms:
    """The terms of the loss, each one value per protein."""

    backbone: Float[Tensor, "batch"]
    all_atom: Float[Tensor, "batch"]
    torsion: Float[Tensor, "batch"]
    distogram: Float[Tensor, "batch"]
    plddt: Float[Tensor, "batch"]
    pae: Float[Tensor, "batch"]
    violation: Float[Tensor, "batch"]


WEIGHTS = {"backbone": 0.5, "all_atom": 0.5, "torsion": 0.5, "distogram": 0.3, "plddt": 0.01, "pae": 0.1}
"""Of the terms; that of the violations is the caller's."""


def terms(folded: Folded, truth: Truth, *, side_chains: bool, violations: bool) -> Terms:
    """The terms for a batch.

    Args:
        side_chains: judge what lies beyond C-beta as well.
        violations: compute that term, which is zero otherwise.
    """
    last = folded.atoms[-1]
    atoms, seen = rename_ambiguous(truth.aatype, last, truth.atoms, truth.seen)
    if not side_chains:
        seen = torch.cat((seen[..., :BACKBONE_SLOTS], torch.zeros_like(seen[..., BACKBONE_SLOTS:])), dim=-1)
    frames, backbone = backbone_frames(atoms), truth.backbone
    groups = rigid_group_frames(truth.aatype, atoms, seen)
    final = Frames(folded.frames.rotations[-1], folded.frames.translations[-1])
    lddt, judged = lddt_atom37(truth.aatype, last.detach(), atoms, seen)
    lddt[..., CA_COLUMN] = lddt_ca(last[..., CA, :].detach(), atoms[..., CA, :], seen[..., CA])
    cb, has_cb = truth.beta()
    return Terms(
        backbone=backbone_fape(folded.frames, frames, backbone, clamp=truth.clamp_ang),
        all_atom=all_atom_fape(
            folded.group_frames, last, groups.frames, groups.mask, atoms, seen, clamp=truth.clamp_ang
        ),
        torsion=torsion_loss(folded.raw_angles, torsions(truth.aatype, atoms, seen, truth.index), truth.mask),
        distogram=distogram_loss(folded.distogram, cb, has_cb),
        plddt=plddt_loss(folded.lddt, lddt, judged),
        pae=pae_loss(folded.pae, final, frames, backbone),
        violation=(
            violation_loss(truth.aatype, last, seen, truth.index) if violations else torch.zeros_like(cb[:, 0, 0])
        ),
    )  # fmt: skip


def total(found: Terms, violation_weight: float = 0.0) -> Float[Tensor, "batch"]:
    """The weighted sum."""
    weights = WEIGHTS | {"violation": violation_weight}
    return sum((weights[f.name] * getattr(found, f.name) for f in fields(found)), torch.zeros_like(found.backbone))
