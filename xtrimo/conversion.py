"""The verb `convert`: a model directory in another layout, precision or size of shards; every number stays as it is.

Weights are mapped from their files and written as they are, so that memory holds none of them; those that are cast, a
shard at a time. The copy gets its name only after its own loader has read it back as the same model: the same config,
and weights of the same digest. Until then it is a hidden folder, which the next attempt clears away.

The digest of a model's weights does not depend on the layout: the SHA-256 of a line for each weight, in the order of
their names, `name dtype shape sha256-of-its-bytes`, all under our names.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor
from tyro.conf import Positional

from xtrimo import backbone, checkpoint, hub
from xtrimo.answer import give
from xtrimo.checkpoint import CARD, CONFIG, Stated, card, read_stated, save_weights
from xtrimo.command import counting
from xtrimo.config import GLMConfig
from xtrimo.durable import sync
from xtrimo.errors import CheckpointError, ConfigError, XtrimoError
from xtrimo.layouts import find_layout
from xtrimo.model import GLM
from xtrimo.published import STATED

logger = logging.getLogger(__name__)

Target = Literal["xtrimo", "proteinglm", "hf"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
TEXTS_BYTES = 10**6  # more than config, card and index take


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvertOptions:
    """Write a model directory anew: in another layout, another precision, or other shards. The numbers stay as they
    are, unless --dtype casts them."""

    model: Positional[str]
    """Model directory of a GLM, ours or published; or its name on the Hugging Face Hub."""
    out: Positional[Path]
    """Directory of the copy, which must not be there yet."""
    to: Target = "xtrimo"
    """Layout: xtrimo, ours; proteinglm, as the published code reads it; hf, as Hugging Face transformers do."""
    dtype: Literal["fp32", "bf16", "fp16"] | None = None
    """Cast the weights that are not quantized; by default as stored."""
    shard_size: str = "5GB"
    """Most bytes of a weights file, such as 500MB; GB are 10^9."""


class Source(NamedTuple):
    """A model to be written, and what goes along with it."""

    state: Mapping[str, Tensor]
    """Weights under our names."""
    packed: frozenset[str]
    """Those that keep their dtype: numbers and scales of quantized weights."""
    config: GLMConfig
    notes: str = ""
    """Of its card."""
    weights_sha256: str | None = None
    quantized: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, model: GLM, **facts: Any) -> "Source":
        """A model in memory."""
        packed = frozenset(name for name, _ in model.named_buffers())
        return cls(state=model.state_dict(), packed=packed, config=model.config, **facts)


def convert(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    to: str = "xtrimo",
    dtype: torch.dtype | None = None,
    max_bytes: int = checkpoint.MAX_SHARD_BYTES,
) -> Stated:
    """Write the model directory `model` anew at `out`; what the copy states of itself.

    Args:
        to: a row of layouts.LAYOUTS.
        dtype: cast the weights that are not quantized.
        max_bytes: of a weights file, unless one tensor is larger.

    Raises:
        CheckpointError: no such model, a damaged one, or one that is no GLM.
        ConfigError: `out` is there, or the layout cannot hold the model.
        XtrimoError: no room on the disk.
    """
    return write_model(read_source(model), Path(out), to=to, dtype=dtype, max_bytes=max_bytes)


def read_source(model: str | os.PathLike[str]) -> Source:
    """A model directory, with what it says of itself; its weights stay in their files.

    Raises:
        CheckpointError: there is none, it is damaged, or of another kind than a GLM.
    """
    directory = backbone.find(model)
    loaded = backbone.load(directory)
    if not isinstance(loaded, GLM):
        raise CheckpointError(f"{model} is no GLM but a {type(loaded).__name__}: another network, which stays as it is")
    content = json.loads((directory / CONFIG).read_text("utf-8"))
    path = directory / (CONFIG if "format" in content else STATED)
    facts = read_stated(path)._asdict() if path.is_file() else {}
    kept = {name: facts.get(name) for name in ("weights_sha256", "quantized")}
    return Source.of(loaded, notes=_notes(directory, loaded.config), **kept)


def _notes(directory: Path, config: GLMConfig) -> str:
    """What a card says below our table of facts; all of it, if it is another's."""
    path = next((directory / name for name in (CARD, "README.md") if (directory / name).is_file()), None)
    text = hub.without_head(path.read_text("utf-8", errors="replace")) if path else ""
    return text.removeprefix(card(config)).strip()


def write_model(
    source: Source,
    out: Path,
    *,
    to: str = "xtrimo",
    dtype: torch.dtype | None = None,
    max_bytes: int = checkpoint.MAX_SHARD_BYTES,
) -> Stated:
    """Write a model as a directory, read it back, and give it its name; as `convert`."""
    layout, config = find_layout(to), source.config
    layout.check(config)
    dtypes = {name: _stored(name, source, dtype) for name in source.state}
    check_place(out, sum(weight.numel() * dtypes[name].itemsize for name, weight in source.state.items()))
    if source.weights_sha256 and digest_of(source.state) != source.weights_sha256:
        raise CheckpointError(f"these weights are not those that were stated, {source.weights_sha256}; copy them again")
    if unsaid := layout.unsaid(config):
        logger.info("goes along in %s, and %s's own programs know nothing of it: %s", STATED, to, ", ".join(unsaid))
    theirs, main_dtype = layout.names(config), dtypes["output.weight"]
    state = {theirs[name]: weight for name, weight in source.state.items()} | {**layout.extras(config, main_dtype)}
    digest = digest_of(source.state, dtypes)
    with appearing(out) as work:
        cast = {theirs[name]: kept for name, kept in dtypes.items()}
        files = save_weights(state, work, max_bytes=max_bytes, dtypes=cast)
        stated = Stated(config, files, digest, source.quantized)
        layout.describe(work, stated, main_dtype, source.notes)
        _read_back(work, stated)
    return stated


