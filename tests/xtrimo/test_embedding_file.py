"""The file that `xtrimo embed` writes: its layout, its errors, its memory."""

import logging
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import xtrimo
from xtrimo import command, embedding_file, scoring
from xtrimo.checkpoint import save
from xtrimo.embedding_file import EmbedOptions, fingerprint
from xtrimo.embedding_parts import read_embeddings
from xtrimo.errors import CheckpointError, ConfigError, FastaError, SequenceError, XtrimoError
from xtrimo.fasta import Record, read_fasta, write_fasta
from xtrimo.model import GLM
from xtrimo.testing import toy_config


@pytest.fixture(scope="module")
def model() -> GLM:
    return GLM(toy_config(num_layers=2, max_length=64)).eval()


@pytest.fixture
def work(tmp_path: Path, model: GLM) -> Path:
    save(model, tmp_path / "model")
    (tmp_path / "in.fasta").write_text(">a/1 first\nMKVLAW\n>b\nACDE\n>a/1\nGG\n>b#2\nWWW\n")
    return tmp_path


def run(work: Path, *flags: str) -> None:
    embedding_file.main([str(work / "in.fasta"), str(work / "out.h5"), "--model", str(work / "model"), *flags])


def test_verb_writes_every_record_in_order(work: Path, model: GLM) -> None:
    run(work, "--layers", "0", "-1")
    expected = xtrimo.embed(model, ["MKVLAW", "ACDE", "GG", "WWW"], layers=(0, -1))
    with h5py.File(work / "out.h5") as file:
        assert list(file) == ["a_1", "b", "a_1#2", "b#2"]
        assert file.attrs["layers"].tolist() == [0, -1] and file.attrs["pooling"] == "none"
        assert file.attrs["model"] == str(work / "model") and file.attrs["model_hash"] == fingerprint(model)
        assert (file.attrs["dtype"], file.attrs["xtrimo_version"]) == ("float32", xtrimo.__version__)
        assert file.attrs["precision"] == "fp32"
        for dataset, e in zip(file.values(), expected, strict=True):
            np.testing.assert_allclose(dataset, e.hidden, atol=1e-5)
            assert dataset.attrs["length"] == e.length and "chains" not in dataset.attrs
        assert [dataset.attrs["original_id"] for dataset in file.values()] == ["a/1", "b", "a/1", "b#2"]
    assert [name for name, _ in read_embeddings(work / "out.h5")] == ["a/1", "b", "a/1", "b#2"]
    run(work, "--pooling", "mean", "--precision", "bf16")
    with h5py.File(work / "out.h5") as file:
        assert file["b"].shape == (64,) and file["b"].dtype == np.float32 and file["b"].attrs["length"] == 4


@pytest.mark.parametrize("pooling", ["none", "max"])
@pytest.mark.parametrize("layers", [("-1",), ("1", "2", "0")])
def test_states_come_back_in_the_shapes_of_embed(work: Path, model: GLM, pooling: str, layers: tuple[str, ...]) -> None:
    (work / "in.fasta").write_text(">one\nM\n>two\nMKV:ggsa\n>long\n" + "MKVLA" * 20)
    run(work, "--pooling", pooling, "--layers", *layers, "--long", "windows", "--overlap", "9", "--dtype", "f16")
    expected = xtrimo.embed(
        model,
        ["M", "MKV:GGSA", "MKVLA" * 20],
        pooling=pooling,
        layers=tuple(map(int, layers)),
        long="windows",
        overlap=9,
    )
    with h5py.File(work / "out.h5") as file:
        assert file["two"].attrs["chains"].tolist() == [3, 4] and file["two"].attrs["length"] == 7
        assert (file.attrs["long"], file.attrs["overlap"], file.attrs["dtype"]) == ("windows", 9, "float16")
    for (_, states), e in zip(read_embeddings(work / "out.h5"), expected, strict=True):
        assert states.dtype == np.float16 and states.shape == e.hidden.shape
        np.testing.assert_allclose(states, e.hidden, rtol=1e-3, atol=1e-5)


