"""Sampling: the law that is drawn from, independence of the batch, likelihoods as scored, and the verb."""

from pathlib import Path

import numpy as np
import pytest
import torch

import xtrimo
from generate import sample, sampler
from generate.logits import distribution, draw
from generate.sampler import SamplingConfig, iter_samples
from xtrimo.checkpoint import save
from xtrimo.config import GLMConfig
from xtrimo.errors import CheckpointError, ConfigError, SequenceError, XtrimoError
from xtrimo.fasta import read_fasta
from xtrimo.model import GLM

AMINO_ACIDS = "LAGVSERTIDPKQNFYMHWC"
SHAPE = dict(num_layers=2, hidden_size=64, num_heads=2, ffn_size=64)


def sharp(**facts: object) -> GLM:
    """A random model whose opinions differ: fresh weights give all words nearly the same probability."""
    model = GLM(GLMConfig(**SHAPE, **facts))  # type: ignore[arg-type]
    with torch.no_grad():
        model.output.weight *= 10
    return model


@pytest.fixture(scope="module")
def model() -> GLM:
    return sharp()


def logits_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities]).log()


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 1.0, [0.1, 0.4, 0.2, 0.3]),
        (1.0, 0.75, [0, 4 / 9, 2 / 9, 3 / 9]),
        (1.0, 0.65, [0, 4 / 7, 0, 3 / 7]),
        (1.0, 0.01, [0, 1, 0, 0]),
        (0.5, 1.0, [1 / 30, 16 / 30, 4 / 30, 9 / 30]),  # squares
        (0.5, 0.8, [0, 16 / 25, 0, 9 / 25]),  # the nucleus is of the tempered law
        (0.0, 0.8, [0, 1, 0, 0]),
    ],
)
def test_distribution(temperature: float, top_p: float, expected: list[float]) -> None:
    got = distribution(logits_of(0.1, 0.4, 0.2, 0.3), temperature, top_p)
    np.testing.assert_allclose(got[0], expected, atol=1e-7)


def test_nucleus_keeps_the_choice_that_reaches_top_p() -> None:
    got = distribution(torch.zeros(1, 4), 1.0, 0.5)  # equal ones: as many as are needed, the first of them
    np.testing.assert_allclose(got[0], [0.5, 0.5, 0, 0])


@pytest.mark.parametrize(("top_p", "others"), [(0.8, [0.5 / 0.85, 0.35 / 0.85, 0]), (0.01, [1, 0, 0])])
def test_a_choice_kept_out_of_the_nucleus_has_its_own_chance(top_p: float, others: list[float]) -> None:
    got = distribution(logits_of(0.05, 0.5, 0.35, 0.1), 1.0, top_p, keep=0)
    np.testing.assert_allclose(got[0], [0.05, *(0.95 * chance for chance in others)], atol=1e-6)


def test_draw_follows_the_distribution() -> None:
    law = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0], dtype=torch.float64)
    uniform = torch.arange(1, 1001, dtype=torch.float64) / 1000
    counts = torch.bincount(draw(law.expand(1000, 6), uniform), minlength=6)
    assert counts.tolist() == [0, 250, 0, 500, 250, 0]
    ends = torch.tensor([2.0**-53, 1.0], dtype=torch.float64)
    assert draw(law.expand(2, 6), ends).tolist() == [1, 4]  # never a choice of probability 0


@pytest.mark.parametrize("prompt", ["", "MKV"])
def test_first_residue_follows_the_model(model: GLM, prompt: str) -> None:
    ids = torch.tensor([29, 32, 34, *(1 + AMINO_ACIDS.index(letter) for letter in prompt)])
    positions = torch.stack((torch.zeros(len(ids), dtype=torch.long), torch.arange(len(ids))), dim=1)
    with torch.no_grad():
        logits = model(ids, positions, torch.tensor([[0, len(ids), 1]]))[-1].double()
    choices = [*range(1, 21), *([34] if prompt else [])]  # a protein has a residue; then it may end
    law = (logits[choices] / 0.9).softmax(0).numpy()
    order = np.argsort(-law)
    end = law[20:].sum()  # keeps its chance, whatever the nucleus of the residues
    order = order[order < 20]
    law[order[np.searchsorted(law[order].cumsum() / (1 - end), 0.8) + 1 :]] = 0
    law[:20] *= (1 - end) / law[:20].sum()
    num = 4000
    samples = sample(model, num=num, prompt=prompt, max_length=len(prompt) + 1, batch_size=1000)
    letters = [s.sequence[len(prompt) :] for s in samples]
    counts = np.array([letters.count(letter) for letter in (*AMINO_ACIDS, *([""] if prompt else []))])
    assert counts.sum() == num
    assert not counts[law == 0].any()
    assert np.abs(counts / num - law).max() < 4 * np.sqrt(0.25 / num)


