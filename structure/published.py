"""ESMFold as transformers publishes it: its weights under our names, its ESM-2 as the language model.

    theirs                                   ours
    esm_s_combine, esm_s_mlp, embedding      embedder.layer_weights, embedder.mlp, embedder.residues
    trunk.pairwise_positional_embedding      trunk.apart
    trunk.blocks, trunk.recycle_*            trunk.blocks, trunk.recycle_*
    trunk.trunk2sm_s, trunk.trunk2sm_z       single_in, pair_in
    trunk.structure_module                   structure
    distogram_head, ptm_head, lddt_head      confidence.distogram, confidence.pae, confidence.lddt

Its head for masked residues, `lm_head`, is not read. Its `max_recycles` counts passes, ours what comes after the first.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from torch import Tensor

from structure.config import MAX_RESIDUES_APART, FoldConfig
from structure.model import FoldModel
from structure.openfold import EsmConfig, EsmForProteinFolding
from xtrimo.errors import CheckpointError

if TYPE_CHECKING:
    from structure.fold_directory import Pipeline

NAMES = (
    ("esm_s_combine", "embedder.layer_weights"),
    ("esm_s_mlp.", "embedder.mlp."),
    ("embedding.", "embedder.residues."),
    ("trunk.pairwise_positional_embedding.", "trunk.apart."),
    ("trunk.recycle_s_norm.", "trunk.recycle_single."),
    ("trunk.recycle_z_norm.", "trunk.recycle_pair."),
    ("trunk.recycle_disto.", "trunk.recycle_distance."),
    ("trunk.trunk2sm_s.", "single_in."),
    ("trunk.trunk2sm_z.", "pair_in."),
    ("trunk.structure_module.", "structure."),
    ("trunk.blocks.", "trunk.blocks."),
    ("distogram_head.", "confidence.distogram."),
    ("ptm_head.", "confidence.pae."),
    ("lddt_head.", "confidence.lddt."),
)
"""How a weight's name begins there and here."""
NOT_READ = ("esm.", "lm_head.", "af2_to_esm")
MAY_BE_MISSING = ("esm.contact_head.", "lm_head.", "af2_to_esm")
"""Weights that folding does not ask for; the published ESMFold has no contact head."""


def is_esmfold(directory: Path) -> bool:
    """Whether a directory's config.json is of ESMFold."""
    try:
        content = json.loads((directory / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and bool(content.get("is_folding_model"))


def load_esmfold(directory: Path, *, device: str = "cpu") -> "Pipeline":
    """ESMFold and its ESM-2, in fp32, ready to fold.

    Raises:
        CheckpointError: unreadable files, a shape that the trunk `esmfold` does not have, or weights that do not fit.
    """
    from structure.fold_directory import Pipeline, live_reader
    from xtrimo.esm import load_inside
    from xtrimo.transformers_model import quiet, read_config

    their_config = read_config(EsmConfig, directory)
    config = fold_config(their_config, directory)
    try:
        with quiet():
            theirs, report = EsmForProteinFolding.from_pretrained(
                directory, config=their_config, local_files_only=True, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{directory} cannot be read as ESMFold ({error}); download it again") from error
    # transformers draws what is missing at random
    if missing := sorted(name for name in report["missing_keys"] if not name.startswith(MAY_BE_MISSING)):
        raise CheckpointError(
            f"{directory} lacks {len(missing)} weights of ESMFold, such as {', '.join(missing[:3])}; download it again"
        )
    theirs = theirs.float()
    model = FoldModel(config)
    try:
        model.load_state_dict(renamed(theirs.state_dict()), assign=True)  # billions of numbers, held once
    except RuntimeError as error:
        raise CheckpointError(f"{directory}: the weights of ESMFold do not fit: {error}") from error
    inner = EsmConfig.from_dict(their_config.to_dict() | {"is_folding_model": False})
    lm = load_inside(directory, inner, theirs.esm.state_dict(), device=device)
    layers = (*range(config.num_lm_layers - 1), -1)  # the last one after the final norm
    return Pipeline(model=model.to(device).eval(), reader=live_reader(lm, layers, config), name=directory.name)


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their weights under our names."""
    found = {}
    for name, weight in weights.items():
        known = next((pair for pair in NAMES if name.startswith(pair[0])), None)
        if known:
            found[known[1] + name.removeprefix(known[0])] = weight
        elif not name.startswith(NOT_READ):
            raise CheckpointError(f"ESMFold has no weight {name}")
    return found


def fold_config(theirs: Any, directory: Path) -> FoldConfig:
    """Their config as ours.

    Raises:
        CheckpointError: settings that the trunk `esmfold` does not have.
    """
    fold = theirs.esmfold_config
    trunk, moving = fold.trunk, fold.trunk.structure_module
    fixed = {
        "embed_aa": (fold.embed_aa, True), "bypass_lm": (fold.bypass_lm, False),
        "use_esm_attn_map": (fold.use_esm_attn_map, False), "esm_ablate_sequence": (fold.esm_ablate_sequence, False),
        "position_bins": (trunk.position_bins, MAX_RESIDUES_APART), "num_qk_points": (moving.num_qk_points, 4),
        "num_v_points": (moving.num_v_points, 8), "num_transition_layers": (moving.num_transition_layers, 1),
        "num_resnet_blocks": (moving.num_resnet_blocks, 2), "num_angles": (moving.num_angles, 7),
        "trans_scale_factor": (moving.trans_scale_factor, 10),
    }  # fmt: skip
    if wrong := [f"{name} {got} (expected {asked})" for name, (got, asked) in fixed.items() if got != asked]:
        raise CheckpointError(f"{directory} is an ESMFold of another kind: {', '.join(wrong)}")
    return FoldConfig(
        trunk="esmfold", single_width=trunk.sequence_state_dim, pair_width=trunk.pairwise_state_dim,
        num_blocks=trunk.num_blocks, num_single_heads=trunk.sequence_state_dim // trunk.sequence_head_width,
        num_pair_heads=trunk.pairwise_state_dim // trunk.pairwise_head_width, dropout=trunk.dropout,
        max_recycles=max(0, trunk.max_recycles - 1), structure_width=moving.sequence_dim,
        structure_pair_width=moving.pairwise_dim, num_structure_layers=moving.num_blocks,
        num_point_heads=moving.num_heads_ipa, point_head_width=moving.ipa_dim, angle_width=moving.resnet_dim,
        structure_dropout=moving.dropout_rate, confidence_width=fold.lddt_head_hid_dim, lm_width=theirs.hidden_size,
        num_lm_layers=theirs.num_hidden_layers + 1, side_chains=True,
    )  # fmt: skip