def test_f16_refuses_what_it_cannot_hold(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = GLM(toy_config(num_layers=2, max_length=64))
    torch.nn.init.constant_(weights.final_norm.bias, 65_504.0)
    torch.nn.init.zeros_(weights.final_norm.weight)
    save(weights, work / "model")
    run(work, "--dtype", "f16")
    assert all((states == 65_504).all() for _, states in read_embeddings(work / "out.h5"))
    torch.nn.init.constant_(weights.final_norm.bias, -70_000.0)
    save(weights, work / "model")
    with pytest.raises(
        XtrimoError, match="a/1: a state of 70,000 is beyond the 65,504 of f16; .* f32, after removing .*parts"
    ):
        run(work, "--dtype", "f16")
    run(work, "--dtype", "f32")  # the failed run has left no part, so its settings bind nobody
    torch.nn.init.constant_(weights.final_norm.bias, float("nan"))
    save(weights, work / "model")
    with pytest.raises(XtrimoError, match="a/1: its states are not all finite"):
        run(work)


def test_verb_reads_the_file_before_it_works(work: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(work)
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]  # said once
    assert "more than one record" in warning.getMessage()
    before = (work / "out.h5").read_bytes()
    with (work / "in.fasta").open("a") as file:
        file.write(">late\nMK7\n")
    with pytest.raises(SequenceError, match="late: position 3 is '7'"):
        run(work)
    assert (work / "out.h5").read_bytes() == before
    run(work, "--unknown", "skip")
    with h5py.File(work / "out.h5") as file:
        assert len(file) == 4
    run(work, "--unknown", "x")
    with h5py.File(work / "out.h5") as file:
        assert file["late"].shape == (3, 64)


def typed(value: str) -> int | str:
    return int(value) if value.isdecimal() else value


def test_verb_leaves_nothing_half_written(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(work.iterdir())
    fasta, out, model = (str(work / name) for name in ("in.fasta", "out.h5", "model"))
    with pytest.raises(CheckpointError, match="not a model directory"):
        embedding_file.main([fasta, out, "--model", str(work / "none")])
    with pytest.raises(ConfigError, match="device 'quantum'"):
        embedding_file.main([fasta, out, "--model", model, "--device", "quantum"])
    with pytest.raises(XtrimoError, match="No such file or directory"):
        embedding_file.main([fasta, str(work / "no" / "out.h5"), "--model", model])
    with pytest.raises(XtrimoError, match="it is a directory"):
        embedding_file.main([fasta, str(work), "--model", model])
    with pytest.raises(ConfigError, match="layers"):
        run(work, "--layers", "9")
    for text, error in (("", FastaError), (">a\nACGTACGT\n", SequenceError)):
        (work / "in.fasta").write_text(text)
        with pytest.raises(error):
            run(work)
    with pytest.raises(FastaError, match="no record is left"):
        (work / "in.fasta").write_text(">a\nM7\n")
        run(work, "--unknown", "skip")

    assert sorted(work.iterdir()) == before
    for flag, value in (("shard", "3/2"), ("shard", "0/2"), ("shard", "one"), ("processes", "0"), ("row-tokens", "0")):
        with pytest.raises(ConfigError, match=value):
            EmbedOptions(fasta=Path(fasta), out=Path(out), model=model, **{flag.replace("-", "_"): typed(value)})
        with pytest.raises(SystemExit):
            run(work, f"--{flag}", value)
    with pytest.raises(ConfigError, match="processes 2 on cuda"):
        EmbedOptions(fasta=Path(fasta), out=Path(out), model=model, device="cuda", processes=2)
    for text, error in (("MKV:", r"b, chain 2: the sequence is empty"), ("M" * 64, "b: 64 residues.*--long windows")):
        (work / "in.fasta").write_text(f">a\nMKV\n>b\n{text}\n")
        with pytest.raises(SequenceError, match=error):
            run(work)
    assert sorted(work.iterdir()) == before


def test_only_embed_lets_chains_through(tmp_path: Path) -> None:
    path = tmp_path / "in.fasta"
    path.write_text(">a\nmkv:\nGGS\n>b\nMK:J\n>c\nMK::V\n>d\nMKV*\n")
    chains = partial(read_fasta, path, chains=True)
    assert [record.sequence for record in chains(unknown="skip")] == ["MKV:GGS", "MKV"]
    assert [record.sequence for record in read_fasta(path, unknown="skip")] == ["MKV"]
    records = chains(unknown="error")
    assert next(records).sequence == "MKV:GGS"
    with pytest.raises(SequenceError, match="line 4: b, chain 2: position 1 is 'J'"):
        next(records)
    assert [record.sequence for record in chains(unknown="x")] == ["MKV:GGS", "MK:X", "MK::V", "MKV"]
    for unknown in ("x", "error"):  # a break is no letter that could be read as another
        with pytest.raises(SequenceError, match="line 1: a: 2 chains"):
            next(read_fasta(path, unknown=unknown))


def test_says_how_fast_it_was(work: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "REPORT_EVERY", 0.0)
    with caplog.at_level(logging.INFO, logger="xtrimo"):
        run(work)
    said = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("embedding: 15 of 15 residues, ") and line.endswith(" residues/s") for line in said)
    assert said[-1].startswith("4 proteins, 15 residues in ")


def test_an_input_or_a_foreign_file_is_no_output(work: Path) -> None:
    """Refused before the model is loaded, which here would fail."""
    model, fasta, link = work / "esm.pt", work / "in.fasta", work / "link.fasta"
    model.write_bytes(b"weights")
    link.symlink_to(fasta)
    before = {path: path.read_bytes() for path in (model, fasta)}
    for verb, named in ((embedding_file.main, lambda out: [out]), (scoring.main, lambda out: ["--out", out])):
        for out in (fasta, link, model):
            with pytest.raises(ConfigError, match=f"{out.name} is read by this run, and would be replaced"):
                verb([str(fasta), *named(str(out)), "--model", str(model)])
    for flag in ("--residues", "--summary"):
        with pytest.raises(ConfigError, match="in.fasta is read by this run"):
            scoring.main([str(fasta), flag, str(fasta), "--model", str(model)])
    (work / "out.h5").write_text("a thesis")
    with pytest.raises(ConfigError, match="out.h5 is there and is no HDF5 file"):
        embedding_file.main([str(fasta), str(work / "out.h5"), "--model", str(model)])
    assert (work / "out.h5").read_text() == "a thesis"
    assert {path: path.read_bytes() for path in before} == before
    (work / "out.h5").write_bytes(b"")  # what mktemp makes
    run(work)
    os.mkfifo(work / "device")
    with pytest.raises(XtrimoError, match="it is no regular file"), command.replacing(work / "device"):
        pass


def test_an_input_that_cannot_be_read_again_is_refused(work: Path) -> None:
    pipe = work / "pipe"
    os.mkfifo(pipe)
    for verb, out in ((embedding_file.main, [str(work / "out.h5")]), (scoring.main, [])):
        with pytest.raises(FastaError, match="pipe is a pipe or a device, and the proteins are read more than once"):
            verb([str(pipe), *out, "--model", str(work / "none")])


def test_a_name_that_hdf5_cannot_hold_is_met_at_once(work: Path) -> None:
    before = sorted(work.iterdir())
    (work / "in.fasta").write_text(">good\nMKV\n>b\0d\nMKV\n")
    with pytest.raises(FastaError, match=r"the name 'b\\x00d' holds a zero byte"):
        run(work)
    assert sorted(work.iterdir()) == before


def test_a_refused_run_leaves_nothing(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ConfigError("this model does not bear int8")

    before = sorted(work.iterdir())
    monkeypatch.setattr(EmbedOptions, "prepare", refuse)
    with pytest.raises(ConfigError, match="does not bear"):
        run(work, "--precision", "int8")
    assert sorted(work.iterdir()) == before


def test_help_lists_the_attributes_that_are_written(work: Path) -> None:
    (work / "in.fasta").write_text(">one\nMKV:GGS\n")
    run(work)
    own, _, of_file = " ".join(str(EmbedOptions.__doc__).split()).partition("the file's are")
    with h5py.File(work / "out.h5") as file:
        assert set(re.findall(r"[a-z_]+", of_file.partition(".")[0])) == {*file.attrs, "and"}
        assert all(name in own for name in file["one"].attrs)


def test_fingerprint_is_of_all_that_states_follow_from(model: GLM) -> None:
    """Facts that no weight tells: of one set of weights, read by another objective or to another length."""
    changes = (dict(objectives=("gmask",)), dict(max_length=32), dict(layer_norm_eps=1e-6), dict(rotary_base=500.0))
    prints = {fingerprint(GLM(replace(model.config, **change))) for change in changes}
    assert len(prints | {fingerprint(model)}) == len(changes) + 1
    assert fingerprint(GLM(replace(model.config, source="elsewhere", licence="MIT"))) == fingerprint(model)


def test_fingerprint_is_of_names_dtypes_and_bytes(model: GLM) -> None:
    print_of = fingerprint(model)
    other = GLM(model.config).eval()
    assert fingerprint(other) == print_of
    assert fingerprint(GLM(model.config).to(torch.bfloat16)) != print_of
    with torch.no_grad():
        other.blocks[1].mlp.down.weight[3, 5] += 1e-6
    assert fingerprint(other) != print_of


def test_memory_does_not_grow_with_the_input(work: Path) -> None:
    """Neither of many parts, nor when they are put together: the larger file is 16 times the limit."""

    def peak(num: int) -> float:
        write_fasta(work / "many.fasta", (Record(f"p{i}", "MKVLAW" * 10) for i in range(num)))
        code = "import sys, resource; from xtrimo import embedding_file, embedding_parts"
        code += "; embedding_parts.PART_RESIDUES = 10_000; embedding_file.main(sys.argv[1:])"
        code += "; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
        args = [str(work / "many.fasta"), str(work / f"{num}.h5"), "--model", str(work / "model")]
        args += ["--layers", "0", "0", "1", "1", "2", "2"]
        done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
        return float(done.stdout)

    small, large = peak(500), peak(2_500)
    limit = 12  # MB
    assert (work / "2500.h5").stat().st_size > 16 * limit * 2**20
    assert large - small < limit, (small, large)
