"""A span written from both its ends by gmask: drafts, and of these the one that makes the whole protein likeliest.

From N to C the model sees what stands before the span, from C to N what stands behind it, and never both. But the
likelihood of the whole protein hangs on both sides: a draft after which the rest of the protein comes as a surprise is
no filling. Written is what p(span | one side) offers, chosen by p(span, both sides).
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from jaxtyping import Float64

from generate.preferences import answer, measured
from generate.prompt import Fixed, Gap, Prompt
from generate.sampler import sample
from xtrimo.backbone import Backbone
from xtrimo.config import Direction
from xtrimo.errors import ConfigError
from xtrimo.model import GLM

DRAFTS = 16  # from each end, and the likeliest next residues, one after the other
ENDS: tuple[Direction, ...] = ("forward", "reverse")


def writer(model: Backbone) -> GLM:
    """The same model.

    Raises:
        ConfigError: it was not trained to write from both ends.
    """
    if isinstance(model, GLM) and "gmask" in model.config.objectives and set(ENDS) <= set(model.config.directions):
        return model
    raise ConfigError("filling from both ends takes a model that was trained on gmask from N to C and from C to N")


def by_ends(model: GLM, prompt: Prompt, temperature: float, seed: int) -> str:
    """The whole protein, filled.

    Args:
        prompt: residues, one gap of a known length, and residues; those of one side may lack.
        temperature: of the drafts.
        seed: of the drafts.
    """
    drafts = sorted({protein for end in ENDS for protein in drafted(model, prompt, end, temperature, seed)})
    return drafts[int(np.argmax(log_likelihoods(model, Prompt((Gap(0, None),), prompt.tags), drafts)))]


def drafted(model: GLM, prompt: Prompt, end: Direction, temperature: float, seed: int) -> Iterator[str]:
    """Whole proteins, the gap of each written from one end, without a look at what is behind it."""
    (place,) = (place for place, piece in enumerate(prompt.pieces) if isinstance(piece, Gap))
    cut = place + 1 if end == "forward" else place
    sides = prompt.pieces[:cut], prompt.pieces[cut:]
    before, behind = ("".join(piece.residues for piece in side if isinstance(piece, Fixed)) for side in sides)
    seen = Prompt(sides[ENDS.index(end)], prompt.tags)
    write = partial(sample, model, prompt=str(seen), by=end, top_p=1.0, seed=seed, max_length=prompt.shortest)
    for num, heat in ((1, 0.0), (DRAFTS, temperature)):
        for own in write(num=num, temperature=heat):
            yield own.sequence + behind if end == "forward" else before + own.sequence


def log_likelihoods(model: GLM, tags: Prompt, proteins: Sequence[str]) -> Float64[np.ndarray, "protein"]:
    """Nats of each whole protein behind the tags, mean of both directions."""
    nats = [
        measured(model, [answer(model.config, tags, protein, reverse=end == "reverse") for protein in proteins], 1.0)
        for end in ENDS
    ]
    return np.mean(nats, axis=0)
