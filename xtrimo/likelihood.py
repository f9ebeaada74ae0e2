"""Three ways to ask a model how likely a protein is: what it is made to read, and what its logits then say.

likelihood: a GLM that generates reads its native prompt `<gmask><sop><eos>R1..Rn` and says each word from those before
it, the closing `<eos>` included; C to N it reads `<rev><gmask><sop><eos>Rn..R1`. One pass, an exact log-likelihood.

pseudo: a model that fills masks reads n copies of the protein, residue i of copy i masked, and says it from all the
others (Salazar et al. 2020, arXiv:1910.14659). n passes: n times the tokens of a single one, and more of attention.

one-pass: an approximation of pseudo from the protein as it is, with nothing masked. At a residue in full view the model
says p: what it would say under a mask, q, and what being shown the letter tells it. MLM training asks at a visible
place only when it was left alone (share b of the chosen residues) or replaced by one of V words at random (share a). So
of two true residues, s itself and any other, the letter s is shown with likelihood b + a/V and a/V, and by Bayes

    p(s) : 1 - p(s)  =  q(s) (b + a/V) : (1 - q(s)) a/V,      odds(q) = odds(p) * (a/V) / (b + a/V)

which is odds(p) / (1 + V) as a = b = 0.1 in BERT's recipe, ours and the published one. With o and r the logit of s and
the log-sum-exp of all others, the nats are -log q = softplus(r - o + log(1 + V)): finite for any finite logits, with no
difference of nearly equal numbers, so nothing needs a floor. V is 27 in ours (see objectives.py); other models draw
from 20 to 33 words, and 25 is taken for them, which is off by less than 0.3 nats.

The assumption is a calibrated model, also where nothing is masked. A model of masks alone can be one (AntiBERTy ranks
antibodies as pseudo does). Ours keep to the law beside masks and not without (benchmarks/scores.py), perhaps because a
model that also generates meets whole proteins mostly as what goes before its own text, where nothing is asked of them;
what one-pass says of them is worth little. Nats above those of a blind guess, log V, tell, and are warned of.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from xtrimo.backbone import Backbone, Limited, refuse_beyond_places
from xtrimo.config import Direction
from xtrimo.errors import ConfigError
from xtrimo.fasta import Record, refuse_chains
from xtrimo.log import warn_once
from xtrimo.model import GLM
from xtrimo.objectives import IGNORE, Example, Fragment, ObjectiveConfig, make_example
from xtrimo.tokens import RESIDUES, encode_residues

Method = Literal["likelihood", "pseudo", "one-pass"]
Reading = Literal["forward", "reverse", "both"]

REPLACEMENTS_OF_GLM, REPLACEMENTS_ELSEWHERE = 27, len(RESIDUES)

logger = logging.getLogger(__name__)


class Question(NamedTuple):
    """Something the model is made to read for one protein."""

    example: Example
    """Its labels are the words whose nats are wanted, at `places`; IGNORE where the model has no word to ask for."""
    places: Int[np.ndarray, "answer"]
    """Where the answers stand: residues from N to C, then the closing `<eos>` of a likelihood."""
    num_asked: int
    """Questions about this protein in all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asking:
    """How proteins are scored; `choose` makes one that the model can answer."""

    method: Method
    directions: tuple[Direction, ...]
    """Those of a likelihood, whose nats are averaged; empty otherwise, as a mask is read from both sides."""

    @property
    def reading(self) -> Reading | None:
        """The directions in a word."""
        return "both" if len(self.directions) == 2 else self.directions[0] if self.directions else None

    def check(self, model: Backbone, protein: Record) -> None:
        """Refuse what cannot be read as one protein.

        Raises:
            SequenceError: several chains, or more residues than the model has learned places for.
        """
        refuse_chains(protein.sequence, name=protein.name)
        refuse_beyond_places(model, len(protein.sequence.removesuffix("*")), name=protein.name)

    def questions(self, model: Backbone, protein: Record) -> Iterator[Question]:
        """What is to be read for one protein: one example a direction, one a residue (pseudo), or one (one-pass)."""
        self.check(model, protein)
        if self.method == "likelihood":
            assert isinstance(model, GLM)
            residues = encode_residues(protein.sequence, name=protein.name)
            objective = "gmask" if "gmask" in model.config.objectives else "causal"
            for direction in self.directions:
                example, places = written(residues, objective, reverse=direction == "reverse")
                yield Question(example, places, len(self.directions))
            return
        plain = model.tokenize(protein.sequence, name=protein.name)
        before, after = model.words_around
        places = np.arange(before, len(plain.tokens) - after)
        labels = np.full_like(plain.tokens, IGNORE)
        labels[places] = plain.tokens[places]
        if isinstance(model, Limited):  # how likely the unknown word is, says nothing of the residue
            labels[labels == model.unknown] = IGNORE
        if self.method == "one-pass":
            yield Question(replace(plain, labels=labels), places, 1)
            return
        for i, place in enumerate(places):
            tokens = plain.tokens.copy()
            tokens[place] = model.mask
            yield Question(replace(plain, tokens=tokens, labels=labels), places[i : i + 1], len(places))

    def nats(
        self, model: Backbone, logits: Float[Tensor, "token vocab"], labels: Int[Tensor, "token"]
    ) -> Float[Tensor, "token"]:
        """Negative log-likelihood of each label, or the approximation of it; without meaning where nothing is asked."""
        if self.method == "one-pass":
            num_words = REPLACEMENTS_OF_GLM if isinstance(model, GLM) else REPLACEMENTS_ELSEWHERE
            nats = nats_under_mask(logits, labels, num_words)
            if nats[labels != IGNORE].mean() > math.log(num_words):
                warn_once(
                    logger, "one-pass finds residues less likely than blind guesses: these proteins are like nothing"
                    " the model knows, or it was not made for one-pass; trust pseudo"
                )  # fmt: skip
            return nats
        return F.cross_entropy(logits.float(), labels, reduction="none")


