"""The three ways to ask, on models whose answers are known: refusals, directions, other backbones, the one-pass law."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import xtrimo
from xtrimo import batch
from xtrimo.backbone import Backbone
from xtrimo.command import FastaOptions
from xtrimo.config import GLMConfig
from xtrimo.errors import ConfigError, SequenceError
from xtrimo.fasta import Record
from xtrimo.likelihood import choose, nats_under_mask
from xtrimo.model import GLM
from xtrimo.objectives import Example
from xtrimo.scoring import summarize

SHAPE: dict[str, Any] = dict(num_layers=2, hidden_size=64, num_heads=2, ffn_size=64)
LETTERS = "ZYXWVUTSRQPONMLKIHGFEDCBA"
PROTEINS = ["MKVLAW", "G", "ACDEFGHIKLMNPQRSTVWYXBUZO", "WWWWWWWWWWWWWW"]


class Stranger(nn.Module):
    """A backbone of another family: words of its own, two before the protein and one after, logits we decide on.

    A residue's logits are its state, which holds log-probabilities chosen by `table`: row 0 for a mask, and row w for
    the residue w in full view; shifted by the mean of what is around, so that packing has something to get wrong.
    """

    START, TAG, END, MASK = 0, 1, 27, 28  # residues are 2..26; the word 0 of ours means that nothing is asked

    device, dtype = torch.device("cpu"), torch.float32
    width, num_layers, num_heads, max_length = 29, 1, 1, 256
    words_around, cls, mask = (2, 1), 0, MASK
    facts: dict[str, Any] = {}

    def __init__(self, table: Tensor, mixing: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("table", table)
        self.mixing = mixing

    def tokenize(self, sequence: str, *, name: str = "sequence") -> Example:
        ids = [self.START, self.TAG, *(2 + LETTERS.index(letter) for letter in sequence), self.END]
        tokens = np.array(ids, dtype=np.uint8)
        positions = np.zeros((len(tokens), 2), dtype=np.int32)
        return Example("mlm", tokens, positions, np.zeros_like(tokens), prefix=len(tokens))

    def hidden(
        self, tokens: Tensor, positions: Tensor, attend: Any, *, layers: tuple[int, ...] = (-1,)
    ) -> list[Tensor]:
        own = self.table[torch.where(tokens == self.MASK, 0, tokens)]
        zeros = torch.zeros_like(own)[:, None]  # one head; equal scores, so that all of the protein is averaged
        around = attend(0, zeros, zeros, self.mixing * nn.functional.one_hot(tokens, 29).float()[:, None])[:, 0]
        return [own + around] * len(layers)

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden


class Narrow(Stranger):
    """A stranger without a word for X and B, and with 20 learned places."""

    unknown, learned_places = 4, 20

    def tokenize(self, sequence: str, *, name: str = "sequence") -> Example:
        return super().tokenize(sequence.removesuffix("*").replace("B", "X"), name=name)


def stranger(mixing: float = 1.0) -> Stranger:
    return Stranger(torch.randn(29, 29, generator=torch.Generator().manual_seed(0)), mixing)


def by_hand(model: Stranger, sequence: str) -> list[float]:
    """Pseudo-likelihood of each residue, from the table alone."""
    words = [0, 1, *(2 + LETTERS.index(letter) for letter in sequence), 27]
    nats = []
    for place in range(2, len(words) - 1):
        around = torch.zeros(29)
        for i, word in enumerate(words):
            around[28 if i == place else word] += 1 / len(words)
        nats.append(-(model.table[0] + around).log_softmax(0)[words[place]].item())
    return nats


def test_a_stranger_is_a_backbone() -> None:
    assert isinstance(stranger(), Backbone)


def test_pseudo_likelihood_of_another_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "ROW_TOKENS", 40)
    model = stranger()
    for s, sequence in zip(xtrimo.score(model, PROTEINS), PROTEINS, strict=True):
        assert (s.method, s.direction) == ("pseudo", None)
        np.testing.assert_allclose(s.residue_nll, by_hand(model, sequence), atol=1e-5)
        assert s.total_nll == pytest.approx(sum(by_hand(model, sequence)), abs=1e-4)


def test_one_pass_finds_what_was_under_the_mask(caplog: pytest.LogCaptureFixture) -> None:
    """A calibrated model is built the long way: the posterior of each true word, given the word that is shown."""
    keep, replace = 0.1, 0.1
    law = torch.full((29,), -torch.inf, dtype=torch.float64)
    law[2:27] = torch.randn(25, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    hidden_law = law.softmax(0)  # q
    drawn = np.random.default_rng(0).choice(list(LETTERS), (3, 200), p=hidden_law[2:27].numpy())
    proteins = ["".join(letters) for letters in drawn]
    table = torch.full((29, 29), 1e-30, dtype=torch.float64)
    table[0] = hidden_law
    for shown in range(2, 27):
        joint = torch.zeros(29, dtype=torch.float64)
        for true in range(2, 27):  # the letter shown is the true one left alone, or one of 25 drawn at random
            joint[true] = hidden_law[true] * (keep * (true == shown) + replace / 25)
        table[shown] = joint / joint.sum()
    model = Stranger(table.log().float(), mixing=0.0)
    exact, one_pass = (xtrimo.score(model, proteins, method=method) for method in ("pseudo", "one-pass"))
    for a, b in zip(exact, one_pass, strict=True):
        assert b.method == "one-pass" and b.direction is None
        np.testing.assert_allclose(b.residue_nll, a.residue_nll, atol=1e-5)
        assert b.total_nll == pytest.approx(a.total_nll, rel=1e-5)
    assert not caplog.records


def test_one_pass_of_a_model_that_copies_nothing_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    xtrimo.score(stranger(), ["MKVLAW", "ACD"], method="one-pass")  # its words in view are as likely as any
    (record,) = caplog.records
    assert record.message.startswith("one-pass finds residues less likely than blind guesses")


def test_one_pass_holds_at_the_edges() -> None:
    """From certainty to impossibility nothing overflows: the odds of a shown word are divided by 1 + V."""
    logits = torch.tensor([[90.0, 0.0, 0.0], [0.0, 90.0, 0.0], [1.0, 1.0, 1.0]])
    nats = nats_under_mask(logits, torch.tensor([0, 0, 2]), 27)
    assert nats.tolist() == pytest.approx([0.0, 90 + np.log(28), np.log(1 + 2 * 28)])
    assert nats_under_mask(logits.bfloat16(), torch.tensor([0, 0, 2]), 27).dtype == torch.float32


def test_one_pass_of_ours_counts_27_words() -> None:
    model = GLM(GLMConfig(**SHAPE, objectives=("mlm",)))
    (s,) = xtrimo.score(model, ["MKVLAW"], method="one-pass")
    ids = torch.tensor([17, 12, 4, 1, 2, 19, 34])
    positions = torch.stack((torch.arange(7), torch.zeros(7, dtype=torch.long)), 1)
    with torch.no_grad():
        p = model(ids, positions, torch.tensor([[0, 7, 7]])).softmax(-1)[range(6), ids[:6]].double()
    odds = p / (1 - p) * (0.1 / 27) / (0.1 + 0.1 / 27)
    np.testing.assert_allclose(s.residue_nll, -(odds / (1 + odds)).log(), atol=1e-5)


@pytest.mark.parametrize("method", ["pseudo", "one-pass"])
def test_a_residue_without_a_word_counts_nowhere(method: Any, caplog: pytest.LogCaptureFixture) -> None:
    proteins = ["MKXLAW", "XB", "ACDXBE", "MKV"]
    full = stranger()
    scores = xtrimo.score(Narrow(full.table), proteins, method=method)
    assert [record.message for record in caplog.records if "no word" in record.message] == [
        "left out 5 residues that the model has no word for, such as X"
    ]
    counted = []
    as_words = xtrimo.score(full, [protein.replace("B", "X") for protein in proteins], method=method)
    for s, of_all, protein in zip(scores, as_words, proteins, strict=True):
        is_known = np.array([letter not in "XB" for letter in protein])
        np.testing.assert_array_equal(np.isnan(s.residue_nll), ~is_known)
        expected = of_all.residue_nll[is_known]
        np.testing.assert_allclose(s.residue_nll[is_known], expected, atol=1e-6)
        counted.append(expected)
        assert s.total_nll == pytest.approx(expected.sum() if len(expected) else np.nan, rel=1e-5, nan_ok=True)
        assert s.nll == pytest.approx(expected.mean() if len(expected) else np.nan, rel=1e-5, nan_ok=True)
        assert s.ppl == pytest.approx(np.exp(s.nll), nan_ok=True)
    summary = summarize(scores)
    assert (summary.num_proteins, summary.num_residues) == (3, 12)
    assert summary.nll.value == pytest.approx(np.concatenate(counted).mean(), rel=1e-5)
    with pytest.raises(ConfigError, match="no word for any residue"):
        summarize(scores[1:2])


def test_a_residue_without_a_word_does_not_raise_the_alarm_of_one_pass(caplog: pytest.LogCaptureFixture) -> None:
    table = torch.zeros(29, 29).fill_diagonal_(20.0)
    table[4, 4] = -20.0
    xtrimo.score(Narrow(table, mixing=0.0), ["MXXXXX", "XX"], method="one-pass")
    assert [record.message[:8] for record in caplog.records] == ["left out"]


@pytest.mark.parametrize("method", ["pseudo", "one-pass"])
def test_beyond_the_learned_places_the_protein_is_named(method: Any, caplog: pytest.LogCaptureFixture) -> None:
    narrow = Narrow(torch.zeros(29, 29))
    assert len(xtrimo.score(narrow, ["M" * 17 + "*"], method=method)[0].residue_nll) == 17
    with pytest.raises(SequenceError, match="^giant: 18 residues, and 3 words around them, where .* 20 places; cut it"):
        xtrimo.score(narrow, [Record("a", "MKV"), Record("giant", "M" * 18)], method=method)
    assert "extrapolated" not in caplog.text
    computed = Narrow(torch.zeros(29, 29))
    computed.learned_places = None  # type: ignore[assignment]
    assert len(xtrimo.score(computed, ["M" * 18], method=method)[0].residue_nll) == 18


@pytest.mark.parametrize("method", ["likelihood", "pseudo"])
def test_chains_are_refused_with_the_cure(method: Any) -> None:
    with pytest.raises(SequenceError, match="^sequence_1: 3 chains joined by ':'; only `embed`.*a record of its own"):
        xtrimo.score(GLM(GLMConfig(**SHAPE)), ["MKV:GGS:L"], method=method)


@pytest.mark.parametrize("rotary, objectives", [("2d", ("gmask",)), ("1d", ("causal",)), ("2d", ("mlm", "gmask"))])
def test_both_directions(rotary: Any, objectives: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read C to N after <rev>, as by hand; the nats come back N to C, the closing <eos> is that of the N terminus."""
    monkeypatch.setattr(batch, "ROW_TOKENS", 24)
    model = GLM(GLMConfig(**SHAPE, rotary=rotary, objectives=objectives))
    with torch.no_grad():
        model.output.weight *= 10
    forward, reverse, both = (xtrimo.score(model, PROTEINS, direction=d) for d in ("forward", "reverse", "both"))
    words = {letter: i for i, letter in enumerate("LAGVSERTIDPKQNFYMHWCXBUZO", start=1)}
    for ahead, back, mean, sequence in zip(forward, reverse, both, PROTEINS, strict=True):
        ids = [36, 29, 32, 34, *(words[letter] for letter in reversed(sequence))]
        positions = torch.zeros(len(ids), 2, dtype=torch.long)
        if "gmask" in objectives:  # <rev> is seen as the start of the source, the target stands at <gmask>
            positions[1:, 0], positions[2:, 1] = 1, torch.arange(1, len(ids) - 1)
        else:
            positions[:, 0] = torch.arange(len(ids))
        prefix = 2 if "gmask" in objectives else 0
        with torch.no_grad():
            table = model(torch.tensor(ids), positions, torch.tensor([[0, len(ids), prefix]])).log_softmax(-1)
        expected = [-table[i - 1, ids[i]].item() for i in range(4, len(ids))]
        np.testing.assert_allclose(back.residue_nll, expected[::-1], atol=1e-5)
        assert back.total_nll == pytest.approx(sum(expected) - table[-1, 34].item(), abs=1e-4)
        np.testing.assert_allclose(mean.residue_nll, (ahead.residue_nll + back.residue_nll) / 2, atol=1e-6)
        assert mean.total_nll == pytest.approx((ahead.total_nll + back.total_nll) / 2, abs=1e-4)
        assert (ahead.direction, back.direction, mean.direction) == ("forward", "reverse", "both")
        assert ahead.method == back.method == mean.method == "likelihood"


