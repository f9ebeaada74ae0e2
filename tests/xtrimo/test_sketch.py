"""Clusters by common 5-mers."""

import numpy as np
import pytest

from xtrimo import sketch
from xtrimo.sketch import cluster_by_words
from xtrimo.tokens import AMINO_ACIDS


def test_clusters_of_made_up_families() -> None:
    """Four families: each of a protein, a piece of it, and two with a third of the residues changed."""
    rng = np.random.default_rng(0)
    sequences, families = [], []
    for family in range(4):
        whole = rng.choice(list(AMINO_ACIDS), 240)
        changed = [np.where(rng.random(240) < 1 / 3, rng.choice(list(AMINO_ACIDS), 240), whole) for _ in range(2)]
        sequences += ["".join(member) for member in (whole[40:220], whole, *changed)]
        families += [family] * 4
    stands = cluster_by_words(sequences, 0.3, 0.5)
    assert [families[number] for number in stands] == families and len(set(stands.tolist())) == 4
    assert (stands[stands] == stands).all()
    short = cluster_by_words([sequences[1], sequences[1][:80]], 0.3, 0.5)
    assert short.tolist() == [0, 1]  # a third of it: below the coverage
    strict = cluster_by_words(sequences[:4], 0.9, 0.5)
    assert strict[0] == strict[1] and len(set(strict.tolist())) == 3


def test_what_has_no_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sketch, "align", lambda one, other: pytest.fail(f"{one} and {other} have nothing in common"))
    unknown = cluster_by_words(["MKV", "X" * 20, "M" + "X" * 20 + "KVLAA", "W" + "X" * 20 + "CCDEF"], 0.3, 0.5)
    assert unknown.tolist() == [0, 1, 2, 3]  # a stretch of X in common is no relation
    assert cluster_by_words([], 0.3, 0.5).tolist() == []