@pytest.mark.parametrize("facts", [{}, {"rotary": "1d", "objectives": ("causal",)}], ids=["gmask", "causal"])
def test_a_sequence_is_the_same_in_every_batch(facts: dict[str, object]) -> None:
    model = sharp(**facts)
    alone, some, all_together = (
        sample(model, num=64, seed=3, max_length=22, top_p=1.0, prompt="MK", batch_size=size) for size in (1, 7, 64)
    )
    assert [s.sequence for s in alone] == [s.sequence for s in some] == [s.sequence for s in all_together]
    np.testing.assert_allclose([s.nll for s in alone], [s.nll for s in all_together], atol=1e-5)
    assert len({s.sequence for s in alone}) > 60
    assert sample(model, num=3, seed=3, max_length=22, top_p=1.0, prompt="MK") == alone[:3]
    assert sample(model, num=1, seed=4, max_length=22, top_p=1.0, prompt="MK")[0].sequence != alone[0].sequence


@pytest.mark.parametrize("facts", [{}, {"rotary": "1d", "objectives": ("causal",)}], ids=["gmask", "causal"])
@pytest.mark.parametrize("prompt", ["", "MKVXB"])
def test_nll_is_what_score_says(facts: dict[str, object], prompt: str) -> None:
    model = sharp(**facts)
    samples = sample(model, num=40, prompt=prompt, max_length=30, batch_size=16)
    scores = xtrimo.score(model, [s.sequence for s in samples])
    np.testing.assert_allclose([s.nll for s in samples], [s.nll for s in scores], atol=1e-5)
    np.testing.assert_allclose([s.ppl for s in samples], [s.ppl for s in scores], rtol=1e-5)


def test_only_amino_acids_and_an_end(model: GLM, caplog: pytest.LogCaptureFixture) -> None:
    samples = sample(model, num=200, temperature=5.0, top_p=1.0, max_length=25)
    assert {letter for s in samples for letter in s.sequence} == set(AMINO_ACIDS)
    lengths = np.array([len(s.sequence) for s in samples])
    assert lengths.min() >= 1 and lengths.max() == 25
    assert all(s.finished == (len(s.sequence) < 25) for s in samples) and any(s.finished for s in samples)
    assert [s.name for s in samples[:2]] == ["s0001", "s0002"]
    assert sum("max_length 25" in r.getMessage() for r in caplog.records) == 1


def test_greedy_takes_the_likeliest(model: GLM) -> None:
    greedy, twin = sample(model, num=2, temperature=0.0, max_length=12)
    assert greedy.sequence == twin.sequence
    written: list[int] = []
    for _ in range(12):
        ids = torch.tensor([29, 32, 34, *written])
        positions = torch.stack((torch.zeros(len(ids), dtype=torch.long), torch.arange(len(ids))), dim=1)
        with torch.no_grad():
            logits = model(ids, positions, torch.tensor([[0, len(ids), 1]]))[-1]
        choices = [*range(1, 21), *([34] if written else [])]
        best = choices[int(logits[choices].argmax())]
        if best == 34:
            break
        written.append(best)
    assert greedy.sequence == "".join(AMINO_ACIDS[i - 1] for i in written)


