"""Batches as a pure function of (seed, step, row): "give me step 41,234, row 3" is one call, on any number of ranks.

The corpus is an endless stream of items, epoch after epoch. In an epoch every protein (or cluster) is drawn in a fresh
random order, as often as its source's weight says; each item gets its objective from the curriculum at its place in the
stream; and consecutive items fill rows up to `row_length` tokens. Step s takes the next `rows_in_step(s)` rows. Nothing
depends on who asks, so ranks take slices, a resumed run continues exactly, and the number of ranks may change.

Random numbers are Philox streams keyed by (seed, epoch) and counted by item: no state to save.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64, Int8, Int64

from pretrain.config import BatchConfig, PretrainConfig
from pretrain.corpus import Corpus, Split
from xtrimo.config import GLMConfig
from xtrimo.errors import CorpusError
from xtrimo.log import warn_once
from xtrimo.objectives import OBJECTIVES, Example, Fragment, ObjectiveConfig
from xtrimo.packing import Row, pack

logger = logging.getLogger(__name__)

NAMES = tuple(OBJECTIVES)
_VALIDATION = 1 << 32  # validation draws from streams of epochs that no training reaches


def random_stream(seed: int, epoch: int, item: int = -1) -> np.random.Generator:
    """The generator of one item, or with item -1 of the epoch's order; streams never overlap."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, item + 1, 0, 0]))


def rows_before(batch: BatchConfig, step: int) -> int:
    """Rows consumed by steps 0 .. step-1, the ramp included."""
    total, size = 0, batch.start_rows or batch.rows
    while size < batch.rows:
        # each stage lasts as many whole steps as its equal share of the ramp's rows allows
        stages = (batch.rows - batch.start_rows) // batch.ramp_increment
        steps = max(1, round(batch.ramp_rows / stages / size))
        if step <= steps:
            return total + step * size
        total, step, size = total + steps * size, step - steps, size + batch.ramp_increment
    return total + step * batch.rows


def rows_in_step(batch: BatchConfig, step: int) -> int:
    """Rows of one step."""
    return rows_before(batch, step + 1) - rows_before(batch, step)


@dataclass(frozen=True, slots=True, eq=False)
class Epoch:
    """The plan of one epoch: which protein under which objective, and where rows begin."""

    proteins: Int64[np.ndarray, "item"]
    objectives: Int8[np.ndarray, "item"]
    row_starts: Int64[np.ndarray, "border"]
    """Row r holds items row_starts[r] .. row_starts[r+1]-1."""
    num_tokens: int
    """Residues + 1 of every item, cropped to the row: what the curriculum counts."""


