"""Gaps filled by a model of masks: all of them are masked, and round by round it says what stands there.

A round reads each protein once, as it stands, and decides some of its masked places: how many, a schedule says, as the
share s(t/T) still masked after round t of T; which, their order does.

    cosine  s(x) = cos(pi x / 2)     few at first, where little is known      (MaskGIT, Chang et al. 2022,
    linear  s(x) = 1 - x             as many in each round                     arXiv:2202.04200)

    confidence   each masked place draws a residue; those that the model held likeliest stay
    random       each masked place is as likely as another to be among them

Places decided in one round do not know each other. One place a round in random order draws from a product of
conditionals; confidence prefers what is safe, and gives less varied proteins. Gibbs sweeps (Wang & Cho 2019,
arXiv:1902.04094) go over the filled places again, in a new order each time: one is masked, drawn from all others as
they stand, and the next follows. Where the conditionals are those of one joint distribution, sweeps converge to it.

Only the places of gaps are ever masked or written, and only by letters that the gap allows. Any Backbone with a mask
will do. Proteins lie packed in one row, which takes in the next as soon as one is done; a protein has a random stream
of its own, keyed by (seed, number), and in fp32 is the same whatever it is read with.
"""

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Float64, Int, Int64
from torch import Tensor

from generate.logits import distribution, draw
from generate.prompt import Fixed, Prompt
from generate.ways import control_words, tag_ids
from xtrimo.attention import within
from xtrimo.backbone import Backbone, refuse_beyond_places
from xtrimo.batch import ROW_TOKENS, Inputs, run
from xtrimo.errors import ConfigError
from xtrimo.objectives import Example, tagged
from xtrimo.tokens import AMINO_ACIDS

Schedule = Literal["cosine", "linear"]
Order = Literal["confidence", "random"]

SCHEDULES: dict[Schedule, Callable[[float], float]] = {
    "cosine": lambda done: math.cos(math.pi / 2 * done),
    "linear": lambda done: 1 - done,
}
"""The share of the places that is still masked when a share of the rounds is done; falls from 1 to 0."""

ORDERS: dict[Order, Callable[[Float64[np.ndarray, "place"], np.random.Generator], Int64[np.ndarray, "place"]]] = {
    "confidence": lambda held, rng: np.argsort(-held, kind="stable"),
    "random": lambda held, rng: rng.permutation(len(held)),
}
"""Masked places, the first to be decided first, from how likely the model held the residue drawn at each."""

# Matrix products round differently in the remainder of their tiles of 4 rows; in full tiles a token's result is bitwise
# the same whatever lies beside it.
_TILE = 4

