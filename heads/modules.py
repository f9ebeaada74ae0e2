"""The heads: what stands on a language model's states and answers a task. One module a level.

A head reads the states of the residues of all proteins of a batch laid end to end, `states`, and how many residues each
protein has, `lengths`; nothing is padded and no special words are there. Two proteins of 3 and 2 residues:

    states   r1 r2 r3 | r1 r2     (5, dim)
    lengths  3          2

So a head works the same on stored states and on a live model. All end in the MLP of the xTrimoPGLM release, 128 tanh
units with dropout 0.1. A LayerNorm comes first, because states of inner layers have any scale; where states are pooled
it comes after that, so that with pooling mean a head may be given the mean of a protein as a protein of one residue.

    level          reads                                     answers
    sequence       pooled states                             (protein, output)
    residue        each state                                (residue, output)
    pair           both states of a pair, separation, maps   (length, length), symmetric logits of one protein
    two_sequences  two chains that attend to each other      (protein, output)
    molecule       pooled states and a fingerprint           (protein, output)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from heads.answers import UNSCORED
from heads.contacts import MIN_SEPARATION
from heads.tasks import Level, Task
from xtrimo.errors import ConfigError
from xtrimo.pair_maps import PairMaps

Pooling = Literal["attention", "mean"]
States = Float[Tensor, "residue dim"]
Lengths = Int[Tensor, "protein"]

PAIR_WIDTH = 32  # numbers that a residue brings to its pairs
NUM_BUCKETS = 64
PAIRS_AT_ONCE = 65_536
NUM_HEADS = 4
NUM_PLACES = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadConfig:
    """The shape of a head; with its weights, all there is to it."""

    level: Level
    """What a label belongs to."""
    width: int
    """Numbers in a state."""
    num_outputs: int = 1
    """Classes; 1 for a value. A pair head has one whatever is asked."""
    pooling: Pooling = "attention"
    """How the residues of a protein become one vector: their mean, or weighed by a learned score."""
    hidden: int = 128
    """Units of the MLP."""
    dropout: float = 0.1
    """Share of the MLP's units left out in training."""
    num_maps: int = 0
    """Attention maps that a pair head is given, those of the asked layers; 0 for a model without."""
    num_bits: int = 0
    """Bits of a molecule's fingerprint."""

    def __post_init__(self) -> None:
        if self.level == "molecule" and self.num_bits < 1:
            raise ConfigError("a molecule head needs the bits of the fingerprints, got num_bits 0")
        if self.num_outputs < 1 or self.width < 1:
            raise ConfigError(f"num_outputs {self.num_outputs}, width {self.width}; expected at least 1 of each")


def build_head(config: HeadConfig) -> nn.Module:
    """The module of a level, freshly drawn; seed torch first to draw it again."""
    return HEADS[config.level](config)


def protein_of(lengths: Lengths, device: torch.device) -> Int64[Tensor, "residue"]:
    """0 0 0 1 1 for lengths 3 2."""
    return torch.repeat_interleave(torch.arange(len(lengths)), lengths.cpu()).to(device)


