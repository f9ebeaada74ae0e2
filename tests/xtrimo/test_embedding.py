"""embed against one protein at a time, built by hand; the file that `xtrimo embed` writes."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import xtrimo
from xtrimo import batch, embedding
from xtrimo.attention import attend
from xtrimo.checkpoint import save
from xtrimo.config import GLMConfig
from xtrimo.errors import CheckpointError, ConfigError, FastaError, SequenceError, XtrimoError
from xtrimo.fasta import Record
from xtrimo.model import GLM

SHAPE = dict(num_layers=2, hidden_size=64, num_heads=2, ffn_size=64)
WORDS = {letter: i for i, letter in enumerate("LAGVSERTIDPKQNFYMHWCXBUZO", start=1)}
GMASK, SOP, EOS = 29, 32, 34
PROTEINS = ["MKVLAW", "G", "acdefghiklmnpqrstvwyxbuzo", "WWWWWWWWWWWWWW"]


@pytest.fixture(scope="module")
def model() -> GLM:
    return GLM(GLMConfig(**SHAPE)).eval()


def alone(model: GLM, ids: list[int], channel: int, prefix: int, layer: int) -> np.ndarray:
    """States of one protein, with positions counted in one channel."""
    positions = torch.zeros(len(ids), 2, dtype=torch.long)
    positions[:, channel] = torch.arange(len(ids))
    segments = torch.tensor([[0, len(ids), prefix]])
    with torch.no_grad():
        (states,) = model.hidden(
            torch.tensor(ids), positions, lambda _, q, k, v: attend(q, k, v, segments), layers=(layer,)
        )
    return states.numpy()


def ids_of(sequence: str) -> list[int]:
    return [WORDS[letter] for letter in sequence.upper()]


def test_packed_is_one_at_a_time_in_order(model: GLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "ROW_TOKENS", 30)  # several rows, one of them a single long protein
    records = [Record(f"r{i}", s.upper()) for i, s in enumerate(PROTEINS)]
    embeddings = xtrimo.embed(model, records)
    assert [e.name for e in embeddings] == ["r0", "r1", "r2", "r3"]
    for e, sequence in zip(embeddings, PROTEINS, strict=True):
        expected = alone(model, [*ids_of(sequence), EOS], 0, len(sequence) + 1, -1)[:-1]
        assert e.hidden.dtype == np.float32 and e.hidden.shape == (len(sequence), 64) and e.length == len(sequence)
        np.testing.assert_allclose(e.hidden, expected, atol=1e-5)


@pytest.mark.parametrize(("rotary", "objective", "channel"), [("2d", "gmask", 1), ("1d", "causal", 0)])
def test_a_model_that_only_generates_reads_its_prompt(rotary: str, objective: str, channel: int) -> None:
    model = GLM(GLMConfig(**SHAPE, rotary=rotary, objectives=(objective,)))
    for e, sequence in zip(xtrimo.embed(model, PROTEINS), PROTEINS, strict=True):
        expected = alone(model, [GMASK, SOP, EOS, *ids_of(sequence)], channel, 0, -1)[3:]
        np.testing.assert_allclose(e.hidden, expected, atol=1e-5)


def test_layers_and_pooling(model: GLM) -> None:
    embeddings = xtrimo.embed(model, PROTEINS, layers=(0, -2, 2))
    for e, sequence in zip(embeddings, PROTEINS, strict=True):
        ids = [*ids_of(sequence), EOS]
        expected = np.stack([alone(model, ids, 0, len(ids), layer)[:-1] for layer in (0, 1, 2)])
        np.testing.assert_allclose(e.hidden, expected, atol=1e-5)
    for pooling, pool in (("mean", np.mean), ("max", np.max)):
        for e, p in zip(embeddings, xtrimo.embed(model, PROTEINS, layers=[0, 1, -1], pooling=pooling), strict=True):
            np.testing.assert_allclose(p.hidden, pool(e.hidden, axis=1), atol=1e-5)
        one = xtrimo.embed(model, PROTEINS[:1], pooling=pooling)[0].hidden
        np.testing.assert_allclose(one, pool(embeddings[0].hidden[2], axis=0), atol=1e-5)


def test_reduced_precision_gives_float32(model: GLM) -> None:
    rounded = GLM(model.config).to(torch.bfloat16)
    (a,), (b,) = xtrimo.embed(model, ["MKVLAW"]), xtrimo.embed(rounded, ["MKVLAW"])
    assert b.hidden.dtype == np.float32
    assert np.corrcoef(a.hidden.ravel(), b.hidden.ravel())[0, 1] > 0.999


def test_streams(model: GLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "ROW_TOKENS", 16)
    taken = 0

    def proteins():  # type: ignore[no-untyped-def]
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield "MKVLAW"

    next(embedding.iter_embeddings(model, proteins()))
    assert taken == 3  # the two of the first row, and the one that did not fit
    assert xtrimo.embed(model, []) == []


def test_an_embedding_does_not_keep_its_row(model: GLM) -> None:
    for pooling in ("none", "mean"):
        first = xtrimo.embed(model, PROTEINS, pooling=pooling)[0].hidden
        assert first.base is None or first.base.nbytes == first.nbytes


def test_long_input_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    short = GLM(GLMConfig(**SHAPE, max_length=8))
    assert [e.length for e in xtrimo.embed(short, ["M" * 7, "M" * 8, "M" * 9, "M" * 30])] == [7, 8, 9, 30]
    xtrimo.embed(short, ["M" * 20])
    assert len([r for r in caplog.records if "8 tokens" in r.getMessage()]) == 1


def test_bad_arguments(model: GLM) -> None:
    with pytest.raises(ConfigError, match="'cls'; known: none, mean, max"):
        xtrimo.embed(model, PROTEINS, pooling="cls")
    for layers in ((3,), (-4,), ()):
        with pytest.raises(ConfigError, match="0 .* to 2"):
            xtrimo.embed(model, PROTEINS, layers=layers)
    with pytest.raises(SequenceError, match=r"sequence_2: position 3 is '7'"):
        xtrimo.embed(model, ["MKV", "MK7"])
    with pytest.raises(SequenceError, match="r1: the sequence is empty"):
        xtrimo.embed(model, [Record("r1", "")])
    with pytest.raises(SequenceError, match="one string"):
        xtrimo.embed(model, "MKV")


@pytest.fixture
def work(tmp_path: Path, model: GLM) -> Path:
    save(model, tmp_path / "model")
    (tmp_path / "in.fasta").write_text(">a/1 first\nMKVLAW\n>b\nACDE\n>a/1\nGG\n>b#2\nWWW\n")
    return tmp_path


def run(work: Path, *flags: str) -> None:
    embedding.main([str(work / "in.fasta"), str(work / "out.h5"), "--model", str(work / "model"), *flags])


def test_verb_writes_every_record(work: Path, model: GLM) -> None:
    run(work, "--layers", "0", "-1")
    expected = xtrimo.embed(model, ["MKVLAW", "ACDE", "GG", "WWW"], layers=(0, -1))
    with h5py.File(work / "out.h5") as file:
        assert set(file) == {"a_1", "b", "a_1#2", "b#2"}
        assert file.attrs["layers"].tolist() == [0, -1] and file.attrs["pooling"] == "none"
        assert file.attrs["model"] == str(work / "model")
        for name, e in zip(("a_1", "b", "a_1#2", "b#2"), expected, strict=True):
            np.testing.assert_allclose(file[name], e.hidden, atol=1e-5)
            assert file[name].attrs["length"] == e.length
    run(work, "--pooling", "mean", "--precision", "bf16")
    with h5py.File(work / "out.h5") as file:
        assert file["b"].shape == (64,) and file["b"].dtype == np.float32 and file["b"].attrs["length"] == 4


def test_verb_reads_the_file_before_it_works(work: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(work)
    assert len(caplog.records) == 1 and "more than one record" in caplog.records[0].getMessage()  # said once
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


def test_verb_leaves_nothing_half_written(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(work.iterdir())
    fasta, out, model = (str(work / name) for name in ("in.fasta", "out.h5", "model"))
    with pytest.raises(CheckpointError, match="not a model directory"):
        embedding.main([fasta, out, "--model", str(work / "none")])
    with pytest.raises(ConfigError, match="device 'quantum'"):
        embedding.main([fasta, out, "--model", model, "--device", "quantum"])
    with pytest.raises(XtrimoError, match="No such file or directory"):
        embedding.main([fasta, str(work / "no" / "out.h5"), "--model", model])
    with pytest.raises(XtrimoError, match="it is a directory"):
        embedding.main([fasta, model, "--model", model])
    with pytest.raises(ConfigError, match="layers"):
        run(work, "--layers", "9")
    for text, error in (("", FastaError), (">a\nACGTACGT\n", SequenceError)):
        (work / "in.fasta").write_text(text)
        with pytest.raises(error):
            run(work)
    with pytest.raises(FastaError, match="no record is left"):
        (work / "in.fasta").write_text(">a\nM7\n")
        run(work, "--unknown", "skip")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    (work / "in.fasta").write_text(">a\nMKV\n")
    monkeypatch.setattr(GLM, "hidden", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(work)
    assert sorted(work.iterdir()) == before
