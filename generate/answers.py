"""How likely a generator writes a protein to a prompt: what it reads then, what it can draw, and the nats of that.

Drawn are the 20 amino acids and the end, at a temperature, nothing else: so these are not the nats of xtrimo.score,
which are over all words of the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int
from torch import Tensor

from generate.prompt import Fixed, Prompt
from generate.ways import tag_ids
from xtrimo import batch
from xtrimo.config import GLMConfig
from xtrimo.likelihood import written
from xtrimo.model import GLM
from xtrimo.objectives import IGNORE, Example, tagged
from xtrimo.tokens import AMINO_ACIDS, EOS, FIRST_RESIDUE, encode_residues

_DRAWN = torch.tensor([*range(FIRST_RESIDUE, FIRST_RESIDUE + len(AMINO_ACIDS)), EOS])
_NOT_DRAWN = -100
_PLACES = torch.full((256,), _NOT_DRAWN).scatter_(0, _DRAWN, torch.arange(len(_DRAWN)))  # word -> place among them


def answer(config: GLMConfig, prompt: Prompt, protein: str, *, finished: bool = True, reverse: bool = False) -> Example:
    """What is read when a model writes `protein` to `prompt`: a label at each draw.

    Args:
        protein: all of it, what the prompt gave included.
        finished: whether its end was drawn.
        reverse: C to N, so that what the prompt gives stands at the C-terminus.
    """
    objective = "gmask" if "gmask" in config.objectives else "causal"
    example, places = written(encode_residues(protein), objective, reverse=reverse)
    given = sum(len(piece.residues) for piece in prompt.pieces if isinstance(piece, Fixed))
    in_order = sorted(places)
    undrawn = [*in_order[:given], *(() if finished else in_order[-1:])]
    labels = example.labels.copy()
    labels[undrawn] = IGNORE
    return tagged(replace(example, labels=labels), np.array(tag_ids(prompt, config.control_words), dtype=np.uint8))


def choices_of(
    logits: Float[Tensor, "token vocab"], tokens: Int[Tensor, "token"], temperature: float
) -> Float[Tensor, "token 21"]:
    """Logits of what can be drawn: the 20 of AMINO_ACIDS, and the end. Right after the opening <eos> none ends."""
    choices = logits[:, _DRAWN.to(logits.device)].float() / temperature
    choices[:, -1] = choices[:, -1].masked_fill(tokens == EOS, -torch.inf)
    return choices


def nats_of(
    logits: Float[Tensor, "token vocab"], tokens: Int[Tensor, "token"], labels: Int[Tensor, "token"], temperature: float
) -> Float[Tensor, "token"]:
    """-log of the chance to draw each label, 0 where nothing was drawn."""
    places = torch.where(labels == IGNORE, _NOT_DRAWN, _PLACES.to(labels.device)[labels])
    choices = choices_of(logits, tokens, temperature)
    return F.cross_entropy(choices, places, ignore_index=_NOT_DRAWN, reduction="none")


@torch.inference_mode()
def measured(model: GLM, answers: Sequence[Example], temperature: float) -> Float64[np.ndarray, "answer"]:
    """`log_likelihoods` of any number, without a gradient."""

    def nats(inputs: batch.Inputs) -> Tensor:
        logits = model(inputs.tokens, inputs.positions, inputs.segments)
        return nats_of(logits, inputs.tokens, inputs.labels, temperature)

    return np.array([-values.sum(dtype=np.float64) for _, values in batch.run(model.eval(), answers, nats)])
