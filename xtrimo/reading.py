"""How a protein is written for a GLM to read.

The two ways to write M K V, both with the labels that scoring asks for:

    whole      tokens  M K V <eos>                   labels  . . . .             all seen by all
    prompted   tokens  <gmask> <sop> <eos> M K V     labels  . . M K V <eos>     causal

`prompted` is the gmask objective with an empty source (causal in a 1-D model), so it is also how generation starts.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Int32, UInt8

from xtrimo.config import GLMConfig
from xtrimo.objectives import IGNORE, Example
from xtrimo.tokens import EOS, GMASK, SOP

PROMPT_WORDS = (GMASK, SOP, EOS)


def whole(residues: UInt8[np.ndarray, "length"]) -> Example:
    """`R1..Rn<eos>`, read in both directions, nothing asked."""
    tokens = np.append(residues, np.uint8(EOS))
    positions = np.zeros((len(tokens), 2), dtype=np.int32)
    positions[:, 0] = np.arange(len(tokens))
    return Example("mlm", tokens, positions, np.full_like(tokens, IGNORE), prefix=len(tokens))


def prompted(residues: UInt8[np.ndarray, "length"], config: GLMConfig) -> Example:
    """`<gmask><sop><eos>R1..Rn`; asked are the residues, each at the token before it, and the closing `<eos>`."""
    tokens = np.append(np.array(PROMPT_WORDS, dtype=np.uint8), residues)
    labels = np.full_like(tokens, IGNORE)
    labels[2:] = np.append(residues, np.uint8(EOS))
    is_gmask = "gmask" in config.objectives
    positions = prompted_positions(len(tokens), config)
    return Example("gmask" if is_gmask else "causal", tokens, positions, labels, prefix=int(is_gmask))


def prompted_positions(num_tokens: int, config: GLMConfig) -> Int32[np.ndarray, "token 2"]:
    """Positions of the first tokens of a prompted protein: <gmask> is (0, 0) and the place of all that follows it.

    So the count runs in the second channel; in a causal model, which has no target apart, in the first.
    """
    positions = np.zeros((num_tokens, 2), dtype=np.int32)
    positions[:, int("gmask" in config.objectives)] = np.arange(num_tokens)
    return positions


def reads_both_ways(config: GLMConfig) -> bool:
    """Whether a protein is best read in both directions: unless the model only ever wrote from left to right."""
    return "mlm" in config.objectives or config.prompt_style == "none"


def read_as(residues: UInt8[np.ndarray, "length"], config: GLMConfig) -> Example:
    """What a model of `config` reads when nothing is asked: `R1..Rn<eos>`, or `<gmask><sop><eos>R1..Rn<eos>`."""
    if reads_both_ways(config):
        return whole(residues)
    closed = prompted(np.append(residues, np.uint8(EOS)), config)
    return replace(closed, labels=np.full_like(closed.labels, IGNORE))
