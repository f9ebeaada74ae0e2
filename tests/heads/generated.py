"""Data sets made up for tests, whose labels follow from the sequences by simple rules, one for each level."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from heads.rows import Dataset, Row
from heads.tasks import UNSCORED, Columns, Level, Target, Task, custom_task
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


def made_table(task: Task, folder: Path, *, num: int = 64, seed: int = 0) -> Path:
    """A table with the columns of a known task, and labels of its kind; contacts are those of chains of an archive."""
    rng = np.random.default_rng(seed)
    short, long = (8, 14) if task.max_length < 100 else (30, 60)
    proteins = toy_sequences(num, seed=seed, min_length=short, max_length=long)
    words = task.classes or tuple("abcde")
    seconds = {
        "two_sequences": toy_sequences(4, seed=seed + 1, min_length=34, max_length=34),
        "molecule": [";".join(pair) for pair in (("water", "ATP"), ("NAD", "ethanol"), ("glucose", "ATP"))],
    }.get(task.level, [""])
    splits = [("train", "train", "train", "valid", "test")[i % 5] for i in range(num)]
    columns = [column for column in ("sequence", "second", "label", "split") if getattr(task.columns, column)]
    with (folder / f"{task.name}.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow([getattr(task.columns, column) for column in columns])
        for i, (protein, split) in enumerate(zip(proteins, splits, strict=True)):
            if task.level == "pair":
                label = f"chain{i}"
            elif task.level == "residue":
                label = "".join(rng.choice([*words, UNSCORED], size=len(protein)))
            else:
                label = f"{rng.normal():.3f}" if task.target == "regression" else words[i // 5 % len(words)]
            cells = dict(sequence=protein, second=seconds[i % len(seconds)], label=label, split=split)
            table.writerow([cells[column] for column in columns])
    if task.level == "pair":
        lengths = np.array([len(protein) for protein in proteins])
        np.savez(
            folder / "chains.npz", chain_id=[f"chain{i}" for i in range(num)], length=lengths, seq=proteins,
            split=splits, xyz=rng.uniform(0, 25, (lengths.sum(), 4, 3)).astype(np.float32),
        )  # fmt: skip
    return folder / f"{task.name}.csv"
