"""Who is trained on and who is held out, by the headers; thresholds."""

from pathlib import Path

import pytest

from generate.members import read_real, read_thresholds
from xtrimo.errors import DataError, FastaError

SPLIT = """>a family=kinase split=train go=1
MKV
>b family=kinase split=valid
MKVA
>c split=test family=kinase
MKVG
>d family=lyase split=train
MKVL
>e family=lyase split=test
MKVM
>f family=ligase split=train
MKVN
"""


def names(records: object) -> str:
    return "".join(record.name for record in records)  # type: ignore[attr-defined]


def test_headers_with_splits(tmp_path: Path) -> None:
    path = tmp_path / "all.fasta"
    path.write_text(SPLIT)
    real = read_real(path, None, "kinase")
    assert (names(real.training), names(real.members), names(real.held_out)) == ("adf", "a", "c")
    path.write_text(SPLIT.replace("split=test", "split=other"))
    assert names(read_real(path, None, "kinase").held_out) == "b"  # valid where there is no test
    with pytest.raises(DataError, match="no record of family=kin; its families are kinase, ligase, lyase"):
        read_real(path, None, "kin")
    with pytest.raises(DataError, match="all.fasta holds no held-out member of ligase"):
        read_real(path, None, "ligase")
    path.write_text(SPLIT.replace("kinase split=train", "kinase split=test"))
    with pytest.raises(DataError, match="no member of kinase with split=train"):
        read_real(path, None, "kinase")


def test_headers_that_say_nothing(tmp_path: Path) -> None:
    train, held_out = tmp_path / "train.fasta", tmp_path / "held_out.fasta"
    train.write_text(">a\nMKV\n>b\nMKL\n>c\nM1K\n")
    held_out.write_text(">x\nMKV\n")
    real = read_real(train, held_out, "any")
    assert (names(real.training), names(real.members), names(real.held_out)) == ("ab", "ab", "x")
    with pytest.raises(DataError, match="give such by --held-out"):
        read_real(train, None, "any")


def test_a_held_out_file_of_its_own(tmp_path: Path) -> None:
    train, held_out = tmp_path / "train.fasta", tmp_path / "held_out.fasta"
    train.write_text(SPLIT)
    held_out.write_text(">x family=kinase\nMKV\n>y family=lyase\nMKV\n")
    assert names(read_real(train, held_out, "kinase").held_out) == "x"
    held_out.write_text(SPLIT)
    assert names(read_real(train, held_out, "lyase").held_out) == "e"
    held_out.write_text(">x family=kinase split=train\nMKV\n")
    with pytest.raises(DataError, match="held_out.fasta holds no held-out member"):
        read_real(train, held_out, "kinase")
    held_out.write_text("")
    with pytest.raises(FastaError, match="holds no FASTA records"):
        read_real(train, held_out, "kinase")


def test_thresholds(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("family,n,threshold_bits\na,3,25.0\nb,4,157\n")
    assert read_thresholds(path) == {"a": 25, "b": 157}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no column family and no column threshold_bits"),
        ("family,bits\na,3\n", "no column threshold_bits"),
        ("family,threshold_bits\na,3\nb,high\n", "row 2: threshold_bits is 'high'; expected a number"),
        ("family,threshold_bits\na\n", "row 1: threshold_bits is None"),
        ("family,threshold_bits\na,1\na,2\n", "row 2: a is there twice"),
    ],
)
def test_wrong_thresholds(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        read_thresholds(tmp_path / "scores.csv")


def test_records_without_a_split_are_training_ones(tmp_path: Path) -> None:
    path = tmp_path / "all.fasta"
    path.write_text(SPLIT + ">g family=kinase\nMKVC\n>h\nMKVD\n>i family=kinase split=other\nMKVE\n")
    real = read_real(path, None, "kinase")
    assert (names(real.training), names(real.members), names(real.held_out)) == ("adfgh", "ag", "c")


def test_held_out_proteins_that_were_trained_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train, held_out = tmp_path / "train.fasta", tmp_path / "held_out.fasta"
    train.write_text(">a\nMKV\n>b\nMKL\n")
    held_out.write_text(">x\nMKW\n")
    read_real(train, held_out, None)
    assert not caplog.records
    held_out.write_text(">x\nMKV\n>y\nMKW\n>z\nMKL\n")
    read_real(train, held_out, None)
    (record,) = caplog.records
    assert "2 of the 3 held-out proteins of held_out.fasta are training proteins" in record.getMessage()
