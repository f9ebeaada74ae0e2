"""Profile HMMs: scores, columns and emissions of a made-up family."""

import gzip
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from generate import membership
from generate.couplings import GAP
from generate.membership import aligned, best_of_families, bit_scores, emitted, main_hmm, of_family, read_hmms
from tests.generate.families import LENGTH, ancestor, members, write_family
from xtrimo.errors import DataError
from xtrimo.testing import toy_sequences
from xtrimo.tokens import AMINO_ACIDS


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("family"))["hmm"]


@pytest.fixture(scope="module")
def hmms(file: Path) -> list:
    return read_hmms(file)


def test_reading(file: Path, hmms: list, tmp_path: Path) -> None:
    assert [hmm.name for hmm in hmms] == ["kinase_1", "kinase_2", "lyase_1"]
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    assert [hmm.name for hmm in read_hmms(packed)] == [hmm.name for hmm in hmms]
    assert of_family(hmms, "kinase") == [0, 1] and of_family(hmms, "lyase_1") == [2]
    with pytest.raises(DataError, match="no HMM is called ligase_1.*there are HMMs of kinase, lyase"):
        of_family(hmms, "ligase")


@pytest.mark.parametrize("content", [b"", b">a\nMKV\n", b"\x1f\x8b\x00", b"HMMER3/f [3.4]\nNAME x\nLENG 3\n"])
def test_no_file_of_hmms(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "f.hmm").write_bytes(content)
    with pytest.raises(DataError, match="f.hmm (is no file of HMMs|holds no HMM)"):
        read_hmms(tmp_path / "f.hmm")
    with pytest.raises(DataError, match="nowhere"):
        read_hmms(tmp_path / "nowhere")


def test_scores_tell_members(hmms: list) -> None:
    sequences = [*members(1, 5), *members(3, 5), *toy_sequences(5, min_length=60)]
    bits = bit_scores(hmms, sequences)
    assert (bits[:5, 0] > 40).all() and (bits[:5, 1:] < 10).all()
    assert (bits[5:10, 2] > 40).all() and (bits[10:] < 20).all() and (bits >= 0).all()
    np.testing.assert_allclose(bit_scores(hmms, sequences[:1]), bits[:1])  # whatever the company
    families = best_of_families(bits, hmms, ("kinase", "lyase"))
    assert list(families) == ["kinase", "lyase"]
    np.testing.assert_array_equal(families["kinase"], np.maximum(bits[:, 0], bits[:, 1]))
    assert main_hmm(hmms[:2], [*members(2, 3), *members(1, 2)]) == 1
    assert main_hmm(hmms[:2], toy_sequences(2, max_length=8)) == 0


def test_columns(hmms: list) -> None:
    """The ancestor's residues are in its columns, an insertion in none, a deletion is a gap."""
    text = ancestor(1)
    inserted = text[:30] + "WWWW" + text[30:]
    deleted = text[:20] + text[24:]
    columns = aligned(hmms[0], [text, "MK" + text + "GG", inserted, deleted, text[:10] + "X" + text[11:]])
    expected = [AMINO_ACIDS.index(letter) for letter in text]
    assert hmms[0].M == LENGTH
    for row in columns[:3]:
        assert row.tolist() == expected
    assert np.flatnonzero(columns[3] != expected).tolist() == [20, 21, 22, 23] and set(columns[3][20:24]) == {GAP}
    assert columns[4][10] == GAP and (columns[4] != expected).sum() == 1
    assert aligned(hmms[0], []).shape == (0, LENGTH)


def test_emissions_follow_the_hmm(hmms: list) -> None:
    """Each column has the HMM's letters, and the HMMs are used in proportion to their members."""
    written = emitted(hmms[:1], 400, seed=3)
    assert written == emitted(hmms[:1], 400, seed=3) != emitted(hmms[:1], 400, seed=4)
    whole = np.array([list(sequence) for sequence in written if len(sequence) == LENGTH])
    assert len(whole) > 200
    column = np.array(hmms[0].match_emissions)[30]
    found = [(whole[:, 29] == letter).mean() for letter in "ACDEFGHIKLMNPQRSTVWY"]
    assert np.abs(found - column).max() < 4 * np.sqrt(0.25 / len(whole))
    both = bit_scores(hmms[:2], emitted(hmms[:2], 300, seed=0))
    assert (both.argmax(1) == 0).mean() == pytest.approx(30 / 42, abs=0.1)


def test_names() -> None:
    found = [membership.family_of(name, ("a", "a_b")) for name in ("a_b_12", "a", "a_1x", "b_1", "a_2")]
    assert found == ["a_b", "a", None, None, "a"]


def named(*names: str) -> list[SimpleNamespace]:
    return [SimpleNamespace(name=name) for name in names]


def test_a_name_belongs_to_the_longest_family_that_has_a_threshold() -> None:
    hmms = named("cyp_1", "cyp_450", "cyp_2", "other_1")
    assert of_family(hmms, "cyp", ("cyp", "cyp_450")) == [0, 2]
    assert of_family(hmms, "cyp_450", ("cyp", "cyp_450")) == [1]
    assert of_family(hmms, "cyp", ("cyp",)) == [0, 1, 2]  # its 450th
    numbered = named("cyp_1", "cyp_450_1", "cyp_450_2")
    assert of_family(numbered, "cyp", ("cyp", "cyp_450")) == [0]
    assert of_family(numbered, "cyp_450", ("cyp", "cyp_450")) == [1, 2]
    best = best_of_families(np.array([[1.0, 5.0, 2.0, 9.0]]), hmms, ("cyp", "cyp_450", "none"))
    assert {name: bits.tolist() for name, bits in best.items()} == {"cyp": [2], "cyp_450": [5]}


def test_a_name_that_may_be_of_either_family() -> None:
    """The 450th HMM of cyp, or the one before cyp_450_1?"""
    with pytest.raises(DataError, match="cyp_450 may be of family cyp_450, as cyp_450_1 is, or of cyp"):
        of_family(named("cyp_1", "cyp_450", "cyp_450_1"), "cyp", ("cyp", "cyp_450"))
    with pytest.raises(DataError, match="cyp_450 may be"):
        best_of_families(np.zeros((1, 2)), named("cyp_450", "cyp_450_1"), ("cyp", "cyp_450"))
    assert of_family(named("a", "a_1"), "a", ("a",)) == [0, 1]


def test_a_protein_that_hmmer_does_not_take(hmms: list) -> None:
    """At the limit it does."""
    assert bit_scores(hmms[:1], ["G" * 100_000]).tolist() == [[0]]
    with pytest.raises(DataError, match="protein 2 has 100,001 residues.*at most 100,000"):
        bit_scores(hmms[:1], ["MKV", "G" * 100_001])
