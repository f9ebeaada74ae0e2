"""Infilling and redesign: what stays, what is drawn, and the likelihood it is said to have."""

from pathlib import Path

import numpy as np
import pytest
import torch

import xtrimo
from generate import infill, infilling, redesign, redesigning, sample
from generate.prompt import parse
from xtrimo.checkpoint import save
from xtrimo.config import GLMConfig
from xtrimo.errors import ConfigError, SequenceError
from xtrimo.fasta import Record, read_fasta, write_fasta
from xtrimo.model import GLM
from xtrimo.tokens import AMINO_ACIDS, EOP, EOS, SMASK, SOP, encode_residues

PROTEIN = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEV"


def sharp(**facts: object) -> GLM:
    model = GLM(GLMConfig(num_layers=2, hidden_size=64, num_heads=2, ffn_size=64, **facts))  # type: ignore[arg-type]
    with torch.no_grad():
        model.output.weight *= 10
    return model


@pytest.fixture(scope="module")
def model() -> GLM:
    return sharp()


def said_of_span(model: GLM, before: str, span: str, after: str) -> np.ndarray:
    """Log-probabilities of what may come at each place of one span and at its end, a row each.

    Written as the table of xtrimo/objectives.py has it.
    """
    ids = encode_residues(span).tolist() if span else []
    known = [*encode_residues(before).tolist(), SMASK, *encode_residues(after).tolist(), EOS]
    tokens = torch.tensor([*known, SOP, *ids])
    places = [(i, 0) for i in range(len(known))] + [(len(before), i + 1) for i in range(len(ids) + 1)]
    with torch.no_grad():
        logits = model(tokens, torch.tensor(places), torch.tensor([[0, len(tokens), len(known)]]))
    return logits[len(known) :].double().log_softmax(-1).numpy()


LETTERS = slice(1, 21)


def test_a_span_is_drawn_from_the_model(model: GLM) -> None:
    """Frequencies of one residue in a gap of one, against the law of the objective read off its definition."""
    law = np.exp(said_of_span(model, "MK", "", "GG")[0, LETTERS])
    law /= law.sum()  # of all words only amino acids may stand there
    samples = infill(model, "MK_GG", num=1500, temperature=1.0, top_p=1.0, batch_size=500)
    letters = [s.sequence[2] for s in samples]
    counts = np.array([letters.count(a) for a in AMINO_ACIDS]) / len(letters)
    assert (np.abs(counts - law) < 4 * np.sqrt(law * (1 - law) / len(letters)) + 1e-9).all() and law.max() > 0.1
    assert all(s.sequence[:2] == "MK" and s.sequence[3:] == "GG" for s in samples)


def test_nll_is_that_of_the_filled_residues(model: GLM) -> None:
    for s in infill(model, "MK[2..6]GG", num=8, temperature=2.0, top_p=1.0):
        span = s.sequence[2:-2]
        said = said_of_span(model, "MK", span, "GG")
        nats = [-said[i, encode_residues(letter)[0]] for i, letter in enumerate(span)]
        assert s.nll == pytest.approx(float(np.mean(nats)), abs=1e-5)
        assert s.way == "smask" and s.finished and s.prompt == "MK[2..6]GG"


def test_the_model_ends_a_span(model: GLM) -> None:
    """Lengths follow the model's own <eop>, within the bounds."""
    samples = infill(model, "MK[1..3]GG", num=1200, temperature=1.0, top_p=1.0, batch_size=400)
    first = np.exp(said_of_span(model, "MK", "", "GG")[0, LETTERS])
    ends = []
    for letter in AMINO_ACIDS:
        following = np.exp(said_of_span(model, "MK", letter, "GG")[1])
        ends.append(following[EOP] / (following[EOP] + following[LETTERS].sum()))
    expected = float(first @ ends / first.sum())
    got = np.mean([len(s.sequence) == 5 for s in samples])
    assert {len(s.sequence) for s in samples} == {5, 6, 7}
    assert abs(got - expected) < 4 * np.sqrt(expected * (1 - expected) / len(samples))


@pytest.mark.parametrize("by", ["smask", "mlm"])
def test_several_spans(model: GLM, by: str) -> None:
    several = ["M[3]K[1..4:AV]G", "[2]KKK[0..2]"]
    samples = infill(model, several, num=10, by=by, seed=3)
    assert [s.name for s in samples] == [f"p{i}_{j:04}" for i in (1, 2) for j in range(1, 11)]
    assert all(s.way == by for s in samples)
    for s in samples[:10]:
        assert s.sequence[0] == "M" and s.sequence[4] == "K" and s.sequence[-1] == "G"
        assert set(s.sequence[5:-1]) <= set("AV") and 1 <= len(s.sequence) - 6 <= 4
    assert all(s.sequence[2:5] == "KKK" and 5 <= len(s.sequence) <= 7 for s in samples[10:])
    again = infill(model, several, num=10, by=by, seed=3, batch_size=3)
    assert [s.sequence for s in again] == [s.sequence for s in samples]


