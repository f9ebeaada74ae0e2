"""A span written from both its ends by gmask: drafts, mended, and the one that makes the whole protein likeliest.

From N to C the model sees what stands before the span, from C to N what stands behind it, and never both. But the
likelihood of the whole protein hangs on both sides: a draft after which the rest of the protein comes as a surprise is
no filling. Written is what p(span | one side) offers, chosen by p(span, both sides).

The best drafts are mended first. At residue x of a draft one direction says p(x | left), left with the draft's residues
before it, the other p(x | right). If the sides tell of x independently, both together say

    p(x | left, right)  ~  p(x | left) p(x | right) / p(x)        a product of experts (Hinton 2002)

With the likeliest letter at each place the draft is read anew, some times; whatever comes up takes part in the choice.

What the model holds of the span by its masks, which see both sides at once, can be a third expert.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from examples.infill_hmms import spelled
from generate.preferences import answer, choices_of, measured
from generate.prompt import Fixed, Gap, Prompt
from generate.sampler import sample
from xtrimo import batch
from xtrimo.backbone import Backbone
from xtrimo.config import Direction
from xtrimo.errors import ConfigError
from xtrimo.model import GLM
from xtrimo.objectives import IGNORE, Example
from xtrimo.tokens import AMINO_ACIDS

DRAFTS = 16  # from each end, and the likeliest next residues, one after the other
MENDED, READINGS = 6, 5  # of the drafts the likeliest; times each is read, at most
MASKS_WEIGHT = 3.0  # of mlm as a third expert: of 0 to 4 the one that fills spans of validation members best
ENDS: tuple[Direction, ...] = ("forward", "reverse")


def writer(model: Backbone) -> GLM:
    """The same model.

    Raises:
        ConfigError: it was not trained to write from both ends.
    """
    if isinstance(model, GLM) and "gmask" in model.config.objectives and set(ENDS) <= set(model.config.directions):
        return model
    raise ConfigError("filling from both ends takes a model that was trained on gmask from N to C and from C to N")


def by_ends(
    model: GLM, prompt: Prompt, temperature: float, seed: int, held: Float[np.ndarray, "place 20"] | None = None
) -> str:
    """The whole protein, filled.

    Args:
        prompt: residues, one gap of a known length, and residues; those of one side may lack.
        temperature: of the drafts.
        seed: of the drafts.
        held: by mlm, log of the chance of each of AMINO_ACIDS in the gap, which then is a third expert: it adds a
            draft, and has its say to the power of MASKS_WEIGHT in mending and in the choice.
    """
    before, behind = sides(prompt)
    drafts = {protein for end in ENDS for protein in drafted(model, prompt, end, temperature, seed)}
    if held is not None:
        drafts.add(before + spelled(held) + behind)
    worth = partial(_worth, model, prompt, held)
    nats = worth(sorted(drafts))
    newest, usual = sorted(nats, key=lambda draft: nats[draft])[-MENDED:], None
    for _ in range(READINGS):
        said = [letters(model, prompt, newest, end) for end in ENDS]
        usual = np.log(np.exp(said).mean((0, 1, 2))) if usual is None else usual  # p(x), of the first drafts
        together = sum(said) - usual + (0 if held is None else MASKS_WEIGHT * held - usual)
        mended = {before + spelled(each) + behind for each in together}
        newest = sorted(mended - nats.keys())
        if not newest:
            break
        nats |= worth(newest)
    return max(nats, key=lambda protein: nats[protein])


def _worth(
    model: GLM, prompt: Prompt, held: Float[np.ndarray, "place 20"] | None, proteins: Sequence[str]
) -> dict[str, float]:
    """Of each protein, what the choice is made by: its log-likelihood, and what is held of its letters in the gap."""
    nats = log_likelihoods(model, Prompt((Gap(0, None),), prompt.tags), proteins)
    if held is not None:
        start = len(sides(prompt)[0])
        gaps = [protein[start : start + len(held)] for protein in proteins]
        rows = np.array([[AMINO_ACIDS.index(letter) for letter in gap] for gap in gaps])
        nats = nats + MASKS_WEIGHT * held[np.arange(len(held)), rows].sum(1)
    return dict(zip(proteins, nats.tolist(), strict=True))


def _place(prompt: Prompt) -> int:
    """The gap's, among the pieces."""
    (place,) = (place for place, piece in enumerate(prompt.pieces) if isinstance(piece, Gap))
    return place


def sides(prompt: Prompt) -> tuple[str, str]:
    """The residues before the gap, and behind it."""
    place = _place(prompt)
    parts = prompt.pieces[:place], prompt.pieces[place + 1 :]
    before, behind = ("".join(piece.residues for piece in part if isinstance(piece, Fixed)) for part in parts)
    return before, behind


def drafted(model: GLM, prompt: Prompt, end: Direction, temperature: float, seed: int) -> Iterator[str]:
    """Whole proteins, the gap of each written from one end, without a look at what is behind it."""
    place, (before, behind) = _place(prompt), sides(prompt)
    seen = prompt.pieces[: place + 1] if end == "forward" else prompt.pieces[place:]
    write = partial(
        sample, model, prompt=str(Prompt(seen, prompt.tags)), by=end, top_p=1.0, seed=seed, max_length=prompt.shortest
    )
    for num, heat in ((1, 0.0), (DRAFTS, temperature)):
        for own in write(num=num, temperature=heat):
            yield own.sequence + behind if end == "forward" else before + own.sequence


def log_likelihoods(model: GLM, tags: Prompt, proteins: Sequence[str]) -> Float64[np.ndarray, "protein"]:
    """Nats of each whole protein behind the tags, mean of both directions."""
    nats = [measured(model, [_answer(model, tags, protein, end) for protein in proteins], 1.0) for end in ENDS]
    return np.mean(nats, axis=0)


@torch.inference_mode()
def letters(
    model: GLM, prompt: Prompt, proteins: Sequence[str], end: Direction
) -> Float64[np.ndarray, "protein place letter"]:
    """Log of the chance of each of AMINO_ACIDS at the places of the gap, N to C, given what is on one side of each."""
    first, behind = map(len, sides(prompt))

    def chances(inputs: batch.Inputs) -> Tensor:
        logits = model(inputs.tokens, inputs.positions, inputs.segments)
        return choices_of(logits, inputs.tokens, 1.0)[:, :-1].log_softmax(-1)

    answers = [_answer(model, Prompt((Gap(0, None),), prompt.tags), protein, end) for protein in proteins]
    said = [values[example.labels != IGNORE][:-1] for example, values in batch.run(model.eval(), answers, chances)]
    turned = [values if end == "forward" else values[::-1] for values in said]
    return np.stack([values[first : len(values) - behind] for values in turned]).astype(np.float64)


def _answer(model: GLM, tags: Prompt, protein: str, end: Direction) -> Example:
    return answer(model.config, tags, protein, reverse=end == "reverse")