class MLP(nn.Module):
    """One layer of tanh units, and out."""

    def __init__(self, width: int, config: HeadConfig, num_outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, config.hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.out = nn.Linear(config.hidden, num_outputs)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch output"]:
        return self.out(self.dropout(torch.tanh(self.hidden(x))))


class Pool(nn.Module):
    """One vector a protein: sum of w_i * state_i, w = 1/length, or softmax over its residues of a learned score."""

    def __init__(self, width: int, pooling: Pooling) -> None:
        super().__init__()
        self.norm, self.score = nn.LayerNorm(width), nn.Linear(width, 1)
        nn.init.zeros_(self.score.weight)  # begins as the mean
        self.learned = pooling == "attention"
        self.requires_grad_(self.learned)

    def forward(self, states: States, lengths: Lengths) -> Float[Tensor, "protein dim"]:
        # in fp32: a mean of a thousand bf16 numbers added up one by one loses most of its digits
        protein, states = protein_of(lengths, states.device), states.float()
        num = len(lengths)
        raised = torch.ones_like(states[:, :1])
        if self.learned:
            score = self.score(self.norm(states)).float()
            highest = score.new_full((num, 1), -torch.inf).scatter_reduce(0, protein[:, None], score.detach(), "amax")
            raised = (score - highest[protein]).exp()
        weights = raised / raised.new_zeros(num, 1).index_add(0, protein, raised)[protein]
        return states.new_zeros(num, states.shape[1]).index_add(0, protein, weights * states)


class SequenceHead(nn.Module):
    """One answer a protein."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.pool = Pool(config.width, config.pooling)
        self.norm = nn.LayerNorm(config.width)
        self.mlp = MLP(config.width, config, config.num_outputs)

    def forward(self, states: States, lengths: Lengths) -> Float[Tensor, "protein output"]:
        return self.mlp(self.norm(self.pool(states, lengths)))


class ResidueHead(nn.Module):
    """One answer a residue."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.mlp = MLP(config.width, config, config.num_outputs)

    def forward(self, states: States, lengths: Lengths) -> Float[Tensor, "residue output"]:
        return self.mlp(self.norm(states))


class PairHead(nn.Module):
    """One answer a pair of residues of one protein, the same for (i, j) and (j, i): all it reads is symmetric."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.project = nn.Linear(config.width, PAIR_WIDTH)
        self.separation = nn.Embedding(NUM_BUCKETS, PAIR_WIDTH)
        self.num_maps = config.num_maps
        self.mlp = MLP(3 * PAIR_WIDTH + config.num_maps, config, 1)

    def forward(self, states: States, lengths: Lengths, maps: PairMaps | None = None) -> Float[Tensor, "length length"]:
        """Logits of a contact; `maps` as `pair_maps` lays them out.

        Raises:
            ConfigError: more than one protein, or maps where the head was built without or the reverse.
        """
        self._check(lengths, maps)
        length = len(states)
        residues = self.project(self.norm(states))
        first, second = torch.triu_indices(length, length, device=states.device)
        num_chunks = -(-len(first) // PAIRS_AT_ONCE)
        chunks = [None] * num_chunks if maps is None else maps.split(PAIRS_AT_ONCE)
        # The layers of a pair are formed anew on the way back, so that the memory of training is that of one chunk.
        read: Callable[..., Tensor] = self._chunk
        parts = [
            checkpoint(read, residues, m, i, j, use_reentrant=False)
            if torch.is_grad_enabled()
            else read(residues, m, i, j)
            for m, i, j in zip(chunks, first.split(PAIRS_AT_ONCE), second.split(PAIRS_AT_ONCE), strict=True)
        ]
        logits = torch.cat(parts)
        upper = logits.new_zeros(length, length).index_put((first, second), logits)
        return upper + upper.triu(1).T

    def _chunk(
        self,
        residues: Float[Tensor, "length small"],
        maps: PairMaps | None,
        first: Int64[Tensor, "pair"],
        second: Int64[Tensor, "pair"],
    ) -> Float[Tensor, "pair"]:
        one, other = residues[first], residues[second]
        features = [one * other, (one - other).abs(), self.separation(bucket(second - first))]
        if maps is not None:
            features.append(maps.to(one.dtype))
        return self.mlp(torch.cat(features, dim=1))[:, 0]

    def _check(self, lengths: Lengths, maps: Tensor | None) -> None:
        if len(lengths) != 1:
            raise ConfigError(f"a pair head reads one protein at a time, got {len(lengths)}")
        given = 0 if maps is None else maps.shape[1]
        if given != self.num_maps:
            raise ConfigError(f"a pair head built for {self.num_maps} attention maps was given {given}")


def bucket(separation: Int64[Tensor, "pair"]) -> Int64[Tensor, "pair"]:
    """0 to 31 each alone, from there eight an octave, all from about 500 on in the last."""
    octaves = torch.log2(separation.clamp(min=1) / 32)
    return torch.where(separation < 32, separation, 32 + (8 * octaves).long()).clamp(max=NUM_BUCKETS - 1)


class TwoSequencesHead(nn.Module):
    """One answer for two chains: each attends to the other, then pooled a and b meet as [a, b, a * b, |a - b|].

    Where a residue stands is added, counted from both ends: an HLA molecule holds a peptide by its second residue and
    its last.
    """

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        width = config.hidden
        self.norm = nn.LayerNorm(config.width)
        self.project = nn.Linear(config.width, width)
        self.from_start = nn.Embedding(NUM_PLACES, width)
        self.from_end = nn.Embedding(NUM_PLACES, width)
        self.cross = nn.ModuleList(
            nn.MultiheadAttention(width, NUM_HEADS, dropout=config.dropout, batch_first=True) for _ in range(2)
        )
        self.pools = nn.ModuleList(Pool(width, config.pooling) for _ in range(2))
        self.mlp = MLP(4 * width, config, config.num_outputs)

    def forward(
        self, states: States, lengths: Lengths, other_states: Float[Tensor, "other dim"], other_lengths: Lengths
    ) -> Float[Tensor, "protein output"]:
        a, b = self._placed(states, lengths), self._placed(other_states, other_lengths)
        # Here alone proteins are padded, for attention from chain to chain; the chains are short.
        (dense_a, here_a), (dense_b, here_b) = padded(a, lengths), padded(b, other_lengths)
        from_b = self.cross[0](dense_a, dense_b, dense_b, key_padding_mask=~here_b, need_weights=False)[0]
        from_a = self.cross[1](dense_b, dense_a, dense_a, key_padding_mask=~here_a, need_weights=False)[0]
        pooled_a = self.pools[0](a + from_b[here_a], lengths)
        pooled_b = self.pools[1](b + from_a[here_b], other_lengths)
        meeting = (pooled_a, pooled_b, pooled_a * pooled_b, (pooled_a - pooled_b).abs())
        return self.mlp(torch.cat(meeting, dim=1))

    def _placed(self, states: States, lengths: Lengths) -> Float[Tensor, "residue hidden"]:
        place, size = places(lengths, states.device)
        last = NUM_PLACES - 1
        ends = self.from_start(place.clamp(max=last)) + self.from_end((size - 1 - place).clamp(max=last))
        return self.project(self.norm(states)) + ends


def places(lengths: Lengths, device: torch.device) -> tuple[Int64[Tensor, "residue"], Int64[Tensor, "residue"]]:
    """For each residue its place in its protein, from 0, and that protein's length: 0 1 2 0 1 and 3 3 3 2 2."""
    lengths = lengths.to(device)
    protein = protein_of(lengths, device)
    starts = lengths.cumsum(0) - lengths
    return torch.arange(len(protein), device=device) - starts[protein], lengths[protein]


def padded(
    states: Float[Tensor, "residue dim"], lengths: Lengths
) -> tuple[Float[Tensor, "protein longest dim"], Tensor]:
    """The proteins as rows, zeros behind the shorter ones; and (protein, longest) whether a residue is there."""
    longest = int(lengths.max())
    here = torch.arange(longest, device=states.device) < lengths.to(states.device)[:, None]
    dense = states.new_zeros(*here.shape, states.shape[1])
    return dense.index_put((here,), states), here


class MoleculeHead(nn.Module):
    """One answer for a protein and a molecule: pooled states beside its fingerprint."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.pool = Pool(config.width, config.pooling)
        self.norm = nn.LayerNorm(config.width)
        self.project = nn.Linear(config.num_bits, config.hidden)
        self.mlp = MLP(config.width + config.hidden, config, config.num_outputs)

    def forward(
        self, states: States, lengths: Lengths, fingerprints: Float[Tensor, "protein bit"]
    ) -> Float[Tensor, "protein output"]:
        pooled = self.norm(self.pool(states, lengths))
        molecule = torch.tanh(self.project(fingerprints.to(pooled.dtype)))
        return self.mlp(torch.cat((pooled, molecule), dim=1))


HEADS: dict[Level, Callable[[HeadConfig], nn.Module]] = {
    "sequence": SequenceHead,
    "residue": ResidueHead,
    "pair": PairHead,
    "two_sequences": TwoSequencesHead,
    "molecule": MoleculeHead,
}


def loss(
    task: Task,
    outputs: Float[Tensor, "*item"],
    labels: Tensor,
    class_weights: Float[Tensor, "class"] | None = None,
) -> Float[Tensor, ""]:
    """What training makes small: the mean over the items that have a label.

    Args:
        outputs: as a head gave them.
        labels: for classes their numbers, UNSCORED where there is none; for a pair head 1 and 0 by (length, length),
            of which those MIN_SEPARATION apart or more count; for regression values standardised by `Scale`; for a
            preference how likely the first is better, where outputs are differences of rewards.
        class_weights: how much an item of each class counts; by default all alike.

    Returns:
        Cross-entropy in nats, or the squared error; 0 where nothing has a label.
    """
    outputs = outputs.float()
    if task.target == "preference":
        return F.binary_cross_entropy_with_logits(outputs[:, 0], labels.float())
    if task.target == "regression":
        return F.mse_loss(outputs[:, 0], labels.float())
    if task.level == "pair":
        place = torch.arange(len(labels), device=labels.device)
        scored = (labels != UNSCORED) & ((place[:, None] - place).abs() >= MIN_SEPARATION)
        chosen, wanted = outputs[scored], labels[scored].long()
        each = F.binary_cross_entropy_with_logits(chosen, wanted.to(chosen), reduction="none")
        weights = torch.ones_like(each) if class_weights is None else class_weights.to(each)[wanted]
        return (weights * each).sum() / weights.sum().clamp(min=1e-9)
    if not (labels != UNSCORED).any():
        return outputs.sum() * 0.0
    by_class = None if class_weights is None else class_weights.to(outputs)
    return F.cross_entropy(outputs, labels.long(), weight=by_class, ignore_index=UNSCORED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """Values as a head is trained on them: (value - mean) / spread of the training rows."""

    mean: float = 0.0
    spread: float = 1.0

    @classmethod
    def fit(cls, values: Any) -> "Scale":
        """The scale of some values; a constant is only moved."""
        x = torch.as_tensor(values, dtype=torch.float64)
        return cls(mean=float(x.mean()), spread=float(x.std(correction=0)) or 1.0)

    def standardise(self, values: Tensor) -> Tensor:
        """Into the head's unit."""
        return (values - self.mean) / self.spread

    def restore(self, values: Tensor) -> Tensor:
        """Back into the unit of the data."""
        return values * self.spread + self.mean
