"""Each oddity of FASTA files has one answer: read it, warn once, or an error that says where."""

import gzip
import io
import logging
from pathlib import Path

import pytest
from Bio import SeqIO
from hypothesis import given
from hypothesis import strategies as st

from xtrimo.errors import FastaError, SequenceError
from xtrimo.fasta import Record, read_fasta, write_fasta
from xtrimo.tokens import RESIDUES

PROTEIN = "MKVLWERSDIHPQFYNGTCA"
names = st.text("abcXYZ019|:_.-", min_size=1)
records = st.lists(st.builds(Record, names, st.text(RESIDUES, min_size=1), st.sampled_from(["", "a protein", "x=1 y"])))


@pytest.fixture
def write(tmp_path: Path):
    """Write bytes to a file and return its path."""

    def _write(content: bytes, name: str = "in.fasta") -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return _write


def sequences(path: Path, **options) -> dict[str, str]:
    return {record.name: record.sequence for record in read_fasta(path, **options)}


def test_record(write) -> None:
    path = write(f">sp|P1|A first protein\n{PROTEIN[:9]}\n{PROTEIN[9:]}\n".encode())
    assert list(read_fasta(path)) == [Record("sp|P1|A", PROTEIN, "first protein")]


@pytest.mark.parametrize(
    "content",
    [
        ">a\r\nMKVLW\r\nERSD\r\n>b\r\nMK\r\n",
        ">a\rMKVLW\rERSD\r>b\rMK\r",
        "\n\n>a\n\nMKVLW\n\n\nERSD\n\n>b\nMK",
        ">a\nMKV LW\n  ERSD  \n>b\nMK\n\n",
        ">a\nmkvlw\nersd\n>b\nMk\n",
        "\ufeff>a\nMKVLWERSD\n>b\nMK\n",
        "> a\nMKVLWERSD\n>\tb\t\nMK\n",
    ],
    ids=["CRLF", "CR", "blank lines", "spaces", "lower case", "byte-order mark", "space before the name"],
)
def test_layouts_read_alike(write, content: str) -> None:
    assert sequences(write(content.encode()), unknown="error") == {"a": "MKVLWERSD", "b": "MK"}


def test_final_star_is_dropped_with_one_warning(write, caplog) -> None:
    path = write(b">a\nMKVLW*\n>b\nMKVIW\n*\n>c\nMK*LW*\n>d\nMKVE**\n")
    found = sequences(path)
    assert found == {"a": "MKVLW", "b": "MKVIW", "c": "MK*LW", "d": "MKVE*"}
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}, line 1: dropped the final '*' of a; further ones are not reported"
    ]
    assert sequences(path, unknown="skip") == {"a": "MKVLW", "b": "MKVIW"}


@pytest.mark.parametrize("letter", list("J1-.*\t\x00?") + ["é", "ß"])
def test_unknown_letters(write, caplog, letter: str) -> None:
    path = write(f">a\nMKVLW\n>b second\nERSD\nH{letter}PQ\n".encode())
    with pytest.raises(SequenceError, match=r"in.fasta, line 3: b: position 6 is .*--unknown x") as error:
        sequences(path, unknown="error")
    assert repr(letter) in str(error.value)
    assert sequences(path, unknown="x")["b"] == "ERSDHXPQ"
    assert sequences(path)["b"] == f"ERSDH{letter}PQ"
    with caplog.at_level(logging.WARNING):
        assert sequences(path, unknown="skip") == {"a": "MKVLW"}
    assert "left out 1 records" in caplog.text


def test_a_chain_break_is_no_unknown_letter(write, caplog) -> None:
    path = write(b">a\nMKV\n>b\nMK:GJ\n")
    for unknown in ("error", "x"):
        with pytest.raises(SequenceError, match=r"in.fasta, line 3: b: 2 chains joined by ':'.*a record of its own"):
            sequences(path, unknown=unknown)
    assert sequences(path, unknown="skip") == {"a": "MKV"}
    assert sequences(path)["b"] == "MK:GJ"
    assert sequences(path, unknown="x", chains=True)["b"] == "MK:GX"
    with pytest.raises(SequenceError, match="b, chain 2: position 2 is 'J'"):
        sequences(path, unknown="error", chains=True)


def test_bytes_that_are_no_text_are_unknown_letters(write) -> None:
    path = write(b">caf\xe9\nMKV\xffLW\n>b\nMK\n")
    with pytest.raises(SequenceError, match="position 4"):
        sequences(path, unknown="error")
    assert list(sequences(path, unknown="x").values()) == ["MKVXLW", "MK"]


def test_duplicate_names_are_kept_with_one_warning(write, caplog) -> None:
    path = write(b">a\nMKV\n>b\nWER\n>a\nSDI\n>a\nHPQ\n")
    assert [(r.name, r.sequence) for r in read_fasta(path)] == [("a", "MKV"), ("b", "WER"), ("a", "SDI"), ("a", "HPQ")]
    assert len(caplog.records) == 1 and "line 5: a is the name of more than one record" in caplog.text


def test_header_without_a_name_gets_one_with_a_warning(write, caplog) -> None:
    assert sequences(write(b">a\nMKV\n>\nWER\n>  \nSDI\n")) == {"a": "MKV", "record_2": "WER", "record_3": "SDI"}
    assert len(caplog.records) == 1 and "line 3" in caplog.text


