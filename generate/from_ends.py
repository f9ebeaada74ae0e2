"""One gap written from both ends of the protein, by gmask: drafts, mended, and the one that makes the whole likeliest.

From N to C the model sees what stands before the gap, from C to N what stands behind it, and never both. But the
likelihood of the whole protein hangs on both sides: a draft after which the rest of the protein comes as a surprise is
no filling. Written is what p(gap | one side) offers, chosen by p(gap, both sides).

The best drafts are mended first. At residue x of a draft one direction says p(x | left), left with the draft's residues
before it, the other p(x | right). If the sides tell of x independently, both together say

    p(x | left, right)  ~  p(x | left) p(x | right) / p(x)        a product of experts (Hinton 2002)

With the likeliest letter at each place the draft is read anew, some times; whatever comes up takes part in the choice.

What the model holds of the gap by its masks, which see both sides at once, can be a third expert.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from generate.answers import answer, choices_of, measured
from generate.engine import Decoding, write
from generate.prompt import Fixed, Gap, Prompt
from generate.unmasking import marginals
from generate.ways import tag_ids
from generate.writers import PromptedWriter
from xtrimo import batch
from xtrimo.config import Direction
from xtrimo.model import GLM
from xtrimo.objectives import IGNORE, Example
from xtrimo.tokens import AMINO_ACIDS

DRAFTS = 16  # from each end, and the likeliest next residues, one after the other
MENDED, READINGS = 6, 5  # of the drafts the likeliest; times each is read, at most
MASKS_WEIGHT = 3.0  # of mlm as a third expert: of 0 to 4 the one that fills spans of family members best
ENDS: tuple[Direction, ...] = ("forward", "reverse")

Held = Float[np.ndarray, "place 20"]
"""Log of the chance of each of AMINO_ACIDS at each place of the gap."""


class Frame(NamedTuple):
    """A prompt of one gap whose length is known."""

    prompt: Prompt
    before: str
    """Residues, as those behind; either may lack."""
    gap: Gap
    behind: str

    @classmethod
    def of(cls, prompt: Prompt) -> "Frame":
        """Of a prompt that `choose_way` found fit, its length drawn."""
        (place,) = (place for place, piece in enumerate(prompt.pieces) if isinstance(piece, Gap))
        parts = prompt.pieces[:place], prompt.pieces[place + 1 :]
        before, behind = ("".join(piece.residues for piece in part if isinstance(piece, Fixed)) for part in parts)
        return cls(prompt, before, prompt.gaps[0], behind)

    @property
    def allowed(self) -> Bool[np.ndarray, "20"]:
        """What may stand in the gap."""
        return np.array([letter in self.gap.letters for letter in AMINO_ACIDS])

    def filled(self, scores: Held) -> str:
        """The whole protein, the gap by the highest of the letters that it allows."""
        letters = np.where(self.allowed, scores, -np.inf).argmax(1)
        return self.before + "".join(AMINO_ACIDS[letter] for letter in letters) + self.behind


def fill(model: GLM, prompt: Prompt, drawing: Decoding, *, number: int, slots: int, masks: bool) -> tuple[str, float]:
    """The likeliest protein that was found, and nats a residue of it, mean of both directions.

    Args:
        prompt: with one gap, of a known length.
        drawing: of the drafts; guidance is not looked at.
        number: of the protein under the seed: others come of other drafts.
        slots: drafts written at a time.
        masks: whether mlm is a third expert: it adds a draft, and has its say to the power of MASKS_WEIGHT in mending
            and in the choice.
    """
    if not prompt.gaps:  # a range of which nothing was drawn
        protein = "".join(piece.residues for piece in prompt.pieces if isinstance(piece, Fixed))
        return protein, nats_a_residue(model, prompt, protein)
    frame = Frame.of(prompt)
    held = marginals(model, [prompt])[0] if masks else None
    drafts = {protein for end in ENDS for protein in drafted(model, frame, end, drawing, number, slots)}
    if held is not None:
        drafts.add(frame.filled(held))
    protein = chosen(model, frame, drafts, held)
    return protein, nats_a_residue(model, prompt, protein)


def chosen(model: GLM, frame: Frame, drafts: set[str], held: Held | None) -> str:
    """The best drafts mended, and the likeliest of all."""
    worth = partial(_worth, model, frame, held)
    nats = worth(sorted(drafts))
    newest, usual = sorted(nats, key=lambda draft: nats[draft])[-MENDED:], None
    for _ in range(READINGS):
        said = [letters(model, frame, newest, end) for end in ENDS]
        usual = np.log(np.exp(said).mean((0, 1, 2))) if usual is None else usual  # p(x), of the first drafts
        together = sum(said) - usual + (0 if held is None else MASKS_WEIGHT * held - usual)
        newest = sorted({frame.filled(each) for each in together} - nats.keys())
        if not newest:
            break
        nats |= worth(newest)
    return max(nats, key=lambda protein: nats[protein])


def _worth(model: GLM, frame: Frame, held: Held | None, proteins: Sequence[str]) -> dict[str, float]:
    """Of each protein, what the choice is made by: its log-likelihood, and what is held of its letters in the gap."""
    nats = log_likelihoods(model, frame.prompt, proteins)
    if held is not None:
        start = len(frame.before)
        gaps = [protein[start : start + len(held)] for protein in proteins]
        rows = np.array([[AMINO_ACIDS.index(letter) for letter in gap] for gap in gaps])
        nats = nats + MASKS_WEIGHT * held[np.arange(len(held)), rows].sum(1)
    return dict(zip(proteins, nats.tolist(), strict=True))


def drafted(model: GLM, frame: Frame, end: Direction, drawing: Decoding, number: int, slots: int) -> Iterator[str]:
    """Whole proteins, the gap of each written from one end, without a look at what is behind it."""
    reverse = end == "reverse"
    given = frame.behind if reverse else frame.before
    fixed = (Fixed(given),) if given else ()
    seen = Prompt((frame.gap, *fixed) if reverse else (*fixed, frame.gap), frame.prompt.tags)
    tags = tag_ids(seen, model.config.control_words)
    rng = np.random.default_rng(0)  # draws lengths, of which there is one

    def writer() -> PromptedWriter:
        return PromptedWriter(seen, model.config, reverse=reverse, max_length=seen.shortest, rng=rng, tags=tags)

    for num, heat in ((1, 0.0), (DRAFTS, drawing.temperature)):
        jobs = ((number * num + i, writer()) for i in range(num))
        for ended in write(model, jobs, replace(drawing, temperature=heat, guidance=1.0), slots=slots):
            own = cast(PromptedWriter, ended.writer).sequence
            yield frame.before + own if reverse else own + frame.behind


def log_likelihoods(model: GLM, prompt: Prompt, proteins: Sequence[str]) -> Float64[np.ndarray, "protein"]:
    """Nats of each whole protein behind the prompt's tags, mean of both directions."""
    nats = [measured(model, [_answer(model, prompt, protein, end) for protein in proteins], 1.0) for end in ENDS]
    return np.mean(nats, axis=0)


