"""embed against one protein at a time, built by hand; windows, chains, the word for the whole protein."""

from copy import deepcopy
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

import xtrimo
from xtrimo import batch, embedding
from xtrimo.attention import attend
from xtrimo.config import GLMConfig
from xtrimo.errors import ConfigError, SequenceError
from xtrimo.fasta import Record, read_fasta
from xtrimo.model import GLM
from xtrimo.objectives import IGNORE, Example
from xtrimo.prepacking import PackedBlock, prepack
from xtrimo.reading import whole
from xtrimo.tokens import encode_residues

EXAMPLES = Path(__file__).parents[2] / "examples" / "proteins.fasta.gz"

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


LIMIT = 8  # tokens


@pytest.fixture(scope="module")
def short() -> GLM:
    return GLM(GLMConfig(**SHAPE, max_length=LIMIT)).eval()


def test_a_protein_at_the_limit_is_read_and_one_beyond_is_named(short: GLM, caplog: pytest.LogCaptureFixture) -> None:
    expected = alone(short, [*ids_of("M" * 7), EOS], 0, 8, -1)[:-1]
    for long in ("error", "windows"):
        (e,) = xtrimo.embed(short, ["M" * 7], long=long, overlap=2)
        np.testing.assert_allclose(e.hidden, expected, atol=1e-5)
    with pytest.raises(SequenceError, match=r"r2: 8 residues, and 1 words .* at most 8 tokens; .*windows"):
        xtrimo.embed(short, [Record("r1", "M" * 7), Record("r2", "M" * 8)])
    prompted = GLM(GLMConfig(**SHAPE, objectives=("gmask",), max_length=LIMIT))
    assert xtrimo.embed(prompted, ["M" * 4])[0].length == 4
    with pytest.raises(SequenceError, match="5 residues, and 4 words"):
        xtrimo.embed(prompted, ["M" * 5])
    assert not caplog.records  # nothing is extrapolated


@pytest.mark.parametrize(("length", "room", "overlap"), [(10, 6, 2), (7, 6, 0), (12, 6, 0), (30, 7, 6), (29, 7, 3)])
def test_a_residue_is_read_in_the_window_of_the_nearest_centre(length: int, room: int, overlap: int) -> None:
    windows = embedding.windows(length, room, overlap)
    starts = np.array([window.start for window in windows])
    assert starts[0] == 0 and starts[-1] == length - room and len(set(starts)) == len(starts)
    assert (np.diff(starts)[:-1] == room - overlap).all() and np.diff(starts)[-1] <= room - overlap
    kept = np.concatenate([np.full(w.keep_to - w.keep_from, i) for i, w in enumerate(windows)])
    distances = np.abs(np.arange(length)[:, None] - (starts + (room - 1) / 2))
    np.testing.assert_array_equal(kept, distances.argmin(axis=1))  # the first of two as near


@pytest.mark.parametrize("objectives", [("mlm",), ("gmask",)])
def test_windows_are_read_as_proteins(objectives: tuple[str, ...]) -> None:
    model = GLM(GLMConfig(**SHAPE, objectives=objectives, max_length=12))
    size = 11 if objectives == ("mlm",) else 8
    protein = "MKVLAWGSTNDEQRHPFYIC" + "MKV"
    (e, _) = xtrimo.embed(model, [protein, "MKV"], long="windows", overlap=3, layers=(0, -1))
    assert e.hidden.shape == (2, 23, 64) and e.length == 23
    for start, keep_from, keep_to in embedding.windows(23, size, 3):
        (window,) = xtrimo.embed(model, [protein[start : start + size]], layers=(0, -1))
        expected = window.hidden[:, keep_from - start : keep_to - start]
        np.testing.assert_allclose(e.hidden[:, keep_from:keep_to], expected, atol=1e-5)
    for pooling, pool in (("mean", np.mean), ("max", np.max)):
        (p,) = xtrimo.embed(model, [protein], long="windows", overlap=3, layers=(0, -1), pooling=pooling)
        np.testing.assert_allclose(p.hidden, pool(e.hidden, axis=1), atol=1e-5)
    (stopped,) = xtrimo.embed(model, [protein.lower() + "*"], long="windows", overlap=3, layers=(0, -1))
    np.testing.assert_allclose(stopped.hidden, e.hidden, atol=1e-5)


def test_bad_windows(short: GLM) -> None:
    for overlap in (-1, 7):
        with pytest.raises(ConfigError, match=rf"overlap {overlap}: .* 7 residues, .* 0 to 6"):
            xtrimo.embed(short, ["M"], long="windows", overlap=overlap)
    with pytest.raises(SequenceError, match=r"sequence_1: position 12 is '7'"):  # of the protein, not of a window
        xtrimo.embed(short, ["MKVMKVMKVMK7KV"], long="windows", overlap=2)


