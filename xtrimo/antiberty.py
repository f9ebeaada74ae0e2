"""AntiBERTy: a BERT of 26 M parameters that learned from 558 M antibody sequences.

Its weights (MIT) ship inside the PyPI package `antiberty`, from which they are read without importing it. A chain is
written `[CLS] R1..Rn [SEP]`; X, B, U, Z and O are [UNK] to it, and it has learned 512 places.

Source: Ruffolo et al. 2021, arXiv:2112.07782.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from xtrimo.errors import CheckpointError, MissingExtraError, SequenceError
from xtrimo.model import Hidden
from xtrimo.transformers_model import TransformersModel, Words, read_config, read_weights

VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"ACDEFGHIKLMNPQRSTVWY")
OTHER_HEADS = ("pooler", "species", "chain", "graft")
"""What its files hold beside the language model: classifiers of a whole chain."""


class AntiBERTy(TransformersModel):
    """AntiBERTy's language model."""

    def embed(self, tokens: Int[Tensor, "token"], positions: Int[Tensor, "token"]) -> Hidden:
        """Words and places, normed.

        Raises:
            SequenceError: more tokens than there are learned places.
        """
        if int(positions.max()) >= self.max_length:
            raise SequenceError(
                f"a chain of {int(positions.max()) + 1} tokens, its two words included; AntiBERTy has learned"
                f" {self.max_length} places: give one variable domain at a time"
            )
        return self.model.bert.embeddings(input_ids=tokens[None], position_ids=positions[None])[0]

    def turn(self, x: Float[Tensor, "1 token dim"], positions: Int[Tensor, "1 token"]) -> None:
        """`embed` has written the places."""
        return None

    def blocks(self) -> nn.ModuleList:
        """The encoder's layers."""
        return self.model.bert.encoder.layer

    def final_norm(self, x: Float[Tensor, "1 token dim"]) -> Float[Tensor, "1 token dim"]:
        """Each layer ends with its norm, so there is no further one."""
        return x

    def head(self, hidden: Hidden) -> Float[Tensor, "token vocab"]:
        """The BERT head, its output tied to the embedding."""
        return self.model.cls(hidden)


def installed() -> Path:
    """The model directory inside the installed package `antiberty`.

    Raises:
        MissingExtraError: if it is not installed.
    """
    spec = find_spec("antiberty")  # finds the package, runs none of it
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        directory = Path(folder) / "trained_models" / "AntiBERTy_md_smooth"
        if directory.is_dir():
            return directory
    raise MissingExtraError("AntiBERTy's weights are inside a PyPI package; run: pip install antiberty==0.1.3")


def load(directory: Path, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> AntiBERTy:
    """Load AntiBERTy's directory, ready for inference (eval mode).

    Args:
        directory: config.json and pytorch_model.bin, which no code in it outlives (`weights_only`); `installed()`
            is one.
        device: where to put it; by default the CPU.
        dtype: cast the weights; by default as stored.

    Raises:
        CheckpointError: unreadable files, or weights that do not fit the config (the first ten).
    """
    from transformers import BertConfig, BertForMaskedLM

    config = read_config(BertConfig, directory)
    if config.vocab_size != len(VOCABULARY):
        raise CheckpointError(
            f"{directory} is a BERT of {config.vocab_size} words; AntiBERTy has {len(VOCABULARY)}, and no other BERT is"
            " read"
        )
    model, has_head = read_weights(BertForMaskedLM, directory, config, head="cls.", ignored=OTHER_HEADS, dtype=dtype)
    for file in (directory / "vocab.txt", directory.parent / "vocab.txt"):  # the package keeps it one folder up
        if file.is_file() and tuple(file.read_text("utf-8").split()) != VOCABULARY:
            raise CheckpointError(f"{file} has other words than AntiBERTy, {' '.join(VOCABULARY)}; no other is read")
    ids = {word: i for i, word in enumerate(VOCABULARY)}
    words = Words.of(ids, first="[CLS]", last="[SEP]", mask="[MASK]", unknown="[UNK]")
    places = config.max_position_embeddings
    return AntiBERTy(model, words, max_length=places, has_head=has_head, learned_places=places).to(device)
