"""ESMFold as transformers publishes it: its weights under our names, its ESM-2 as the language model.

    theirs                                   ours
    esm_s_combine, esm_s_mlp, embedding      embedder.layer_weights, embedder.mlp, embedder.residues
    trunk.pairwise_positional_embedding      trunk.apart
    trunk.blocks                             trunk.blocks, as `packed_block` has them
    trunk.recycle_*                          trunk.recycle_*
    trunk.trunk2sm_s, trunk.trunk2sm_z       single_in, pair_in
    trunk.structure_module                   structure
    distogram_head, ptm_head, lddt_head      confidence.distogram, confidence.pae, confidence.lddt

Its head for masked residues, `lm_head`, is not read. Its `max_recycles` counts passes, ours what comes after the first.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
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
    ("distogram_head.", "confidence.distogram."),
    ("ptm_head.", "confidence.pae."),
    ("lddt_head.", "confidence.lddt."),
)
"""How a weight's name begins there and here."""
BLOCKS = "trunk.blocks."
BLOCK_NAMES = {
    "single_attention.norm": "layernorm_1",
    "single_attention.norm_pair": "pair_to_sequence.layernorm",
    "single_attention.bias.project": "pair_to_sequence.linear",
    "single_attention.attention.project_out": "seq_attention.o_proj",
    "single_transition.norm": "mlp_seq.mlp.0", "single_transition.expand": "mlp_seq.mlp.1",
    "single_transition.contract": "mlp_seq.mlp.3",
    "single_to_pair.norm": "sequence_to_pair.layernorm", "single_to_pair.project_in": "sequence_to_pair.proj",
    **{
        f"{ours}.{mine}": " ".join(f"{theirs}.{name}" for name in other.split())
        for ours, theirs in (("outgoing", "tri_mul_out"), ("incoming", "tri_mul_in"))
        for mine, other in (
            ("norm_in", "layer_norm_in"), ("norm_out", "layer_norm_out"), ("project_in", "linear_a_p linear_b_p"),
            ("gate_in", "linear_a_g linear_b_g"), ("project_out", "linear_z"), ("gate_out", "linear_g"),
        )
    },
    **{
        f"{ours}.{mine}": f"{theirs}.{other}"
        for ours, theirs in (("starting", "tri_att_start"), ("ending", "tri_att_end"))
        for mine, other in (
            ("norm", "layer_norm"), ("bias.project", "linear"), ("attention.project_out", "mha.linear_o"),
        )
    },
    "transition.norm": "mlp_pair.mlp.0", "transition.expand": "mlp_pair.mlp.1", "transition.contract": "mlp_pair.mlp.3",
}  # fmt: skip
"""Layers of a block here and there; two of theirs are one above the other here."""
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
    found, blocks = {}, defaultdict[str, dict[str, Tensor]](dict)
    for name, weight in weights.items():
        known = next((pair for pair in NAMES if name.startswith(pair[0])), None)
        if known:
            found[known[1] + name.removeprefix(known[0])] = weight
        elif name.startswith(BLOCKS):
            number, _, inner = name.removeprefix(BLOCKS).partition(".")
            blocks[number][inner] = weight
        elif not name.startswith(NOT_READ):
            raise CheckpointError(f"ESMFold has no weight {name}")
    for number, block in blocks.items():
        found |= {f"{BLOCKS}{number}.{name}": weight for name, weight in packed_block(block).items()}
    return found


def packed_block(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of one of their blocks as `folding_block.FoldingBlock` has them.

    Its attention of residues has q, k and v of one head after the other; here all q come first.

    Raises:
        CheckpointError: weights that such a block does not have, or lacks.
    """
    left = dict(theirs)
    try:
        found = {
            f"{ours}.{kind}": _stacked([left.pop(f"{name}.{kind}") for name in names.split()])
            for ours, names in BLOCK_NAMES.items()
            for kind in ("weight", "bias")
            if f"{names.split()[0]}.{kind}" in left
        }
        heads = theirs["pair_to_sequence.linear.weight"].shape[0]
        single, theirs_single = "single_attention.attention", "seq_attention"
        by_head = left.pop(f"{theirs_single}.proj.weight").unflatten(0, (heads, 3, -1))
        q_k_v = by_head.transpose(0, 1).flatten(0, 2)
        found[f"{single}.project_in.weight"] = torch.cat((q_k_v, left.pop(f"{theirs_single}.g_proj.weight")))
        found[f"{single}.gate_bias"] = left.pop(f"{theirs_single}.g_proj.bias")
        for ours, inner in (("starting", "tri_att_start.mha"), ("ending", "tri_att_end.mha")):
            stacked = torch.cat([left.pop(f"{inner}.linear_{letter}.weight") for letter in "qkvg"])
            found[f"{ours}.attention.project_in.weight"] = stacked
            found[f"{ours}.attention.gate_bias"] = left.pop(f"{inner}.linear_g.bias")
        products, differences = left.pop("sequence_to_pair.o_proj.weight").chunk(2, dim=1)
        found["single_to_pair.products.weight"] = products.contiguous()
        found["single_to_pair.differences.weight"] = differences.contiguous()
        found["single_to_pair.products.bias"] = left.pop("sequence_to_pair.o_proj.bias")
    except KeyError as error:
        raise CheckpointError(f"a block of ESMFold lacks the weight {error}; download it again") from error
    if left:
        raise CheckpointError(f"a block of ESMFold has no weight {', '.join(sorted(left))}")
    return found


def _stacked(weights: list[Tensor]) -> Tensor:
    return weights[0] if len(weights) == 1 else torch.cat(weights)


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
