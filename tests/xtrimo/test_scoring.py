"""score against one protein at a time, built by hand; the CSV that `xtrimo score` writes."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

import xtrimo
from xtrimo import batch, scoring
from xtrimo.checkpoint import save
from xtrimo.config import GLMConfig
from xtrimo.errors import ConfigError, SequenceError, XtrimoError
from xtrimo.model import GLM
from xtrimo.objectives import Fragment, ObjectiveConfig, make_example
from xtrimo.tokens import encode_residues

SHAPE = dict(num_layers=2, hidden_size=64, num_heads=2, ffn_size=64)
WORDS = {letter: i for i, letter in enumerate("LAGVSERTIDPKQNFYMHWCXBUZO", start=1)}
MASK, GMASK, SOP, EOS = 28, 29, 32, 34
PROTEINS = ["MKVLAW", "G", "ACDEFGHIKLMNPQRSTVWYXBUZO", "WWWWWWWWWWWWWW"]
GENERATIVE = [("2d", ("mlm", "gmask", "smask"), 1), ("2d", ("causal",), 0), ("1d", ("causal",), 0)]


def sharp(**facts: object) -> GLM:
    """A random model whose opinions differ: fresh weights give all words nearly the same probability."""
    model = GLM(GLMConfig(**SHAPE, **facts))  # type: ignore[arg-type]
    with torch.no_grad():
        model.output.weight *= 10
    return model


def log_probs(model: GLM, ids: list[int], channel: int, prefix: int) -> torch.Tensor:
    """Log-probabilities over all rows, read from each token of one protein."""
    positions = torch.zeros(len(ids), 2, dtype=torch.long)
    positions[:, channel] = torch.arange(len(ids))
    with torch.no_grad():
        return model(torch.tensor(ids), positions, torch.tensor([[0, len(ids), prefix]])).log_softmax(-1)


@pytest.mark.parametrize(("rotary", "objectives", "channel"), GENERATIVE)
def test_likelihood(rotary: str, objectives: tuple[str, ...], channel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = sharp(rotary=rotary, objectives=objectives)
    monkeypatch.setattr(batch, "ROW_TOKENS", 24)
    scores = xtrimo.score(model, PROTEINS)
    assert [s.name for s in scores] == ["sequence_1", "sequence_2", "sequence_3", "sequence_4"]
    for s, sequence in zip(scores, PROTEINS, strict=True):
        ids = [WORDS[letter] for letter in sequence]
        table = log_probs(model, [GMASK, SOP, EOS, *ids], channel, 0)
        expected = [-table[2 + i, residue].item() for i, residue in enumerate(ids)]
        np.testing.assert_allclose(s.residue_nll, expected, atol=1e-5)
        assert s.nll == pytest.approx(np.mean(expected), abs=1e-5)
        assert s.ppl == pytest.approx(np.exp(np.mean(expected)), rel=1e-5)
        assert s.total_nll == pytest.approx(sum(expected) - table[-1, EOS].item(), abs=1e-4)


def test_pseudo_likelihood(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sharp(rotary="1d", objectives=("mlm",), directions=("forward",))
    monkeypatch.setattr(batch, "ROW_TOKENS", 64)  # the copies of a protein spread over rows, and share them with others
    for s, sequence in zip(xtrimo.score(model, PROTEINS), PROTEINS, strict=True):
        ids = [WORDS[letter] for letter in sequence]
        expected = []
        for i, residue in enumerate(ids):
            masked = [*ids[:i], MASK, *ids[i + 1 :], EOS]
            expected.append(-log_probs(model, masked, 0, len(masked))[i, residue].item())
        np.testing.assert_allclose(s.residue_nll, expected, atol=1e-5)
        assert s.total_nll == pytest.approx(sum(expected), abs=1e-4)  # no closing <eos>


@pytest.mark.parametrize(("rotary", "objective"), [("2d", "gmask"), ("1d", "causal")])
def test_the_layout_is_the_one_of_training(rotary: str, objective: str) -> None:
    config = GLMConfig(**SHAPE, rotary=rotary, objectives=(objective,))
    residues = encode_residues("MKVLAW")
    unconditional = ObjectiveConfig(unconditional_ratio=1.0, reverse_ratio=0.0)
    trained = make_example(Fragment(residues), objective, np.random.default_rng(0), unconditional)
    asked = batch.prompted(residues, config)
    for field in ("tokens", "positions", "labels"):
        np.testing.assert_array_equal(getattr(asked, field), getattr(trained, field))
    assert (asked.objective, asked.prefix) == (trained.objective, trained.prefix)


def test_a_model_of_spans_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match="trained on smask alone"):
        xtrimo.score(GLM(GLMConfig(**SHAPE, objectives=("smask",))), PROTEINS)


def test_no_proteins_no_scores() -> None:
    assert xtrimo.score(sharp(), []) == []


@pytest.fixture
def work(tmp_path: Path) -> Path:
    save(sharp(), tmp_path / "model")
    (tmp_path / "in.fasta").write_text(">a, b\nMKVLAW\n>c\nACDE\n")
    return tmp_path


def test_verb(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [str(work / "in.fasta"), "--model", str(work / "model")]
    scoring.main(flags)
    text = capsys.readouterr().out
    head, *rows = csv.reader(text.splitlines())
    assert head == ["name", "length", "nll", "ppl", "total_nll"]
    for row, s in zip(rows, xtrimo.score(sharp(), ["MKVLAW", "ACDE"]), strict=True):
        assert row[1] == str(len(s.residue_nll))
        np.testing.assert_allclose([float(x) for x in row[2:]], [s.nll, s.ppl, s.total_nll], rtol=1e-4)
    assert [row[0] for row in rows] == ["a,", "c"]
    scoring.main([*flags, "--out", str(work / "scores.csv")])
    assert (work / "scores.csv").read_text() == text


def test_verb_leaves_nothing_half_written(work: Path) -> None:
    before = sorted(work.iterdir())
    flags = [str(work / "in.fasta"), "--model", str(work / "model"), "--out"]
    with pytest.raises(XtrimoError, match="No such file or directory"):
        scoring.main([*flags, str(work / "no" / "scores.csv")])
    (work / "in.fasta").write_text(">a\nMKV\n>b\nM-V\n")
    with pytest.raises(SequenceError, match="b: position 2 is '-'"):
        scoring.main([*flags, str(work / "scores.csv")])
    assert sorted(work.iterdir()) == before