def test_chains_are_read_one_by_one(model: GLM, short: GLM) -> None:
    e, single = xtrimo.embed(model, ["MKV:ggsa:W", "MKV"])
    parts = [p.hidden for p in xtrimo.embed(model, ["MKV", "GGSA", "W"])]
    assert (e.length, e.chains, single.chains) == (8, (3, 4, 1), (3,))
    np.testing.assert_allclose(e.hidden, np.concatenate(parts), atol=1e-5)
    (mean,) = xtrimo.embed(model, ["MKV:ggsa:W"], pooling="mean")
    np.testing.assert_allclose(mean.hidden, np.concatenate(parts).mean(axis=0), atol=1e-5)
    for sequence, empty in (("MKV:", 2), (":MKV", 1), ("M::K", 2)):
        with pytest.raises(SequenceError, match=rf"r1, chain {empty}: the sequence is empty"):
            xtrimo.embed(model, [Record("r1", sequence)])
    with pytest.raises(SequenceError, match=r"r1, chain 2: position 3 is '7'"):
        xtrimo.embed(model, [Record("r1", "MKV:GG7")])
    with pytest.raises(SequenceError, match=r"r1, chain 2: 8 residues"):
        xtrimo.embed(short, [Record("r1", "M" * 7 + ":" + "M" * 8)])
    (long,) = xtrimo.embed(short, ["M" * 7 + ":" + "K" * 9], long="windows", overlap=2)
    np.testing.assert_allclose(long.hidden[:7], xtrimo.embed(short, ["M" * 7])[0].hidden, atol=1e-5)
    assert long.hidden.shape == (16, 64)


class WithCls(GLM):
    """A model whose words around a protein are `.` before it, which stands for it all, and <eos>."""

    words_around = (1, 1)
    cls = 0

    def tokenize(self, sequence: str, *, name: str = "sequence") -> Example:
        plain = whole(encode_residues(sequence, name=name))
        tokens = np.append(np.uint8(26), plain.tokens)
        positions = np.stack((np.arange(len(tokens)), np.zeros(len(tokens))), axis=1).astype(np.int32)
        return replace(
            plain, tokens=tokens, positions=positions, labels=np.full_like(tokens, IGNORE), prefix=len(tokens)
        )


def test_cls_is_the_state_at_its_place() -> None:
    model = WithCls(GLMConfig(**SHAPE))
    for e, r, sequence in zip(
        xtrimo.embed(model, PROTEINS, pooling="cls", layers=(0, -1)),
        xtrimo.embed(model, PROTEINS),
        PROTEINS,
        strict=True,
    ):
        ids = [26, *ids_of(sequence), EOS]
        expected = [alone(model, ids, 0, len(ids), layer) for layer in (0, -1)]
        np.testing.assert_allclose(e.hidden, [states[0] for states in expected], atol=1e-5)
        np.testing.assert_allclose(r.hidden, expected[1][1:-1], atol=1e-5)
        assert e.length == len(sequence)
    with pytest.raises(SequenceError, match="r1: 2 chains, each with a cls"):
        xtrimo.embed(model, [Record("r1", "MK:V")], pooling="cls")
    with pytest.raises(ConfigError, match="cls with windows"):
        xtrimo.embed(model, PROTEINS, pooling="cls", long="windows")


def test_a_thousand_proteins_are_the_same_in_rows_of_any_size() -> None:
    model = GLM(GLMConfig(num_layers=1, hidden_size=32, num_heads=2, ffn_size=32)).eval()
    proteins = [record.sequence for record in islice(read_fasta(EXAMPLES), 1000)]
    alone = [e.hidden for protein in proteins for e in xtrimo.embed(model, [protein], long="windows")]
    in_blocks = prepack(deepcopy(model))  # as the verbs have it
    assert isinstance(in_blocks.blocks[0], PackedBlock)
    for packed, row_tokens in ((model, 256), (model, 8192), (in_blocks, 2048)):
        embeddings = xtrimo.embed(packed, proteins, long="windows", row_tokens=row_tokens)
        worst = max(float(np.abs(e.hidden - one).max()) for e, one in zip(embeddings, alone, strict=True))
        assert worst <= 1e-5, (packed is in_blocks, row_tokens)


def test_bad_arguments(model: GLM) -> None:
    with pytest.raises(ConfigError, match="cls: no word of this model .* use mean"):
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
