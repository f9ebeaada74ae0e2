"""The words have the published order, and text survives the way to ids and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtrimo import tokens
from xtrimo.errors import ConfigError, SequenceError
from xtrimo.tokens import RESIDUES, Tokenizer, encode_residues

PUBLISHED = (
    "<pad> L A G V S E R T I D P K Q N F Y M H W C X B U Z O . - <mask> <gmask> <smask> <eod> <sop> <eop> <eos> <unk>"
)
words = st.sampled_from([*RESIDUES, *(word for word in Tokenizer().words if word[0] == "<")])


def test_words_are_the_published_ones_in_order() -> None:
    assert Tokenizer().words == (*PUBLISHED.split(), "<rev>")
    assert len("\n".join(tokens.PUBLISHED_WORDS)) == 112  # bytes of the published tokenizer.model
    named = [
        tokens.PAD,
        tokens.X,
        tokens.MASK,
        tokens.GMASK,
        tokens.SMASK,
        tokens.SOP,
        tokens.EOP,
        tokens.EOS,
        tokens.REV,
    ]
    assert named == [0, 21, 28, 29, 30, 32, 33, 34, 36]


def test_encode_closes_with_eos() -> None:
    assert Tokenizer().encode("MKV").tolist() == [17, 12, 4, 34]
    assert Tokenizer().encode("<gmask><sop><eos>MK", eos=False).tolist() == [29, 32, 34, 17, 12]
    assert Tokenizer().encode("", eos=False).shape == (0,)


@given(st.lists(words))
def test_round_trip(text: list[str]) -> None:
    tokenizer = Tokenizer()
    ids = tokenizer.encode("".join(text), eos=False)
    assert ids.tolist() == [tokenizer.words.index(word) for word in text]
    assert tokenizer.decode(ids) == "".join(text)


@given(st.text(RESIDUES + RESIDUES.lower(), min_size=1))
def test_lower_case_is_folded(sequence: str) -> None:
    np.testing.assert_array_equal(encode_residues(sequence), encode_residues(sequence.upper()))


@pytest.mark.parametrize("letter", ["J", "*", "-", ".", "1", " ", "\n", "<", "é", "ß", "\u0394", "\x00"])
def test_other_letters_are_named_or_read_as_x(letter: str) -> None:
    with pytest.raises(SequenceError, match=r"^protein7: position 3 is .*--unknown") as error:
        encode_residues(f"MK{letter}{letter}V", name="protein7")
    assert repr(letter) in str(error.value) and "2 such letters" in str(error.value)
    assert encode_residues(f"MK{letter}V", unknown="x").tolist() == [17, 12, tokens.X, 4]


def test_a_final_stop_is_dropped_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        assert encode_residues("MKV*").tolist() == [17, 12, 4]
    assert [record.message for record in caplog.records] == ["a final * (stop codon) was dropped"]
    with pytest.raises(SequenceError, match="empty"):
        encode_residues("*")


def test_empty_sequence_is_refused() -> None:
    with pytest.raises(SequenceError, match="empty"):
        encode_residues("")


def test_unknown_word_lists_the_known() -> None:
    with pytest.raises(SequenceError, match=r"<stop>.*<gmask>.*<rev>"):
        Tokenizer().encode("MK<stop>")
    with pytest.raises(SequenceError, match="<rev>"):  # a published model has no control words
        Tokenizer(control_words=()).encode("<rev>MK")


def test_rows_without_a_word_decode_to_their_number() -> None:
    assert Tokenizer().decode([17, 77]) == "M<row 77>"


@pytest.mark.parametrize("extra", [("<eos>",), ("<a>", "<a>"), tuple(f"<{i}>" for i in range(93))])
def test_control_words_must_fit_and_differ(extra: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="at most 92"):
        Tokenizer(extra)
