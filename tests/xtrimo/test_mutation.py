"""The words of mutations: what they make of a protein, and what is refused."""

import numpy as np
import pytest

from xtrimo.errors import DataError
from xtrimo.mutation import Mutation, mutated, read_mutations, substitutions
from xtrimo.testing import toy_sequences

WILD = "MKVLAG"


@pytest.mark.parametrize(
    ("text", "protein"),
    [
        ("K2G", "MGVLAG"),
        ("K2G:A5W", "MGVLWG"),
        ("A5W:K2G", "MGVLWG"),
        ("K2K", "MKVLAG"),
        ("M1del", "KVLAG"),
        ("K2_L4del", "MAG"),
        ("K2_V3insGS", "MKGSVLAG"),
        ("K2delinsGS", "MGSVLAG"),
        ("K2_L4delinsG", "MGAG"),
        ("K2_L4delinsGST", "MGSTAG"),
        ("M1delinsGSM", "GSMKVLAG"),
        ("G6delinsGSS", "MKVLAGSS"),
        ("K2G:V3del:L4_A5insWW:G6C", "MGLWWAC"),
        ("K2_V3insA:V3G", "MKAGLAG"),
        ("K2del:K2_V3insA", "MAVLAG"),
    ],
)
def test_words(text: str, protein: str) -> None:
    assert mutated(WILD, read_mutations(text, WILD)) == protein
    shifted = "".join(str(int(own) + 22) if own.isdigit() else own for own in text)
    assert mutated(WILD, read_mutations(shifted, WILD, offset=22)) == protein


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A2G", "p: A2G: expected A at position 2 of 6 residues, there is K; positions count from 1"),
        ("G7A", "expected G at position 7 of 6 residues, there is none"),
        ("M0A", "expected M at position 0 of 6 residues, there is none"),
        ("K2_A3del", "expected A at position 3 of 6 residues, there is V"),
        ("L4_K2del", "ends before it starts"),
        ("K2_L4insG", "names the two neighbours"),
        ("K2insG", "names the two neighbours"),
        ("K2J", "J is no residue"),
        ("K2A:K2G", "position 2 is changed twice"),
        ("K2_L4del:V3G", "position 3 is changed twice"),
        ("K2_V3insA:K2_V3insG", "position 3 is changed twice"),
        ("M1_G6del", "no residue of 6 is left"),
        *((text, "is no mutation; expected such as A123G") for text in (
            "", "K2", "K2*", "k2g", "2G", "KG", "K2delG", "K2ins", "K2delins", "K2_V3G", "K2G,V3A", "K2G:", "MKVLAG")),
    ],
)  # fmt: skip
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match="^p: ") as refused:
        read_mutations(text, WILD, name="p")
    assert message in str(refused.value)


def test_an_offset_is_told() -> None:
    with pytest.raises(
        DataError, match=r"expected K at position 24 \(residue 1 by the offset 23\) of 6 residues, there is M"
    ):
        read_mutations("K24G", WILD, offset=23)


def test_substitutions_of_an_unknown_protein() -> None:
    assert substitutions("A123G:K45C") == (Mutation("A", 123, "G"), Mutation("K", 45, "C"))
    assert all(own.is_substitution for own in substitutions("A123G:K45C") or ())
    for text in ("K23del", "MKVLAG", "A123G:", ""):
        assert substitutions(text) is None


def test_many_at_once_and_back() -> None:
    """Random replacements from right to left give the same protein, and undone the one before."""
    rng = np.random.default_rng(0)
    for wild in toy_sequences(200, min_length=12, max_length=30):
        cuts = np.sort(rng.choice(np.arange(1, len(wild)), 4, replace=False))
        changes, expected = [], wild
        for first, last in reversed(list(zip(cuts[::2].tolist(), cuts[1::2].tolist(), strict=True))):
            new = "".join(rng.choice(list("ACDE"), rng.integers(0, 4)))
            changes.append(Mutation(wild[first:last], first + 1, new))
            expected = expected[:first] + new + expected[last:]
        assert mutated(wild, changes) == expected
        undone, shift = [], 0
        for m in reversed(changes):
            undone.append(Mutation(m.mutant, m.position + shift, m.wild))
            shift += len(m.mutant) - len(m.wild)
        assert mutated(expected, undone) == wild