LogProbs = Float32[np.ndarray, "_ 20"]
"""Of the amino acids in the order of AMINO_ACIDS, over all rows of the vocabulary."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UnmaskingConfig:
    """How gaps are filled by a model of masks. Impossible values raise ConfigError."""

    seed: int = 0
    """Protein i of a seed is always the same one, under the same model and settings."""
    temperature: float = 1.0
    """Divides the logits; 0 always takes the likeliest residue."""
    top_p: float = 1.0
    """Draw from the fewest likeliest residues that reach this probability together; 1 draws from all."""
    rounds: int = 16
    """Rounds in which the gaps of a protein are filled; where it has fewer places, one place a round."""
    schedule: Schedule = "cosine"
    """How many places a round decides: cosine, few at first; linear, as many in each round."""
    order: Order = "random"
    """Which places a round decides: confidence, those that the model holds likeliest; random, any."""
    sweeps: int = 0
    """Gibbs sweeps once the gaps are filled; each draws all their places anew, one at a time, a round for each."""
    max_length: int | None = None
    """Residues that a protein may have: its ranges get lengths with which it fits. None for any number."""
    row_tokens: int = ROW_TOKENS
    """The most tokens that are read at a time; changes speed and memory, not the proteins."""

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("row_tokens", 1), ("sweeps", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed is {self.seed}; it must be at least 0 and below 2**63")
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(
                f"temperature is {self.temperature}; it must be 0 (likeliest residue) or above, and finite"
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        for what, value, known in (("schedule", self.schedule, SCHEDULES), ("order", self.order, ORDERS)):
            if value not in known:
                raise ConfigError(f"no {what} {value!r}; known: {', '.join(known)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Unmasked:
    """A protein whose gaps are filled."""

    number: int
    """With the seed it gives this protein again."""
    sequence: str
    """Residues, those given and those filled in."""
    nll: float
    """Nats per filled residue, of the chain of conditionals: each as the model held it when it was last drawn, from
    what it then saw (temperature 1, all rows of the vocabulary). Not the pseudo-likelihood, which `xtrimo.score` has.
    NaN where the lengths drawn left nothing to fill."""
    rounds: int
    """Times that the model read it: those that filled, and those of the sweeps."""
    places: tuple[int, ...]
    """Which residues were filled in, counted from 0."""


def unmask(model: Backbone, prompts: Sequence[Prompt], config: UnmaskingConfig | None = None) -> list[Unmasked]:
    """Fill the gaps of each prompt; protein i is the one of number i.

    Raises:
        ConfigError: a model that has no mask; or a prompt without a gap, with an open end, or with control tags.
        SequenceError: more residues than a model of learned places has these.
    """
    done = iter_unmasked(model, enumerate(prompts), config or UnmaskingConfig())
    return sorted(done, key=lambda protein: protein.number)


def iter_unmasked(model: Backbone, jobs: Iterable[tuple[int, Prompt]], config: UnmaskingConfig) -> Iterator[Unmasked]:
    """`unmask` for prompts by their numbers, which stream in; a protein is yielded when it is done, before slower ones
    of lower numbers."""
    require_mask(model)
    compute = partial(_log_probs, model, torch.from_numpy(_amino_acids(model)).to(model.device))
    fillings = (_Filling(_steps(model, number, prompt, config)) for number, prompt in jobs)
    active: list[_Filling] = []
    waiting = next(fillings, None)
    while active or waiting:
        num_tokens = sum(filling.num_tokens for filling in active)
        while waiting and (not active or num_tokens + waiting.num_tokens <= config.row_tokens):
            active.append(waiting)
            num_tokens += waiting.num_tokens
            waiting = next(fillings, None)
        to_read = [filling for filling in active if filling.example]
        answers = run(model, [f.example for f in to_read if f.example], compute, row_tokens=config.row_tokens)
        for filling, (_, said) in zip(to_read, answers, strict=True):
            filling.go_on(said)
        yield from (filling.done for filling in active if filling.done)
        active = [filling for filling in active if not filling.done]


def marginals(model: Backbone, prompts: Sequence[Prompt]) -> list[LogProbs]:
    """What the model holds of every place in gaps of known length, all of them masked at once; nothing is drawn.

    Returns:
        Of each prompt [place 20]: log of the chance of each of AMINO_ACIDS among all the model's words, nats.

    Raises:
        ConfigError, SequenceError: as `unmask`; or a gap without a length of its own.
    """
    require_mask(model)
    for number, prompt in enumerate(prompts):
        if any(gap.shortest != gap.longest for gap in prompt.gaps):
            raise ConfigError(f"prompt {number + 1}: {prompt} has a gap whose length is not known; write it as [5]")
    rng = np.random.default_rng(0)  # draws lengths, of which there is one
    templates = [_template(model, f"prompt {i + 1}", prompt, rng, None) for i, prompt in enumerate(prompts)]
    compute = partial(_log_probs, model, torch.from_numpy(_amino_acids(model)).to(model.device))
    answers = run(model, [template.example for template in templates], compute)
    return [said[template.tokens] for template, (_, said) in zip(templates, answers, strict=True)]


def require_mask(model: Backbone) -> None:
    """Refuse a model that cannot fill gaps.

    Raises:
        ConfigError: it was not trained to say what stands under a mask.
    """
    if model.mask is None:
        raise ConfigError(
            "this model never predicted a <mask>, so it cannot fill gaps from both sides; take one that was trained on"
            " mlm, an ESM or AntiBERTy, or fill by smask where the model has that"
        )


def num_decided(num_places: int, config: UnmaskingConfig) -> Int64[np.ndarray, "round"]:
    """How many places each round decides: at least one, and all of them together.

    >>> num_decided(20, UnmaskingConfig(rounds=5)).tolist(), num_decided(20, UnmaskingConfig(rounds=32)).sum()
    ([1, 3, 5, 5, 6], 20)
    """
    share, rounds = SCHEDULES[config.schedule], min(config.rounds, num_places)
    left = [num_places]
    for done in range(1, rounds + 1):
        planned = math.floor(num_places * share(done / rounds) + 1e-9)  # 10 * (1 - 0.8) is 1.9999999999999996
        left.append(min(left[-1] - 1, max(planned, rounds - done)))  # one a round now, and one for each to come
    return -np.diff(left)


class _Template(NamedTuple):
    """A protein whose gaps are masked, in the model's words."""

    sequence: str
    """With some letter that its gap allows at each place of a gap."""
    example: Example
    residues: Int64[np.ndarray, "place"]
    """Which residues stand in gaps, counted from 0."""
    tokens: Int64[np.ndarray, "place"]
    """Where these stand in the example."""
    allowed: Bool[np.ndarray, "place 20"]
    """What may stand there, in the order of AMINO_ACIDS."""


def _template(
    model: Backbone, name: str, prompt: Prompt, rng: np.random.Generator, max_length: int | None
) -> _Template:
    tags = np.array(tag_ids(prompt, control_words(model)), dtype=np.uint8)
    if not prompt.gaps:
        raise ConfigError(f"{name}: it has no gap to fill; write one as [5], [8..20] or _")
    if prompt.longest is None:
        raise ConfigError(
            f"{name}: a model of masks fills gaps of known lengths, and never ends a protein by itself; say how long"
            " the open gap is at most, such as [0..100], or take a model that generates"
        )
    text, residues, allowed = "", list[int](), list[Bool[np.ndarray, "20"]]()
    for piece in prompt.drawn(rng, max_length).pieces:
        if isinstance(piece, Fixed):
            text += piece.residues
            continue
        residues += range(len(text), len(text) + piece.shortest)
        allowed += [np.array([letter in piece.letters for letter in AMINO_ACIDS])] * piece.shortest
        text += piece.letters[0] * piece.shortest
    refuse_beyond_places(model, len(text), name=name)
    example = model.tokenize(text, name=name)
    places = np.array(residues, dtype=np.int64)
    tokens = places + model.words_around[0] + len(tags)
    if len(tags):
        example = tagged(example, tags)
    example.tokens[tokens] = model.mask
    return _Template(text, example, places, tokens, np.array(allowed, dtype=bool).reshape(-1, len(AMINO_ACIDS)))


