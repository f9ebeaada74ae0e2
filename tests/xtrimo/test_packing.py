"""Rows are compared with the examples they hold, and segments with attention rules stated token by token."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtrimo.errors import ConfigError
from xtrimo.objectives import OBJECTIVES, Example, Fragment, ObjectiveConfig, make_example
from xtrimo.packing import Row, pack, unpack
from xtrimo.tokens import PAD, Tokenizer


def examples_of(names: list[str], seed: int) -> list[Example]:
    rng = np.random.default_rng(seed)
    proteins = [rng.integers(1, 21, rng.integers(1, 60)).astype(np.uint8) for _ in names]
    fragments = [Fragment(residues, bool(rng.integers(2)), bool(rng.integers(2))) for residues in proteins]
    return [
        make_example(fragment, name, rng, ObjectiveConfig())
        for name, fragment in zip(names, fragments, strict=True)
    ]  # fmt: skip


MIXTURES = st.builds(
    examples_of, st.lists(st.sampled_from(tuple(OBJECTIVES)), min_size=1, max_size=8), st.integers(0, 2**32)
)


def dense_mask(row: Row) -> np.ndarray:
    """What the segments allow, (token, token), by their definition."""
    seen = np.zeros((len(row.tokens), len(row.tokens)), dtype=bool)
    for start, length, prefix in row.segments.tolist():
        for q in range(length):
            for k in range(length):
                seen[start + q, start + k] = k < prefix or k <= q
    return seen


def sees(example: Example, q: int, k: int) -> bool:
    """The same in the objectives' own terms: mlm looks everywhere, A at A, B at A and at what B said before."""
    if example.objective == "mlm":
        return True
    if example.objective == "causal":
        return k <= q
    in_b = example.positions[:, 1] > 0
    return not in_b[k] or bool(in_b[q] and k <= q)


@given(MIXTURES, st.sampled_from((1, 2, 8, 64)))
def test_a_row_holds_its_examples(examples: list[Example], multiple: int) -> None:
    row = pack(examples, multiple)
    num_tokens = sum(len(example.tokens) for example in examples)
    padding = len(row.tokens) - num_tokens
    assert len(row.tokens) % multiple == 0 and 0 <= padding < multiple
    assert len(row.segments) == len(examples) + (padding > 0)

    ends = np.cumsum(row.segments[:, 1])
    assert (row.segments[:, 0] == ends - row.segments[:, 1]).all() and ends[-1] == len(row.tokens), "no gap, no overlap"
    for field in ("tokens", "positions", "labels"):
        parts = unpack(getattr(row, field), row.segments)
        for part, example in zip(parts, examples, strict=False):
            assert np.array_equal(part, getattr(example, field))
    assert [int(prefix) for prefix in row.segments[: len(examples), 2]] == [example.prefix for example in examples]
    for part, example in zip(unpack(row.objectives, row.segments), examples, strict=False):
        assert {tuple(OBJECTIVES)[i] for i in part} == {example.objective}
    if padding:
        assert row.segments[-1].tolist() == [num_tokens, padding, padding]
        assert (row.tokens[num_tokens:] == PAD).all() and not row.labels[num_tokens:].any()
        assert not row.positions[num_tokens:].any() and not row.weights[num_tokens:].any()


@given(MIXTURES, st.sampled_from((1, 8)))
def test_segments_say_who_sees_whom(examples: list[Example], multiple: int) -> None:
    row = pack(examples, multiple)
    expected = np.zeros((len(row.tokens), len(row.tokens)), dtype=bool)
    start = 0
    for example in examples:
        for q in range(len(example.tokens)):
            for k in range(len(example.tokens)):
                expected[start + q, start + k] = sees(example, q, k)
        start += len(example.tokens)
    expected[start:, start:] = True  # padding sees padding
    assert np.array_equal(dense_mask(row), expected)


@given(MIXTURES)
def test_an_example_weighs_its_tokens(examples: list[Example]) -> None:
    row = pack(examples, multiple=16)
    for weights, example in zip(unpack(row.weights, row.segments), examples, strict=False):
        assert weights.sum() == pytest.approx(len(example.tokens), rel=1e-5)
        asked = example.labels > 0
        assert not weights[~asked].any()
        assert len(set(weights[asked].tolist())) == 1
    num_tokens = sum(len(example.tokens) for example in examples)
    assert row.weights.sum(dtype=np.float64) == pytest.approx(num_tokens, rel=1e-5)


def test_an_example_without_loss_weighs_nothing() -> None:
    tokens = Tokenizer().encode("MKV")
    silent = Example("mlm", tokens, np.zeros((4, 2), dtype=np.int32), np.zeros(4, dtype=np.uint8), prefix=4)
    assert pack([silent]).weights.tolist() == [0, 0, 0, 0]


def test_the_worked_example_of_the_module() -> None:
    words = Tokenizer().encode
    positions = np.array([[0, 0], [1, 0], [2, 0], [0, 0], [0, 1], [0, 2], [0, 3]], dtype=np.int32)
    labels = np.array([0, *words("K", eos=False), 0, 0, 0, *words("V<eos>", eos=False)], dtype=np.uint8)
    mlm = Example("mlm", words("M<mask>"), positions[:3], labels[:3], prefix=3)
    gmask = Example("gmask", words("<gmask><sop><eos>V", eos=False), positions[3:], labels[3:], prefix=1)
    row = pack([mlm, gmask], multiple=8)
    assert Tokenizer().decode(row.tokens.tolist()) == "M<mask><eos><gmask><sop><eos>V<pad>"
    assert row.positions.tolist() == [*positions.tolist(), [0, 0]]
    assert Tokenizer().decode(row.labels.tolist()) == "<pad>K<pad><pad><pad>V<eos><pad>"
    assert row.weights.tolist() == [0, 3, 0, 0, 0, 2, 2, 0]
    assert row.objectives.tolist() == [0, 0, 0, 1, 1, 1, 1, 0]
    assert row.segments.tolist() == [[0, 3, 3], [3, 4, 1], [7, 1, 1]]
    picture = """
        1 1 1 . . . . .
        1 1 1 . . . . .
        1 1 1 . . . . .
        . . . 1 . . . .
        . . . 1 1 . . .
        . . . 1 1 1 . .
        . . . 1 1 1 1 .
        . . . . . . . 1"""
    assert dense_mask(row).tolist() == [[c == "1" for c in line.split()] for line in picture.split("\n")[1:]]


def test_unpacked_parts_are_views() -> None:
    row = pack(examples_of(["mlm", "gmask"], seed=0))
    hidden = np.zeros((len(row.tokens), 3), dtype=np.float32)
    unpack(hidden, row.segments)[1][:] = 1
    start = int(row.segments[1, 0])
    assert not hidden[:start].any() and hidden[start:].all()


@pytest.mark.parametrize(("count", "multiple"), [(0, 1), (1, 0)])
def test_impossible_rows_are_refused(count: int, multiple: int) -> None:
    with pytest.raises(ConfigError, match=f"got {count} examples and multiple {multiple}"):
        pack(examples_of(["mlm"] * count, seed=0), multiple)
