"""ESM-2, its relatives of the same layers (ESM-1b, ESM-1v), and ESM C: from Hugging Face directories or a .pt file.

A protein is written `<cls> R1..Rn <eos>`. Three things differ from a GLM's row, and all are exact here:

    ESM-2 zeroes the embedding of <mask>, and scales what is left of a protein by (1 - 0.12) / (1 - its masked share),
        the share that training had; in a packed row each protein has its own share
    ESM-1b and ESM-1v add a learned embedding of the place, which ends at 1,024 tokens
    ESM C counts its positions on through the chains of one input; here each protein is an input

fair-esm's `.pt` files are pickles: they are opened by torch's restricted unpickler, which knows tensors, plain
containers and argparse.Namespace, and runs nothing.

Sources: Rives et al. 2021, Lin et al. 2023 (ESM-2), ESM Team 2024 (ESM C).
"""

import argparse
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from xtrimo.errors import CheckpointError, SequenceError
from xtrimo.model import Hidden
from xtrimo.tokens import RESIDUES
from xtrimo.transformers_model import TransformersModel, Words, read_config, read_weights

VOCABULARY = ("<cls>", "<pad>", "<eos>", "<unk>", *RESIDUES, ".", "-", "<null_1>", "<mask>")
"""The 33 words of ESM-1b and ESM-2; ESM C has "|", which no protein holds, in the place of "<null_1>"."""
MASKED_IN_TRAINING = 0.15 * 0.8
"""Share of a protein that training replaced by <mask>, for every ESM that scales its embeddings."""
UNUSED_PLACES = 2
"""`max_position_embeddings` counts the padding word's place, 1, and the one before, as RoBERTa has it."""

# fair-esm's names -> those of transformers; a layer's follow `layers.N.`.
_FAIR_PREFIXES = ("encoder.sentence_encoder.", "encoder.")
_FAIR_NAMES = {
    "embed_tokens": "esm.embeddings.word_embeddings",
    "emb_layer_norm_after": "esm.encoder.emb_layer_norm_after",
    "contact_head.regression": "esm.contact_head.regression",
    "lm_head.dense": "lm_head.dense",
    "lm_head.layer_norm": "lm_head.layer_norm",
    "lm_head": "lm_head",
}
_FAIR_LAYER_NAMES = {
    "self_attn_layer_norm": "attention.LayerNorm",
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.rot_emb": "attention.self.rotary_embeddings",
    "self_attn.out_proj": "attention.output.dense",
    "final_layer_norm": "LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
}


class ESM2(TransformersModel):
    """ESM-2, ESM-1b or ESM-1v."""

    def embed(self, tokens: Int[Tensor, "token"], positions: Int[Tensor, "token"]) -> Hidden:
        """Rows of the embedding, masked ones zeroed and each protein scaled, places added where they are learned.

        Raises:
            SequenceError: more tokens than there are learned places.
        """
        config, embeddings = self.model.config, self.model.esm.embeddings
        x = embeddings.word_embeddings(tokens)
        if config.token_dropout:
            is_mask = tokens == self.words.mask
            scale = (1 - MASKED_IN_TRAINING) / (1 - _share_of_protein(is_mask, positions))
            x = (x.masked_fill(is_mask[:, None], 0.0) * scale[:, None]).to(x.dtype)
        if config.position_embedding_type == "absolute":
            if int(positions.max()) >= self.max_length:
                raise SequenceError(
                    f"a protein of {int(positions.max()) + 1} tokens, its two words included; this model has learned"
                    f" {self.max_length} places: cut it, or take ESM-2"
                )
            x = x + embeddings.position_embeddings(positions + UNUSED_PLACES)
        return x if embeddings.layer_norm is None else embeddings.layer_norm(x)

    def turn(self, x: Float[Tensor, "1 token dim"], positions: Int[Tensor, "1 token"]) -> tuple[Tensor, Tensor] | None:
        """Rotary positions; None for ESM-1b and ESM-1v."""
        rotary = self.model.esm.rotary_embeddings
        return None if rotary is None else rotary(x, positions)

    def blocks(self) -> nn.ModuleList:
        """The encoder's layers."""
        return self.model.esm.encoder.layer

    def final_norm(self, x: Float[Tensor, "1 token dim"]) -> Float[Tensor, "1 token dim"]:
        """The norm after the last layer."""
        return self.model.esm.encoder.emb_layer_norm_after(x)

    def head(self, hidden: Hidden) -> Float[Tensor, "token vocab"]:
        """The RoBERTa head, its output tied to the embedding."""
        return self.model.lm_head(hidden)


