"""The shape of a folding model, and the presets."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from xtrimo.errors import ConfigError

Trunk = Literal["trimul", "esmfold"]
MAX_RESIDUES_APART = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class FoldConfig:
    """What a folding model is built from; `lm_*` describe the language model that it reads."""

    trunk: Trunk = "trimul"
    """trimul: triangle multiplications and transitions of pairs, one pass. esmfold: triangle attention and a track of
    residues beside them, recycled."""
    single_width: int = 64
    """Numbers per residue in the trunk."""
    pair_width: int = 32
    """Numbers per pair of residues in the trunk."""
    num_blocks: int = 4
    """Of the trunk."""
    num_single_heads: int = 4
    """esmfold: attention heads of the track of residues."""
    num_pair_heads: int = 2
    """esmfold: heads of the triangle attention."""
    dropout: float = 0.0
    """esmfold: of the trunk, in training."""
    max_recycles: int = 0
    """esmfold: times that training feeds the trunk's output back, at most; also the default when folding. 0 is a single
    pass, n are n + 1 passes."""
    structure_width: int = 64
    """Numbers per residue in the structure module."""
    structure_pair_width: int = 32
    """Numbers per pair in the structure module."""
    num_structure_layers: int = 4
    """Times that the structure module moves the residues, with the same weights."""
    num_point_heads: int = 4
    """Heads of the invariant point attention, each with 4 query and 8 value points."""
    point_head_width: int = 16
    """Numbers per head beside the points."""
    angle_width: int = 64
    """Of the network that gives the torsion angles."""
    structure_dropout: float = 0.1
    """Of the structure module, in training."""
    confidence_width: int = 64
    """Of the network that gives the pLDDT."""
    lm_width: int = 0
    """Numbers per residue and layer of the language model; 0 reads the amino acids alone."""
    num_lm_layers: int = 0
    """Layers of the language model that are mixed, with learned shares."""
    num_lm_maps: int = 0
    """Attention maps of the language model that pairs read."""
    side_chains: bool = False
    """Whether it was trained on side chains; otherwise it writes N, CA, C, O and CB alone."""
    lddt_temperature: float = 1.0
    """What the logits of the lDDT are divided by, fitted after training: see `calibration`."""

    def __post_init__(self) -> None:
        for name in (
            "single_width", "pair_width", "num_blocks", "num_single_heads", "num_pair_heads", "structure_width",
            "structure_pair_width", "num_structure_layers", "num_point_heads", "point_head_width", "angle_width",
            "confidence_width",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.trunk not in ("trimul", "esmfold"):
            raise ConfigError(f"no trunk {self.trunk!r}; known: trimul, esmfold")
        if self.trunk == "trimul" and (self.max_recycles or self.dropout):
            raise ConfigError(
                f"max_recycles {self.max_recycles}, dropout {self.dropout}: the trunk trimul is a single pass without"
                " dropout; leave both at 0, or take the trunk esmfold"
            )
        if self.max_recycles < 0 or not 0 <= self.dropout <= 0.4 or not 0 <= self.structure_dropout < 1:
            raise ConfigError(
                f"max_recycles {self.max_recycles} must not be negative, dropout {self.dropout} lie in 0..0.4,"
                f" structure_dropout {self.structure_dropout} in 0..1"
            )
        if self.single_width % self.num_single_heads or self.pair_width % (2 * self.num_pair_heads):
            raise ConfigError(
                f"single_width {self.single_width} must be a multiple of num_single_heads {self.num_single_heads}, and"
                f" pair_width {self.pair_width} of twice num_pair_heads {self.num_pair_heads}"
            )
        if not 0 < self.lddt_temperature < float("inf"):
            raise ConfigError(f"lddt_temperature is {self.lddt_temperature}; it must be above 0, and 1 changes nothing")
        if (self.lm_width > 0) != (self.num_lm_layers > 0):
            raise ConfigError(
                f"lm_width {self.lm_width} and num_lm_layers {self.num_lm_layers}: both are 0 or neither is"
            )

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


PRESETS: dict[str, FoldConfig] = {
    "fold-tiny": FoldConfig(),
    "fold-8m": FoldConfig(
        single_width=256, pair_width=128, num_blocks=20, num_single_heads=8, num_pair_heads=4, structure_width=256,
        structure_pair_width=128, num_structure_layers=8, num_point_heads=12, angle_width=128, confidence_width=128,
    ),
    "fold-150m": FoldConfig(
        trunk="esmfold", single_width=512, pair_width=128, num_blocks=36, num_single_heads=16, num_pair_heads=4,
        max_recycles=3, structure_width=384, structure_pair_width=128, num_structure_layers=8, num_point_heads=12,
        angle_width=128, confidence_width=128,
    ),
}  # fmt: skip
"""By name; what is said of the language model is filled in by the one that is read."""
