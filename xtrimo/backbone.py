"""Any protein language model, as embedding, scoring, heads and folding see it; and `load`, which finds out which it is.

A backbone writes a protein in its own words (`tokenize`) and reads packed rows (`hidden`): proteins back to back, with
no padding, where only the `attend` it is handed knows where one ends. So all of them share packing, batching, windows
and attention maps, and give one protein the same states whatever it is read with.
"""

import importlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from xtrimo import hub, published
from xtrimo.attention import Attend, Heads, shares
from xtrimo.errors import CheckpointError, SequenceError
from xtrimo.model import Hidden
from xtrimo.objectives import Example


@runtime_checkable
class Backbone(Protocol):
    """A protein language model. Ours is `GLM`; others stand behind adapters that are `torch.nn.Module`s as well."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    @property
    def dtype(self) -> torch.dtype:
        """Precision of weights and activations."""

    @property
    def width(self) -> int:
        """Numbers in the state of one residue."""

    @property
    def num_layers(self) -> int:
        """Transformer blocks."""

    @property
    def num_heads(self) -> int:
        """Attention heads of a block."""

    @property
    def max_length(self) -> int:
        """Tokens of the longest row it was trained on, its own words included."""

    @property
    def words_around(self) -> tuple[int, int]:
        """How many words of its own `tokenize` writes before the first residue and after the last."""

    @property
    def cls(self) -> int | None:
        """Place of the word trained to stand for the whole protein; None where there is none."""

    @property
    def mask(self) -> int | None:
        """Token id it was trained to replace by a residue; None where it was not."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """All that its states follow from beside its weights, as for JSON: shape, epsilons, words."""

    def tokenize(self, sequence: str, *, name: str = "sequence") -> Example:
        """The protein as this model reads it, nothing masked and nothing asked.

        Raises:
            SequenceError: an empty sequence or unknown letter, naming `name`.
        """

    def hidden(
        self,
        tokens: Int[Tensor, "token"],
        positions: Int[Tensor, "token 2"],
        attend: Attend,
        *,
        layers: tuple[int, ...] = (-1,),
    ) -> list[Hidden]:
        """States of a packed row after the asked layers: 0 is the embedding, i the output of block i, -1 the last one
        after the final norm, which is what `logits` reads."""

    def logits(self, hidden: Hidden) -> Float[Tensor, "token vocab"]:
        """What the model makes of final states: a score for each of its words."""

    def state_dict(self) -> Mapping[str, Any]:
        """Its weights by name."""


@runtime_checkable
class Limited(Protocol):
    """What a backbone says beside that cannot read every protein; a GLM has a word for each residue, and any place."""

    @property
    def unknown(self) -> int:
        """Token id of the word that stands for all residues it has no word for."""

    @property
    def learned_places(self) -> int | None:
        """Tokens of the longest protein it can read, words around included; None where positions are computed."""


def refuse_beyond_places(model: Backbone, length: int, *, name: str) -> None:
    """For readers of whole proteins, of `length` residues.

    Raises:
        SequenceError: more than the places that the model has learned; names `name`.
    """
    places = model.learned_places if isinstance(model, Limited) else None
    around = sum(model.words_around)
    if places is not None and length + around > places:
        raise SequenceError(
            f"{name}: {length:,} residues, and {around} words around them, where this model has learned {places:,}"
            " places; cut it (an antibody into its variable domains), drop it, or take a model without learned places"
        )


class Kind(NamedTuple):
    """A sort of model directory: how its config.json gives it away, and what loads it."""

    name: str
    claims: Callable[[Mapping[str, Any]], bool]
    loader: str
    """module:function, called as load(directory, device=, dtype=); imported only when asked for."""
    licence: str | None = None
    """Of the weights of every model of the kind; None where a directory has to say it."""


KINDS = (
    Kind("xtrimo", lambda content: "format" in content, "xtrimo.checkpoint:load"),
    Kind("ProteinGLM", published.is_published, "xtrimo.published:load"),
    Kind("Hugging Face", lambda content: content.get("model_type") == "xtrimo", "xtrimo.huggingface_files:load"),
    Kind("ESM-2", lambda content: content.get("model_type") == "esm", "xtrimo.esm:load"),
    Kind("ESM C", lambda content: content.get("model_type") == "esmc", "xtrimo.esm:load"),
    Kind(
        "AntiBERTy", lambda content: "AntiBERTy" in (content.get("architectures") or ()), "xtrimo.antiberty:load", "MIT"
    ),
)
FAIR_FILE = "xtrimo.esm:load_fair"
PACKAGED = {"antiberty": "xtrimo.antiberty:installed"}
"""A bare word -> what finds the model directory that an installed package brings along."""


def load(
    path_or_name: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Backbone:
    """Load a model, ready for inference (eval mode); what it is, its files say.

    Args:
        path_or_name: a model directory, ours or a published one; a fair-esm file *.pt; a name on the Hugging Face Hub,
            org/name or org/name@revision; or antiberty, for the weights that come with that package.
        device: where to put it; by default the CPU.
        dtype: cast the weights; by default as stored.

    Raises:
        CheckpointError: no model there, a kind that is not known, a missing, truncated or altered file, or weights
            that do not fit the config.
    """
    place = find(path_or_name)
    loader = _function(_loader(place) if place.is_dir() else FAIR_FILE)
    model: Backbone = loader(place, device=device, dtype=dtype)
    return model


def find(path_or_name: str | os.PathLike[str]) -> Path:
    """Where a model is: the directory or file itself, or what its name stands for, downloaded if need be.

    Raises:
        CheckpointError: there is nothing of that name, or only a file that is no model.
    """
    path, text = Path(path_or_name), os.fspath(path_or_name)
    if path.is_dir() or (path.is_file() and path.suffix == ".pt"):
        return path
    if path.is_file():
        raise CheckpointError(f"{path} is a file; expected the directory of a model, or a fair-esm file *.pt")
    if text in PACKAGED:
        return Path(_function(PACKAGED[text])())
    if hub.is_name(text):
        return hub.download(text)
    raise CheckpointError(
        f"{text} is not a model directory: there is nothing. Nor is it a name on the Hugging Face Hub (org/name or"
        f" org/name@revision) or one of {', '.join(PACKAGED)}"
    )


def kind_of(content: Mapping[str, Any]) -> Kind | None:
    """The kind of model that a config.json is of, if it is one of KINDS."""
    return next((kind for kind in KINDS if kind.claims(content)), None)


def _loader(directory: Path) -> str:
    try:
        content = json.loads((directory / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return KINDS[0].loader  # which says what is wrong
    is_foreign = isinstance(content, dict) and ("model_type" in content or "architectures" in content)
    if not is_foreign:
        return KINDS[0].loader
    if kind := kind_of(content):
        return kind.loader
    raise CheckpointError(
        f"{directory}/config.json is of model_type {content.get('model_type')!r}, classes"
        f" {content.get('architectures')!r}; known kinds are {', '.join(kind.name for kind in KINDS)}"
    )


def _function(target: str) -> Callable[..., Any]:
    module, _, name = target.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def attentions(
    model: Backbone, sequence: str, *, name: str = "sequence"
) -> Float32[np.ndarray, "layer head length length"]:
    """How much each residue looks at each other: softmax(q k^T / sqrt(width)) of every head of every block.

    What goes to the model's own words is left out, so a row adds up to less than 1; a model that reads from left to
    right has zeros right of the diagonal. This forms what `attention.attend` never does, 4 bytes x layers x heads x
    length^2.

    Args:
        sequence: one protein.
        name: for errors.

    Raises:
        SequenceError: an empty sequence or unknown letter, or more than the places that a model has learned.
    """
    example = model.tokenize(sequence, name=name)
    first, last = model.words_around
    residues = slice(first, len(example.tokens) - last)
    length = residues.stop - first  # a final * of `sequence` is none
    refuse_beyond_places(model, length, name=name)
    maps = np.empty((model.num_layers, model.num_heads, length, length), dtype=np.float32)

    def attend(layer: int, q: Heads, k: Heads, v: Heads) -> Heads:
        seen = shares(q, k, example.prefix)
        maps[layer] = seen[:, residues, residues].cpu().numpy()
        return torch.einsum("hqk,khw->qhw", seen.to(v.dtype), v)

    tokens, positions = (torch.from_numpy(x).to(model.device).long() for x in (example.tokens, example.positions))
    with torch.inference_mode():
        model.hidden(tokens, positions, attend)
    return maps
