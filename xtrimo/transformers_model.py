"""Encoders of Hugging Face transformers as backbones: what ESM-2, ESM C and AntiBERTy have in common.

The layers are theirs, one by one; the way in between is ours. A packed row goes in as a batch of one, with positions
that restart in each protein. For the scores each layer calls an attention function by name, and the one registered here
hands its heads to the `attend` of the row: no mask is built and nothing is padded. transformers computes everything
else, so a row's states are those of its proteins read by transformers one at a time.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from safetensors import SafetensorError
from torch import Tensor, nn

from xtrimo.attention import Attend
from xtrimo.errors import CheckpointError, MissingExtraError
from xtrimo.model import Hidden, counted_from_start
from xtrimo.objectives import IGNORE, Example
from xtrimo.tokens import AMINO_ACIDS, RESIDUES, encode_residues

try:
    from huggingface_hub.errors import StrictDataclassError
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.models import esmc  # noqa: F401 (which older releases lack)
    from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled
except ImportError as error:
    raise MissingExtraError(
        "ESM-2, ESM C and AntiBERTy are read by transformers 5.23; run: pip install 'xtrimo[esm]'"
    ) from error

ATTENTION = "xtrimo"
"""The name of `_attention` among transformers' attention functions."""
# Heads that answer another question; who loads a backbone asks for none of them.
OTHER_HEADS = ("contact_head", "pooler", "classifier", "qa_outputs")
# Of a config.json: who wrote it, and what the weights say themselves.
_SAYS_NOTHING = ("transformers_version", "architectures", "dtype", "torch_dtype", "use_cache")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Words:
    """How a model of another vocabulary writes a protein: `first R1..Rn last`."""

    residues: UInt8[np.ndarray, "residue"]
    """Its token id of each of our residues, by our token id; a letter it lacks is its unknown word."""
    first: int
    """Token id of the word that opens a protein and was trained to stand for it."""
    last: int
    """Token id of the word that closes it."""
    mask: int
    """Token id of the mask."""
    unknown: int
    """Token id of the unknown word."""

    @classmethod
    def of(cls, ids: Mapping[str, int], *, first: str, last: str, mask: str, unknown: str) -> "Words":
        """From a vocabulary.

        Raises:
            CheckpointError: a vocabulary without one of these words or one of the 20 amino acids.
        """
        missing = [word for word in (first, last, mask, unknown, *AMINO_ACIDS) if word not in ids]
        if missing:
            raise CheckpointError(f"the vocabulary has {len(ids)} words, but none of these: {' '.join(missing[:10])}")
        of_residues = [ids[unknown], *(ids.get(letter, ids[unknown]) for letter in RESIDUES)]  # ours count from 1
        if max(of_residues) > 255:
            raise CheckpointError(f"a residue has token id {max(of_residues)}; a protein vocabulary ends before 256")
        return cls(
            residues=np.array(of_residues, dtype=np.uint8), first=ids[first], last=ids[last], mask=ids[mask],
            unknown=ids[unknown],
        )  # fmt: skip

    def write(self, sequence: str, name: str) -> Example:
        """The protein with positions 0, 1, ... from its opening word, all seen by all.

        Raises:
            SequenceError: an empty sequence or unknown letter, naming `name`.
        """
        residues = self.residues[encode_residues(sequence, name=name)]
        tokens = np.concatenate(([self.first], residues, [self.last])).astype(np.uint8)
        positions = np.zeros((len(tokens), 2), dtype=np.int32)
        positions[:, 0] = np.arange(len(tokens))
        return Example("mlm", tokens, positions, np.full_like(tokens, IGNORE), prefix=len(tokens))


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, *, scaling: float, attend: Attend,
    layer: int, **_: object,
) -> tuple[Float[Tensor, "1 token head width"], None]:  # fmt: skip
    """transformers' interface on one side, ours on the other; query, key, value are (1, head, token, width)."""
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    width = q.shape[-1]
    if scaling != width**-0.5:  # `attend` divides by sqrt(width); ESM-2 has divided its queries before their rotation
        q = q * (scaling * width**0.5)
    return attend(layer, q, k, v)[None], None