def _stored(name: str, source: Source, dtype: torch.dtype | None) -> torch.dtype:
    """What a weight is written as."""
    own = source.state[name].dtype
    return own if dtype is None or name in source.packed else dtype


def _read_back(work: Path, stated: Stated) -> None:
    again = backbone.load(work)
    if not isinstance(again, GLM) or again.config != stated.config:
        raise CheckpointError("the copy was read back as another model; this is our own bug, please report it")
    if digest_of(again.state_dict()) != stated.weights_sha256:
        raise CheckpointError("the copy was read back with other weights: the disk may be failing; try another")


def digest_of(state: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype] | None = None) -> str:
    """A digest of weights under our names, cast to `dtypes` where given; see the module's definition."""
    lines = []
    with counting("reading weights", sum(weight.nbytes for weight in state.values()), "bytes") as count:
        for name in sorted(state):
            weight = state[name].detach().to((dtypes or {}).get(name, state[name].dtype)).cpu().contiguous()
            own = hashlib.sha256(weight.flatten().view(torch.uint8).numpy().data).hexdigest()
            shape = "x".join(map(str, weight.shape))
            lines.append(f"{name} {str(weight.dtype).removeprefix('torch.')} {shape} {own}\n")
            count(state[name].nbytes)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_place(out: Path, num_bytes: int) -> None:
    """Refuse, before any work, an output that is there, or a disk that has no room for it.

    Raises:
        ConfigError: one of both.
    """
    if out.exists() or out.is_symlink():
        raise ConfigError(f"{out} is there already; choose another path, or remove it")
    disk = next(parent for parent in out.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(disk).free
    if free < num_bytes + TEXTS_BYTES:
        raise ConfigError(
            f"{out} takes {num_bytes + TEXTS_BYTES:,} bytes, and {disk} has {free:,} free; make room there"
        )


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """A hidden folder to fill, which becomes `out` when the block ends well; one left by a kill is cleared first.

    Raises:
        ConfigError: another process is writing the same.
        XtrimoError: it cannot be written.
    """
    work = out.absolute().with_name(f".{out.name}.unfinished")
    try:
        work.mkdir(parents=True, exist_ok=True)
        handle = os.open(work, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
            for left in work.iterdir():
                left.unlink()
            try:
                yield work
                for path in (*work.iterdir(), work):
                    sync(path)
                work.rename(out.absolute())
                sync(work.parent)
            except BaseException:
                shutil.rmtree(work, ignore_errors=True)
                raise
        finally:
            os.close(handle)
    except BlockingIOError as error:
        raise ConfigError(f"{out} is being written by another process; wait for it, or choose another path") from error
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise XtrimoError(f"{out} cannot be written ({reason}); nothing of it was kept") from error


def parse_size(text: str) -> int:
    """Bytes of a size such as 500MB.

    Raises:
        ConfigError: it is none.

    >>> parse_size("5GB"), parse_size("1.5 kB")
    (5000000000, 1500)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B", text.strip(), re.IGNORECASE)
    num_bytes = int(float(match[1]) * UNITS[match[2].upper()]) if match else 0
    if num_bytes < 1:
        raise ConfigError(f"shard_size is {text!r}; expected a size such as 5GB, 500MB or 80kB")
    return num_bytes


def written(stated: Stated, directory: Path) -> dict[str, str | int]:
    """What was written, by name."""
    sizes = [facts["bytes"] for facts in stated.files.values()]
    return {
        "directory": str(directory),
        "licence": stated.config.licence,
        "bytes": sum(sizes),
        "files": len(sizes),
        "weights_sha256": str(stated.weights_sha256),
    }


def told(stated: Stated, directory: Path) -> str:
    """What was written, a line each."""
    facts = written(stated, directory)
    rows = {
        "directory": facts["directory"],
        "licence": facts["licence"],
        "weights": f"{facts['bytes']:,} bytes in {facts['files']} file(s)",
        "weights_sha256": facts["weights_sha256"],
    }
    return "\n".join(f"{name:<14}  {value}" for name, value in rows.items())


def main(args: Sequence[str] | None = None) -> None:
    """`xtrimo convert`."""
    import tyro

    options = tyro.cli(ConvertOptions, prog="xtrimo convert", args=args)
    max_bytes = parse_size(options.shard_size)
    check_place(options.out, 0)  # before a model is fetched
    dtype = options.dtype and DTYPES[options.dtype]
    stated = convert(options.model, options.out, to=options.to, dtype=dtype, max_bytes=max_bytes)
    give(written(stated, options.out), told(stated, options.out))
