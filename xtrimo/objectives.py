"""The pretraining objectives: pure functions (fragment, rng, config) -> Example. OBJECTIVES is the table of them.

One protein is `<eos> R1..Rn <eos>`. Each objective writes it as input tokens, the label to predict AT each token
(already shifted; 0 = no loss), two position channels, and a prefix every token may look at; after the prefix the
order is causal. For M K V A, where . is no loss and | ends the prefix:

    mlm     tokens  M <mask> V A <eos>                labels  . K . . .              prefix everything
    gmask   tokens  <eos> M K <gmask> | <sop> V A     labels  . . . . V A <eos>
    gmask   tokens  <gmask> | <sop> <eos> M K V A     labels  . . M K V A <eos>      unconditional: the prompt style
    smask   tokens  M <smask> A <eos> | <sop> K V     labels  . . . . K V <eop>
    causal  the unconditional gmask with prefix 0 and plain positions, for one-channel rotary models

gmask and smask cut the text into a visible part A and a predicted part B. Positions are (place in A, 0) in A; a token
of B stands at the place of the <gmask> or <smask> it fills, and its second channel counts 1, 2, ... from its <sop>.

Choices. A plain uniform length of the target would almost never train the empty source, so it has its own probability
(`unconditional_ratio`). Reversed samples read C to N and start with <rev>. A cropped end has neither its <eos> nor
loss there. `long_span_ratio` adds the long gaps that infilling a range asks for; 0 gives the published mixture.

Sources: GLM (Du et al. 2022, arXiv:2103.10360), GLM-130B (Zeng et al. 2023, arXiv:2210.02414),
xTrimoPGLM (Chen et al. 2024, arXiv:2401.06199).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache

import numpy as np
from jaxtyping import Float64, Int, Int32, Int64, UInt8

from xtrimo.config import Objective
from xtrimo.errors import ConfigError, SequenceError
from xtrimo.tokens import EOP, EOS, FIRST_RESIDUE, GMASK, MASK, PAD, REV, SMASK, SOP

IGNORE = PAD
"""The label that means "no loss here"; padding is never a target."""

_LAST_RANDOM = 27  # the published replacement draw also holds "." and "-"
_LONGEST_SHORT_SPAN = 39
_LONG_SPAN, _LONG_SPAN_COVER = (8, 40), 0.4
_MASKED_SPAN, _MASKED_SPAN_COVER = 20.0, (0.1, 0.5)


@dataclass(frozen=True, slots=True, eq=False)
class Fragment:
    """A protein or a window of one. A missing real terminus gets no `<eos>`.

    Raises:
        SequenceError: when there is no residue.
    """

    residues: UInt8[np.ndarray, "length"]
    """Token ids, N to C."""
    has_start: bool = True
    """Whether residue 0 is the chain's N terminus."""
    has_end: bool = True
    """Whether the last residue is the chain's C terminus."""

    def __post_init__(self) -> None:
        if not len(self.residues):
            raise SequenceError("a fragment has no residues; give at least one or drop the record")


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One training example. See the module's table for what each objective writes."""

    objective: Objective
    """Its row of OBJECTIVES."""
    tokens: UInt8[np.ndarray, "token"]
    """What the model reads."""
    positions: Int32[np.ndarray, "token 2"]
    """Place in the chain, and place in the target (0 outside it)."""
    labels: UInt8[np.ndarray, "token"]
    """What the model must say at this token; IGNORE where nothing is asked."""
    prefix: int
    """The first `prefix` tokens are seen by all; token q sees k iff k < prefix or k <= q."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """How examples are drawn. Impossible values raise ConfigError."""

    mask_ratio: float = 0.15
    """Share of the residues that mlm and the short spans of smask hide, above 0 and at most 0.5."""
    unconditional_ratio: float = 0.5
    """Share of the gmask samples with an empty source."""
    min_target_ratio: float = 0.2
    """Shortest target of a conditional gmask sample, as a share of the residues."""
    reverse_ratio: float = 0.5
    """Share of the gmask and causal samples read from C to N; 0 for a model without <rev>."""
    average_span: float = 3.0
    """Mean of the Poisson law of short spans, 1 to 39 residues."""
    single_span_ratio: float = 0.02
    """Share of the short-span smask samples that hide everything in one span."""
    long_span_ratio: float = 0.3
    """Share of the smask samples with one or two spans of 8 to 40 residues, at most 40 % of the protein, instead of
    short ones; proteins below 20 residues keep the short ones."""
    masked_span_ratio: float = 0.0
    """Share of the mlm samples that hide whole spans, as SpanBERT does (Joshi et al. 2020, arXiv:1907.10529): of 20
    residues on average, together a tenth to half of the protein. Gaps of known length ask for it."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_ratio") and not 0 <= value <= 1:
                raise ConfigError(f"{field.name} is {value}; a ratio lies between 0 and 1")
        if not 0 < self.mask_ratio <= 0.5:
            raise ConfigError(f"mask_ratio is {self.mask_ratio}; it must be above 0 and at most 0.5")
        if not 1 <= self.average_span <= _LONGEST_SHORT_SPAN:
            raise ConfigError(f"average_span is {self.average_span}; it must be 1 to {_LONGEST_SHORT_SPAN} residues")
        # Each span adds two tokens; rows are planned for at most n // 12 + 4 spans, which must be rare to exceed.
        if 16 * self.mask_ratio > self.average_span:
            raise ConfigError(
                f"mask_ratio {self.mask_ratio} with average_span {self.average_span} makes too many spans; the rule is"
                f" 16 * mask_ratio <= average_span: raise average_span to {16 * self.mask_ratio:g} or mask less"
            )


