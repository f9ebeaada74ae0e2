"""What a head is trained on out of a data set: how many rows, how much of each, in which order, with which weights."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from heads.rows import Dataset, Row
from heads.tasks import Task

logger = logging.getLogger(__name__)


def proteins(which: Task, rows: Sequence[Row]) -> list[str]:
    """Every protein of these rows, once, in order of appearance."""
    both = which.reads_two
    return list(dict.fromkeys(s for row in rows for s in ((row.sequence, row.second) if both else (row.sequence,))))


def cropped(dataset: Dataset, most: int) -> Dataset:
    """The data set with proteins cut to their first `most` residues, which is what a model reads in one piece."""
    both = dataset.task.reads_two
    num_longer = 0

    def cut(row: Row) -> Row:
        nonlocal num_longer
        if max(len(row.sequence), len(row.second) if both else 0) <= most:
            return row
        num_longer += 1
        label = row.label
        if isinstance(label, np.ndarray):
            label = label[(slice(most),) * label.ndim]
        second = row.second[:most] if both else row.second
        return replace(row, sequence=row.sequence[:most], second=second, label=label)

    train, valid, test = (tuple(map(cut, rows)) for rows in (dataset.train, dataset.valid, dataset.test))
    if num_longer:
        logger.warning("%d proteins are cut to the %d residues that this model reads", num_longer, most)
    return replace(dataset, train=train, valid=valid, test=test, num_cut=dataset.num_cut + num_longer)


def fewer(dataset: Dataset, most: int, seed: int) -> Dataset:
    """The data set with at most so many rows of each split, in their order; 0 leaves it as it is.

    Of rows to train on that have a class each, as large a share of every class is drawn, and one row at least while
    there are no more classes than `most`. Rows to judge on are drawn at random, so that figures stay fair.
    """

    def drawn(rows: tuple[Row, ...], shares: bool = False) -> tuple[Row, ...]:
        if not most or len(rows) <= most:
            return rows
        rng = np.random.default_rng(seed)
        places = _of_each_class(rows, most, rng) if shares else rng.choice(len(rows), most, replace=False)
        return tuple(rows[i] for i in np.sort(places))

    has_classes = dataset.task.target == "classes" and dataset.task.level not in ("residue", "pair")
    return replace(
        dataset, train=drawn(dataset.train, has_classes), valid=drawn(dataset.valid), test=drawn(dataset.test)
    )


def _of_each_class(rows: Sequence[Row], most: int, rng: np.random.Generator) -> Int64[np.ndarray, "chosen"]:
    """Places of rows: those of a class of n, in random order, stand at 0, 1/n, 2/n ..., and the lowest are taken."""
    order = rng.permutation(len(rows))
    labels = np.array([rows[i].label for i in order])
    stand = np.empty(len(rows))
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        stand[own] = np.arange(len(own)) / len(own)
    return order[np.argsort(stand, kind="stable")[:most]]


def class_weights(dataset: Dataset) -> Float[Tensor, "class"]:
    """Weights by which each class has the same share of the training loss; 0 for one that is not there."""
    labels = np.concatenate([np.ravel(row.label) for row in dataset.train]).astype(np.int64)
    num_classes = 2 if dataset.task.level == "pair" else len(dataset.classes)
    counts = np.bincount(labels[labels >= 0], minlength=num_classes)
    there = counts > 0
    weights = np.divide(counts.sum() / there.sum(), counts, out=np.zeros(num_classes), where=there)
    return torch.from_numpy(weights).float()


def batches(rows: Sequence[Row], size: int, seed: int) -> Callable[[int], list[Row]]:
    """Step -> rows: one shuffled pass after another, every batch full, a pure function of seed and step."""
    num = len(rows)

    @lru_cache(maxsize=2)
    def order(epoch: int) -> list[int]:
        drawn: list[int] = np.random.default_rng((seed, epoch)).permutation(num).tolist()
        return drawn

    return lambda step: [rows[order(place // num)[place % num]] for place in range(step * size, (step + 1) * size)]