class Stream:
    """The rows of a run.

    Raises:
        CorpusError: if the corpus has no training protein.
    """

    def __init__(self, corpus: Corpus, config: PretrainConfig) -> None:
        self.corpus, self.config, self.model = corpus, config, config.glm
        if not len(corpus.train):
            raise CorpusError(f"{corpus.path} has no training proteins; build it from more sequences")
        if config.batch.cluster_balanced and not corpus.has_clusters:
            raise CorpusError(
                f"{corpus.path} knows no clusters, which cluster_balanced draws; build it with --clusters cluster.tsv"
            )
        self.objective = objective_config(config.objective, self.model)
        self.longest = longest_fragments(config.batch.row_length)
        self._epochs: list[tuple[int, int]] = [(0, 0)]  # rows and tokens before each epoch, as far as known
        self._plan: tuple[int, Epoch] | None = None

    def step(self, step: int, rank: int = 0, ranks: int = 1) -> Iterator[Row]:
        """The rows of one step that data-parallel rank `rank` of `ranks` computes."""
        share = rows_in_step(self.config.batch, step) // ranks
        return (self.row(step, row) for row in range(rank * share, (rank + 1) * share))

    def row(self, step: int, row: int) -> Row:
        """Row `row` of the global batch of step `step`."""
        number, plan, index = self._locate(rows_before(self.config.batch, step) + row)
        start, end = plan.row_starts[index], plan.row_starts[index + 1]
        return pack([self._example(number, plan, item) for item in range(start, end)])

    def _example(self, epoch: int, plan: Epoch, item: int) -> Example:
        rng = random_stream(self.config.seed, epoch, item)
        name = NAMES[plan.objectives[item]]
        fragment = crop(self.corpus.train[int(plan.proteins[item])], self.longest[name], rng)
        return OBJECTIVES[name].build(fragment, rng, self.objective)

    def _locate(self, row: int) -> tuple[int, Epoch, int]:
        while self._epochs[-1][0] <= row:  # plan epochs until the row is inside a known one
            epoch = len(self._epochs) - 1
            plan = self._epoch(epoch)
            rows, tokens = self._epochs[epoch]
            self._epochs.append((rows + len(plan.row_starts) - 1, tokens + plan.num_tokens))
        epoch = max(e for e, (rows, _) in enumerate(self._epochs[:-1]) if rows <= row)
        return epoch, self._epoch(epoch), row - self._epochs[epoch][0]

    def _epoch(self, epoch: int) -> Epoch:
        if self._plan is None or self._plan[0] != epoch:
            self._plan = (epoch, self._plan_epoch(epoch))
        return self._plan[1]

    def _plan_epoch(self, epoch: int) -> Epoch:
        rng = random_stream(self.config.seed, epoch)
        proteins = draw_proteins(self.corpus, self.config.batch.cluster_balanced, rng)
        lengths = np.minimum(self.corpus.train.lengths[proteins].astype(np.int64), self.config.batch.row_length)
        ends = np.cumsum(lengths + 1)
        objectives = draw_objectives(self._epochs[epoch][1] + ends - lengths - 1, self.config, rng)
        sizes = np.zeros_like(lengths)
        for index, name in enumerate(NAMES):
            mine = objectives == index
            sizes[mine] = OBJECTIVES[name].max_tokens(np.minimum(lengths[mine], self.longest[name]))
        return Epoch(proteins, objectives, fill_rows(sizes, self.config.batch.row_length), int(ends[-1]))


def objective_config(config: ObjectiveConfig, model: GLMConfig) -> ObjectiveConfig:
    """The objectives' settings as this model can learn them: no reversed samples without the word for it."""
    return config if "reverse" in model.directions else replace(config, reverse_ratio=0.0)


def longest_fragments(row_length: int) -> dict[str, int]:
    """For each objective the most residues whose example surely fits a row."""
    lengths = np.arange(row_length + 1)
    return {
        name: int(np.searchsorted(spec.max_tokens(lengths), row_length, side="right")) - 1
        for name, spec in OBJECTIVES.items()
    }


def crop(residues: np.ndarray, longest: int, rng: np.random.Generator) -> Fragment:
    """The protein, or a uniformly placed window of `longest` residues of it."""
    if len(residues) <= longest:
        return Fragment(residues)
    start = int(rng.integers(len(residues) - longest + 1))
    end = start + longest
    return Fragment(residues[start:end], has_start=start == 0, has_end=end == len(residues))


def draw_proteins(corpus: Corpus, balanced: bool, rng: np.random.Generator) -> Int64[np.ndarray, "item"]:
    """One epoch's proteins in random order: as many draws as there are proteins (balanced: clusters) in the corpus.

    A source is drawn in whole rounds over its proteins, then a random part of a round; a weight of twice its share of
    the residues doubles its rounds. `balanced` makes a round one random member of each cluster, not every protein.
    """
    split = corpus.train
    members = [np.flatnonzero(split.sources == source) for source in range(len(corpus.source_weights))]

    def one_round(source: int) -> np.ndarray:
        return _one_of_each_cluster(split, members[source], rng) if balanced else members[source]

    rounds = {source: one_round(source) for source, ids in enumerate(members) if len(ids)}
    shares = {
        source: corpus.source_weights[source] * len(ids) / float(split.lengths[members[source]].sum(dtype=np.int64))
        for source, ids in rounds.items()
    }
    num_draws = sum(map(len, rounds.values()))
    drawn = []
    for source, ids in rounds.items():
        whole, part = divmod(round(num_draws * shares[source] / sum(shares.values())), len(ids))
        drawn += [ids if again == 0 else one_round(source) for again in range(whole)]
        drawn.append(rng.permutation(ids)[:part])
    return rng.permutation(np.concatenate(drawn)).astype(np.int64)