def test_rows_that_end_are_told_and_dropped(model: GLM, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    attend = sampler.KVCache.attend
    monkeypatch.setattr(
        sampler.KVCache, "attend", lambda self, layer, q, k, v: widths.append(len(q)) or attend(self, layer, q, k, v)
    )
    ended: list[int] = []
    config = SamplingConfig(num=50, max_length=40, batch_size=50, temperature=2.0, top_p=1.0)
    samples = list(iter_samples(model, config, ended.append))
    assert sum(ended) == 50 and len(ended) > 3
    assert widths == sorted(widths, reverse=True) and widths[0] == 52 and widths[-1] <= 24
    assert sum(width > 0 for width in widths) <= 2 * max(len(s.sequence) for s in samples)


def test_close_ranks() -> None:
    for pattern in ([1, 0, 1, 0, 1], [0, 0, 1], [1, 1, 0], [0, 0], [1, 1]):
        going = torch.tensor(pattern, dtype=torch.bool)
        kept = sampler._close_ranks(going).tolist()
        assert sorted(kept) == going.nonzero()[:, 0].tolist()
        assert all(row == i for i, row in enumerate(kept) if going[i])  # no row moves without need


def test_bad_arguments(model: GLM) -> None:
    for setting, value in (
        ("num", 0), ("batch_size", 0), ("temperature", -0.1), ("temperature", float("nan")), ("top_p", 0.0),
        ("top_p", 1.1), ("seed", -1), ("max_length", 0),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=setting):
            sample(model, **{setting: value})
    with pytest.raises(ConfigError, match="the prompt has 5 residues"):
        sample(model, prompt="MKVLA", max_length=5)
    with pytest.raises(SequenceError, match="prompt: position 3 is '7'"):
        sample(model, prompt="MK7")
    with pytest.raises(SequenceError, match="prompt: position 1 is '<'"):
        sample(model, prompt="<gmask>")
    with pytest.raises(ConfigError, match="cannot generate: it was trained on mlm"):
        sample(GLM(GLMConfig(**SHAPE, objectives=("mlm",))))


def test_verb(tmp_path: Path, model: GLM, capsys: pytest.CaptureFixture[str]) -> None:
    save(model, tmp_path / "model")
    flags = ["--model", str(tmp_path / "model"), "--num", "3", "--prompt", "mkv", "--seed", "5", "--max-length", "90"]
    expected = sample(model, num=3, prompt="MKV", seed=5, max_length=90)
    sampler.main(flags)
    sampler.main([*flags, "--out", str(tmp_path / "out.fasta")])
    (tmp_path / "stdout.fasta").write_text(capsys.readouterr().out)
    for file in ("out.fasta", "stdout.fasta"):
        records = list(read_fasta(tmp_path / file, unknown="error"))
        assert [r.sequence for r in records] == [s.sequence for s in expected]
        assert [r.name for r in records] == ["s0001", "s0002", "s0003"]
        for r, s in zip(records, expected, strict=True):
            facts = dict(fact.split("=") for fact in r.description.split())
            assert facts["seed"] == "5" and facts["prompt"] == "MKV"
            assert float(facts["nll"]) == pytest.approx(s.nll, abs=1e-4)
            assert float(facts["ppl"]) == pytest.approx(s.ppl, rel=1e-3)


def test_the_progress_bar_stays_out_of_stdout(
    tmp_path: Path, model: GLM, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(model, tmp_path / "model")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes stderr for a terminal
    sampler.main(["--model", str(tmp_path / "model"), "--num", "2", "--max-length", "9"])
    captured = capsys.readouterr()
    assert [line[0] for line in captured.out.splitlines()[::2]] == [">", ">"] and captured.out.count("\n") == 4
    assert "2/2" in captured.err


def test_verb_leaves_nothing_half_written(tmp_path: Path, model: GLM) -> None:
    save(model, tmp_path / "model")
    before = sorted(tmp_path.iterdir())
    flags = ["--model", str(tmp_path / "model"), "--out"]
    with pytest.raises(SequenceError, match="position 1 is '!'"):
        sampler.main([*flags, str(tmp_path / "out.fasta"), "--prompt", "!"])
    with pytest.raises(XtrimoError, match="cannot be written"):
        sampler.main([*flags, str(tmp_path / "no" / "out.fasta")])
    with pytest.raises(ConfigError, match="top_p is 2"):
        sampler.main([*flags, str(tmp_path / "out.fasta"), "--top-p", "2"])
    with pytest.raises(CheckpointError, match="not a model directory"):
        sampler.main(["--model", str(tmp_path / "no")])
    assert sorted(tmp_path.iterdir()) == before