def test_the_way_follows_the_model() -> None:
    assert infill(sharp(), "M[3]K")[0].way == "smask"
    assert infill(sharp(objectives=("mlm", "gmask")), "M[3]K")[0].way == "mlm"
    with pytest.raises(ConfigError, match="by smask, it was not trained on smask; by mlm, it was not trained on mlm"):
        infill(sharp(objectives=("gmask",)), "M[3]K")
    with pytest.raises(ConfigError, match="p2: this model cannot generate 'MK': every gap needs an upper end"):
        infill(sharp(), ["M[3]K", "MK"])
    with pytest.raises(ConfigError, match="there is no prompt"):
        infill(sharp(), [])


def test_warnings(model: GLM, caplog: pytest.LogCaptureFixture) -> None:
    infill(model, "M[5]K")
    sample(model, prompt="MK[3]")
    assert not caplog.text
    infill(model, "M[41]K")
    assert "more than 40 residues" in caplog.text
    sample(model, prompt="M[2..3]K[1..2]", by="forward")
    assert "written forward: what comes before forced residues" in caplog.text


def test_an_encoder_fills_gaps_and_no_more() -> None:
    antiberty = xtrimo.load("antiberty")
    loop = "EVQLVESGGGLVQPGGSLRLSCAAS[3..5]TYAMSWVRQAPGK"
    by_sample, by_infill = sample(antiberty, prompt=loop, seed=1), infill(antiberty, loop, seed=1)
    assert by_sample == by_infill and by_sample[0].way == "mlm"
    with pytest.raises(ConfigError, match="cannot generate 'EVQ': it is an encoder"):
        sample(antiberty, prompt="EVQ")


def test_redesign(model: GLM) -> None:
    records = [Record("a", PROTEIN), Record("b", PROTEIN[::-1])]
    samples = redesign(model, records, "3-5,9,20[2..4:DE]", num=4)
    assert [s.name for s in samples] == [f"{name}_{i:04}" for name in "ab" for i in range(1, 5)]
    for s, whole in zip(samples, [PROTEIN] * 4 + [PROTEIN[::-1]] * 4, strict=True):
        assert s.sequence[:2] == whole[:2] and s.sequence[5:8] == whole[5:8] and s.sequence[9:19] == whole[9:19]
        assert s.sequence.endswith(whole[20:]) and set(s.sequence[19 : -len(whole[20:])]) <= set("DE")
        assert s.prompt == str(parse(f"{whole[:2]}[3]{whole[5:8]}_{whole[9:19]}[2..4:DE]{whole[20:]}"))
    with pytest.raises(ConfigError, match="sequence_1: positions '40'"):
        redesign(model, [PROTEIN], "40")
    with pytest.raises(SequenceError, match="sequence_1: fixed residues are 'MK7'"):
        redesign(model, ["MK7"], "1")


def test_verbs(tmp_path: Path, model: GLM, capsys: pytest.CaptureFixture[str]) -> None:
    save(model, tmp_path / "model")
    flags = ["--model", str(tmp_path / "model"), "--num", "2", "--seed", "4", "--out", str(tmp_path / "out.fasta")]
    infilling.main([*flags, "--prompt", "mk[5..9]gg"])
    expected = infill(model, "MK[5..9]GG", num=2, seed=4)
    (first, _) = records = list(read_fasta(tmp_path / "out.fasta"))
    assert [(r.name, r.sequence) for r in records] == [(s.name, s.sequence) for s in expected]
    assert first.description.endswith("seed=4 prompt=MK[5..9]GG way=smask")

    (tmp_path / "prompts.fasta").write_text(">x\nMK[3:AG]\nC_\n>y\n[2]GG\n")  # nearly all nucleotides, were they one
    infilling.main([*flags, "--fasta", str(tmp_path / "prompts.fasta"), "--by", "mlm", "--sweeps", "1"])
    records = list(read_fasta(tmp_path / "out.fasta"))
    assert [r.name for r in records] == ["x_0001", "x_0002", "y_0001", "y_0002"]
    assert all(set(r.sequence[2:5]) <= set("AG") for r in records[:2])
    with pytest.raises(ConfigError, match="either --prompt or --fasta"):
        infilling.main(flags)
    with pytest.raises(SequenceError, match="y: prompt: position 3"):
        (tmp_path / "bad.fasta").write_text(">x\nM_\n>y\nMK7\n")
        infilling.main([*flags, "--fasta", str(tmp_path / "bad.fasta")])

    write_fasta(tmp_path / "in.fasta", [Record("a", PROTEIN)])
    redesigning.main([*flags[:-2], str(tmp_path / "in.fasta"), "--positions", "2,4-6"])
    lines = capsys.readouterr().out.splitlines()
    expected = redesign(model, [Record("a", PROTEIN)], "2,4-6", num=2, seed=4)
    assert lines[1::2] == [s.sequence for s in expected] and lines[0].startswith(">a_0001 nll=")
