"""OpenFold's geometry and structure module, as its maintained port inside transformers has them (Apache-2.0).

The only file here that knows where they come from: OpenFold itself is not on PyPI, and what is there under its name
cannot be installed. The port's classes are internal to transformers, so its release is pinned. Three traps of it are
answered where these are used: masks have to be float, none of its modules is initialised as AlphaFold 2's when built
alone (`initialisation`), and its `num_recycles` counts a first pass too.
"""

from transformers.models.esm import modeling_esmfold as port
from transformers.models.esm.configuration_esm import EsmConfig, EsmFoldConfig, StructureModuleConfig, TrunkConfig
from transformers.models.esm.openfold_utils import compute_tm
from transformers.models.esm.openfold_utils import residue_constants as constants
from transformers.models.esm.openfold_utils.feats import (
    frames_and_literature_positions_to_atom14_pos,
    torsion_angles_to_frames,
)
from transformers.models.esm.openfold_utils.rigid_utils import Rigid, Rotation

__all__ = [
    "EsmConfig", "EsmFoldConfig", "EsmForProteinFolding", "InvariantPointAttention", "Linear",
    "RelativePosition", "Rigid", "Rotation", "StructureModule", "StructureModuleConfig", "TrunkConfig", "compute_tm",
    "constants", "frames_and_literature_positions_to_atom14_pos", "torsion_angles_to_frames",
]  # fmt: skip

EsmForProteinFolding = port.EsmForProteinFolding
InvariantPointAttention = port.EsmFoldInvariantPointAttention
Linear = port.EsmFoldLinear
RelativePosition = port.EsmFoldRelativePosition
StructureModule = port.EsmFoldStructureModule