@pytest.mark.parametrize("empty", ["", "\n\n", "*\n", "   \n"])
def test_empty_records(write, empty: str) -> None:
    path = write(f">a\nMKV\n>b\n{empty}>c\nWER\n".encode())
    for unknown in (None, "error", "x"):
        with pytest.raises(FastaError, match=r"in.fasta, line 3: record b has no sequence.*--unknown skip"):
            sequences(path, unknown=unknown)
    assert sequences(path, unknown="skip") == {"a": "MKV", "c": "WER"}


def test_last_record_may_be_empty(write) -> None:
    with pytest.raises(FastaError, match="line 3: record b"):
        sequences(write(b">a\nMKV\n>b"))


@pytest.mark.parametrize("content", [b"", b"\n \n\r\n"])
def test_file_without_records(write, content: bytes) -> None:
    for path in (write(content), write(gzip.compress(content), "in.gz")):
        with pytest.raises(FastaError, match="holds no FASTA records"):
            list(read_fasta(path))


@pytest.mark.parametrize(
    "content", [b"MKVLW\n>a\nMKV\n", b"; comment\n>a\nMKV\n", b"\x89PNG\r\n\x1a\n", b"\n\nid,seq\na,MKV\n"]
)
def test_not_a_fasta_file(write, content: bytes) -> None:
    line = 3 if content.startswith(b"\n") else 1
    with pytest.raises(FastaError, match=rf"in.fasta, line {line}: starts with .*'>name'"):
        list(read_fasta(write(content)))


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(FastaError, match=r"cannot be read \(Is a directory\)"):
        list(read_fasta(tmp_path))
    with pytest.raises(FastaError, match=r"missing.fasta: cannot be read \(No such file"):
        list(read_fasta(tmp_path / "missing.fasta"))


def test_gzip_is_known_by_content(write) -> None:
    content = f">a\n{PROTEIN}\n".encode()
    packed = gzip.compress(content[:7]) + gzip.compress(content[7:])  # several members, as bgzip and cat write them
    assert sequences(write(packed, "no_suffix")) == {"a": PROTEIN}
    assert sequences(write(content, "plain.gz")) == {"a": PROTEIN}


def test_damaged_gzip_names_the_last_good_line(write) -> None:
    lines = b"".join(b">p%d\n%s\n" % (i, PROTEIN[i % 20 :].encode()) for i in range(5000))
    packed = gzip.compress(lines)
    damaged = bytearray(packed)
    damaged[len(packed) // 2] ^= 0xFF
    for content in (packed[: len(packed) // 2], packed[:-4], bytes(damaged), packed + b"trailing"):
        with pytest.raises(FastaError, match=r"truncated or damaged after line \d+ "):
            list(read_fasta(write(content, "in.fasta.gz"), unknown="skip"))


def test_nucleotides_are_refused(write) -> None:
    path = write(b">gene\nATGACGTTNNACGGT\n>rna\nACGUUGCA\n")
    with pytest.raises(SequenceError, match=r"in.fasta: 100% of the first 23 letters are among ACGTUN.*--force"):
        list(read_fasta(path))
    assert sequences(path, force=True) == {"gene": "ATGACGTTNNACGGT", "rna": "ACGUUGCA"}


@pytest.mark.parametrize(("num_other", "refused"), [(4, True), (5, False)])
def test_nucleotide_border_is_95_percent(write, num_other: int, refused: bool) -> None:
    path = write(b">a\n" + b"a" * (100 - num_other) + b"W" * num_other + b"\n")
    if refused:
        with pytest.raises(SequenceError, match="nucleotides"):
            list(read_fasta(path))
    else:
        assert len(sequences(path)["a"]) == 100


def test_a_nucleotide_like_protein_does_not_condemn_its_file(write) -> None:
    content = f">poly\n{'GATTACA' * 100}\n" + "".join(f">p{i}\n{PROTEIN}\n" for i in range(1000))
    assert len(sequences(write(content.encode()))) == 1001


def test_reading_is_streaming(write) -> None:
    """The first record arrives although the file's end is damaged."""
    content = gzip.compress(b"".join(b">p%d\n%s\n" % (i, PROTEIN.encode() * 50) for i in range(1000)))
    stream = read_fasta(write(content[:-8]))
    assert next(stream).name == "p0"
    with pytest.raises(FastaError):
        list(stream)


@given(records)
def test_written_records_come_back(tmp_path_factory, written: list[Record]) -> None:
    folder = tmp_path_factory.mktemp("round")
    for name in ("out.fasta", "out.fasta.gz"):
        write_fasta(folder / name, written, width=7)
        if written:
            assert list(read_fasta(folder / name, force=True, unknown="error")) == written
    assert [path.name for path in sorted(folder.iterdir())] == ["out.fasta", "out.fasta.gz"]
    reference = SeqIO.parse(io.StringIO((folder / "out.fasta").read_text()), "fasta")
    assert [(r.id, str(r.seq)) for r in reference] == [(r.name, r.sequence) for r in written]


def test_gzip_output_is_reproducible(tmp_path: Path) -> None:
    write_fasta(tmp_path / "a.gz", [Record("a", PROTEIN)])
    write_fasta(tmp_path / "b.gz", [Record("a", PROTEIN)])
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_fasta(tmp_path / "out.fasta", [Record("a", PROTEIN)])
    for bad in (Record("two words", PROTEIN), Record("", PROTEIN), Record("b", PROTEIN, "one\n>two")):
        with pytest.raises(FastaError, match="cannot be written"):
            write_fasta(tmp_path / "out.fasta", [Record("new", PROTEIN), bad])
    assert sequences(tmp_path / "out.fasta") == {"a": PROTEIN}
    assert len(list(tmp_path.iterdir())) == 1