class ESMC(TransformersModel):
    """ESM C. Its logits have 64 rows, of which the last 31 are no word."""

    def embed(self, tokens: Int[Tensor, "token"], positions: Int[Tensor, "token"]) -> Hidden:
        """Rows of the embedding."""
        return self.model.esmc.embed_tokens(tokens)

    def turn(self, x: Float[Tensor, "1 token dim"], positions: Int[Tensor, "1 token"]) -> tuple[Tensor, Tensor]:
        """Rotary positions."""
        return self.model.esmc.rotary_emb(x, positions)

    def blocks(self) -> nn.ModuleList:
        """The layers."""
        return self.model.esmc.layers

    def final_norm(self, x: Float[Tensor, "1 token dim"]) -> Float[Tensor, "1 token dim"]:
        """The norm after the last layer."""
        return self.model.esmc.norm(x)

    def head(self, hidden: Hidden) -> Float[Tensor, "token vocab"]:
        """Dense, gelu, norm, output."""
        return self.model.lm_head(hidden)


def _share_of_protein(is_mask: Tensor, positions: Int[Tensor, "token"]) -> Float[Tensor, "token"]:
    """For each token the masked share of its own protein, words included; a protein begins where positions restart.

    >>> _share_of_protein(torch.tensor([0, 1, 0, 0, 0, 1]) > 0, torch.tensor([0, 1, 2, 3, 0, 1]))
    tensor([0.2500, 0.2500, 0.2500, 0.2500, 0.5000, 0.5000])
    """
    restarts = torch.zeros_like(positions)
    restarts[1:] = positions[1:] <= positions[:-1]
    protein = restarts.cumsum(0)
    masked = torch.zeros(len(positions), device=positions.device).index_add_(0, protein, is_mask.float())
    total = torch.zeros_like(masked).index_add_(0, protein, torch.ones_like(masked))
    return (masked / total.clamp(min=1))[protein]


