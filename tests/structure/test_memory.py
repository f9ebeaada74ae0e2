"""Pairs that do not fit into memory are cut finer, and the atoms stay the same."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from structure import fold, memory
from structure.config import FoldConfig
from structure.memory import FIRST_CHUNK, Chunks, pairs_bytes
from structure.model import FoldModel
from tests.structure.models import SMALL, pipeline
from xtrimo.errors import MemoryShortError
from xtrimo.testing import Largest, toy_sequences

CPU = torch.device("cpu")
LONG, SHORT = toy_sequences(1, min_length=70, max_length=70)[0], toy_sequences(1, min_length=50, max_length=50)[0]
WIDE = FoldConfig(
    single_width=16, pair_width=32, num_blocks=2, num_pair_heads=2, structure_width=16, structure_pair_width=8,
    num_structure_layers=1, num_point_heads=1, point_head_width=4, angle_width=8, confidence_width=8,
)  # fmt: skip


def torch_error() -> RuntimeError:
    """What torch says when a petabyte is asked for."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    return caught.value


@pytest.fixture
def chunks_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[int, int]], list[int]]]:
    """Let memory hold only chunks up to a number of rows, by length; the chunks that were tried."""

    def limit(most: dict[int, int]) -> list[int]:
        tried: list[int] = []
        whole = FoldModel.forward

        def forward(self: FoldModel, features: Any, *, num_recycles: int = 0, chunk: int | None = None) -> Any:
            length = features.aatype.shape[1]
            tried.append(chunk or 0)
            if (chunk or 1 << 30) > most.get(length, 1 << 30):
                raise torch_error()
            return whole(self, features, num_recycles=num_recycles, chunk=chunk)

        monkeypatch.setattr(FoldModel, "forward", forward)
        return tried

    yield limit


def test_out_of_memory_halves_the_chunk(
    chunks_of: Callable[[dict[int, int]], list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    model = pipeline(WIDE)
    expected = fold(model, [SHORT, LONG])
    tried = chunks_of({70: 16})
    found = fold(model, [SHORT, LONG])
    assert tried == [0, 0, 64, 32, 16]
    for ours, theirs in zip(found, expected, strict=True):
        assert np.array_equal(ours.atoms, theirs.atoms) and np.array_equal(ours.pae_ang, theirs.pae_ang)
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "out of memory with 70 residues and pairs uncut; now with --chunk 64",
        "out of memory with 70 residues and --chunk 64; now with --chunk 32",
        "out of memory with 70 residues and --chunk 32; now with --chunk 16",
    ]


def test_what_did_not_fit_is_remembered(
    chunks_of: Callable[[dict[int, int]], list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    """For as many pairs and more; fewer begin as before."""
    tried = chunks_of({70: 32, 90: 16})
    fold(pipeline(WIDE), [LONG + "A" * 20, SHORT, LONG])
    assert tried == [0, *(0, 64, 32), *(32, 16)]
    assert len(caplog.records) == 3
    chunks = Chunks(WIDE, CPU, 0)
    chunks.failed = {0: 70**2, 64: 90**2}
    assert [chunks.first(length, batch) for length, batch in ((69, 1), (70, 1), (69, 2), (90, 1))] == [0, 64, 32, 32]


@pytest.mark.parametrize(("asked", "expected"), [(0, [0, 64, 32]), (100, [100, 50]), (48, [48]), (64, [64, 32])])
def test_it_begins_with_what_was_asked(
    asked: int, expected: list[int], chunks_of: Callable[[dict[int, int]], list[int]]
) -> None:
    tried = chunks_of({70: 50})
    fold(pipeline(WIDE), [LONG], chunk=asked)
    assert tried == expected


def test_a_chunk_of_one_is_the_last(chunks_of: Callable[[dict[int, int]], list[int]]) -> None:
    tried = chunks_of({70: 0})
    with pytest.raises(MemoryShortError, match=r"^sequence_2: 70 residues .* memory of cpu \(.*allocate .*cut"):
        fold(pipeline(WIDE), [SHORT, LONG], chunk=4)
    assert tried == [4, 4, 2, 1]


def test_other_errors_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")
    calls = []

    def broken(self: FoldModel, *_: Any, **__: Any) -> None:
        calls.append(1)
        raise error

    monkeypatch.setattr(FoldModel, "forward", broken)
    with pytest.raises(RuntimeError) as caught:
        fold(pipeline(WIDE), [LONG])
    assert caught.value is error and len(calls) == 1


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")]
)
def test_every_shortage_counts(error: Exception) -> None:
    def compute(chunk: int | None) -> int | None:
        if chunk is None:
            raise error
        return chunk

    assert Chunks(SMALL, CPU, 0).run(compute, 100, 1, "P1") == FIRST_CHUNK


def test_the_first_chunk_follows_from_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uncut as long as it takes half of what is free, at most."""
    for free, expected in ((2 * pairs_bytes(WIDE, 300, 2), FIRST_CHUNK), (2 * pairs_bytes(WIDE, 300, 2) + 2, 0)):
        monkeypatch.setattr(memory, "free_bytes", lambda _, free=free: free)
        chunks = Chunks(WIDE, CPU)
        assert chunks.first(300, 2) == expected
        assert chunks.first(100, 1) == 0 and chunks.first(600, 1) == FIRST_CHUNK
        assert Chunks(WIDE, CPU, 0).first(600, 1) == 0, "as asked"


def test_memory_grows_with_pairs() -> None:
    assert pairs_bytes(WIDE, 600, 3) == 3 * pairs_bytes(WIDE, 600) == 3 * 4 * pairs_bytes(WIDE, 300)


@pytest.mark.parametrize("trunk", ["trimul", "esmfold"])
def test_no_number_for_each_triangle(trunk: Any) -> None:
    """Nothing is larger than the pairs: triangle attention forms no row of scores for each of them."""
    with Largest() as largest:
        fold(pipeline(replace(WIDE, trunk=trunk)), [LONG * 3])
    assert largest.elements <= 210**2 * 64, "as wide as a head's logits"


def test_a_protein_of_1058_residues() -> None:
    """As the cache asks and in chunks, to the same atoms: 1.4 GB at most, which are of the heads."""
    (sequence,) = toy_sequences(1, min_length=1058, max_length=1058)
    model = pipeline(replace(WIDE, num_blocks=1))
    found, widest = [], []
    for chunk in (0, 1):
        with Largest() as largest:
            found += fold(model, [sequence], chunk=chunk)
        widest.append(largest.elements / 1058**2)
    assert widest == [64, 64], "numbers per pair: what a head gives"
    assert len(found[0].residues) == 1058 and np.ptp(found[0].atoms[found[0].exists]) > 1
    assert np.array_equal(found[0].atoms, found[1].atoms) and np.array_equal(found[0].pae_ang, found[1].pae_ang)
