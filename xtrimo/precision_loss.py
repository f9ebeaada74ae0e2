"""What a model loses by a lower precision: how far its states turn, and how much less likely it finds the truth."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from xtrimo.attention import within
from xtrimo.batch import Inputs, run
from xtrimo.fasta import Record
from xtrimo.model import GLM
from xtrimo.objectives import IGNORE, Example
from xtrimo.reading import prompted
from xtrimo.tokens import encode_residues


class Answers(NamedTuple):
    """What a model says of some proteins."""

    states: Float[Tensor, "token dim"]
    nats: Float[Tensor, "answer"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PrecisionLoss:
    """What a lower precision costs a model."""

    cosine: float
    """Between the states of a residue before and after, mean over residues."""
    nll_rise: float
    """Nats per masked residue (of a model without masks, per residue) that the truth becomes less likely by."""

    def __str__(self) -> str:
        return f"cosine {self.cosine:.6f}, {self.nll_rise:+.4f} nats per residue"

    @classmethod
    def between(cls, before: Answers, after: Answers) -> "PrecisionLoss":
        """The loss from one set of answers to the other."""
        cosines = F.cosine_similarity(before.states, after.states)
        return cls(cosine=float(cosines.mean()), nll_rise=float(after.nats.mean() - before.nats.mean()))


def answers(model: GLM, proteins: Iterable[Record], *, as_written: bool = False) -> Answers:
    """Read each protein once, with each eighth residue masked where the model fills masks.

    Args:
        as_written: read as generation does, from left to right, and ask for every residue.
    """

    def compute(row: Inputs) -> Float[Tensor, "token column"]:
        (states,) = model.hidden(row.tokens, row.positions, within(row.segments))
        nats = F.cross_entropy(model.logits(states).float(), row.labels, reduction="none")
        return torch.cat((states.float(), nats[:, None]), dim=1)

    told = list(run(model, (_asked(model, protein, as_written) for protein in proteins), compute))
    values = torch.from_numpy(np.concatenate([values for _, values in told]))
    asked = torch.from_numpy(np.concatenate([example.labels != IGNORE for example, _ in told]))
    return Answers(values[:, :-1], values[asked, -1])


def _asked(model: GLM, protein: Record, as_written: bool) -> Example:
    """The protein with each eighth residue masked and asked for; as written or without masks, every residue."""
    if as_written or model.mask is None:
        return prompted(encode_residues(protein.sequence, name=protein.name), model.config)
    example = model.tokenize(protein.sequence, name=protein.name)
    before, after = model.words_around
    places = np.arange(before, len(example.tokens) - after)[::8]
    tokens, labels = example.tokens.copy(), example.labels.copy()
    tokens[places], labels[places] = model.mask, example.tokens[places]
    return replace(example, tokens=tokens, labels=labels)