@torch.inference_mode()
def letters(
    model: GLM, frame: Frame, proteins: Sequence[str], end: Direction
) -> Float64[np.ndarray, "protein place letter"]:
    """Log of the chance of each of AMINO_ACIDS at the places of the gap, N to C, given what is on one side of each."""

    def chances(inputs: batch.Inputs) -> Tensor:
        logits = model(inputs.tokens, inputs.positions, inputs.segments)
        return choices_of(logits, inputs.tokens, 1.0)[:, :-1].log_softmax(-1)

    answers = [_answer(model, frame.prompt, protein, end) for protein in proteins]
    said = [values[example.labels != IGNORE][:-1] for example, values in batch.run(model.eval(), answers, chances)]
    turned = [values if end == "forward" else values[::-1] for values in said]
    first, rest = len(frame.before), len(frame.behind)
    return np.stack([values[first : len(values) - rest] for values in turned]).astype(np.float64)


@torch.inference_mode()
def nats_a_residue(model: GLM, prompt: Prompt, protein: str) -> float:
    """Of the whole protein without its end, over the whole vocabulary, mean of both directions."""

    def nats(inputs: batch.Inputs) -> Tensor:
        logits = model(inputs.tokens, inputs.positions, inputs.segments).float()
        return F.cross_entropy(logits, inputs.labels.long(), ignore_index=IGNORE, reduction="none")

    answers = [_answer(model, prompt, protein, end, finished=False) for end in ENDS]
    sums = [values.sum(dtype=np.float64) for _, values in batch.run(model.eval(), answers, nats)]
    return float(np.mean(sums) / len(protein))


def _answer(model: GLM, prompt: Prompt, protein: str, end: Direction, *, finished: bool = True) -> Example:
    """All of the protein as written to the prompt's tags alone: what is fixed counts as well."""
    tags = Prompt((Gap(0, None),), prompt.tags)
    return answer(model.config, tags, protein, finished=finished, reverse=end == "reverse")
