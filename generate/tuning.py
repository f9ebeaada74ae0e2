"""What a generator is tuned on: tagged proteins, and untagged ones against forgetting; batches by step, and losses.

An example is drawn as in pretraining: an objective by its share, then the objective's own draw. Tags stand before it.
At random an example is shown none of its tags, and of several tags each may be missing: so the model also learns what
is true whatever a tag says, which guidance needs, and to be asked for fewer tags than a protein has.

A share of each batch is untagged proteins like those of pretraining (replay): else a model forgets what it knew.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int, UInt8
from torch import Tensor, nn

from generate.substitutions import substituted
from xtrimo import batch
from xtrimo.attention import within
from xtrimo.clustering import cluster
from xtrimo.command import ModelOptions
from xtrimo.config import GLMConfig
from xtrimo.errors import ConfigError
from xtrimo.fasta import Record, read_fasta
from xtrimo.intervals import Estimate, bootstrap_ratio
from xtrimo.model import GLM
from xtrimo.objectives import IGNORE, OBJECTIVES, Example, Fragment, ObjectiveConfig, make_example, tagged
from xtrimo.packing import pack
from xtrimo.tokens import Tokenizer, encode_residues

Purpose = Literal["writing", "filling"]
SHARES: dict[Purpose, dict[str, float]] = {
    "writing": {"mlm": 0.2, "gmask": 0.6, "smask": 0.2, "causal": 0.6},
    "filling": {"mlm": 0.6, "gmask": 0.3, "smask": 0.1, "causal": 0.3},
}
"""Of the examples, for writing as in pretraining; of a model that has fewer objectives, they share alike."""
MASKED_SPANS: dict[Purpose, float] = {"writing": 0.0, "filling": 0.8}
"""Share of the mlm examples that hide whole spans."""
_TAGGED, _REPLAY, _PLACES = 0, 1, 2  # random streams
IDENTITY, COVERAGE = 0.3, 0.7
"""Of the clusters that `balanced` looks at: relatives, far ones too, that align over most of their length."""
_HELD_OUT = 20  # one in so many proteins, where headers do not say


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A protein to learn from."""

    residues: UInt8[np.ndarray, "length"]
    """Token ids."""
    tags: UInt8[np.ndarray, "tag"] = field(default_factory=lambda: np.zeros(0, dtype=np.uint8))
    """Token ids of its tags."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mix:
    """The examples of each step: a pure function of seed and step."""

    subjects: Sequence[Subject]
    """Tagged proteins."""
    replay: Sequence[Subject]
    """Untagged ones; each comes once an epoch."""
    config: GLMConfig
    """Of the model: its objectives and directions."""
    batch_size: int
    """Examples of a step."""
    replay_ratio: float
    """Share of them that is replayed."""
    drop_ratio: float
    """Chance of an example to be shown none of its tags, and of each of several to be missing."""
    seed: int
    """Of all draws."""
    purpose: Purpose = "writing"
    """What most examples teach."""
    chances: Float64[np.ndarray, "subject"] | None = None
    """Of each tagged protein to be drawn; if None, each comes once an epoch."""
    substitutions: float = 0.0
    """Up to this share of what is shown of a tagged protein is replaced; see `substituted`."""

    def __call__(self, step: int) -> list[Example]:
        """The examples of step 0, 1, ..."""
        num_replayed = round(self.replay_ratio * self.batch_size) if self.replay else 0
        num_tagged = self.batch_size - num_replayed
        parts = ((_TAGGED, self.subjects, num_tagged), (_REPLAY, self.replay, num_replayed))
        return [
            self.example(subjects[place], np.random.default_rng([self.seed, stream, step, i]))
            for stream, subjects, num in parts
            for i, place in enumerate(self._places(stream, len(subjects), step, num))
        ]

    def _places(self, stream: int, num_subjects: int, step: int, num: int) -> list[int]:
        """Who comes in a step."""
        if stream == _REPLAY or self.chances is None:
            return in_epochs([self.seed, stream], num_subjects, step * num, num)
        rng = np.random.default_rng([self.seed, _PLACES, step])
        return rng.choice(num_subjects, num, p=self.chances).tolist()

    def example(self, subject: Subject, rng: np.random.Generator) -> Example:
        """One example of a protein."""
        names = [name for name in OBJECTIVES if name in self.config.objectives]
        shares = np.array([SHARES[self.purpose][name] for name in names])
        example = _drawn(subject, str(rng.choice(names, p=shares / shares.sum())), rng, self.config, self.purpose)
        if len(subject.tags):
            example = substituted(example, self.substitutions, rng)
        kept = rng.random(len(subject.tags)) >= self.drop_ratio * (len(subject.tags) > 1)
        return example if rng.random() < self.drop_ratio else tagged(example, subject.tags[kept])


def in_epochs(seed: Sequence[int], num_items: int, first: int, num: int) -> list[int]:
    """Which items come first, first + 1, ... in an endless row of shuffled epochs."""
    places: list[int] = []
    while len(places) < num:
        epoch, at = divmod(first + len(places), num_items)
        order = np.random.default_rng([*seed, epoch]).permutation(num_items)
        places += order[at : at + num - len(places)].tolist()
    return places


def balanced(subjects: Sequence[Subject], balance: float) -> Float64[np.ndarray, "subject"] | None:
    """Chances of proteins to be drawn by which clusters come up evenly, 1, as their sizes are, 0, or in between.

    A cluster comes up by its size to the power of 1 - balance (exponential smoothing, as of the languages of a
    multilingual model), and a protein by that over the cluster's size. None for 0: all alike.
    """
    if not balance:
        return None
    letters = Tokenizer()
    proteins = [letters.decode(subject.residues) for subject in subjects]
    stands = cluster(proteins, IDENTITY, COVERAGE, "more of them are by themselves")
    _, members, sizes = np.unique(stands, return_inverse=True, return_counts=True)
    shares = sizes[members].astype(np.float64) ** -balance
    return shares / shares.sum()


def room(config: GLMConfig, num_tags: int) -> int:
    """The most residues that a row of the model holds under every objective, with so many tags."""
    lengths = np.arange(1, config.max_length + 1)
    sizes = np.max([OBJECTIVES[name].max_tokens(lengths) for name in config.objectives], axis=0)
    return int((sizes + num_tags <= config.max_length).sum())


class Asked(NamedTuple):
    """What a model says where examples ask, and what was asked there; all as long as there are labels."""

    logits: Float[Tensor, "label vocab"]
    """With a gradient."""
    tokens: Int[Tensor, "label"]
    """Read there."""
    labels: Int[Tensor, "label"]
    weights: Float[Tensor, "label"]
    """As in pretraining: those of an example add up to its number of tokens."""
    owners: Int[Tensor, "label"]
    """Place of the example among the examples."""

    @property
    def nats(self) -> Float[Tensor, "label"]:
        """-log of the chance of each label, among the whole vocabulary."""
        return F.cross_entropy(self.logits.float(), self.labels, reduction="none")


def asked(module: nn.Module, examples: Sequence[Example]) -> Asked:
    """Read the examples in one packed row."""
    assert isinstance(module, GLM)
    row = pack(examples)
    owners = np.repeat(np.arange(len(examples)), [len(example.tokens) for example in examples])
    places = np.flatnonzero(row.labels != IGNORE)
    tokens, positions = (torch.from_numpy(part).to(module.device) for part in (row.tokens, row.positions))
    (hidden,) = module.hidden(tokens, positions, within(torch.from_numpy(row.segments)))
    labels, weights, owners_there = (
        torch.from_numpy(part[places]).to(module.device) for part in (row.labels, row.weights, owners)
    )
    there = torch.from_numpy(places).to(module.device)
    return Asked(module.logits(hidden[there]), tokens[there], labels, weights, owners_there)


def loss(module: nn.Module, examples: Sequence[Example]) -> tuple[Tensor, float]:
    """The sum of the weighted nats and their weight, as in pretraining: an example counts by its tokens."""
    said = asked(module, examples)
    return (said.weights * said.nats).sum(), float(said.weights.sum())


@torch.inference_mode()
def mean_nats(model: GLM, examples: Sequence[Example]) -> Estimate:
    """Nats of a label, with an interval over the examples."""

    def nats(inputs: batch.Inputs) -> Tensor:
        logits = model(inputs.tokens, inputs.positions, inputs.segments)
        return F.cross_entropy(logits.float(), inputs.labels, reduction="none", ignore_index=IGNORE)

    sums = [(values.sum(), (example.labels != IGNORE).sum()) for example, values in batch.run(model, examples, nats)]
    found: Float64[np.ndarray, "example 2"] = np.array(sums, dtype=np.float64)
    return bootstrap_ratio(found[:, 0], found[:, 1])


def held_out(
    subjects: Sequence[Subject], objective: str, config: GLMConfig, seed: int, purpose: Purpose = "writing"
) -> list[Example]:
    """One example of each protein by one objective, the same at every call; tags in front, none missing."""
    return [
        tagged(_drawn(subject, objective, np.random.default_rng([seed, i]), config, purpose), subject.tags)
        for i, subject in enumerate(subjects)
    ]


def _drawn(subject: Subject, objective: str, rng: np.random.Generator, config: GLMConfig, purpose: Purpose) -> Example:
    law = ObjectiveConfig(
        reverse_ratio=config.directions.count("reverse") / len(config.directions),
        masked_span_ratio=MASKED_SPANS[purpose],
    )
    return make_example(Fragment(subject.residues), objective, rng, law)


def load_generator(model: str, device: str) -> GLM:
    """A model to be trained, in fp32.

    Raises:
        ConfigError: it does not generate.
    """
    found = ModelOptions(model=model, precision="fp32", device=device).load()
    if not isinstance(found, GLM) or found.config.prompt_style == "none":
        raise ConfigError(f"{model} does not generate; take a GLM that was trained on gmask or causal")
    return found


def judged(model: GLM, subjects: Sequence[Subject]) -> dict[str, Estimate]:
    """Nats of each objective on some proteins, the same examples at every call; nothing for none."""
    if not subjects:
        return {}
    model.eval()
    return {
        objective: mean_nats(model, held_out(subjects, objective, model.config, seed=0))
        for objective in model.config.objectives
    }


def fingerprint_of(*groups: Sequence[Subject]) -> str:
    """Of proteins and their tags, group by group."""
    digest = hashlib.blake2b(digest_size=16)
    for subjects in groups:
        for subject in subjects:
            digest.update(subject.tags.tobytes() + b"/" + subject.residues.tobytes() + b"\n")
        digest.update(b"=")
    return digest.hexdigest()


def read_replay(file: Path | None, most: int, num_valid: int) -> tuple[list[Subject], list[Subject]]:
    """Untagged proteins of at most `most` residues: to train on, and of those held out at most `num_valid`."""
    train, valid = list[Subject](), list[Subject]()
    for record in read_fasta(file, unknown="skip") if file else ():
        if len(record.sequence) <= most:
            (valid if is_held_out(record) else train).append(Subject(encode_residues(record.sequence)))
    return train, few(valid, num_valid)


def is_held_out(record: Record) -> bool:
    """One in so many proteins, the same whatever the others."""
    return hashlib.blake2b(record.sequence.encode(), digest_size=8).digest()[0] % _HELD_OUT == 0


def few(subjects: Sequence[Subject], num: int) -> list[Subject]:
    """At most so many, drawn by seed 0."""
    drawn = np.random.default_rng(0).permutation(len(subjects))[:num]
    return [subjects[i] for i in sorted(drawn.tolist())]