def test_the_default_is_what_the_model_has() -> None:
    facts = [(("gmask",), "likelihood"), (("mlm", "gmask", "smask"), "likelihood"), (("mlm", "smask"), "pseudo")]
    for objectives, method in facts:
        (s,) = xtrimo.score(GLM(GLMConfig(**SHAPE, objectives=objectives)), ["MKV"])  # type: ignore[arg-type]
        assert (s.method, s.direction) == (method, "forward" if method == "likelihood" else None)


@pytest.mark.parametrize(
    "objectives, asked, message",
    [
        (("smask",), {}, "trained on smask alone never predicted a <mask>.*scoring needs gmask, causal or mlm"),
        (("mlm",), dict(method="likelihood"), "trained on mlm alone never wrote a whole protein.*use pseudo"),
        (("gmask",), dict(method="pseudo"), "trained on gmask alone never predicted a <mask>.*use likelihood"),
        (("gmask",), dict(method="one-pass"), "no pseudo-likelihood"),
        (("mlm",), dict(direction="forward"), "direction forward for pseudo, which reads a residue from both sides"),
        (("mlm", "gmask"), dict(method="one-pass", direction="both"), "direction both for one-pass"),
    ],
)  # fmt: skip
def test_refusals(objectives: Any, asked: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        xtrimo.score(GLM(GLMConfig(**SHAPE, objectives=objectives)), ["MKV"], **asked)


@pytest.mark.parametrize(
    "method, direction, message",
    [
        ("exact", None, "method 'exact'; known: likelihood, pseudo, one-pass"),
        (None, "C to N", "direction 'C to N'; known: forward, reverse, both"),
    ],
)
def test_unknown_names_list_the_known_ones(method: Any, direction: Any, message: str) -> None:
    without_type_checks = inspect.unwrap(choose)
    with pytest.raises(ConfigError, match=message):
        without_type_checks(GLM(GLMConfig(**SHAPE)), method, direction)


@pytest.mark.parametrize("direction", ["reverse", "both"])
def test_a_direction_that_was_not_trained_is_refused(direction: Any) -> None:
    model = GLM(GLMConfig(**SHAPE, objectives=("causal",), directions=("forward",), control_words=()))
    with pytest.raises(
        ConfigError, match=f"direction {direction} needs a model .* reverse, and this one knows forward"
    ):
        xtrimo.score(model, ["MKV"], direction=direction)


def test_an_encoder_has_no_likelihood() -> None:
    with pytest.raises(ConfigError, match="a model that is an encoder never wrote a whole protein"):
        xtrimo.score(stranger(), ["MKV"], method="likelihood")
    blind = stranger()
    blind.mask = None  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="never predicted a <mask>"):
        xtrimo.score(blind, ["MKV"])


def test_a_foreign_model_runs_as_it_is_and_not_in_int8() -> None:
    stranger = Stranger(torch.zeros(29, 29))
    assert FastaOptions(model="x").prepare(stranger, Path("x")) is stranger
    with pytest.raises(ConfigError, match="int8 is for GLMs"):
        FastaOptions(model="x", precision="int8").prepare(stranger, Path("x"))
