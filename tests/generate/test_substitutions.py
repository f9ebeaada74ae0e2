"""Residues replaced where they are shown."""

import numpy as np
import pytest
from Bio.Align import substitution_matrices

from generate.substitutions import chances, substituted
from xtrimo.objectives import IGNORE, OBJECTIVES, Fragment, ObjectiveConfig, make_example
from xtrimo.tokens import AMINO_ACIDS, EOS, FIRST_RESIDUE, MASK, RESIDUES, encode_residues


def test_chances_are_the_odds_of_blosum() -> None:
    scores, leucine = substitution_matrices.load("BLOSUM62"), AMINO_ACIDS.index("L")
    odds = [0.0 if other == "L" else 2.0 ** (scores["L"][other] / 2) for other in AMINO_ACIDS]
    assert chances()[leucine] == pytest.approx(np.array(odds) / sum(odds))
    assert chances().sum(1) == pytest.approx(np.ones(20)) and not chances().diagonal().any()
    assert AMINO_ACIDS[chances()[leucine].argmax()] in "IM"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_is_asked_stays_and_some_of_what_is_shown_goes(name: str) -> None:
    fragment = Fragment(encode_residues(AMINO_ACIDS * 10 + "XBUZO"))
    example = make_example(fragment, name, np.random.default_rng(0), ObjectiveConfig())
    rng = np.random.default_rng(1)
    shares = []
    for _ in range(200):
        changed = substituted(example, 0.4, rng)
        assert (changed.labels == example.labels).all() and (changed.positions == example.positions).all()
        moved = changed.tokens != example.tokens
        shown = (example.tokens >= FIRST_RESIDUE) & (example.tokens < FIRST_RESIDUE + 20)
        assert not moved[~shown].any() and set(changed.tokens[moved]) <= set(range(1, 21))
        shares.append(moved[shown].mean())
    assert np.mean(shares) == pytest.approx(0.2, abs=0.02) and max(shares) > 0.3 and min(shares) < 0.05


def test_letters_come_by_their_chances() -> None:
    residues = encode_residues("W" * 30_000)
    example = make_example(Fragment(residues), "gmask", np.random.default_rng(0), ObjectiveConfig(reverse_ratio=0))
    moved = substituted(example, 0.9, np.random.default_rng(3)).tokens
    letters = moved[(moved != example.tokens)] - FIRST_RESIDUE
    found = np.bincount(letters, minlength=20) / len(letters)
    assert found == pytest.approx(chances()[AMINO_ACIDS.index("W")], abs=0.02)


def test_nothing_is_drawn_for_none() -> None:
    example = make_example(Fragment(encode_residues(RESIDUES)), "mlm", np.random.default_rng(0), ObjectiveConfig())
    assert {MASK, EOS} & set(example.tokens) and (example.labels != IGNORE).any()
    rng = np.random.default_rng(0)
    assert substituted(example, 0.0, rng) is example and rng.random() == np.random.default_rng(0).random()