def nats_under_mask(
    logits: Float[Tensor, "token vocab"], shown: Int[Tensor, "token"], num_words: int
) -> Float[Tensor, "token"]:
    """-log q of the word shown at each token, from the logits at it in full view; see the module's equation.

    Args:
        num_words: V, the words that a chosen residue was replaced by in training, each as often as another.
    """
    logits, place = logits.float(), shown[:, None]
    own = logits.gather(1, place)[:, 0]
    others = logits.scatter(1, place, -torch.inf).logsumexp(1)
    return F.softplus(others - own + math.log1p(num_words))


def choose(model: Backbone, method: Method | None, reading: Reading | None) -> Asking:
    """How `model` is asked; by default for the likelihood if it has one, in the first direction it was trained in.

    Raises:
        ConfigError: an unknown method or direction, or one that the model was not trained for.
    """
    for what, value, known in (("method", method, get_args(Method)), ("direction", reading, get_args(Reading))):
        if value not in (None, *known):
            raise ConfigError(f"no scoring {what} {value!r}; known: {', '.join(known)}")
    writes = isinstance(model, GLM) and model.config.prompt_style == "gmask"
    trained = (
        f"trained on {', '.join(model.config.objectives)} alone" if isinstance(model, GLM) else "that is an encoder"
    )
    method = method or ("likelihood" if writes else "pseudo")
    if method == "likelihood":
        if not writes:
            raise ConfigError(f"a model {trained} never wrote a whole protein, so it has no likelihood; use pseudo")
        assert isinstance(model, GLM)
        return Asking(method=method, directions=_directions(model, reading))
    if model.mask is None:
        cure = "use likelihood" if writes else "scoring needs gmask, causal or mlm"
        raise ConfigError(f"a model {trained} never predicted a <mask>, so it has no pseudo-likelihood; {cure}")
    if reading:
        raise ConfigError(
            f"got direction {reading} for {method}, which reads a residue from both sides at once; leave it out, or use"
            " likelihood where the model has one"
        )
    return Asking(method=method, directions=())


def _directions(model: GLM, reading: Reading | None) -> tuple[Direction, ...]:
    trained = model.config.directions
    wanted: tuple[Direction, ...] = (
        trained[:1] if reading is None else ("forward", "reverse") if reading == "both" else (reading,)
    )
    if missing := [direction for direction in wanted if direction not in trained]:
        raise ConfigError(
            f"direction {reading} needs a model that was trained to write in {missing[0]}, and this one knows"
            f" {', '.join(trained)} only; its nats there would mean nothing"
        )
    return wanted


def written(
    residues: UInt8[np.ndarray, "length"], objective: str, *, reverse: bool
) -> tuple[Example, Int[np.ndarray, "answer"]]:
    """The protein as training wrote it from the prompt alone, and the places; its ratios leave nothing to chance."""
    certain = ObjectiveConfig(unconditional_ratio=1.0, reverse_ratio=float(reverse))
    example = make_example(Fragment(residues), objective, np.random.default_rng(0), certain)
    asked = np.arange(len(example.tokens) - len(residues) - 1, len(example.tokens))
    return example, np.append(asked[-2::-1], asked[-1]) if reverse else asked