def mlm(fragment: Fragment, rng: np.random.Generator, config: ObjectiveConfig) -> Example:
    """Masked language model: of the chosen residues 80 % become <mask>, 10 % a random word of 1..27, 10 % stay."""
    if config.masked_span_ratio and rng.random() < config.masked_span_ratio:
        return _masked_spans(fragment, rng, config)
    num_residues = len(fragment.residues)
    tokens = np.append(fragment.residues, _eos_if(fragment.has_end))
    labels = np.full_like(tokens, IGNORE)
    chosen = rng.choice(num_residues, max(1, _floor(config.mask_ratio * num_residues)), replace=False, shuffle=False)
    labels[chosen] = tokens[chosen]
    fate = rng.random(len(chosen))
    replaced = chosen[fate >= 0.9]
    tokens[chosen[fate < 0.8]] = MASK
    tokens[replaced] = rng.integers(FIRST_RESIDUE, _LAST_RANDOM + 1, len(replaced))
    return Example("mlm", tokens, _chain_positions(len(tokens)), labels, prefix=len(tokens))


def _masked_spans(fragment: Fragment, rng: np.random.Generator, config: ObjectiveConfig) -> Example:
    """Masked language model whose hidden residues stand in spans, all of them <mask>."""
    tokens = np.append(fragment.residues, _eos_if(fragment.has_end))
    law = replace(
        config, mask_ratio=rng.uniform(*_MASKED_SPAN_COVER), average_span=_MASKED_SPAN, long_span_ratio=0.0,
        single_span_ratio=0.0,
    )  # fmt: skip
    lengths = _span_lengths(len(fragment.residues), rng, law)
    num_hidden = int(lengths.sum())
    gaps = np.sort(rng.choice(len(fragment.residues) - num_hidden + 1, len(lengths), replace=False))
    hidden = np.repeat(gaps, lengths) + np.arange(num_hidden)  # after so many visible residues, and those hidden before
    labels = np.full_like(tokens, IGNORE)
    labels[hidden] = tokens[hidden]
    tokens[hidden] = MASK
    return Example("mlm", tokens, _chain_positions(len(tokens)), labels, prefix=len(tokens))


def gmask(fragment: Fragment, rng: np.random.Generator, config: ObjectiveConfig) -> Example:
    """Prefix language model: from the first k residues say the rest; k = 0 with probability `unconditional_ratio`."""
    fragment, reverse = _turn(fragment, rng, config)
    num_residues = len(fragment.residues)
    shortest = max(1, _ceil(config.min_target_ratio * num_residues))
    if rng.random() < config.unconditional_ratio or shortest >= num_residues:
        return _generation(fragment, reverse, num_source=0)
    return _generation(fragment, reverse, num_source=num_residues - int(rng.integers(shortest, num_residues)))


def causal(fragment: Fragment, rng: np.random.Generator, config: ObjectiveConfig) -> Example:
    """Left-to-right language model on the unconditional prompt, all in one position channel."""
    example = _generation(*_turn(fragment, rng, config), num_source=0)
    return replace(example, objective="causal", positions=_chain_positions(len(example.tokens)), prefix=0)


