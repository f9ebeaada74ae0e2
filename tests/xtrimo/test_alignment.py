"""Local alignments that can be counted by hand."""

from xtrimo.alignment import align
from xtrimo.testing import toy_sequences


def test_alignments_that_can_be_counted() -> None:
    text = toy_sequences(1, min_length=60, max_length=60)[0]
    assert align(text, text) == (60, 60, (1, 1))
    assert align(text[:30] + text[32:], text)[:2] == (58, 60)  # two columns are gaps
    assert align(text[:30], text) == (30, 30, (1, 0.5))
    assert align(text[:30], text).identity == 1


def test_nothing_in_common() -> None:
    assert align("U" * 5, "O" * 5).identity == 0  # letters that BLOSUM62 does not know
    assert align("WWWW", "PPPP") == (0, 0, (0, 0))
