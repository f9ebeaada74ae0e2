"""Columns for a Dataset: what `embed` and `score` say of the same proteins."""

import numpy as np
import pytest

from tests.xtrimo.test_huggingface import toy
from xtrimo.embedding import embed
from xtrimo.errors import DataError, SequenceError
from xtrimo.huggingface_datasets import with_embeddings, with_scores
from xtrimo.scoring import score
from xtrimo.testing import toy_sequences

PROTEINS = toy_sequences(1003, min_length=2, max_length=6)  # more than `map` hands over at once


class Table:
    """As much of a Dataset as is called: columns, and `map` in batches."""

    def __init__(self, columns: dict) -> None:
        self.columns, self.column_names = columns, list(columns)

    def map(self, function, *, batched: bool, with_indices: bool, new_fingerprint: str) -> "Table":
        assert batched and with_indices and new_fingerprint
        added: dict = {}
        length = len(next(iter(self.columns.values())))
        for start in range(0, length, 1000):
            rows = range(start, min(start + 1000, length))
            batch = function({name: [values[i] for i in rows] for name, values in self.columns.items()}, list(rows))
            for name, values in batch.items():
                added.setdefault(name, []).extend(values)
        return Table(self.columns | added)

    def __getitem__(self, name: str) -> list:
        return self.columns[name]


def real_table(columns: dict):
    return pytest.importorskip("datasets").Dataset.from_dict(columns)


@pytest.fixture(params=[Table, real_table])
def table(request):
    return request.param({"protein": PROTEINS, "label": list(range(len(PROTEINS)))})


def test_embeddings(table) -> None:
    glm = toy(num_layers=1)
    out = with_embeddings(table, glm, column="protein")
    expected = np.stack([one.hidden for one in embed(glm, PROTEINS, pooling="mean")])
    np.testing.assert_allclose(np.array(out["embedding"]), expected, atol=1e-5)
    assert list(out["label"]) == list(range(1003))


def test_scores(table) -> None:
    glm = toy(num_layers=1)
    out = with_scores(table, glm, column="protein")
    expected = score(glm, PROTEINS)
    for name in ("nll", "ppl", "total_nll"):
        np.testing.assert_allclose(out[name], [getattr(one, name) for one in expected], rtol=1e-5)


def test_what_is_wrong_with_a_table() -> None:
    with pytest.raises(DataError, match="no column 'sequence'; it has protein"):
        with_scores(Table({"protein": ["MK"]}), toy())
    with pytest.raises(SequenceError, match="row 1001: position 2"):
        with_embeddings(Table({"sequence": ["MK"] * 1001 + ["M1"]}), toy(num_layers=1))