def smask(fragment: Fragment, rng: np.random.Generator, config: ObjectiveConfig) -> Example:
    """Span infilling: each span shrinks to one <smask> in part A; part B says the spans, shuffled, closed by <eop>."""
    residues = fragment.residues
    lengths = _span_lengths(len(residues), rng, config)
    num_spans, num_visible = len(lengths), len(residues) - int(lengths.sum())
    # Spans go into distinct gaps between visible residues, so no two of them touch; all such placings are equally
    # likely. The gaps come in random order: sorting them also shuffles the lengths, whose last one was clipped.
    gaps = rng.choice(num_visible + 1, num_spans, replace=False)
    by_place = np.argsort(gaps)
    gaps, lengths = gaps[by_place], lengths[by_place]
    starts = gaps + np.cumsum(lengths) - lengths

    shuffled = rng.permutation(num_spans)
    sizes = lengths[shuffled] + 1  # <sop> span, or span <eop>
    ends = np.cumsum(sizes)
    block = np.arange(ends[-1]) - np.repeat(ends - sizes, sizes)
    place = np.repeat(starts[shuffled], sizes) + block  # of the residue said at each token of B, one past it at <eop>
    targets = np.append(residues, np.uint8(EOP))[place]
    targets[ends - 1] = EOP
    inputs = np.append(np.uint8(SOP), targets[:-1])
    inputs[ends - sizes] = SOP

    visible = np.ones(len(residues), dtype=bool)
    visible[place[targets != EOP]] = False
    part_a = np.append(np.insert(residues[visible], gaps, SMASK), _eos_if(fragment.has_end))

    positions = _chain_positions(len(part_a) + len(inputs))
    positions[len(part_a) :, 0] = np.repeat((gaps + np.arange(num_spans))[shuffled], sizes)  # where its <smask> stands
    positions[len(part_a) :, 1] = block + 1
    labels = np.append(np.full_like(part_a, IGNORE), targets)
    return Example("smask", np.append(part_a, inputs), positions, labels, prefix=len(part_a))


@dataclass(frozen=True, slots=True)
class ObjectiveSpec:
    """One row of OBJECTIVES."""

    name: Objective
    """The key, as configs and metrics write it."""
    build: Callable[[Fragment, np.random.Generator, ObjectiveConfig], Example]
    """Draws an example; the same state of the generator gives the same example."""
    max_tokens: Callable[[Int[np.ndarray, "protein"]], Int[np.ndarray, "protein"]]
    """Upper bound of the example's tokens for proteins of these numbers of residues, under every config."""