class TransformersModel(nn.Module):
    """A masked language model of transformers that reads packed rows; a family fills in the methods that raise.

    Args:
        model: in eval mode, loaded by `read_weights`.
        words: how it writes a protein.
        max_length: tokens of the longest row it was trained on.
        has_head: whether its files hold the language model head, without which there are no `logits`.
        learned_places: tokens of the longest protein it can read; None where positions are computed.
    """

    def __init__(
        self, model: Any, words: Words, *, max_length: int, has_head: bool = True, learned_places: int | None = None
    ) -> None:
        super().__init__()
        self.model, self.words, self.max_length, self.has_head = model, words, max_length, has_head
        self.learned_places = learned_places
        self.eval()

    def embed(self, tokens: Int[Tensor, "token"], positions: Int[Tensor, "token"]) -> Hidden:
        """What the first block reads."""
        raise NotImplementedError

    def turn(self, x: Float[Tensor, "1 token dim"], positions: Int[Tensor, "1 token"]) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines of the rotary positions; None where `embed` has written the positions."""
        raise NotImplementedError

    def blocks(self) -> nn.ModuleList:
        """The transformer blocks, in order."""
        raise NotImplementedError

    def final_norm(self, x: Float[Tensor, "1 token dim"]) -> Float[Tensor, "1 token dim"]:
        """From the last block's output to what the head reads."""
        raise NotImplementedError

    def head(self, hidden: Hidden) -> Float[Tensor, "token vocab"]:
        """The language model head."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of weights and activations."""
        return next(self.parameters()).dtype

    @property
    def width(self) -> int:
        """Numbers in the state of one token."""
        return int(self.model.config.hidden_size)

    @property
    def num_layers(self) -> int:
        """Blocks."""
        return len(self.blocks())

    @property
    def num_heads(self) -> int:
        """Attention heads of a block."""
        return int(self.model.config.num_attention_heads)

    @property
    def words_around(self) -> tuple[int, int]:
        """The opening and the closing word."""
        return 1, 1

    @property
    def cls(self) -> int:
        """The opening word."""
        return 0

    @property
    def mask(self) -> int:
        """Token id of the mask."""
        return self.words.mask

    @property
    def facts(self) -> dict[str, Any]:
        """What its configuration says that is not the default, and its words."""
        config, words = self.model.config.to_diff_dict(), self.words
        own = {name: value for name, value in config.items() if name not in _SAYS_NOTHING and name[0] != "_"}
        ids = {name: getattr(words, name) for name in ("first", "last", "mask")}
        return {**own, "max_length": self.max_length, "residues": words.residues.tolist(), **ids}

    @property
    def unknown(self) -> int:
        """Token id of the word for residues it has no word for."""
        return self.words.unknown

    def tokenize(self, sequence: str, *, name: str = "sequence") -> Example:
        """The protein between its opening and its closing word.

        Raises:
            SequenceError: an empty sequence or unknown letter, naming `name`.
        """
        return self.words.write(sequence, name)

    def hidden(
        self,
        tokens: Int[Tensor, "token"],
        positions: Int[Tensor, "token 2"],
        attend: Attend,
        *,
        layers: tuple[int, ...] = (-1,),
    ) -> list[Hidden]:
        """Hidden states after the asked layers, in that order; see `Backbone.hidden`.

        Raises:
            ConfigError: a layer it does not have.
        """
        blocks = self.blocks()
        wanted = counted_from_start(layers, len(blocks))
        places = positions[:, 0]
        x = self.embed(tokens, places)[None]
        turn = self.turn(x, places[None])
        states = {0: x[0]}
        for layer, block in enumerate(blocks):
            x = block(x, position_embeddings=turn, attend=attend, layer=layer)
            if layer + 1 in wanted:
                states[layer + 1] = x[0]
        states[len(blocks)] = self.final_norm(x)[0]
        return [states[i] for i in wanted]

    def logits(self, hidden: Hidden) -> Float[Tensor, "token vocab"]:
        """A score for each word of its vocabulary, from final states.

        Raises:
            CheckpointError: if the files it was loaded from hold no language model head.
        """
        if not self.has_head:
            raise CheckpointError(
                "these weights have no language model head, so nothing can be predicted or scored; embeddings work."
                " Take a directory that holds the whole masked language model"
            )
        return self.head(hidden)


def read_config(config_class: Any, directory: Path) -> Any:
    """The config of a model directory.

    Raises:
        CheckpointError: if there is none, or none that its class accepts.
    """
    try:
        return config_class.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, TypeError, StrictDataclassError) as error:
        raise CheckpointError(f"{directory} has no config.json that can be read: {error}") from error


def read_weights(
    model_class: Any,
    source: Path,
    config: Any,
    *,
    head: str,
    state: Mapping[str, Tensor] | None = None,
    ignored: tuple[str, ...] = OTHER_HEADS,
    dtype: torch.dtype | None = None,
) -> tuple[Any, bool]:
    """A model of transformers with the weights of `source`, and whether these hold its language model head.

    From safetensors or, without code in it, from a torch pickle (`weights_only`); nothing is downloaded.

    Args:
        model_class: a ...ForMaskedLM.
        source: model directory; with `state`, only named in errors.
        head: how the names of the head's weights begin.
        state: weights by transformers' names, in place of the directory's files.
        ignored: parts of a name that may be missing, or there for nothing.
        dtype: cast the weights; by default as stored.

    Raises:
        CheckpointError: no weights, unreadable ones, or ones that do not fit the config (the first ten).
    """
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attention)
    where = {"pretrained_model_name_or_path": source} if state is None else {"pretrained_model_name_or_path": None}
    try:
        with quiet():
            model, report = model_class.from_pretrained(
                **where, config=config, state_dict=state, dtype=dtype or "auto", local_files_only=True,
                attn_implementation=ATTENTION, output_loading_info=True, ignore_mismatched_sizes=True,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError, UnpicklingError, SafetensorError) as error:
        raise CheckpointError(f"{source}: the weights cannot be read: {error}") from error
    missing, has_head = _without_head(model, head, report["missing_keys"])
    wrong = [f"missing {name}" for name in sorted(missing) if not _part_of(name, ignored)]
    wrong += [f"unexpected {name}" for name in sorted(report["unexpected_keys"]) if not _part_of(name, ignored)]
    wrong += [
        f"{name} has shape {tuple(found)}, the config says {tuple(expected)}"
        for name, found, expected in sorted(report["mismatched_keys"])
    ]
    if wrong:
        raise CheckpointError(f"{source}: the weights do not fit the config: " + "; ".join(wrong[:10]))
    return model.eval(), has_head


def _part_of(name: str, modules: Sequence[str]) -> bool:
    return any(module in name.split(".") for module in modules)


def _without_head(model: Any, head: str, missing: set[str]) -> tuple[set[str], bool]:
    """The missing names but for a head that is missing as a whole; whether it is there."""
    tied = model.all_tied_weights_keys  # they come from elsewhere, so transformers does not miss them
    own = {name for name in model.state_dict() if name.startswith(head) and name not in tied}
    return (missing - own, False) if own <= missing else (missing, True)


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bar and table of names: what they say is in our error."""
    logger = logging.getLogger("transformers")
    level, shows_bar = logger.level, is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if shows_bar:
            enable_progress_bar()
