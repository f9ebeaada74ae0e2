"""score against one protein at a time, built by hand; the files that `xtrimo score` writes."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import xtrimo
from xtrimo import batch, scoring
from xtrimo.checkpoint import save
from xtrimo.config import GLMConfig
from xtrimo.errors import ConfigError, MemoryShortError, SequenceError, XtrimoError
from xtrimo.fasta import Record
from xtrimo.likelihood import Method
from xtrimo.model import GLM
from xtrimo.objectives import Fragment, ObjectiveConfig, make_example
from xtrimo.reading import prompted
from xtrimo.scoring import iter_scores, summarize
from xtrimo.testing import toy_sequences
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
    asked = prompted(residues, config)
    for field in ("tokens", "positions", "labels"):
        np.testing.assert_array_equal(getattr(asked, field), getattr(trained, field))
    assert (asked.objective, asked.prefix) == (trained.objective, trained.prefix)


def test_a_model_of_spans_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match="trained on smask alone"):
        xtrimo.score(GLM(GLMConfig(**SHAPE, objectives=("smask",))), PROTEINS)


def test_no_proteins_no_scores() -> None:
    assert xtrimo.score(sharp(), []) == []


@pytest.mark.parametrize("method", ["likelihood", "pseudo", "one-pass"])
def test_packed_is_single(method: Method) -> None:
    """A protein has the same score whatever it is read with, and streams in and out in order."""
    model, proteins = sharp(), toy_sequences(40, seed=1)
    together = iter_scores(model, (Record(f"p{i % 3}", protein) for i, protein in enumerate(proteins)), method=method)
    for i, (s, protein) in enumerate(zip(together, proteins, strict=True)):
        (alone,) = xtrimo.score(model, [protein], method=method)
        np.testing.assert_allclose(s.residue_nll, alone.residue_nll, atol=1e-5)
        assert s.total_nll == pytest.approx(alone.total_nll, abs=1e-4)
        assert s.name == f"p{i % 3}"


def test_scores_stream() -> None:
    """Of an endless input no more is taken than fills the rows of what was asked for."""
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield "MKVLAW" * 50

    for method in ("likelihood", "pseudo"):
        taken = 0
        scores = iter_scores(sharp(), endless(), method=method)
        for _ in range(3):
            next(scores)
        assert taken <= 3 + 2 * batch.ROW_TOKENS // 300


def test_what_a_model_cannot_do_is_said_at_once() -> None:
    with pytest.raises(ConfigError, match="never predicted a <mask>"):
        iter_scores(sharp(objectives=("gmask",)), [], method="pseudo")


def test_a_long_protein_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    xtrimo.score(sharp(max_length=8), ["MKVLAWMKVLAW", "MKVLAWMKVLAW", "MKV"])
    assert [record.message for record in caplog.records] == [
        "input longer than the 8 tokens of a training row; results there are extrapolated"
    ]


@pytest.mark.parametrize("method", ["likelihood", "pseudo"])
def test_a_protein_too_large_for_memory_is_named(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    def short_of_memory(self: GLM, tokens: torch.Tensor, *args: object, **options: object) -> list[torch.Tensor]:
        if len(tokens) > 100:
            raise MemoryError
        return hidden(self, tokens, *args, **options)  # type: ignore[arg-type]

    hidden = GLM.hidden
    monkeypatch.setattr(GLM, "hidden", short_of_memory)
    proteins = [Record("a", "MKV"), Record("b", "MKVLAW"), Record("giant", "MKV" * 50), Record("c", "MKV")]
    scores = iter_scores(sharp(), proteins, method=method)
    assert [next(scores).name, next(scores).name] == ["a", "b"]
    with pytest.raises(MemoryShortError, match="^giant: its 15. tokens"):
        next(scores)


def test_summary() -> None:
    """The perplexity of all residues, not the mean of the proteins' perplexities; its interval over proteins."""
    scores = xtrimo.score(sharp(), toy_sequences(50, seed=2))
    summary = summarize(iter(scores))
    nats = np.concatenate([s.residue_nll for s in scores])
    assert (summary.num_proteins, summary.num_residues) == (50, len(nats))
    assert (summary.method, summary.direction) == ("likelihood", "forward")
    assert summary.ppl.value == pytest.approx(np.exp(nats.mean(dtype=np.float64)))
    deviations = [float(s.residue_nll.sum()) - summary.nll.value * len(s.residue_nll) for s in scores]
    error = float(np.std(deviations)) * 50**0.5 / len(nats)
    assert summary.nll.low == pytest.approx(summary.nll.value - 1.96 * error, abs=0.4 * error)
    assert summary.nll.high == pytest.approx(summary.nll.value + 1.96 * error, abs=0.4 * error)
    assert summary.ppl.low == pytest.approx(np.exp(summary.nll.low))
    assert str(summary).startswith(f"perplexity {summary.ppl.value:.3f} (95 % interval {summary.ppl.low:.3f} to ")
    assert str(summary).endswith(f" over {len(nats):,} residues of 50 proteins; likelihood, forward")


def test_summary_of_one_protein_has_no_interval() -> None:
    summary = summarize(xtrimo.score(sharp(), ["MKV"], method="one-pass"))
    assert summary.to_dict()["ppl_interval"] is None
    assert str(summary) == f"perplexity {summary.ppl.value:.3f} over 3 residues of 1 protein; one-pass"
    with pytest.raises(ConfigError, match="at least one protein"):
        summarize([])


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
    assert head == ["name", "length", "method", "nll", "ppl", "total_nll"]
    for row, s in zip(rows, xtrimo.score(sharp(), ["MKVLAW", "ACDE"]), strict=True):
        assert row[1:3] == [str(len(s.residue_nll)), "likelihood"]
        np.testing.assert_allclose([float(x) for x in row[3:]], [s.nll, s.ppl, s.total_nll], rtol=1e-4)
    assert [row[0] for row in rows] == ["a,", "c"]
    scoring.main([*flags, "--out", str(work / "scores.csv")])
    assert (work / "scores.csv").read_text() == text