OBJECTIVES: dict[str, ObjectiveSpec] = {
    spec.name: spec
    for spec in (
        ObjectiveSpec("mlm", mlm, lambda lengths: lengths + 1),
        ObjectiveSpec("gmask", gmask, lambda lengths: lengths + 4),
        ObjectiveSpec("smask", smask, lambda lengths: lengths + 2 * (lengths // 12 + 4) + 1),
        ObjectiveSpec("causal", causal, lambda lengths: lengths + 4),
    )
}


def make_example(fragment: Fragment, objective_name: str, rng: np.random.Generator, config: ObjectiveConfig) -> Example:
    """An example of the objective called `objective_name`.

    Raises:
        ConfigError: listing the known names.
    """
    if objective_name not in OBJECTIVES:
        raise ConfigError(f"no objective {objective_name!r}; known: {', '.join(OBJECTIVES)}")
    return OBJECTIVES[objective_name].build(fragment, rng, config)


def tagged(example: Example, tags: UInt8[np.ndarray, "tag"]) -> Example:
    """The example with control words in front of part A, seen by all; everything else moves on by their number.

    For M K V and one tag T, | ends the prefix:

        gmask   tokens  T <gmask> | <sop> <eos> M K V     places  0 1 1 1 1 1 1
        smask   tokens  T M <smask> V <eos> | <sop> K     places  0 1 2 3 4 2 2
    """
    positions = np.append(_chain_positions(len(tags)), example.positions + (len(tags), 0), axis=0).astype(np.int32)
    return replace(
        example, tokens=np.append(tags, example.tokens), positions=positions,
        labels=np.append(np.full_like(tags, IGNORE), example.labels),
        prefix=example.prefix + len(tags) if example.prefix else 0,
    )  # fmt: skip


def _turn(fragment: Fragment, rng: np.random.Generator, config: ObjectiveConfig) -> tuple[Fragment, bool]:
    """The fragment in the drawn reading direction, and whether that is C to N; the ends change roles with it."""
    if rng.random() >= config.reverse_ratio:
        return fragment, False
    return Fragment(fragment.residues[::-1], has_start=fragment.has_end, has_end=fragment.has_start), True


def _generation(fragment: Fragment, reverse: bool, num_source: int) -> Example:
    """gmask with a given source. The opening <eos> leads the source, or the target when the source is empty."""
    residues, opening = fragment.residues, _eos_if(fragment.has_start)
    lead = np.full(int(reverse), REV, dtype=np.uint8)
    source = np.append(opening, residues[:num_source]) if num_source else opening[:0]
    unasked = opening[:0] if num_source else opening
    target = np.concatenate((unasked, residues[num_source:], _eos_if(fragment.has_end)))
    text = np.concatenate((lead, source, np.array((GMASK, SOP), dtype=np.uint8), target))
    prefix = len(lead) + len(source) + 1

    tokens = text[:-1]
    labels = np.full_like(tokens, IGNORE)
    first = prefix + len(unasked)  # <sop> says the first residue, or the opening <eos> after it does
    labels[first:] = text[first + 1 :]
    positions = _chain_positions(len(tokens))
    positions[prefix:, 0] = prefix - 1
    positions[prefix:, 1] = np.arange(1, len(tokens) - prefix + 1)
    return Example("gmask", tokens, positions, labels, prefix)


def _span_lengths(num_residues: int, rng: np.random.Generator, config: ObjectiveConfig) -> Int64[np.ndarray, "span"]:
    """Lengths of the spans to hide; together with one visible residue between two they fit into the protein."""
    if rng.random() < config.long_span_ratio and _floor(_LONG_SPAN_COVER * num_residues) >= _LONG_SPAN[0]:
        return _long_span_lengths(_floor(_LONG_SPAN_COVER * num_residues), rng)
    num_hidden = max(1, _ceil(config.mask_ratio * num_residues))
    if rng.random() < config.single_span_ratio:
        return np.array([num_hidden])
    most = min(num_residues // 12 + 4, num_residues - num_hidden + 1)
    law = _short_span_law(config.average_span)
    while True:  # ObjectiveConfig keeps a second round rare
        lengths = 1 + np.searchsorted(law, rng.random(most), side="right")
        covered = np.cumsum(lengths)
        if covered[-1] >= num_hidden:
            break
    last = int(np.searchsorted(covered, num_hidden))
    lengths[last] -= covered[last] - num_hidden
    return lengths[: last + 1]


def _long_span_lengths(room: int, rng: np.random.Generator) -> Int64[np.ndarray, "span"]:
    """One or two lengths, even odds, each uniform over 8..40 as far as `room` residues in all allow."""
    shortest, longest = _LONG_SPAN
    if room < 2 * shortest or rng.random() < 0.5:
        return rng.integers(shortest, min(longest, room), size=1, endpoint=True)
    first = int(rng.integers(shortest, min(longest, room - shortest), endpoint=True))
    return np.array([first, rng.integers(shortest, min(longest, room - first), endpoint=True)])


@cache
def _short_span_law(average_span: float) -> Float64[np.ndarray, "border"]:
    """Cumulative probabilities of the lengths 1, 2, ..., 39 under a Poisson law truncated to them."""
    weights = np.cumprod(average_span / np.arange(1, _LONGEST_SHORT_SPAN + 1))  # mean^k / k!
    borders: Float64[np.ndarray, "span_length"] = np.cumsum(weights) / weights.sum()
    return borders[:-1]  # the last one, 1 but for rounding, is never to be passed


def _chain_positions(num_tokens: int) -> Int32[np.ndarray, "token 2"]:
    """(0, 0), (1, 0), (2, 0), ..."""
    positions = np.zeros((num_tokens, 2), dtype=np.int32)
    positions[:, 0] = np.arange(num_tokens)
    return positions


def _eos_if(real_end: bool) -> UInt8[np.ndarray, "end"]:
    return np.full(int(real_end), EOS, dtype=np.uint8)


# A ratio times a count misses the whole number it means by one rounding: 0.28 * 25 = 7.000000000000001.
def _floor(value: float) -> int:
    return math.floor(value + 1e-9)


def _ceil(value: float) -> int:
    return math.ceil(value - 1e-9)
