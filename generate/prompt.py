"""What generation starts from: the residues given, written in the model's own prompt style."""

import numpy as np
from jaxtyping import UInt8

from xtrimo.config import GLMConfig
from xtrimo.errors import ConfigError
from xtrimo.tokens import encode_residues


def prompt_residues(prompt: str, config: GLMConfig) -> UInt8[np.ndarray, "length"]:
    """Token ids of the first residues of the proteins to be written; none for an empty prompt.

    Raises:
        ConfigError: the model was not trained to generate.
        SequenceError: a letter of the prompt is no residue.
    """
    if config.prompt_style == "none":
        raise ConfigError(
            f"this model cannot generate: it was trained on {', '.join(config.objectives)}, which fills gaps in a given"
            " protein; generation needs a model trained on gmask or causal"
        )
    return encode_residues(prompt, name="prompt") if prompt else np.zeros(0, dtype=np.uint8)
