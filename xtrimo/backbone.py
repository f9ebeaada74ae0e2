"""Any protein language model, as embedding, scoring, heads and folding see it; and `load`, which finds out which it is.

A backbone writes a protein in its own words (`tokenize`) and reads packed rows (`hidden`): proteins back to back, with
no padding, where only the `attend` it is handed knows where one ends. So all of them share packing, batching, windows
and attention maps, and give one protein the same states whatever it is read with.
"""

import os
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from xtrimo.attention import Attend
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


def load(
    path_or_name: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Backbone:
    """Load a model, ready for inference (eval mode); what it is, its files say.

    Args:
        path_or_name: a model directory.
        device: where to put it; by default the CPU.
        dtype: cast the weights; by default as stored.

    Raises:
        CheckpointError: no model there, a missing, truncated or altered file, or weights that do not fit the config.
    """
    from xtrimo.checkpoint import load as load_glm

    return load_glm(path_or_name, device=device, dtype=dtype)
