"""How likely a model finds the variants of a protein; higher is likelier, in nats.

likelihood: of the whole mutated protein, less that of the wild type, read after the native prompt and, where the model
was trained in both, from either end (scoring.py). For models that generate; insertions and deletions too.

masked-marginals (Meier et al. 2021, doi:10.1101/2021.07.09.450648): the wild type is shown with all mutated positions
M masked, and the sum over them of log p(mutant) - log p(wild type) is the score. For models that fill masks, and
substitutions alone. A pass is shared by all variants of the same positions. A protein that is longer than the model
reads is cut around the positions; where they lie further apart than that, each has a window of its own.

masked-alone: the same, each position of M masked alone, the others shown as in the wild type; what ProteinGym's script
for ESM calls masked marginals. One pass for each position that any variant changes, whatever the number of variants.

wild-type-marginals: the same with nothing masked (wt-marginals there). One pass in all.

pseudo: the pseudo-likelihood of the whole protein, less that of the wild type, for insertions and deletions under a
model that fills masks; as many passes as residues.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from heads.proteingym import Assay
from xtrimo.attention import within
from xtrimo.backbone import Backbone
from xtrimo.batch import Inputs, run
from xtrimo.embedding import room
from xtrimo.errors import ConfigError
from xtrimo.fasta import Record
from xtrimo.likelihood import Reading, choose
from xtrimo.model import GLM
from xtrimo.objectives import Example
from xtrimo.scoring import iter_scores

Method = Literal["likelihood", "masked-marginals", "masked-alone", "wild-type-marginals", "pseudo"]
Places = tuple[int, ...]
"""Positions from 0, in order."""


def usual_method(model: Backbone, assay: Assay) -> Method:
    """likelihood where the model has one; else masked-marginals for substitutions, pseudo for the rest."""
    if choose(model, None, None).method == "likelihood":
        return "likelihood"
    return "masked-marginals" if assay.is_substitution else "pseudo"


def usual_direction(model: Backbone) -> Reading | None:
    """Both, of a model that was trained in both."""
    return "both" if isinstance(model, GLM) and len(model.config.directions) == 2 else None


def score_variants(
    model: Backbone, assay: Assay, *, method: Method | None = None, direction: Reading | None = None
) -> Float64[np.ndarray, "variant"]:
    """A score for each variant, higher is likelier, 0 for the wild type where it is known.

    Args:
        method: by default `usual_method`.
        direction: of a likelihood; by default `usual_direction`.

    Raises:
        ConfigError: a method that the model or the assay does not allow.
        SequenceError: letters that are no residues.
    """
    method = method or usual_method(model, assay)
    if method not in get_args(Method):
        raise ConfigError(f"no method {method!r}; known: {', '.join(get_args(Method))}")
    if method != "likelihood" and method != "pseudo":
        return _marginals(model, assay, method)
    if method == "likelihood":
        direction = direction or usual_direction(model)
    names = ("wild type",) if assay.wild_type else ()
    proteins = [Record(name, assay.wild_type) for name in names]
    proteins += [Record(f"{assay.name}, variant {i}", v.sequence) for i, v in enumerate(assay.variants, start=1)]
    scores = iter_scores(model, proteins, method=method, direction=direction)
    totals = -np.array([own.total_nll for own in scores])
    return totals[1:] - totals[0] if assay.wild_type else totals


def _marginals(model: Backbone, assay: Assay, method: Method) -> Float64[np.ndarray, "variant"]:
    if model.mask is None:
        raise ConfigError(f"this model never predicted a <mask>, so it has no {method}; use likelihood")
    if not assay.is_substitution:
        raise ConfigError(f"{assay.name} has insertions or deletions, which have no {method}; use pseudo")
    groups = _groups(assay, method)
    letters = "".join(
        sorted({letter for v in assay.variants for m in v.mutations or () for letter in m.wild + m.mutant})
    )
    column = {letter: i for i, letter in enumerate(letters)}
    scores = np.zeros(len(assay.variants))
    shows_all = method == "wild-type-marginals"
    for places, said in _passes(model, assay.wild_type, list(groups), letters, shows_all=shows_all):
        for i in groups[places]:
            for m in assay.variants[i].mutations or ():
                if m.position - 1 in said:
                    own = said[m.position - 1]
                    scores[i] += own[column[m.mutant]] - own[column[m.wild]]
    return scores


def _groups(assay: Assay, method: Method) -> dict[Places, list[int]]:
    """Positions that are asked in one pass -> the variants that it is asked for."""
    groups: dict[Places, list[int]] = {}
    for i, variant in enumerate(assay.variants):
        places = tuple(sorted(m.position - 1 for m in variant.mutations or ()))
        for own in [places] if method == "masked-marginals" else [(place,) for place in places]:
            groups.setdefault(own, []).append(i)
    groups.pop((), None)  # the wild type itself
    if method != "wild-type-marginals" or not groups:
        return groups
    return {tuple(sorted(place for (place,) in groups)): list(range(len(assay.variants)))}


def _passes(
    model: Backbone, wild_type: str, groups: list[Places], letters: str, *, shows_all: bool
) -> Iterator[tuple[Places, dict[int, Float64[np.ndarray, "letter"]]]]:
    """For each group of positions, once or more: what the model says at some of them, in nats for each letter.

    Args:
        shows_all: mask none of them.
    """
    if not letters:
        return
    before, after = model.words_around
    alphabet = model.tokenize(letters, name="letters of the variants").tokens
    words = torch.from_numpy(alphabet[before : len(alphabet) - after]).long().to(model.device)

    def nats(row: Inputs) -> Float[Tensor, "token letter"]:
        states = model.hidden(row.tokens, row.positions, within(row.segments))[-1]
        return model.logits(states).float().log_softmax(-1)[:, words]

    shown = [
        (places, start, asked) for places in groups for start, asked in windows(len(wild_type), places, room(model))
    ]
    examples = (
        _masked(model, wild_type[start : start + room(model)], start, () if shows_all else places)
        for places, start, _ in shown
    )
    for (places, start, asked), (_, values) in zip(shown, run(model, examples, nats), strict=True):
        yield places, {place: values[before + place - start].astype(np.float64) for place in asked}


def windows(length: int, places: Places, room: int) -> list[tuple[int, Places]]:
    """(first residue shown, the positions that are asked there): all in one window where they fit, else one each.

    >>> windows(10, (2, 3), 6), windows(20, (2, 15), 6)
    ([(0, (2, 3))], [(0, (2,)), (12, (15,))])
    """
    fits = places[-1] - places[0] < room
    groups = [places] if fits else [(place,) for place in places]
    return [(min(max(0, (own[0] + own[-1] + 1 - room) // 2), max(0, length - room)), own) for own in groups]


def _masked(model: Backbone, stretch: str, start: int, places: Places) -> Example:
    example = model.tokenize(stretch, name="wild type")
    before, _ = model.words_around
    tokens = example.tokens.copy()
    tokens[[before + place - start for place in places if 0 <= place - start < len(stretch)]] = model.mask
    return replace(example, tokens=tokens)
