"""Rows that do not fit into memory: halved, in order, nothing lost; a protein that never fits is named."""

import numpy as np
import pytest
import torch

import xtrimo
from xtrimo import batch
from xtrimo.errors import MemoryShortError
from xtrimo.fasta import Record
from xtrimo.model import GLM
from xtrimo.testing import toy_config, toy_sequences

PROTEINS = toy_sequences(40, min_length=3, max_length=30)


def by_cuda() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def by_torch_on_the_cpu() -> None:
    torch.empty(1 << 60)  # the allocator's own words


def by_numpy() -> None:
    np.empty(1 << 60, dtype=np.uint8)


class Small(GLM):
    """A model on a machine that holds rows of `capacity` tokens; `rows` are the sizes of those that fitted."""

    capacity = 100
    fail = staticmethod(by_cuda)

    def hidden(self, tokens, *args, **kwargs):  # type: ignore[no-untyped-def]
        if len(tokens) > self.capacity:
            self.fail()
        self.rows.append(len(tokens))
        return super().hidden(tokens, *args, **kwargs)


@pytest.mark.parametrize("fail", [by_cuda, by_torch_on_the_cpu, by_numpy])
def test_backs_off(fail, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(Small, "fail", staticmethod(fail))
    model = Small(toy_config())
    model.rows = []
    total = sum(map(len, PROTEINS)) + len(PROTEINS)
    found = xtrimo.embed(model, PROTEINS, row_tokens=10_000)
    expected = xtrimo.embed(GLM(model.config), PROTEINS)
    assert [e.name for e in found] == [e.name for e in expected]
    for e, one in zip(found, expected, strict=True):
        np.testing.assert_allclose(e.hidden, one.hidden, atol=1e-5)
    budgets = [total]
    while budgets[-1] > model.capacity:
        budgets.append(budgets[-1] // 2)  # of a row that was nearly full
    assert max(model.rows) <= model.capacity and sum(model.rows) == total
    assert len(model.rows) <= 3 * total / model.capacity  # no smaller than needed
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == f"out of memory in a row of {total} tokens; from here on rows have {total // 2} (--row-tokens)"
    assert len(said) == len(set(said)) <= len(budgets)


def test_a_protein_that_never_fits_is_named_after_those_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Small(toy_config())
    model.rows = []
    records = [Record("a", "MKV"), Record("b", "GGS"), Record("giant", "M" * 200), Record("c", "MKV")]
    done = []
    with pytest.raises(MemoryShortError, match=r"^giant: its 201 tokens do not fit into the memory of cpu.*CUDA out"):
        for e in xtrimo.embedding.iter_embeddings(model, records):
            done.append(e.name)
    assert done == ["a", "b"]


def test_other_errors_are_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Small, "fail", staticmethod(broken))
    model = Small(toy_config())
    model.rows = []
    with pytest.raises(RuntimeError, match="mat1"):
        xtrimo.embed(model, ["M" * 200])


def test_rows_are_as_full_as_the_budget_lets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Small, "capacity", 10**9)
    model = Small(toy_config())
    for row_tokens, rows in ((8, [8, 4, 21, 4]), (None, [37]), (1, [4, 4, 4, 21, 4])):
        model.rows = []
        xtrimo.embed(model, ["MKV", "MKV", "MKV", "M" * 20, "MKV"], row_tokens=row_tokens)
        assert model.rows == rows
    assert batch.ROW_TOKENS == 2048
