"""Model directories: `config.json` + safetensors + `MODEL_CARD.md`. Saving is atomic, loading checks every byte.

`config.json` holds the GLMConfig and, per weights file, its size and SHA-256: a file that was cut or altered is refused
before a tensor is read. Weights are memory-mapped and cast one tensor at a time. No pickle is read or written here.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from xtrimo.config import GLMConfig
from xtrimo.errors import CheckpointError
from xtrimo.model import GLM

FORMAT = 1
MAX_SHARD_BYTES = 5 * 10**9
CONFIG, CARD = "config.json", "MODEL_CARD.md"


def save(model: GLM, directory: str | os.PathLike[str], *, notes: str = "") -> Path:
    """Write a model directory; see `save_state`."""
    return save_state(model.state_dict(), model.config, directory, notes=notes)


def save_state(
    state: Mapping[str, Tensor], config: GLMConfig, directory: str | os.PathLike[str], *, notes: str = ""
) -> Path:
    """Write weights under our names as a model directory, sharded above 5 GB; nothing half-written is ever visible.

    Args:
        notes: Markdown about the training, added to the model card.

    Raises:
        CheckpointError: if the directory exists and is not an xtrimo model directory.
    """
    target = Path(directory).resolve()  # through links, which stay
    if target.exists() and (foreign := _foreign(target)):
        raise CheckpointError(
            f"{target} is not a model directory alone: it holds {', '.join(foreign[:3])};"
            " choose another path or remove it"
        )
    work = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        files = {}
        shards = list(_shards(state))
        for number, names in enumerate(shards, start=1):
            file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
            save_file({name: state[name].detach().cpu().contiguous() for name in names}, work / file)
            files[file] = {"bytes": (work / file).stat().st_size, "sha256": _sha256(work / file)}
        content = {"format": FORMAT, **config.to_dict(), "files": files}
        (work / CONFIG).write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        (work / CARD).write_text(_card(config, notes), "utf-8")
        if target.exists():
            old = target.with_name(f".{target.name}.{os.getpid()}.old")
            target.rename(old)
            try:
                work.rename(target)
            except BaseException:
                old.rename(target)
                raise
            shutil.rmtree(old)
        else:
            work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def load(
    path_or_name: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> GLM:
    """Load a model directory, ready for inference (eval mode).

    Args:
        path_or_name: the directory.
        device: where to put it; by default the CPU.
        dtype: cast the weights; by default as stored.

    Raises:
        CheckpointError: a missing, truncated or altered file, or weights that do not fit the config (the first ten).
    """
    directory = Path(path_or_name)
    config, files = read_config(directory)
    model = GLM(config, seed=None)  # undefined weights cost nothing; torch's meta device would cost a second of imports
    expected = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    state: dict[str, Tensor] = {}
    wrong: list[str] = []
    for file, facts in files.items():
        _check_bytes(directory / file, facts)
        for name, weight in _read(directory / file):
            if name not in expected:
                wrong.append(f"unexpected {name}")
            elif tuple(weight.shape) != expected[name]:
                wrong.append(f"{name} has shape {tuple(weight.shape)}, the config says {expected[name]}")
            else:
                state[name] = weight.to(device=device or "cpu", dtype=dtype or weight.dtype)
    wrong += [f"missing {name}" for name in expected if name not in state]
    if wrong:
        raise CheckpointError(f"{directory}: the weights do not fit {CONFIG}: " + "; ".join(wrong[:10]))
    model.load_state_dict(state, assign=True)
    return model.eval()


def read_config(directory: Path) -> tuple[GLMConfig, dict[str, Any]]:
    """The config of a model directory, and the facts of its weights files.

    Raises:
        CheckpointError: if there is no readable config.
    """
    path = directory / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{directory} is not a model directory: it has no {CONFIG} (`xtrimo export` writes one)")
    try:
        content = json.loads(path.read_text("utf-8"))
        if isinstance(content, dict) and "curriculum" in content:
            raise ValueError("it is of a training run; `xtrimo export` makes a model directory of that")
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise ValueError(f"its format is not {FORMAT}, the one this version reads")
        files = content.pop("files", None)
        if not isinstance(files, dict) or not all(
            isinstance(facts, dict) and {"bytes", "sha256"} <= facts.keys() for facts in files.values()
        ):
            raise ValueError("its files are not a table of names, bytes and sha256")
        return GLMConfig.from_dict(content), files
    except (ValueError, TypeError) as error:  # also ConfigError, JSON and text decoding errors
        raise CheckpointError(f"{path} is not a model config: {error}") from error


def _foreign(directory: Path) -> list[str]:
    """What `save` did not put there; everything, if the directory is another program's."""
    if not directory.is_dir():
        return [directory.name]
    try:
        known = {CONFIG, CARD, *json.loads((directory / CONFIG).read_text())["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        known = set()
    return sorted(entry.name for entry in directory.iterdir() if entry.name not in known)


def _shards(state: Mapping[str, Tensor]) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, weight in state.items():
        if names and size + weight.nbytes > MAX_SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += weight.nbytes
    yield names


def _read(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (a safetensors handle is not a mapping)
                yield name, file.get_tensor(name)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from error


def _check_bytes(path: Path, facts: Mapping[str, Any]) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; copy the whole model directory again")
    size = path.stat().st_size
    if size != facts["bytes"]:
        raise CheckpointError(f"{path} has {size} bytes, {CONFIG} says {facts['bytes']}: it was cut; copy it again")
    if _sha256(path) != facts["sha256"]:
        raise CheckpointError(f"{path} was altered: its SHA-256 is not the one in {CONFIG}; copy it again")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _card(config: GLMConfig, notes: str) -> str:
    rows = {
        "Parameters": f"{config.num_params:,}",
        "Shape": f"{config.num_layers} x {config.hidden_size}, {config.num_heads} heads, GEGLU {config.ffn_size}",
        "Rotary": config.rotary,
        "Objectives": ", ".join(config.objectives),
        "Directions": ", ".join(config.directions),
        "Prompt": "`<gmask><sop><eos>` + residues" if config.prompt_style == "gmask" else "fills `<mask>` only",
        "Control words": " ".join(f"`{word}`" for word in config.control_words) or "none",
        "Licence of the weights": config.licence,
        "Source": config.source or "not stated",
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return f"# Protein GLM\n\n| | |\n| --- | --- |\n{table}\n" + (f"\n{notes.strip()}\n" if notes.strip() else "")
