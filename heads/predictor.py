"""A head on its source of states: from labelled proteins to outputs, losses and predictions, whatever the level.

    sequence        one output a protein                residue   one a residue, proteins end to end
    two_sequences   each chain is read on its own       pair      a map of length x length a protein, one by one
    molecule        the fingerprint goes in beside

A preference is of level sequence: its outputs are differences of two proteins, r(first) - r(second), and what it
predicts is how likely the first is better.

Frozen states may be whitened, as measured on the training set: mean 0, and the same spread in every direction. What
tells proteins apart is often a direction in which states hardly differ, and gradient descent at one rate would not find
it. Values are standardised on the training set as well, and given back in their own unit.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from heads.answers import UNSCORED, Predictions
from heads.modules import HeadConfig, Scale, build_head, loss
from heads.molecules import Kind, fingerprints
from heads.preferences import shared_proteins
from heads.rows import Row
from heads.tasks import Task
from heads.whitening import zca
from xtrimo.states import Lengths, Source, States

Outputs = Float[Tensor, "*item"] | list[Float[Tensor, "length length"]]
AT_ONCE = 4096  # residues that predictions are made for at a time
MEASURED = 20_000  # states that whitening is measured on


class Predictor(nn.Module):
    """See the module.

    Args:
        task: the level and the target.
        source: gives the states of proteins.
        config: of the head.
        scale: of the values of a regression.
        molecules: how they are written.
        class_weights: of the loss.
    """

    shift: Float[Tensor, "dim"]
    whitening: Float[Tensor, "dim dim"]

    def __init__(
        self,
        task: Task,
        source: Source,
        config: HeadConfig,
        *,
        scale: Scale | None = None,
        molecules: Kind | None = None,
        class_weights: Float[Tensor, "class"] | None = None,
    ) -> None:
        super().__init__()
        self.task, self.source, self.config = task, source, config
        self.scale, self.molecules, self.class_weights = scale, molecules, class_weights
        self.head = build_head(config)
        self.register_buffer("shift", torch.zeros(config.width))
        self.register_buffer("whitening", torch.eye(config.width))

    def states(self, sequences: Sequence[str]) -> tuple[States, Lengths]:
        """As the head reads them."""
        states, lengths = self.source(sequences)
        return self._whitened(states), lengths

    def _whitened(self, states: States) -> States:
        with torch.autocast(states.device.type, enabled=False):
            whitened: States = (states.to(self.shift.dtype) - self.shift) @ self.whitening
        return whitened

    def measure(self, sequences: Sequence[str]) -> None:
        """Whiten states from here on, as those of these proteins, or of 20,000 residues of them, would have it."""
        order = np.random.default_rng(0).permutation(len(sequences))
        states: list[States] = []
        with torch.no_grad():
            for start in range(0, len(order), 64):
                states.append(self.source([sequences[i] for i in order[start : start + 64]])[0].float().cpu())
                if sum(map(len, states)) >= MEASURED:
                    break
        shift, matrix = zca(torch.cat(states)[:MEASURED].double().numpy())
        self.shift.copy_(torch.from_numpy(shift))
        self.whitening.copy_(torch.from_numpy(matrix))

    def forward(self, rows: Sequence[Row]) -> Outputs:
        """What the head says of these rows; maps one by one for pairs."""
        if self.task.level == "pair":
            return [self._contacts(row.sequence) for row in rows]
        if self.task.target == "preference":
            rewards = self.head(*self.states([s for row in rows for s in (row.sequence, row.second)]))
            return rewards[0::2] - rewards[1::2]
        states, lengths = self.states([row.sequence for row in rows])
        if self.task.level == "two_sequences":
            return self.head(states, lengths, *self.states([row.second for row in rows]))
        if self.task.level == "molecule":
            bits = fingerprints([row.second for row in rows], kind=self.molecules, num_bits=self.config.num_bits)
            return self.head(states, lengths, torch.from_numpy(bits).to(states.device))
        return self.head(states, lengths)

    def _contacts(self, sequence: str) -> Float[Tensor, "length length"]:
        states, maps = self.source.of_pairs(sequence)
        logits: Tensor = self.head(self._whitened(states), torch.tensor([len(states)]), maps)
        return logits

    def loss(self, rows: Sequence[Row]) -> tuple[Tensor, float]:
        """The sum of the losses of these rows, and what it weighs: proteins, scored residues, or class weights."""
        outputs = self(rows)
        if isinstance(outputs, list):
            maps = [torch.from_numpy(np.asarray(row.label)).to(self.shift.device) for row in rows]
            means = [loss(self.task, x, y, self.class_weights) for x, y in zip(outputs, maps, strict=True)]
            return torch.stack(means).sum(), float(len(means))
        labels = self._labels(rows, outputs.device)
        weight = float(len(labels))
        if self.task.target == "classes":
            scored = labels[labels != UNSCORED]
            weight = float(
                len(scored) if self.class_weights is None else self.class_weights.to(labels.device)[scored].sum()
            )
        return loss(self.task, outputs, labels, self.class_weights) * weight, weight

    def _labels(self, rows: Sequence[Row], device: torch.device) -> Tensor:
        if self.task.level == "residue":
            return torch.from_numpy(np.concatenate([row.label for row in rows])).to(device)
        labels = torch.tensor([row.label for row in rows], device=device)
        return self.scale.standardise(labels) if self.scale else labels

    def predict(self, rows: Sequence[Row]) -> Predictions:
        """Probabilities or values of these rows beside what is true; no gradients."""
        return Predictions(
            truth=truth(self.task, rows), prediction=np.concatenate(list(self.answers(rows))),
            length=np.array([len(row.sequence) for row in rows]), pairs=pairs_of(self.task, rows),
        )  # fmt: skip

    def answers(self, rows: Iterable[Row]) -> Iterator[Float[np.ndarray, "item *class"]]:
        """Probabilities or values of each row in turn, as `Predictions` has them; rows may stream."""
        self.eval()
        for chunk in _chunks(rows):
            with torch.no_grad():
                answers = self._answers(chunk)
            lengths = [len(row.sequence) for row in chunk]
            sizes = {"residue": lengths, "pair": [n * n for n in lengths]}.get(self.task.level, [1] * len(chunk))
            yield from np.split(answers, np.cumsum(sizes)[:-1])

    def _answers(self, rows: Sequence[Row]) -> Float[np.ndarray, "item *class"]:
        outputs = self(rows)
        if isinstance(outputs, list):
            return np.concatenate([x.float().sigmoid().cpu().numpy().ravel() for x in outputs])
        if self.task.target == "preference":
            return outputs.double().sigmoid().cpu().numpy()
        if self.scale:
            return self.scale.restore(outputs[:, 0].float()).cpu().numpy()
        return outputs.float().softmax(1).cpu().numpy()


def truth(task: Task, rows: Sequence[Row]) -> np.ndarray:
    """The labels of rows, as `Predictions` has them."""
    if task.level in ("residue", "pair"):
        return np.concatenate([np.asarray(row.label).ravel() for row in rows]).astype(np.int64)
    return np.array([row.label for row in rows], dtype=np.int64 if task.target == "classes" else np.float64)


def pairs_of(task: Task, rows: Sequence[Row]) -> Int64[np.ndarray, "row 2"] | None:
    """Which proteins the preferences of rows are of, as `Predictions` has them; None for any other task."""
    if task.target != "preference" or not rows:
        return None
    return shared_proteins([(row.sequence, row.second) for row in rows])


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Runs of rows of AT_ONCE residues or little more."""
    chunk: list[Row] = []
    size = 0
    for row in rows:
        chunk.append(row)
        size += len(row.sequence) + len(row.second)
        if size >= AT_ONCE:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