Steps = Generator[Example, LogProbs, Unmasked]
"""Yields what is to be read, is sent what the model says at each token of it, and returns the protein."""


def _steps(model: Backbone, number: int, prompt: Prompt, config: UnmaskingConfig) -> Steps:
    rng = np.random.Generator(np.random.Philox(key=np.array((config.seed, number), dtype=np.uint64)))
    template = _template(model, f"prompt {number + 1}", prompt, rng, config.max_length)
    tokens, words, num_places = template.example.tokens, _amino_acids(model), len(template.tokens)
    letters, nats = np.zeros(num_places, dtype=np.int64), np.full(num_places, np.nan)

    def draw_at(places: Int64[np.ndarray, "place"], said: LogProbs, num: int) -> Int64[np.ndarray, "rest"]:
        """Draws at each of these places, keeps `num` of the draws; the places that stay masked."""
        here = said[template.tokens[places]]
        drawn, held = _drawn(here, template.allowed[places], config, rng)
        order = ORDERS[config.order](held, rng)
        kept = order[:num]
        letters[places[kept]], nats[places[kept]] = drawn[kept], -here[kept, drawn[kept]]
        tokens[template.tokens[places[kept]]] = words[drawn[kept]]
        return places[np.sort(order[num:])]

    masked, counts = np.arange(num_places), num_decided(num_places, config).tolist()
    for count in counts:
        masked = draw_at(masked, (yield template.example), count)
    for _ in range(config.sweeps):
        for place in rng.permutation(num_places):
            tokens[template.tokens[place]] = model.mask
            draw_at(np.array([place]), (yield template.example), 1)

    residues = list(template.sequence)
    for place, letter in zip(template.residues.tolist(), letters.tolist(), strict=True):
        residues[place] = AMINO_ACIDS[letter]
    return Unmasked(
        number=number, sequence="".join(residues), nll=float(nats.mean()) if num_places else math.nan,
        rounds=len(counts) + config.sweeps * num_places, places=tuple(template.residues.tolist()),
    )  # fmt: skip


def _drawn(
    said: LogProbs, allowed: Bool[np.ndarray, "place 20"], config: UnmaskingConfig, rng: np.random.Generator
) -> tuple[Int64[np.ndarray, "place"], Float64[np.ndarray, "place"]]:
    """A letter for each place, and how likely the model held it among those allowed there, at temperature 1."""
    logits = torch.from_numpy(np.where(allowed, said, np.float32(-np.inf)))
    uniform = torch.from_numpy(1 - rng.random(len(said)))  # open at 0: what is not allowed is never drawn
    letters = draw(distribution(logits, config.temperature, config.top_p), uniform)
    held = logits.double().softmax(-1).gather(-1, letters[:, None])[:, 0]
    return letters.numpy(), held.numpy()


class _Filling:
    """A protein on its way: the next that is to be read of it, or the result."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self.example: Example | None = None
        self.done: Unmasked | None = None
        self.go_on(None)

    def go_on(self, said: LogProbs | None) -> None:
        """Hear what the model says at each token of `example`; nothing, to start."""
        try:
            self.example = next(self._steps) if said is None else self._steps.send(said)
        except StopIteration as end:
            self.example, self.done = None, end.value

    @property
    def num_tokens(self) -> int:
        """Of what is to be read."""
        return len(self.example.tokens) if self.example else 0


def _amino_acids(model: Backbone) -> Int64[np.ndarray, "20"]:
    """The model's token id of each of AMINO_ACIDS."""
    before, after = model.words_around
    tokens = model.tokenize(AMINO_ACIDS).tokens
    return tokens[before : len(tokens) - after].astype(np.int64)


def _log_probs(model: Backbone, amino_acids: Int[Tensor, "20"], row: Inputs) -> Float[Tensor, "token 20"]:
    """Log-probability of each amino acid at each token of a packed row, over all rows of the vocabulary."""
    num_tokens = len(row.tokens)
    rest = -num_tokens % _TILE  # a segment of its own, whose answers are dropped
    tokens = torch.cat((row.tokens, row.tokens[:1].expand(rest)))
    positions = F.pad(row.positions, (0, 0, 0, rest))
    segments = torch.cat((row.segments, torch.tensor([[num_tokens, rest, rest]]))) if rest else row.segments
    states = model.hidden(tokens, positions, within(segments))[-1]
    return model.logits(states).float().log_softmax(-1)[:num_tokens, amino_acids]
