"""What the verbs share: the chains that int8 is judged on."""

from pathlib import Path

import pytest

from xtrimo import prepacking
from xtrimo.command import FastaOptions
from xtrimo.fasta import Record
from xtrimo.model import GLM
from xtrimo.precision_loss import PrecisionLoss
from xtrimo.testing import toy_config


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[list[Record]]:
    """What `prepack_int8` is handed, in its place."""
    calls: list[list[Record]] = []

    def prepack_int8(model: GLM, proteins: list[Record]) -> tuple[GLM, PrecisionLoss]:
        calls.append(list(proteins))
        return model, PrecisionLoss(cosine=1.0, nll_rise=0.0)

    monkeypatch.setattr(prepacking, "prepack_int8", prepack_int8)
    return calls


def prepare(folder: Path, *sequences: str, max_length: int = 512) -> None:
    (folder / "in.fasta").write_text("".join(f">p{i}\n{s}\n" for i, s in enumerate(sequences)))
    options = FastaOptions(model="x", precision="int8")
    options.prepare(GLM(toy_config(max_length=max_length)), folder / "in.fasta")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelname == "WARNING"]


def test_int8_is_judged_on_the_first_chains(tmp_path: Path, judged, caplog) -> None:
    prepare(tmp_path, *["MKVLAWERSD" * 10] * 20)
    assert judged == [[Record(f"p{i}", "MKVLAWERSD" * 10) for i in range(8)]]
    assert not warnings(caplog)


def test_int8_is_judged_on_more_proteins_where_they_are_short(tmp_path: Path, judged, caplog) -> None:
    prepare(tmp_path, *["MKVLAWERSD"] * 30)
    assert [len(records) for records in judged] == [20] and not warnings(caplog)  # 200 residues


def test_int8_is_judged_on_chains_and_on_what_a_model_reads_of_long_proteins(tmp_path: Path, judged) -> None:
    prepare(tmp_path, "MKV:GGSL", "M" * 100 + ":" + "K" * 61, max_length=64)
    expected = [("p0, chain 1", "MKV"), ("p0, chain 2", "GGSL"), ("p1, chain 1", "M" * 60), ("p1, chain 2", "K" * 60)]
    assert [(record.name, record.sequence) for record in judged[0]] == expected


def test_int8_on_little_is_warned_of(tmp_path: Path, judged, caplog) -> None:
    prepare(tmp_path, "MKV:GGSL", "MKVLAW")
    (message,) = warnings(caplog)
    assert message.startswith("int8 is judged on the 13 residues that ")
    assert len(judged[0]) == 3


def test_int8_bears_a_file_of_chains_alone(tmp_path: Path) -> None:
    """With the judge itself, on what embed may be given."""
    prepare(tmp_path, *["MKVLAWERSDHIPQFYNGTCA:" * 5 + "MKV"] * 4, max_length=16)
