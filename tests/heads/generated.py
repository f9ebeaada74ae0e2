"""Data sets made up for tests, whose labels follow from the sequences by simple rules, one for each level."""

from typing import Any

import numpy as np

from heads.rows import Dataset, Row
from heads.tasks import Columns, Level, Target, Task, custom_task
from xtrimo.testing import toy_sequences

HYDROPHOBIC = frozenset("AILMFVWC")
MOLECULES = ("CCO", "CCN", "c1ccccc1", "CC(=O)O")


def share(sequence: str) -> float:
    """Of hydrophobic residues."""
    return sum(letter in HYDROPHOBIC for letter in sequence) / len(sequence)


def made_task(level: Level, target: Target = "classes", **changes: Any) -> Task:
    second = {"two_sequences": "seq_b", "molecule": "smiles"}.get(level, "")
    return custom_task(f"made_{level}", level=level, target=target, columns=Columns(second=second), **changes)


def label_of(level: Level, target: Target, sequence: str, second: str) -> Any:
    """The rule."""
    if level == "residue":
        return np.array([int(letter in HYDROPHOBIC) for letter in sequence], dtype=np.int64)
    if level == "pair":
        number = np.array([ord(letter) for letter in sequence])
        return ((number[:, None] + number[None]) % 7 == 0).astype(np.int8)
    value = share(sequence)
    if level == "two_sequences":
        value += share(second) - 0.4
    if level == "molecule":
        value += 0.3 * MOLECULES.index(second) - 0.45
    return value if target == "regression" else int(value > 0.4)


def made_dataset(
    level: Level, target: Target = "classes", *, num: int = 64, seed: int = 0, shuffled: bool = False, **changes: Any
) -> Dataset:
    """`num` rows to train on, half as many to validate and to test.

    Args:
        shuffled: give each row, or residue, the label of another.
    """
    rng = np.random.default_rng(seed)
    shortest, longest = (30, 40) if level == "pair" else (12, 30)
    proteins = toy_sequences(2 * num, seed=seed, min_length=shortest, max_length=longest)
    # so that the shares of hydrophobic residues lie further apart than by chance
    keep = ["".join(rng.choice(list("AILVDEKN"), size=len(p), p=mix(rng))) for p in proteins]
    seconds = {
        "two_sequences": keep[::-1],
        "molecule": [MOLECULES[i] for i in rng.integers(4, size=2 * num)],
    }.get(level, [""] * (2 * num))
    labels = [label_of(level, target, first, second) for first, second in zip(keep, seconds, strict=True)]
    if shuffled and isinstance(labels[0], np.ndarray):
        orders = [rng.permutation(len(label)) for label in labels]
        labels = [label[np.ix_(*[order] * label.ndim)] for label, order in zip(labels, orders, strict=True)]
    elif shuffled:
        labels = [labels[i] for i in rng.permutation(len(labels))]
    rows = [Row(sequence=s, second=t, label=y, name=f"p{i}")
            for i, (s, t, y) in enumerate(zip(keep, seconds, labels, strict=True))]  # fmt: skip
    return Dataset(
        task=made_task(level, target, **changes), train=tuple(rows[:num]), valid=tuple(rows[num : num * 3 // 2]),
        test=tuple(rows[num * 3 // 2 :]), classes=("0", "1") if target == "classes" else (),
    )  # fmt: skip


def mix(rng: np.random.Generator) -> np.ndarray:
    """Shares of four hydrophobic residues and of four that are not."""
    high = rng.uniform(0.1, 0.9)
    return np.repeat([high / 4, (1 - high) / 4], 4)
