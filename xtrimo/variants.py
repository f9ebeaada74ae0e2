"""How likely a model finds the variants of a protein; higher is likelier, in nats.

likelihood: of the whole mutated protein, less that of the wild type, read after the native prompt and, where the model
was trained in both, from either end (scoring.py). For models that generate; insertions and deletions too.

masked-marginals (Meier et al. 2021, doi:10.1101/2021.07.09.450648): the wild type is shown with all mutated positions
M masked, and the sum over them of log p(mutant) - log p(wild type) is the score. For models that fill masks, and
substitutions alone. A pass is shared by all variants of the same positions.

masked-alone: the same, each position of M masked alone, the others shown as in the wild type; what ProteinGym's script
for ESM calls masked marginals. One pass for each position that any variant changes, whatever the number of variants.

wild-type-marginals: the same with nothing masked (wt-marginals there). One pass in all.

pseudo: the pseudo-likelihood of the whole protein, less that of the wild type, for insertions and deletions under a
model that fills masks; as many passes as residues.

A protein that is longer than the model reads is cut around the positions, for a likelihood the variant and the wild
type alike; where they lie further apart than that, each has a window of its own, and what these say is added up. With
nothing masked a position is asked in the one of a few overlapping windows whose centre is nearest. A variant of which
nothing is known but its residues is read whole.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from xtrimo import embedding
from xtrimo.attention import within
from xtrimo.backbone import Backbone, Limited
from xtrimo.batch import Inputs, run
from xtrimo.embedding import room
from xtrimo.errors import ConfigError, SequenceError
from xtrimo.fasta import Record
from xtrimo.likelihood import Asking, Reading, choose
from xtrimo.model import GLM
from xtrimo.mutation import Mutation, mutated
from xtrimo.objectives import Example
from xtrimo.scoring import iter_scores

Method = Literal["likelihood", "masked-marginals", "masked-alone", "wild-type-marginals", "pseudo"]
Variant = tuple[Mutation, ...] | str
"""What tells it from the wild type; all its residues, where that is not known."""
Scores = Float64[np.ndarray, "variant"]
Places = tuple[int, ...]
"""Positions from 0, in order."""


def usual_method(model: Backbone, variants: Sequence[Variant]) -> Method:
    """likelihood where the model has one; else masked-marginals for substitutions, pseudo for the rest."""
    if choose(model, None, None).method == "likelihood":
        return "likelihood"
    return "masked-marginals" if are_substitutions(variants) else "pseudo"


def usual_direction(model: Backbone) -> Reading | None:
    """Both, of a model that was trained in both."""
    return "both" if isinstance(model, GLM) and len(model.config.directions) == 2 else None


def are_substitutions(variants: Sequence[Variant]) -> bool:
    """Whether every variant is known to be the wild type with residues in place of others."""
    return all(not isinstance(own, str) and all(m.is_substitution for m in own) for own in variants)


def score_variants(
    model: Backbone,
    wild_type: str,
    variants: Sequence[Variant],
    *,
    method: Method | None = None,
    direction: Reading | None = None,
    name: str = "wild type",
) -> Scores:
    """A score for each variant, higher is likelier, 0 for the wild type where it is known.

    Args:
        wild_type: empty where it is not known, for variants that are whole proteins.
        method: by default `usual_method`.
        direction: of a likelihood; by default `usual_direction`.
        name: of the protein, for errors.

    Raises:
        ConfigError: a method that the model or the variants do not allow.
        DataError: mutations that do not fit the wild type.
        SequenceError: letters that are no residues, or that the model has no word for.
    """
    method = method or usual_method(model, variants)
    if method not in get_args(Method):
        raise ConfigError(f"no method {method!r}; known: {', '.join(get_args(Method))}")
    if method == "likelihood" or method == "pseudo":
        if method == "likelihood":
            direction = direction or usual_direction(model)
        return _likelihoods(model, wild_type, variants, choose(model, method, direction), name)
    if direction:
        raise ConfigError(f"got direction {direction} for {method}, which reads from both sides at once; leave it out")
    if model.mask is None:
        raise ConfigError(f"this model never predicted a <mask>, so it has no {method}; use likelihood")
    if not are_substitutions(variants):
        raise ConfigError(f"{name} has insertions or deletions, which have no {method}; use likelihood or pseudo")
    known = [own for own in variants if not isinstance(own, str)]
    for i, own in enumerate(known, start=1):
        mutated(wild_type, own, name=f"{name}, variant {i}")
    return _marginals(model, wild_type, known, method, name)


def windows(length: int, places: Places, room: int) -> list[tuple[int, Places]]:
    """(first residue shown, the positions that are asked there): all in one window where they fit, else one each.

    >>> windows(10, (2, 3), 6), windows(20, (2, 15), 6)
    ([(0, (2, 3))], [(0, (2,)), (12, (15,))])
    """
    fits = places[-1] - places[0] < room
    groups = [places] if fits else [(place,) for place in places]
    return [(min(max(0, (own[0] + own[-1] + 1 - room) // 2), max(0, length - room)), own) for own in groups]


def _likelihoods(model: Backbone, wild_type: str, variants: Sequence[Variant], asking: Asking, name: str) -> Scores:
    """Each different stretch of a protein is read once."""
    most = _room_of(model, asking)
    parts = [(i, *pair) for i, own in enumerate(variants) for pair in _stretches(wild_type, own, most, name, i + 1)]
    names = {before: name for _, before, _ in parts if before}
    for i, _, after in parts:
        names.setdefault(after, f"{name}, variant {i + 1}")
    records = (Record(own, stretch) for stretch, own in names.items())
    scores = iter_scores(model, records, method=asking.method, direction=asking.reading)
    nats = {"": 0.0} | {stretch: own.total_nll for stretch, own in zip(names, scores, strict=True)}
    totals = np.zeros(len(variants))
    for i, before, after in parts:
        totals[i] += nats[before] - nats[after]
    return totals


def _room_of(model: Backbone, asking: Asking) -> int:
    """Residues of the longest protein that fits a training row, with all words that it is asked with."""
    return model.max_length + 1 - max(len(q.example.tokens) for q in asking.questions(model, Record("one", "M")))


def _stretches(wild_type: str, variant: Variant, most: int, name: str, number: int) -> Iterator[tuple[str, str]]:
    """What is read of the wild type and what of the variant: all, or around what changes."""
    if isinstance(variant, str):
        yield wild_type, variant
        return
    name = f"{name}, variant {number}"
    whole = mutated(wild_type, variant, name=name)
    most -= max(0, sum(len(m.mutant) - len(m.wild) for m in variant))
    together = _span(variant) <= most
    if len(wild_type) <= most or not variant or any(_span([m]) > most for m in variant):
        yield wild_type, whole
        return
    for group in [variant] if together else [(m,) for m in variant]:
        first = min(m.position for m in group) - 1
        ((start, _),) = windows(len(wild_type), (first, first + _span(group) - 1), most)
        moved = [replace(m, position=m.position - start) for m in group]
        stretch = wild_type[start : start + most]
        yield stretch, mutated(stretch, moved, name=name)


def _span(mutations: Sequence[Mutation]) -> int:
    """Residues of the wild type from the first change to the last, at least 1."""
    ends = (m.position + max(1, len(m.wild)) for m in mutations)
    return max(ends, default=1) - min((m.position for m in mutations), default=0)


def _marginals(
    model: Backbone, wild_type: str, variants: Sequence[tuple[Mutation, ...]], method: Method, name: str
) -> Scores:
    groups = _groups(variants, method)
    letters = "".join(sorted({letter for own in variants for m in own for letter in m.wild + m.mutant}))
    column = {letter: i for i, letter in enumerate(letters)}
    scores = np.zeros(len(variants))
    if not letters:
        return scores
    words = _words(model, letters, name)
    for places, said in _passes(model, wild_type, list(groups), words, shows_all=method == "wild-type-marginals"):
        for i in groups[places]:
            for m in variants[i]:
                if m.position - 1 in said:
                    own = said[m.position - 1]
                    scores[i] += own[column[m.mutant]] - own[column[m.wild]]
    return scores


def _groups(variants: Sequence[tuple[Mutation, ...]], method: Method) -> dict[Places, list[int]]:
    """Positions that are asked in one pass -> the variants that it is asked for."""
    groups: dict[Places, list[int]] = {}
    for i, variant in enumerate(variants):
        places = tuple(sorted(m.position - 1 for m in variant))
        for own in [places] if method == "masked-marginals" else [(place,) for place in places]:
            groups.setdefault(own, []).append(i)
    groups.pop((), None)  # the wild type itself
    if method != "wild-type-marginals" or not groups:
        return groups
    return {tuple(sorted(place for (place,) in groups)): list(range(len(variants)))}


def _words(model: Backbone, letters: str, name: str) -> Tensor:
    """Token ids of the letters.

    Raises:
        SequenceError: the model has no word for one.
    """
    before, after = model.words_around
    alphabet = model.tokenize(letters, name=f"letters of the variants of {name}").tokens
    words = torch.from_numpy(alphabet[before : len(alphabet) - after]).long()
    if isinstance(model, Limited) and (words == model.unknown).any():
        unknown = [letter for letter, word in zip(letters, words.tolist(), strict=True) if word == model.unknown]
        raise SequenceError(f"{name}: this model has no word for {', '.join(unknown)}; leave such variants out")
    return words.to(model.device)


def _passes(
    model: Backbone, wild_type: str, groups: list[Places], words: Tensor, *, shows_all: bool
) -> Iterator[tuple[Places, dict[int, Float64[np.ndarray, "letter"]]]]:
    """For each group of positions, once or more: what the model says at some of them, in nats for each letter.

    Args:
        shows_all: mask none of them.
    """
    before, _ = model.words_around

    def nats(row: Inputs) -> Float[Tensor, "token letter"]:
        states = model.hidden(row.tokens, row.positions, within(row.segments))[-1]
        return model.logits(states).float().log_softmax(-1)[:, words]

    split = _overlapping if shows_all else windows
    shown = [(places, start, asked) for places in groups for start, asked in split(len(wild_type), places, room(model))]
    examples = (
        _masked(model, wild_type[start : start + room(model)], start, () if shows_all else places)
        for places, start, _ in shown
    )
    for (places, start, asked), (_, values) in zip(shown, run(model, examples, nats), strict=True):
        yield places, {place: values[before + place - start].astype(np.float64) for place in asked}


def _overlapping(length: int, places: Places, room: int) -> list[tuple[int, Places]]:
    """As `windows`, of a protein with nothing masked: a window serves all positions that lie about its centre."""
    if length <= room:
        return [(0, places)]
    found = embedding.windows(length, room, min(embedding.OVERLAP, room // 2))
    asked = [(own.start, tuple(p for p in places if own.keep_from <= p < own.keep_to)) for own in found]
    return [(start, own) for start, own in asked if own]


def _masked(model: Backbone, stretch: str, start: int, places: Places) -> Example:
    example = model.tokenize(stretch, name="wild type")
    before, _ = model.words_around
    tokens = example.tokens.copy()
    tokens[[before + place - start for place in places if 0 <= place - start < len(stretch)]] = model.mask
    return replace(example, tokens=tokens)