def load(directory: Path, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> ESM2 | ESMC:
    """Load a Hugging Face directory of model_type "esm" or "esmc", ready for inference (eval mode).

    A directory without a language model head loads and embeds; asking it for logits is an error.

    Args:
        directory: config.json and safetensors or .bin files; vocab.txt or tokenizer.json if its words are others.
        device: where to put it; by default the CPU.
        dtype: cast the weights; by default as stored.

    Raises:
        CheckpointError: another model, unreadable files, or weights that do not fit the config (the first ten).
    """
    from transformers import EsmcConfig, EsmcForMaskedLM, EsmConfig

    try:
        model_type = json.loads((directory / "config.json").read_text("utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{directory} has no config.json that can be read: {error}") from error
    if model_type == "esmc":
        config = read_config(EsmcConfig, directory)
        model, has_head = read_weights(EsmcForMaskedLM, directory, config, head="lm_head.", dtype=dtype)
        words = _words(_vocabulary(directory), config, directory)
        max_length = config.max_position_embeddings
        return ESMC(model, words, max_length=max_length, has_head=has_head).to(device)
    if model_type != "esm":
        raise CheckpointError(f'{directory} is of model_type {model_type!r}; this reads "esm" and "esmc"')
    config = read_config(EsmConfig, directory)
    _check(config, directory)
    return _esm2(directory, config, device=device, dtype=dtype)


def load_inside(
    directory: Path, config: Any, state: Mapping[str, Tensor], *, device: str | torch.device | None = None
) -> ESM2:
    """The ESM-2 inside a larger model, such as ESMFold, in fp32.

    Args:
        directory: of the larger model, for its words and for errors.
        config: transformers' EsmConfig.
        state: the weights of its `EsmModel`.

    Raises:
        CheckpointError: as `load`.
    """
    named = {f"esm.{name}": weight for name, weight in state.items()}
    return _esm2(directory, config, state=named, device=device, dtype=torch.float32)


def _esm2(
    directory: Path,
    config: Any,
    *,
    state: Mapping[str, Tensor] | None = None,
    device: str | torch.device | None,
    dtype: torch.dtype | None,
) -> ESM2:
    from transformers import EsmForMaskedLM

    model, has_head = read_weights(EsmForMaskedLM, directory, config, head="lm_head.", state=state, dtype=dtype)
    words = _words(_vocabulary(directory), config, directory)
    max_length = config.max_position_embeddings - UNUSED_PLACES
    places = max_length if config.position_embedding_type == "absolute" else None
    return ESM2(model, words, max_length=max_length, has_head=has_head, learned_places=places).to(device)


def _check(config: Any, directory: Path) -> None:
    if config.is_folding_model:
        raise CheckpointError(f"{directory} holds ESMFold; take the directory of the ESM-2 that it was built on")
    if config.is_decoder or config.add_cross_attention:
        raise CheckpointError(f"{directory} holds a decoder (is_decoder, add_cross_attention); expected an encoder")
    if config.position_embedding_type not in ("rotary", "absolute"):
        raise CheckpointError(
            f"{directory}: position_embedding_type is {config.position_embedding_type!r}; this reads rotary (ESM-2)"
            " and absolute (ESM-1b, ESM-1v)"
        )


def _vocabulary(directory: Path) -> dict[str, int]:
    """Token ids by word, from the directory's tokenizer files or, without them, the known ones."""
    try:
        if (directory / "vocab.txt").is_file():
            lines = (directory / "vocab.txt").read_text("utf-8").splitlines()
            return {line.strip(): i for i, line in enumerate(lines)}
        if (directory / "tokenizer.json").is_file():
            tokenizer = json.loads((directory / "tokenizer.json").read_text("utf-8"))
            added = {word["content"]: word["id"] for word in tokenizer.get("added_tokens", ())}
            return {**tokenizer["model"]["vocab"], **added}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the tokenizer of {directory} cannot be read: {error!r}") from error
    return {word: i for i, word in enumerate(VOCABULARY)}


def _words(vocabulary: Mapping[str, int], config: Any, source: Path) -> Words:
    """The words of a protein, checked against the config's own statements about them."""
    words = Words.of(vocabulary, first="<cls>", last="<eos>", mask="<mask>", unknown="<unk>")
    highest = max(words.first, words.last, words.mask, int(words.residues.max()))
    if highest >= config.vocab_size or config.mask_token_id not in (None, words.mask):
        raise CheckpointError(
            f"{source}: the tokenizer has <mask> {words.mask} and words up to {highest}, config.json mask_token_id"
            f" {config.mask_token_id} and {config.vocab_size} words; they are of two models"
        )
    return words


def load_fair(path: Path, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> ESM2:
    """Load one of fair-esm's ESM-2 files, such as `esm2_t6_8M_UR50D.pt`; a contact regression beside it is not read.

    Args:
        path: the .pt file.
        device: where to put it; by default the CPU.
        dtype: cast the weights; by default as stored.

    Raises:
        CheckpointError: another model, a pickle that holds more than weights, or unknown or missing weights (the first
            ten).
    """
    from transformers import EsmForMaskedLM

    config, state = read_fair(path)
    stored = state["esm.embeddings.word_embeddings.weight"].dtype
    model, has_head = read_weights(EsmForMaskedLM, path, config, head="lm_head.", state=state, dtype=dtype or stored)
    words = _words({word: i for i, word in enumerate(VOCABULARY)}, config, path)
    return ESM2(model, words, max_length=config.max_position_embeddings - UNUSED_PLACES, has_head=has_head).to(device)


class FairFile(NamedTuple):
    """What one of fair-esm's files holds, in transformers' terms."""

    config: Any
    weights: dict[str, Tensor]


def read_fair(path: Path) -> FairFile:
    """Read one of fair-esm's ESM-2 files; its weights are memory-mapped.

    Raises:
        CheckpointError: another model, a pickle that holds more than weights, or unknown weights (the first ten).
    """
    content = _unpickled(path)
    return FairFile(_fair_config(content, path), _renamed(content["model"], path))


def _fair_config(content: Mapping[str, Any], path: Path) -> Any:
    """transformers' config of one of fair-esm's files."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import EsmConfig

    if "cfg" not in content and "args" in content:
        raise CheckpointError(
            f"{path} holds an {getattr(content['args'], 'arch', 'ESM-1')} model; of fair-esm's files this reads ESM-2."
            " ESM-1b and ESM-1v load from their Hugging Face directories"
        )
    try:
        facts = vars(content["cfg"]["model"])
        return EsmConfig(
            num_hidden_layers=facts["encoder_layers"], hidden_size=facts["encoder_embed_dim"],
            num_attention_heads=facts["encoder_attention_heads"], intermediate_size=4 * facts["encoder_embed_dim"],
            token_dropout=facts["token_dropout"], vocab_size=len(VOCABULARY), pad_token_id=VOCABULARY.index("<pad>"),
            mask_token_id=VOCABULARY.index("<mask>"), position_embedding_type="rotary", emb_layer_norm_before=False,
            layer_norm_eps=1e-5, max_position_embeddings=1024 + UNUSED_PLACES,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, StrictDataclassError) as error:
        raise CheckpointError(f"{path} is no ESM-2 of fair-esm: {error!r} in its configuration") from error


def _unpickled(path: Path) -> dict[str, Any]:
    """The content of a .pt file; nothing in it is run."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, RuntimeError, EOFError, ValueError, UnpicklingError) as error:
        raise CheckpointError(
            f"{path} cannot be read, or holds more than tensors, containers and argparse.Namespace: {error}"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise CheckpointError(f'{path} is no file of fair-esm: it holds no "model" with weights')
    return content


def _renamed(weights: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """fair-esm's weights by transformers' names."""
    state: dict[str, Tensor] = {}
    unknown = []
    for name, weight in weights.items():
        known = _known(name)
        if known is None or not isinstance(weight, Tensor):
            unknown.append(name)
        else:
            state[known] = weight
    if unknown:
        raise CheckpointError(f"{path}: {len(unknown)} weights that no ESM-2 has: " + "; ".join(unknown[:10]))
    embedding, output = state.get("esm.embeddings.word_embeddings.weight"), state.pop("lm_head.weight", None)
    if embedding is None:
        raise CheckpointError(f"{path}: the weights have no embed_tokens.weight")
    if output is not None and not torch.equal(embedding, output):
        raise CheckpointError(f"{path}: lm_head.weight is not embed_tokens.weight; in every ESM-2 they are one")
    turns = [weight for name, weight in state.items() if name.endswith(".inv_freq")]
    if any(not torch.equal(turn, turns[0]) for turn in turns):  # transformers keeps one for all
        raise CheckpointError(f"{path}: the layers differ in their rotary frequencies (inv_freq); in no ESM-2 they do")
    return state


def _known(name: str) -> str | None:
    """transformers' name of one of fair-esm's weights; None if it has none."""
    for prefix in _FAIR_PREFIXES:
        if name.startswith(prefix):
            name = name.removeprefix(prefix)
            break
    module, _, kind = name.rpartition(".")
    if module.startswith("layers.") and module.count(".") >= 2:
        _, number, part = module.split(".", 2)
        found = _FAIR_LAYER_NAMES.get(part)
        return found and f"esm.encoder.layer.{number}.{found}.{kind}"
    found = _FAIR_NAMES.get(module)
    return found and f"{found}.{kind}"
