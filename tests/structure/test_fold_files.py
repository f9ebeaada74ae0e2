"""The verb `fold`: a FASTA file to structures and scores, whatever stops it on the way."""

import itertools
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from structure import fold, fold_command, fold_files, folding, load_fold
from structure.fold_directory import FoldFacts, save_fold
from structure.fold_files import SCORES, SETTINGS
from structure.folding import buckets
from structure.writers import Scores, read_scores
from tests.structure.models import TRUNKS, model_of
from xtrimo.chains import read_structure
from xtrimo.errors import CheckpointError, ConfigError, DataError, FastaError, SequenceError, XtrimoError
from xtrimo.fasta import Record, file_names, write_fasta
from xtrimo.shards import Shard
from xtrimo.testing import killed, toy_sequences

RECORDS = [Record(f"P{number}", each) for number, each in enumerate(toy_sequences(7, min_length=8, max_length=24))]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with a model and proteins."""
    config = replace(TRUNKS["esmfold"], side_chains=True)
    save_fold(tmp_path / "model", model_of(config), FoldFacts(config=config))
    write_fasta(tmp_path / "in.fasta", RECORDS)
    return tmp_path


def run(work: Path, *flags: str, out: str = "out", records: list[Record] | None = None) -> list[Scores]:
    """The verb; the scores that it leaves."""
    if records is not None:
        write_fasta(work / "in.fasta", records)
    fold_command.main([str(work / "in.fasta"), str(work / out), "--model", str(work / "model"), *flags])
    return read_scores(work / out / SCORES)


@pytest.fixture
def folded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what is folded."""
    names: list[str] = []
    whole = folding._prediction

    def counted(pipeline, record, *rest):  # type: ignore[no-untyped-def]
        names.append(record.name)
        return whole(pipeline, record, *rest)

    monkeypatch.setattr(folding, "_prediction", counted)
    return names


def structures(out: Path) -> dict[str, str]:
    """Structure files by name; the rest of a folder is known."""
    others = {path.name for path in out.iterdir() if path.suffix not in (".cif", ".pdb")}
    assert others == {SCORES, SETTINGS}
    return {path.name: path.read_text() for path in out.iterdir() if path.name not in others}


