"""Controls: what each keeps of the training members, and what it loses."""

import numpy as np
import pytest
from numpy.random import default_rng

from generate.controls import CONTROLS, by_composition, by_trigrams, copies, trigram_table
from xtrimo.testing import toy_sequences
from xtrimo.tokens import AMINO_ACIDS

MEMBERS = ["MKVMKVMKVMKV" * 4, "GGGGAAAA" * 5, "MKVXMKVU" * 3]


@pytest.mark.parametrize("name", CONTROLS)
def test_as_many_as_asked_by_the_seed(name: str) -> None:
    make = CONTROLS[name]
    written = make(MEMBERS, 25, default_rng(1))
    assert len(written) == 25 and written == make(MEMBERS, 25, default_rng(1)) != make(MEMBERS, 25, default_rng(2))
    assert {len(sequence) for sequence in written} == {len(member) for member in MEMBERS}
    if name != "copies":
        assert set("".join(written)) <= set(AMINO_ACIDS)


def test_copies_are_even() -> None:
    written = copies(MEMBERS, 7, default_rng(0))
    assert sorted(written.count(member) for member in MEMBERS) == [2, 2, 3]
    assert set(written[:3]) == set(MEMBERS)


def test_composition() -> None:
    written = "".join(by_composition(MEMBERS, 600, default_rng(0)))
    pooled = "".join(MEMBERS)
    known = sum(map(pooled.count, AMINO_ACIDS))
    for letter in AMINO_ACIDS:
        assert written.count(letter) / len(written) == pytest.approx(pooled.count(letter) / known, abs=0.015)
    assert "MKV" in written and written.count("MK") / written.count("M") < 0.35  # by chance alone


def test_trigrams() -> None:
    """Draws follow the table, which follows the members where they say enough."""
    table = trigram_table(MEMBERS)
    np.testing.assert_allclose(table.sum(-1), 1)
    m, k, v = (1 + AMINO_ACIDS.index(letter) for letter in "MKV")
    assert table[m, k, v - 1] > 0.9 and table[0, 0, [m - 1, AMINO_ACIDS.index("G")]].sum() > 0.3
    written = by_trigrams(MEMBERS, 500, default_rng(0))
    follows = [s[i + 2] for s in written for i in range(len(s) - 2) if s[i : i + 2] == "MK"]
    assert follows.count("V") / len(follows) == pytest.approx(table[m, k, v - 1], abs=0.02)
    starts = [s[0] for s in written]
    for letter in "MG":
        place = AMINO_ACIDS.index(letter)
        assert starts.count(letter) / 500 == pytest.approx(table[0, 0, place], abs=0.07)


def test_trigrams_of_long_random_proteins_are_nothing_special() -> None:
    table = trigram_table(toy_sequences(300, min_length=60))
    assert table[1:21, 1:21].max() < 0.2
