"""Model directories: `config.json` + safetensors + `MODEL_CARD.md`. Saving is atomic, loading checks every byte.

`config.json` holds the GLMConfig and, per weights file, its size and SHA-256: a file that was cut or altered is refused
before a tensor is read. Weights are memory-mapped and cast one tensor at a time. No pickle is read or written here.

Beside a model of ours in another layout lies `xtrimo.json`, with what our `config.json` would say.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from xtrimo.config import GLMConfig
from xtrimo.errors import CheckpointError, ConfigError
from xtrimo.model import GLM

FORMAT = 1
MAX_SHARD_BYTES = 5 * 10**9
CONFIG, CARD, INDEX = "config.json", "MODEL_CARD.md", "model.safetensors.index.json"
_ALIGNED = 8  # bytes that a tensor of any dtype may begin at


class Stated(NamedTuple):
    """What a model directory says of itself."""

    config: GLMConfig
    files: Mapping[str, Mapping[str, Any]]
    """Weights file -> its bytes and sha256."""
    weights_sha256: str | None = None
    """Of the weights under our names, whatever files they lie in (see conversion.py); None where nobody counted it."""
    quantized: Mapping[str, Any] | None = None
    """How the weights were quantized, and what was lost by it (see quantizing.py)."""

    def to_json(self) -> str:
        """The text of a config.json."""
        facts = {"weights_sha256": self.weights_sha256, "quantized": self.quantized}
        kept = {name: value for name, value in facts.items() if value is not None}
        return json.dumps({"format": FORMAT, **self.config.to_dict(), **kept, "files": self.files}, indent=1) + "\n"


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
        stated = Stated(config, save_weights(state, work))
        (work / CONFIG).write_text(stated.to_json(), "utf-8")
        (work / CARD).write_text(card(config, notes), "utf-8")
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


def save_weights(
    state: Mapping[str, Tensor],
    directory: Path,
    *,
    max_bytes: int | None = None,
    dtypes: Mapping[str, torch.dtype] | None = None,
) -> dict[str, dict[str, Any]]:
    """Write tensors as one safetensors file, or as shards with an index as the `transformers` library has them.

    Args:
        max_bytes: of a shard, unless one tensor is larger; by default 5 GB.
        dtypes: of the tensors that are cast, by name; they are in memory for one shard at a time.

    Returns:
        Of each file, its bytes and sha256.

    Raises:
        CheckpointError: a number that is too large for the dtype it is cast to.
    """
    files: dict[str, dict[str, Any]] = {}
    places: dict[str, str] = {}
    dtypes = dtypes or {}
    sizes = {name: weight.numel() * dtypes.get(name, weight.dtype).itemsize for name, weight in state.items()}
    shards = list(_shards(sizes, max_bytes or MAX_SHARD_BYTES))
    is_cast = any(state[name].dtype != dtype for name, dtype in dtypes.items())
    most = max(sum(sizes[name] + _ALIGNED for name in names) for names in shards) if is_cast else 0
    room = torch.empty(most, dtype=torch.uint8)
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        files[file] = _save_shard({name: state[name] for name in names}, directory / file, dtypes, room)
        places |= dict.fromkeys(names, file)
    if len(shards) > 1:
        content = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
        (directory / INDEX).write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    return files


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
    weights = (pair for file, facts in files.items() for pair in _read_checked(directory / file, facts))
    return filled(config, weights, directory, device=device, dtype=dtype)


def filled(
    config: GLMConfig,
    weights: Iterable[tuple[str, Tensor]],
    source: Path,
    *,
    names: Mapping[str, str] | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> GLM:
    """A model of `config` with these weights, cast one at a time, ready for inference.

    Args:
        weights: name and tensor, as they come from the files; nothing is kept of a tensor that is cast.
        source: where they come from, for the error.
        names: our name -> the name in `weights`, for each weight; by default ours.
        dtype: cast the parameters; what is packed, the model's buffers, stays as stored.

    Raises:
        CheckpointError: naming the first ten weights that are missing, unexpected, twice there, or unlike the config.
        ConfigError: weights whose products are for CPUs, on another device.
    """
    if config.quantization == "int8-dynamic" and torch.device(device or "cpu").type != "cpu":
        raise ConfigError(
            f"int8-dynamic weights are for the CPU, not for {device}; quantize without --dynamic for that"
        )
    model = GLM(config, seed=None)  # undefined weights cost nothing; torch's meta device would cost a second of imports
    expected = model.state_dict()
    ours = {theirs: name for name, theirs in names.items()} if names else {name: name for name in expected}
    packed = {name for name, _ in model.named_buffers()}
    state: dict[str, Tensor] = {}
    seen: set[str] = set()
    wrong: list[str] = []
    for theirs, weight in weights:
        if theirs not in ours or theirs in seen:
            wrong.append(f"{'twice' if theirs in seen else 'unexpected'} {theirs}")
        elif misfit := _misfit(weight, expected[ours[theirs]]):
            wrong.append(f"{theirs} {misfit}")
        else:
            kept = weight.dtype if dtype is None or ours[theirs] in packed else dtype
            state[ours[theirs]] = weight.to(device=device or "cpu", dtype=kept)
        seen.add(theirs)
    wrong += [f"missing {theirs}" for theirs in ours if theirs not in seen]
    if wrong:
        raise CheckpointError(f"{source}: the weights do not fit {CONFIG}: " + "; ".join(wrong[:10]))
    model.load_state_dict(state, assign=True)
    return model.eval()


def _misfit(weight: Tensor, expected: Tensor) -> str | None:
    """What is wrong with a stored weight; any floating dtype may stand for another."""
    if weight.shape != expected.shape:
        return f"has shape {tuple(weight.shape)}, the config says {tuple(expected.shape)}"
    if weight.dtype != expected.dtype and not (weight.is_floating_point() and expected.is_floating_point()):
        return f"holds {weight.dtype}, the config says {expected.dtype}"
    return None


def read_config(directory: Path) -> tuple[GLMConfig, Mapping[str, Any]]:
    """The config of a model directory, and the facts of its weights files.

    Raises:
        CheckpointError: if there is no readable config.
    """
    path = directory / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{directory} is not a model directory: it has no {CONFIG} (`xtrimo export` writes one)")
    return read_stated(path)[:2]


def read_stated(path: Path) -> Stated:
    """All that a config.json of ours says, or an xtrimo.json.

    Raises:
        CheckpointError: it is neither.
    """
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
        known = {name: content.pop(name, None) for name in ("weights_sha256", "quantized")}
        return Stated(GLMConfig.from_dict(content), files, **known)
    except (OSError, ValueError, TypeError) as error:  # also ConfigError, JSON and text decoding errors
        raise CheckpointError(f"{path} is not a model config: {error}") from error


def _foreign(directory: Path) -> list[str]:
    """What `save` did not put there; everything, if the directory is another program's."""
    if not directory.is_dir():
        return [directory.name]
    try:
        known = {CONFIG, CARD, INDEX, *json.loads((directory / CONFIG).read_text())["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        known = set()
    return sorted(entry.name for entry in directory.iterdir() if entry.name not in known)


def _shards(sizes: Mapping[str, int], max_bytes: int) -> Iterator[list[str]]:
    names: list[str] = []
    total = 0
    for name, size in sizes.items():
        if names and total + size > max_bytes:
            yield names
            names, total = [], 0
        names.append(name)
        total += size
    yield names


def _save_shard(
    state: Mapping[str, Tensor], path: Path, dtypes: Mapping[str, torch.dtype], room: Tensor
) -> dict[str, Any]:
    """Bytes and sha256 of the file. What is cast for it lies in `room`, so that memory never holds more than that."""
    tensors, used = {}, 0
    for name, weight in state.items():
        dtype = dtypes.get(name, weight.dtype)
        tensors[name] = weight.detach().cpu().contiguous()
        if dtype != weight.dtype:
            _require_range(name, weight, dtype)
            end = used + weight.numel() * dtype.itemsize
            tensors[name] = room[used:end].view(dtype).view(weight.shape).copy_(weight.detach())
            used = end + -end % _ALIGNED
    save_file(tensors, path, metadata={"format": "pt"})  # which transformers asks for
    path.chmod(path.parent.stat().st_mode & 0o666)  # safetensors writes for the owner alone
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _require_range(name: str, weight: Tensor, dtype: torch.dtype) -> None:
    largest = max(abs(edge) for edge in torch.aminmax(weight))
    if largest.isfinite() and largest.to(dtype).isinf():
        raise CheckpointError(f"{name} holds {largest:.4g}, which {dtype} has no number for; take bf16")


def _read_checked(path: Path, facts: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    check_bytes(path, facts, CONFIG)
    return read_safetensors(path)


def read_safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of all that is in a file; memory-mapped, so that nothing is read before it is used.

    Raises:
        CheckpointError: if it is no safetensors file, or was cut.
    """
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (a safetensors handle is not a mapping)
                yield name, file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a safetensors file that can be read: {error}") from error


def check_bytes(path: Path, facts: Mapping[str, Any], stated_by: str) -> None:
    """Refuse a weights file that is not the one whose size and digest were stated, by a file of this name.

    Raises:
        CheckpointError: it is missing, was cut, or was altered.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; copy the whole model directory again")
    size = path.stat().st_size
    if size != facts["bytes"]:
        raise CheckpointError(f"{path} has {size} bytes, {stated_by} says {facts['bytes']}: it was cut; copy it again")
    if _sha256(path) != facts["sha256"]:
        raise CheckpointError(f"{path} was altered: its SHA-256 is not the one in {stated_by}; copy it again")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def card(config: GLMConfig, notes: str = "") -> str:
    """The text of a model card: a table of facts, then the notes."""
    rows = {
        "Parameters": f"{config.num_params:,}",
        "Shape": f"{config.num_layers} x {config.hidden_size}, {config.num_heads} heads, GEGLU {config.ffn_size}",
        "Rotary": config.rotary,
        "Quantization": config.quantization,
        "Objectives": ", ".join(config.objectives),
        "Directions": ", ".join(config.directions),
        "Prompt": "`<gmask><sop><eos>` + residues" if config.prompt_style == "gmask" else "fills `<mask>` only",
        "Control words": " ".join(f"`{word}`" for word in config.control_words) or "none",
        "Licence of the weights": config.licence,
        "Source": config.source or "not stated",
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return f"# Protein GLM\n\n| | |\n| --- | --- |\n{table}\n" + (f"\n{notes.strip()}\n" if notes.strip() else "")