def _one_of_each_cluster(split: Split, members: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    order = members[np.argsort(split.clusters[members], kind="stable")]
    starts = np.flatnonzero(np.diff(split.clusters[order], prepend=-1))
    sizes = np.diff(starts, append=len(order))
    return order[starts + (rng.random(len(starts)) * sizes).astype(np.int64)]


def draw_objectives(
    places: Int64[np.ndarray, "item"], config: PretrainConfig, rng: np.random.Generator
) -> Int8[np.ndarray, "item"]:
    """Objective of each item, by its place in the stream (tokens before it) and the curriculum."""
    final = config.curriculum.final_shares(config.glm)
    faded = np.ones(len(places))
    if "mlm" in config.glm.objectives:
        into = places - config.curriculum.mlm_tokens
        faded = np.clip(into / max(1, config.curriculum.ramp_tokens), 0, 1)
    chance = rng.random(len(places))
    out = np.full(len(places), -1, dtype=np.int8)
    below: Float64[np.ndarray, "item"] = np.zeros(len(places))
    for index, name in enumerate(NAMES):
        below += faded * final[name] + (1 - faded) * (name == "mlm")
        out[(out < 0) & (chance < below)] = index
    out[out < 0] = max(index for index, name in enumerate(NAMES) if final[name] > 0)  # the sum fell short by rounding
    return out


def fill_rows(sizes: Int64[np.ndarray, "item"], row_length: int) -> Int64[np.ndarray, "border"]:
    """Row borders when items fill rows in order, each item of at most `row_length` tokens."""
    ends = np.cumsum(sizes)
    starts, done = [0], 0
    while starts[-1] < len(sizes):
        starts.append(int(np.searchsorted(ends, done + row_length, side="right")))
        done = int(ends[starts[-1] - 1])
    return np.array(starts, dtype=np.int64)


def validation_order(corpus: Corpus, seed: int) -> Int64[np.ndarray, "protein"]:
    """The held-out proteins in the order in which validation takes them."""
    return random_stream(seed, _VALIDATION).permutation(len(corpus.valid))


def validation_rows(corpus: Corpus, config: PretrainConfig) -> dict[str, list[Row]]:
    """Held-out rows of each of the model's objectives; proteins and masks are fixed by the seed."""
    model, row_length = config.glm, config.batch.row_length
    objective = objective_config(config.objective, model)
    order = validation_order(corpus, config.seed)
    if not len(order):
        warn_once(logger, "%s holds nothing out, so nothing is validated; build it with --valid-ratio", corpus.path)
    out: dict[str, list[Row]] = {}
    for index, name in enumerate(NAMES):
        if name not in model.objectives or not len(order):
            continue
        longest = longest_fragments(row_length)[name]
        examples, size = [], 0
        for item, protein in enumerate(order):
            rng = random_stream(config.seed, _VALIDATION + index + 1, item)
            example = OBJECTIVES[name].build(crop(corpus.valid[int(protein)], longest, rng), rng, objective)
            examples.append(example)
            size += len(example.tokens)
            if size >= config.valid_tokens:
                break
        starts = fill_rows(np.array([len(example.tokens) for example in examples]), row_length)
        out[name] = [pack(examples[a:b]) for a, b in zip(starts[:-1], starts[1:], strict=True)]
    return out
