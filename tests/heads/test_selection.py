"""Fewer rows: of every class some, of each its share."""

from collections import Counter
from dataclasses import replace

import numpy as np

from heads.rows import Dataset, Row
from heads.selection import fewer
from heads.tasks import custom_task
from tests.heads.generated import made_dataset

SIZES = (900, 300, 60, 3, 1, 1)


def dataset(sizes: tuple[int, ...] = SIZES) -> Dataset:
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(sizes)), sizes))
    rows = tuple(Row(sequence="M", label=int(label), name=str(i)) for i, label in enumerate(labels))
    which = custom_task("rare", level="sequence", target="classes")
    return Dataset(task=which, train=rows, valid=rows, test=rows, classes=tuple(map(str, range(len(sizes)))))


def test_no_class_is_lost_from_train() -> None:
    for seed in range(5):
        few = fewer(dataset(), 128, seed)
        counted = Counter(row.label for row in few.train)
        assert len(few.train) == 128 and counted.keys() == set(range(6))
        expected = {label: 128 * size / sum(SIZES) for label, size in enumerate(SIZES)}
        assert all(abs(counted[label] - expected[label]) <= 5 for label in expected)
        names = [int(row.name) for row in few.train]
        assert names == sorted(names), "in their order"


def test_a_draw_follows_from_the_seed() -> None:
    one, again, other = (fewer(dataset(), 100, seed).train for seed in (0, 0, 1))
    names = [{row.name for row in rows} for rows in (one, again, other)]
    assert names[0] == names[1] != names[2]


def test_more_classes_than_rows() -> None:
    few = fewer(dataset((4,) * 30), 20, 0)
    assert len({row.label for row in few.train}) == len(few.train) == 20


def test_rows_to_judge_on_are_drawn_at_random() -> None:
    """Rare classes there would make the figures of another set."""
    plain = np.sort(np.random.default_rng(3).choice(sum(SIZES), 128, replace=False))
    few = fewer(dataset(), 128, 3)
    for rows in (few.valid, few.test):
        assert [int(row.name) for row in rows] == plain.tolist()
    values = made_dataset("sequence", "regression")
    chosen = np.sort(np.random.default_rng(0).choice(len(values.train), 10, replace=False))
    assert list(fewer(values, 10, 0).train) == [values.train[i] for i in chosen]
    residues = made_dataset("residue")
    assert len(fewer(replace(residues, valid=()), 10, 0).train) == 10
