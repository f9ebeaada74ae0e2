"""Nearest training proteins and clusters: by hand, and the kept aligner beside mmseqs2."""

import numpy as np
import pytest

from generate import novelty
from generate.novelty import cluster_shares, clusters, nearest_identity
from tests.generate.families import ancestor, members
from xtrimo import mmseqs
from xtrimo.errors import XtrimoError

METHODS = [
    "3-mers and alignment",
    pytest.param("mmseqs2", marks=pytest.mark.skipif(not mmseqs.is_installed(), reason="the program is not here")),
]
every_method = pytest.mark.parametrize("method", METHODS)


def changed(sequence: str, places: range) -> str:
    return "".join("W" if i in places else letter for i, letter in enumerate(sequence))


@every_method
def test_nearest(method: novelty.Method) -> None:
    text = ancestor(11) + ancestor(12)
    training = [*members(5, 10), text, changed(text, range(0, 60, 2))]
    near = changed(text, range(1, 120, 5))
    same = sum(a == b for a, b in zip(near, text, strict=True)) / 120
    found = nearest_identity([text, text[20:90], near, "GSGSGSGSPPGPG" * 5], training, method)
    assert found[:2].tolist() == [1, 1]
    assert found[2] == pytest.approx(same, abs=0.03)  # the ends of a local alignment
    assert found[3] < 0.2


@every_method
def test_clusters(method: novelty.Method) -> None:
    one, two = ancestor(21) + ancestor(22), ancestor(23) + ancestor(24)
    sequences = [one, changed(one, range(0, 120, 20)), changed(one, range(0, 120, 4)), two, two[:60], two]
    for identity, expected in ((0.9, [[0, 1], [2], [3, 5], [4]]), (0.5, [[0, 1, 2], [3, 5], [4]])):
        chosen = clusters(sequences, identity, method)
        groups = sorted(np.flatnonzero(chosen == head).tolist() for head in set(chosen.tolist()))
        assert groups == expected  # half a protein is no member: coverage
        assert (chosen[chosen] == chosen).all()  # the number is that of a member


def test_cluster_shares() -> None:
    shares = cluster_shares(np.array([0, 0, 0, 5, 4, 5]))
    np.testing.assert_allclose(shares, [1 / 3, 1 / 3, 1 / 3, 1 / 2, 1, 1 / 2])


def test_without_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert novelty.best_method() == "3-mers and alignment"
    with pytest.raises(XtrimoError, match="mmseqs2 is not installed"):
        nearest_identity(["MKV"], ["MKW"], "mmseqs2")


def test_proteins_shorter_than_three() -> None:
    found = nearest_identity(["M", "MK", "MKVWWW"], ["MK", "MKVWWWGG"], "3-mers and alignment")
    assert found[2] == 1


@every_method
def test_clusters_of_what_has_few_words(method: novelty.Method) -> None:
    """Poly-L of many lengths is no diversity, and copies never are, however short."""
    poly_l = ["M" + "L" * num for num in (29, 30, 31, 60)]
    text = ancestor(25)
    for sequences, groups in (
        (poly_l, [[0, 1, 2], [3]]), (["GS" * 30] * 4, [[0, 1, 2, 3]]), (["M"], [[0]]),
        (["MK", "M", "MK"], [[0, 2], [1]]),
        ([*poly_l, text, "GS" * 30, text], [[0, 1, 2], [3], [4, 6], [5]]),
    ):  # fmt: skip
        chosen = clusters(sequences, 0.9, method)
        assert sorted(np.flatnonzero(chosen == head).tolist() for head in set(chosen.tolist())) == groups
        assert (chosen[chosen] == chosen).all()


@every_method
def test_copies_and_pieces_are_found_whatever_they_are(method: novelty.Method) -> None:
    training = ["M" + "L" * 60, "GS" * 30, "MKVWAC", ancestor(1)]
    found = nearest_identity(["M" + "L" * 60, "L" * 40, "SGS", "MKVWAC", "VW", ancestor(1)[7:15]], training, method)
    assert found.tolist() == [1] * 6
    assert nearest_identity(["ACM"], training[2:], method)[0] < 1  # not across two proteins