def test_verb_writes_residues_and_summary(work: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = [f"--{name} {work / name}.csv" for name in ("out", "residues")] + [f"--summary {work / 's.json'}"]
    flags = [str(work / "in.fasta"), "--model", str(work / "model"), *" ".join(files).split()]
    with caplog.at_level("INFO", logger="xtrimo"):
        scoring.main([*flags, "--direction", "both"])
    scores = xtrimo.score(sharp(), ["MKVLAW", "ACDE"], direction="both")
    head, *rows = csv.reader((work / "residues.csv").read_text().splitlines())
    assert head == ["name", "position", "residue", "nll"]
    assert [row[:3] for row in rows[4:8]] == [["a,", "5", "A"], ["a,", "6", "W"], ["c", "1", "A"], ["c", "2", "C"]]
    nats = np.concatenate([s.residue_nll for s in scores])
    np.testing.assert_allclose([float(row[3]) for row in rows], nats, atol=1e-5)

    summary = summarize(scores)
    assert caplog.records[-1].message == str(summary)
    facts = json.loads((work / "s.json").read_text())
    assert facts.pop("model") == str(work / "model")
    assert list(facts) == [
        "method", "direction", "num_proteins", "num_residues", "nll", "nll_interval", "ppl", "ppl_interval"
    ]  # fmt: skip
    assert (facts["method"], facts["direction"], facts["num_residues"]) == ("likelihood", "both", 10)
    assert facts["ppl"] == pytest.approx(np.exp(nats.mean(dtype=np.float64)), rel=1e-5)
    assert facts["ppl_interval"] == pytest.approx([summary.ppl.low, summary.ppl.high], rel=1e-5)


def test_verb_labels_the_approximation(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scoring.main([str(work / "in.fasta"), "--model", str(work / "model"), "--method", "one-pass"])
    assert [row.split(",")[-4] for row in capsys.readouterr().out.splitlines()] == ["method", "one-pass", "one-pass"]


def test_verb_refuses_before_it_writes(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(work.iterdir())
    flags = [str(work / "in.fasta"), "--model", str(work / "model")]
    with pytest.raises(ConfigError, match="direction both for pseudo"):
        scoring.main([*flags, "--out", str(work / "o.csv"), "--method", "pseudo", "--direction", "both"])
    with pytest.raises(SystemExit):
        scoring.main([*flags, "--out", str(work / "o.csv"), "--residues", str(work / "o.csv")])
    assert "two of --out, --residues and --summary name the" in capsys.readouterr().err
    assert sorted(work.iterdir()) == before


def test_verb_meets_a_protein_beyond_the_learned_places_before_it_works(
    work: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (work / "in.fasta").write_text(f">a\n{'MKV' * 170}\n>b\n{'MKV' * 171}\n")
    with pytest.raises(SequenceError, match=r"^b: 513 residues, and 2 words around them, where .* 512 places"):
        scoring.main([str(work / "in.fasta"), "--model", "antiberty", "--method", "one-pass"])
    assert not capsys.readouterr().out and "extrapolated" not in caplog.text


def test_verb_leaves_out_residues_without_a_word(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "in.fasta").write_text(">a\nEVQXLV\n>b\nX\n")
    files = ["--residues", str(work / "r.csv"), "--summary", str(work / "s.json")]
    scoring.main([str(work / "in.fasta"), "--model", "antiberty", *files])
    _, a, b = csv.reader(capsys.readouterr().out.splitlines())
    assert (a[1], b[1:]) == ("6", ["1", "pseudo", "nan", "nan", "nan"])
    nats = [row.split(",")[3] for row in (work / "r.csv").read_text().splitlines()]
    assert nats[4] == nats[7] == "nan"
    known = [float(x) for x in (*nats[1:4], *nats[5:7])]
    assert float(a[3]) == pytest.approx(np.mean(known), abs=1e-5)
    facts = json.loads((work / "s.json").read_text())
    assert facts["num_residues"] == 5 and facts["nll"] == pytest.approx(np.mean(known), abs=1e-5)


@pytest.mark.parametrize("unknown", ["error", "x"])
def test_verb_refuses_chains(work: Path, unknown: str) -> None:
    (work / "in.fasta").write_text(">a\nMKV\n>b\nMKV:GGS\n")
    with pytest.raises(SequenceError, match="in.fasta, line 3: b: 2 chains joined by ':'.*`score` and all others one"):
        scoring.main([str(work / "in.fasta"), "--model", str(work / "model"), "--unknown", unknown])


def test_verb_leaves_nothing_half_written(work: Path) -> None:
    before = sorted(work.iterdir())
    flags = [str(work / "in.fasta"), "--model", str(work / "model"), "--out"]
    with pytest.raises(XtrimoError, match="No such file or directory"):
        scoring.main([*flags, str(work / "no" / "scores.csv")])
    with pytest.raises(XtrimoError, match="No such file or directory"):
        scoring.main([*flags, str(work / "scores.csv"), "--summary", str(work / "no" / "s.json")])
    (work / "in.fasta").write_text(">a\nMKV\n>b\nM-V\n")
    with pytest.raises(SequenceError, match="b: position 2 is '-'"):
        scoring.main([*flags, str(work / "scores.csv")])
    assert sorted(work.iterdir()) == before
