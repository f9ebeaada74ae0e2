"""The prompt grammar: what a text means, the way back, and what is refused with which reason."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from generate.prompt import Fixed, Gap, Piece, Prompt, opened, parse
from xtrimo.errors import ConfigError, SequenceError
from xtrimo.tokens import AMINO_ACIDS, RESIDUES


def without(letters: str) -> str:
    return "".join(letter for letter in AMINO_ACIDS if letter not in letters)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", [Gap(0, None)]),
        ("mkT", [Fixed("MKT"), Gap(0, None)]),
        ("MKT[..]", [Fixed("MKT"), Gap(0, None)]),
        ("[..]GGH", [Gap(0, None), Fixed("GGH")]),
        ("[80..120]GGH", [Gap(80, 120), Fixed("GGH")]),
        ("[120..160]", [Gap(120, 160)]),
        ("[8..]", [Gap(8, None)]),
        ("[..20]", [Gap(1, 20)]),  # a protein has a residue
        ("[..8]A", [Gap(0, 8), Fixed("A")]),
        ("MKT[8..20]GGH[5]", [Fixed("MKT"), Gap(8, 20), Fixed("GGH"), Gap(5, 5)]),
        ("M_XK", [Fixed("M"), Gap(1, 1), Fixed("XK")]),
        ("_[3]_A", [Gap(5, 5), Fixed("A")]),  # gaps of known lengths that touch are one
        ("_[1..2][1..2]A", [Gap(1, 1), Gap(1, 2), Gap(1, 2), Fixed("A")]),
        ("[5:vail][2:^c]A", [Gap(5, 5, "VAIL"), Gap(2, 2, without("C")), Fixed("A")]),
        ("[..:^CM]", [Gap(0, None, without("CM"))]),
        ("M[0]K[0]", [Fixed("MK")]),
    ],
)
def test_what_a_text_means(text: str, pieces: list[Piece]) -> None:
    assert parse(text) == Prompt(tuple(pieces))


def test_tags_stand_in_front() -> None:
    prompt = parse("<family=PF00042><len=1-2>MK")
    assert prompt.tags == (("family", "PF00042"), ("len", "1-2"))
    assert str(prompt) == "<family=PF00042><len=1-2>MK"
    with pytest.raises(SequenceError, match="position 2 is '<'"):
        parse("M<a=b>")


LETTERS = st.sets(st.sampled_from(AMINO_ACIDS), min_size=1).map("".join)
FIXED = st.text(RESIDUES, min_size=1, max_size=5).map(Fixed)
GAP = st.builds(lambda short, more, letters: Gap(short, short + more, letters), st.integers(0, 30), st.integers(0, 9),
                LETTERS)  # fmt: skip
OPEN = st.builds(lambda short, letters: Gap(short, None, letters), st.integers(0, 9), LETTERS | st.just(AMINO_ACIDS))


@given(st.lists(FIXED | GAP, max_size=6), OPEN | st.none(), st.booleans())
def test_round_trip(middle: list[Piece], end: Gap | None, at_start: bool) -> None:
    pieces = [*middle] if end is None else [end, *middle] if at_start else [*middle, end]
    try:
        prompt = Prompt(tuple(pieces))
    except ConfigError as error:
        assert "no residues" in str(error) and not any(isinstance(piece, Fixed) for piece in pieces)
        return
    assert parse(str(prompt)) == prompt
    least = sum(p.shortest if isinstance(p, Gap) else len(p.residues) for p in pieces)
    assert prompt.shortest == (least if end else max(least, 1))
    if end is None:
        assert prompt.longest == sum(p.longest or 0 if isinstance(p, Gap) else len(p.residues) for p in pieces)
        drawn = prompt.drawn(np.random.default_rng(0)) if prompt.shortest else prompt
        assert prompt.shortest <= drawn.shortest <= prompt.longest


@pytest.mark.parametrize(
    ("text", "error", "reason"),
    [
        ("MK7", SequenceError, "position 3 is '7'"),
        ("MK*", SequenceError, r"position 3 is '\*'"),
        ("MK L", SequenceError, "position 3 is ' '"),
        ("<gmask>", SequenceError, "position 1 is '<'"),
        ("MK[5", SequenceError, r"position 3 is '\['"),
        ("MK]", SequenceError, r"position 3 is '\]'"),
        ("MK[]", SequenceError, r"position 3: \[\] is no gap"),
        ("[:AV]", SequenceError, "is no gap"),
        ("[five]", SequenceError, "is no gap"),
        ("[9..8]", SequenceError, "8 is below 9"),
        ("[5:]", SequenceError, "allows no amino acid"),
        (f"[5:^{AMINO_ACIDS}]", SequenceError, "allows no amino acid"),
        ("[5:^]", SequenceError, "excludes none"),
        ("[5:XB]", SequenceError, "names B, X"),
        ("[²]", SequenceError, "is no gap"),
        ("A[..]G", ConfigError, "stands between other pieces"),
        ("[..]A[..]", ConfigError, "both ends are open"),
        ("[..][5..]", ConfigError, "both ends are open"),
        ("[0..4][0..2]", ConfigError, "no residues"),
        ("[0]", ConfigError, "no residues"),
    ],
)
def test_what_is_refused(text: str, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        parse(text)


def test_pieces_refuse_the_impossible() -> None:
    with pytest.raises(SequenceError, match="'MK7'"):
        Fixed("MK7")
    with pytest.raises(ConfigError, match="5 to 4"):
        Gap(5, 4)
    with pytest.raises(ConfigError, match="no amino acid"):
        Gap(5, 5, "X")


def test_drawn_lengths_are_even_and_follow_the_stream() -> None:
    prompt = parse("M[3..5]K[2]")
    lengths = [prompt.drawn(np.random.default_rng([0, number])).shortest for number in range(600)]
    counts = np.bincount(lengths)[7:]
    assert len(counts) == 3 and np.abs(counts - 200).max() < 4 * np.sqrt(600 * 2 / 9)
    again = [prompt.drawn(np.random.default_rng([0, number])).shortest for number in range(600)]
    assert lengths == again
    with pytest.raises(ConfigError, match="open gap"):
        parse("MK").drawn(np.random.default_rng(0))


@pytest.mark.parametrize(
    ("positions", "text"),
    [
        ("2-4,7", "M[3]YI_K"),
        ("7, 2-4", "M[3]YI_K"),
        ("1-8", "[8]"),
        ("2-3,4", "M[3]YIAK"),
        ("8[0..3]", "MKTAYIA[0..3]"),
        ("2-4[8..20:^C],5[1:DE]", "M[8..20:^C][1:ED]IAK"),
        ("3[0]", "MKAYIAK[0]"),
    ],
)
def test_a_protein_opened(positions: str, text: str) -> None:
    assert opened("MKTAYIAK", positions) == parse(text)


@pytest.mark.parametrize(
    ("positions", "reason"),
    [("0", "counted from 1"), ("7-9", "counted from 1"), ("4-2", "counted from 1"), ("2-4,4", "4 is named twice"),
     ("", "is none"), ("a", "is none"), ("3[9..8]", "8 is below 9")],
)  # fmt: skip
def test_positions_that_are_refused(positions: str, reason: str) -> None:
    with pytest.raises((ConfigError, SequenceError), match=reason):
        opened("MKTAYIAK", positions)