def test_structures_and_scores(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [*RECORDS, Record("two", "MKVLA:GDE", "chains")]
    scores = run(work, "--format", "both", records=records)
    assert set(structures(work / "out")) == {f"{r.name}{end}" for r in records for end in (".cif", ".pdb")}
    for record, said, expected in zip(records, scores, fold(work / "model", records), strict=True):
        assert (said.name, said.sequence, said.file) == (record.name, record.sequence, record.name)
        assert said.mean_plddt == pytest.approx(expected.mean_plddt, abs=1e-3)
        assert said.ptm == pytest.approx(expected.ptm, abs=1e-5)
        assert (said.num_recycles, said.model, said.num_chains) == (1, work.name, len(expected.chains))
        assert said.length == len(expected.residues) and said.seconds is not None and said.seconds > 0
        for ending in (".cif", ".pdb"):
            chains = list(read_structure(work / "out" / f"{record.name}{ending}"))
            assert [chain.sequence for chain in chains] == [*expected.chains]
            xyz = np.concatenate([chain.xyz for chain in chains])
            assert np.array_equal(np.isfinite(xyz).all(-1), expected.exists)
            np.testing.assert_allclose(xyz[expected.exists], expected.atoms[expected.exists], atol=2e-3)
    mean = np.mean([each.mean_plddt for each in scores])
    assert capsys.readouterr().out == f"8 structures in {work / 'out'}, mean pLDDT {mean:.1f}\n"


def test_those_of_a_batch_share_its_time(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by a second whenever it is looked at."""
    ticks = itertools.count()
    monkeypatch.setattr(fold_files, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    scores = run(work)
    batches = buckets([each.length for each in scores])
    assert [len(batch) for batch in batches] == [2, 1, 1, 1, 2]
    assert [[scores[number].seconds for number in batch] for batch in batches] == [[0.5] * 2, [1], [1], [1], [0.5] * 2]


def test_what_is_finished_is_not_done_again(work: Path, folded: list[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    first = run(work)
    assert sorted(folded) == [record.name for record in RECORDS]
    before = structures(work / "out")
    folded.clear()
    assert run(work) == first and not folded
    assert f"{work / 'out'}: 7 of 7 proteins are finished" in caplog.messages
    (work / "out" / "P4.cif").unlink()
    assert [each.name for each in run(work)] == [each.name for each in first] and folded == ["P4"]
    assert structures(work / "out") == before
    folded.clear()
    run(work, "--format", "both")
    assert len(folded) == 7, "none has a PDB file"
    assert len(structures(work / "out")) == 14


def test_more_proteins_and_others_share_a_folder(work: Path, folded: list[str]) -> None:
    first = run(work)
    folded.clear()
    both = run(work, records=[Record("new", "MKV"), RECORDS[2]])
    assert folded == ["new"]
    assert [each.name for each in both] == ["new", "P2", "P0", "P1", "P3", "P4", "P5", "P6"]
    assert sorted(both[1:], key=lambda each: each.name) == first


def test_a_changed_sequence_is_folded_again(work: Path, folded: list[str], caplog: pytest.LogCaptureFixture) -> None:
    first = run(work)
    before = structures(work / "out")
    folded.clear()
    changed = [replace(record, sequence="MKVLAGDEWY") if record.name == "P4" else record for record in RECORDS]
    second = run(work, records=changed)
    assert f"{work / 'out' / 'P4'}: the files of another protein of this name are replaced" in caplog.messages
    assert folded == ["P4"] and second[4].sequence == "MKVLAGDEWY"
    assert second[:4] + second[5:] == first[:4] + first[5:]
    after = structures(work / "out")
    assert {name for name in after if after[name] != before[name]} == {"P4.cif"}


def test_a_file_is_of_the_record_that_has_its_name_now(work: Path, folded: list[str]) -> None:
    """Records of one name, or of names that are one as files, take theirs by order; another order is other files."""
    run(work, records=[Record("a|b", "MKVLAGDE"), Record("a_b", "GSTPQR"), Record("a|b", "WYWY")])
    out = work / "out"
    assert [(each.file, each.sequence) for each in read_scores(out / SCORES)] == [
        ("a_b", "MKVLAGDE"), ("a_b_2", "GSTPQR"), ("a_b_3", "WYWY"),
    ]  # fmt: skip
    folded.clear()
    run(work, records=[Record("a_b", "GSTPQR"), Record("a|b", "MKVLAGDE")])
    assert len(folded) == 2
    for each in read_scores(out / SCORES):
        (chain,) = read_structure(out / f"{each.file}.cif")
        assert chain.sequence == each.sequence


def test_names_of_files() -> None:
    names = ["sp|P1|A", "x", "X", "x", "x_2", "../up", "..", "é/1", "l" * 300, "l" * 299 + "m", "sp_p1_a"]
    found = file_names(names)
    assert found[:8] == ["sp_P1_A", "x", "X_2", "x_3", "x_2_2", "_up", "_", "__1"]
    assert found[8] == "l" * 200 and found[9] == "l" * 200 + "_2" and found[10] == "sp_p1_a_2"
    assert len({name.lower() for name in found}) == len(names)


def dying_at(step: int, written_every: float = 1000.0) -> Callable[[], None]:
    """Makes a process die of SIGKILL as its file of this number is about to get its name."""

    def die() -> None:
        rename, renamed = Path.rename, itertools.count(1)

        def or_die(path: Path, target: Path) -> Path:
            if next(renamed) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(path, target)

        Path.rename = or_die  # type: ignore[method-assign, assignment]
        fold_files.WRITTEN_EVERY = written_every

    return die


@pytest.mark.parametrize(("step", "often"), [(1, False), (9, False), (11, False), (4, True), (9, True)])
def test_after_a_kill_the_same_command_goes_on(step: int, often: bool, work: Path, folded: list[str]) -> None:
    """These get their names: settings, scores of none, structures, and scores: at the end, or after each batch."""
    expected = run(work, out="whole")
    was_killed = killed(dying_at(step, 0.0 if often else 1000.0), lambda: run(work))
    assert was_killed == (step < 11 or often), "ten files and, with each of the batches, scores"
    known = work / "out" / SCORES
    finished = {each.name for each in read_scores(known)} if known.exists() else set()
    folded.clear()
    scores = run(work)
    assert set(folded) == {record.name for record in RECORDS} - finished
    assert bool(finished) == (not was_killed or (often and step > 4))
    assert [replace(each, seconds=None) for each in scores] == [replace(each, seconds=None) for each in expected]
    assert structures(work / "out") == structures(work / "whole")


def test_a_kill_leaves_no_scores_of_what_is_replaced(work: Path) -> None:
    """Killed when the new structure is there, and its scores are not; then the old sequence is asked for again."""
    run(work)
    changed = [replace(record, sequence="MKVLAGDEWY") if record.name == "P4" else record for record in RECORDS]
    write_fasta(work / "in.fasta", changed)
    assert killed(dying_at(3), lambda: run(work))
    assert [each.name for each in read_scores(work / "out" / SCORES)] == [r.name for r in RECORDS if r.name != "P4"]
    (chain,) = read_structure(work / "out" / "P4.cif")
    assert chain.sequence == "MKVLAGDEWY"
    run(work, records=RECORDS)
    (chain,) = read_structure(work / "out" / "P4.cif")
    assert chain.sequence == RECORDS[4].sequence


def test_what_cannot_be_written_stops_no_other(work: Path, monkeypatch: pytest.MonkeyPatch, folded: list[str]) -> None:
    """A chain too many for a PDB file, and a prediction that is none; the same command tries these again."""
    many = Record("many", ":".join("G" * 63))
    with pytest.raises(XtrimoError, match=r"1 of 8 .* not be written, such as many \(.*63 chains.*; all others are in"):
        run(work, "--format", "pdb", records=[many, *RECORDS])
    assert len(read_scores(work / "out" / SCORES)) == 7 and "many.pdb" not in structures(work / "out")
    whole = folding._prediction

    def broken(pipeline, record, *rest):  # type: ignore[no-untyped-def]
        if record.name == "P2":
            raise DataError("prediction P2: no numbers")
        return whole(pipeline, record, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(folding, "_prediction", broken)
        with pytest.raises(XtrimoError, match=r"1 of 7 .* such as P2 \(prediction P2: no numbers\)"):
            run(work, out="other", records=RECORDS)
        with pytest.raises(DataError, match="no numbers"):
            fold(work / "model", RECORDS)
    folded.clear()
    assert len(run(work, out="other")) == 7 and folded == ["P2"]


def test_shares_make_up_what_one_process_writes(work: Path, folded: list[str]) -> None:
    """In any order, one of them killed and repeated, and one that has nothing to do. Before all have ended, each has
    scores of its own, and one process would finish the rest."""
    whole = run(work, out="whole")
    args = [str(work / "in.fasta"), str(work / "out"), "--model", str(work / "model"), "--shard"]
    folded.clear()
    fold_command.main([*args, "3/9"])
    first = folded.copy()
    assert not (work / "out" / SCORES).exists() and (work / "out/scores.3-of-9.json").exists() and first
    assert killed(dying_at(2, 0.0), lambda: fold_command.main([*args, "1/9"]))
    for index in (9, 1, 2, 4, 5, 6, 7, 8):
        with fold_files._alone(work / "out", Shard(0, 9)):  # another share is at work
            fold_command.main([*args, f"{index}/9"])
    scores = read_scores(work / "out" / SCORES)
    assert [replace(each, seconds=None) for each in scores] == [replace(each, seconds=None) for each in whole]
    assert structures(work / "out") == structures(work / "whole")
    assert len(folded) == len(set(folded)) == len(RECORDS)
    fold_command.main([*args, "3/9"])  # a task that is queued again
    assert read_scores(work / "out" / SCORES) == scores and len(folded) == len(RECORDS)


def test_one_process_finishes_what_shares_have_begun(work: Path, folded: list[str]) -> None:
    args = [str(work / "in.fasta"), str(work / "out"), "--model", str(work / "model")]
    fold_command.main([*args, "--shard", "2/2"])
    begun = set(folded)
    folded.clear()
    assert [each.name for each in run(work)] == [record.name for record in RECORDS]
    assert begun and set(folded) == {record.name for record in RECORDS} - begun
    assert structures(work / "out")


def test_shares_replace_no_other_protein(work: Path) -> None:
    run(work)
    with pytest.raises(ConfigError, match="another protein called P0, which shares do not replace"):
        run(work, "--shard", "1/1000", records=[Record("P0", "MKVLAGDE")])
    with pytest.raises(ConfigError, match="shard '3/2': expected I/N"):
        fold_command.FoldOptions(fasta=work / "in.fasta", out=work / "out", model=work / "model", shard="3/2")


def test_one_process_at_a_time(work: Path) -> None:
    run(work)
    with (
        fold_files._alone(work / "out"),
        pytest.raises(XtrimoError, match="another process folds into .*out; wait for it, or choose another"),
    ):
        run(work)
    run(work)


def test_an_error_keeps_the_scores_so_far(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fold_files._written

    def full(prediction, options, name):  # type: ignore[no-untyped-def]
        if len(prediction.residues) > 15:
            raise OSError(28, "No space left on device")
        return whole(prediction, options, name)

    monkeypatch.setattr(fold_files, "_written", full)
    with pytest.raises(OSError, match="No space"):
        run(work)
    scores = read_scores(work / "out" / SCORES)
    assert {each.name for each in scores} == {record.name for record in RECORDS if len(record.sequence) <= 15}
    assert 0 < len(scores) < 7


def test_a_folder_is_of_one_model(work: Path) -> None:
    run(work, records=RECORDS[:1])
    settings = json.loads((work / "out" / SETTINGS).read_text())
    assert settings["model"] == work.name and settings["num_recycles"] == 1
    run(work, "--num-recycles", "1", "--chunk", "4")
    for flags, words in ((["--num-recycles", "0"], "num_recycles 1 to 0"), (["--pae"], "pae False to True")):
        with pytest.raises(ConfigError, match=rf"out holds structures of other settings \({words}\); choose another"):
            run(work, *flags)
    config = load_fold(work / "model").model.config
    save_fold(work / "model", model_of(config, seed=1), FoldFacts(config=config))
    with pytest.raises(ConfigError, match="other settings .model_hash .* to .*; choose another"):
        run(work)
    assert set(structures(work / "out")) == {"P0.cif"}


def test_errors_of_pairs_are_written_when_asked(work: Path) -> None:
    run(work, records=RECORDS[:1])
    run(work, "--pae", out="pae")
    plain, more = (structures(work / out)["P0.cif"] for out in ("out", "pae"))
    assert more.count("\n") - plain.count("\n") >= len(RECORDS[0].sequence) ** 2


def test_odd_letters(work: Path) -> None:
    (work / "in.fasta").write_text(">bad\nMKJV\n>good\nMKV\n")
    with pytest.raises(SequenceError, match="bad: position 3 is 'J'"):
        run(work)
    assert not (work / "out").exists()
    assert [each.sequence for each in run(work, "--unknown", "x")] == ["MKXV", "MKV"]
    assert [each.sequence for each in run(work, "--unknown", "skip", out="skip")] == ["MKV"]
    (work / "in.fasta").write_text(">bad\nMKJV\n")
    with pytest.raises(FastaError, match="no record is left to fold"):
        run(work, "--unknown", "skip")


def test_no_model(work: Path) -> None:
    (work / "model" / "config.json").unlink()
    with pytest.raises(CheckpointError, match="is no folding model"):
        run(work)
    assert not (work / "out").exists()


def test_a_page_is_made_of_what_is_there(work: Path, folded: list[str]) -> None:
    """Errors of pairs are files of the run: a folder without them is folded again, one with them is not."""
    run(work)
    run(work, "--page")
    assert len(folded) == 2 * len(RECORDS)
    first = (work / "out/page.html").read_bytes()
    assert all((work / f"out/{record.name}.pae.json").exists() for record in RECORDS)
    (work / "out/page.html").unlink()
    (work / f"out/{RECORDS[0].name}.pae.json").unlink()
    run(work, "--page")
    assert len(folded) == 2 * len(RECORDS) + 1 and (work / "out/page.html").read_bytes() == first
    run(work, records=[Record(RECORDS[0].name, "MKVLAGG")])
    assert not (work / f"out/{RECORDS[0].name}.pae.json").exists()  # it was another protein's


def test_the_last_share_makes_the_page(work: Path) -> None:
    run_share = ["--page", "--shard"]
    fold_command.main([str(work / "in.fasta"), str(work / "out"), "--model", str(work / "model"), *run_share, "1/2"])
    assert not (work / "out/page.html").exists()
    run(work, *run_share, "2/2")
    run(work, "--page", out="alone")
    assert (work / "out/page.html").read_bytes() == (work / "alone/page.html").read_bytes()
