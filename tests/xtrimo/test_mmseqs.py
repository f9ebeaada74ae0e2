"""The program mmseqs2: numbers for names, its failures told."""

from pathlib import Path

import pytest

from xtrimo import mmseqs
from xtrimo.errors import XtrimoError
from xtrimo.testing import toy_sequences

installed = pytest.mark.skipif(not mmseqs.is_installed(), reason="the program is not here")


@installed
def test_search() -> None:
    known = toy_sequences(4, min_length=80, max_length=90)
    hits = mmseqs.find_similar([known[2], known[0][10:]], iter(known), ("nident", "qcov"), ("-a",))
    assert sorted((query, target) for query, target, _ in hits) == [(0, 2), (1, 0)]
    assert {query: values for query, _, values in hits} == {
        0: [str(len(known[2])), "1.000"], 1: [str(len(known[0]) - 10), "1.000"]
    }  # fmt: skip


def test_a_failure_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "mmseqs"
    program.write_text("#!/bin/sh\necho 'no space left' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert mmseqs.is_installed()
    with pytest.raises(XtrimoError, match="mmseqs failed with status 3: no space left"):
        mmseqs.cluster(["MKV"], 0.9, 0.8)
    monkeypatch.setenv("PATH", "")
    assert not mmseqs.is_installed()
    with pytest.raises(XtrimoError, match="mmseqs2 is not installed"):
        mmseqs.find_similar(["MKV"], ["MKV"], ("nident",))


@installed
def test_proteins_in_which_the_program_finds_no_words() -> None:
    """Each is a cluster, but copies are one; and nothing is similar."""
    for sequences, expected in (
        (["M", "MK", "M"], [0, 1, 0]),
        (["GS" * 30] * 4, [0] * 4),
        (["L" * 30, "L" * 31], [0, 1]),
    ):
        assert mmseqs.cluster(sequences, 0.9, 0.8).tolist() == expected
    assert mmseqs.find_similar(["M", "MK"], ["M"], ("nident",)) == []
