"""`xtrimo export RUN MODEL_DIR`: a training checkpoint becomes a model directory, with torch alone.

A `torch_dist` checkpoint holds whole weights under megatron's names, the layers of a block stacked along a first axis,
whatever the layout that wrote it. So exporting is reading, un-stacking and renaming; no megatron, no process group. Its
metadata is a pickle, read here for the last time: the model directory has none.
"""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from pretrain.checkpoint_files import Facts, path_of, steps, verify
from xtrimo.answer import give
from xtrimo.checkpoint import save_state
from xtrimo.config import GLMConfig
from xtrimo.errors import CheckpointError
from xtrimo.names import from_megatron, pairs


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """Write the model directory of a training run."""

    run: tyro.conf.Positional[Path]
    """Run folder of `xtrimo pretrain`."""
    out: tyro.conf.Positional[Path]
    """Model directory to write."""
    step: int | None = None
    """Checkpoint to take; by default the newest."""
    licence: str = "Apache-2.0"
    """Licence of the weights, carried in the directory."""


def main(args: Sequence[str] | None = None) -> None:
    """The verb `xtrimo export`."""
    config = tyro.cli(ExportConfig, args=args, prog="xtrimo export")
    step = export_run(config)
    give({"out": config.out, "step": step}, f"{config.out}: the model after {step:,} steps")


def export_run(config: ExportConfig) -> int:
    """Write `config.out`; the step that was exported.

    Raises:
        CheckpointError: if the run folder has no such checkpoint, it is damaged, or it has no such weights.
    """
    folder = config.run / "checkpoints"
    found = steps(folder)
    if not found or config.step not in (None, *found):
        asked = "" if config.step is None else f" of step {config.step}"
        raise CheckpointError(f"{folder} has no checkpoint{asked}; it has {found or 'none'}")
    step = found[-1] if config.step is None else config.step
    run = json.loads((config.run / "config.json").read_text())
    glm = replace(
        GLMConfig.from_dict(run["glm"]),
        licence=config.licence,
        source=f"xtrimo pretrain, {run['model']}, step {step:,}",
    )
    notes = f"Pretrained for {step:,} steps on the corpus `{Path(run['corpus']).name}`, seed {run['seed']}."
    checkpoint = path_of(folder, step)
    try:
        verify(checkpoint, Facts.read(checkpoint).files or {})
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint} cannot be read: {error}; choose another one with --step") from error
    save_state(read_weights(checkpoint, glm), glm, config.out, notes=notes)
    return step


def read_weights(checkpoint: Path, glm: GLMConfig) -> dict[str, Tensor]:
    """The plain model's weights out of a `torch_dist` checkpoint, in the precision they were trained in."""
    reader = FileSystemReader(checkpoint)
    stored = {name: name.replace(f"layers.{i}.", "layers.") for i in range(glm.num_layers) for name in _names(glm, i)}
    found = reader.read_metadata().state_dict_metadata
    tensors = {name: entry for name, entry in found.items() if isinstance(entry, TensorStorageMetadata)}
    missing = sorted(set(stored.values()) - set(tensors))
    if missing:
        raise CheckpointError(f"{checkpoint} lacks the weights " + ", ".join(missing[:10]))
    whole = {name: torch.empty(tensors[name].size, dtype=tensors[name].properties.dtype) for name in stored.values()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no process group is the point
        try:
            load(whole, storage_reader=reader, no_dist=True)
        except (Exception, CheckpointException) as error:  # what a damaged file leads to; the latter is no Exception
            raise CheckpointError(
                f"{checkpoint} cannot be read ({type(error).__name__}), as when a file of it was cut; choose another"
                " one with --step"
            ) from error
    out = {}
    for ours, theirs in pairs(glm, "megatron").items():
        weight = whole[stored[theirs]]
        if stored[theirs] != theirs:
            weight = weight[int(theirs.split("layers.")[1].split(".")[0])]
        out[ours] = from_megatron(ours, weight, glm)
    return out


def _names(glm: GLMConfig, layer: int) -> list[str]:
    """megatron's weight names of one layer, and those outside the layers."""
    return [n for n in pairs(glm, "megatron").values() if "layers." not in n or f"layers.{layer}." in n]
