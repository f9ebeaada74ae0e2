"""Sampling: the law that is drawn from, independence of the batch, likelihoods as scored, and the verb."""

import re
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import torch

import xtrimo
from generate import sample, sampler
from generate.engine import History
from generate.infilling import InfillingConfig, InfillingSettings
from generate.prompt import parse
from generate.sampler import SamplingConfig, SamplingSettings, iter_samples
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
    num = 1500
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
        sample(model, num=40, seed=3, max_length=22, top_p=1.0, prompt="MK", batch_size=size) for size in (1, 7, 40)
    )
    assert [s.sequence for s in alone] == [s.sequence for s in some] == [s.sequence for s in all_together]
    assert alone == some == all_together  # to the bit: a run that was broken off ends with the same file
    assert len({s.sequence for s in alone}) > 36
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


def test_rows_that_end_are_told(model: GLM) -> None:
    ended: list[int] = []
    config = SamplingConfig(num=50, max_length=40, batch_size=50, temperature=2.0, top_p=1.0)
    samples = list(iter_samples(model, config, ended.append))
    assert sum(ended) == 50 and sorted(s.name for s in samples) == [f"s{i:04}" for i in range(1, 51)]


@pytest.mark.parametrize("facts", [{}, {"rotary": "1d", "objectives": ("causal",)}], ids=["gmask", "causal"])
def test_written_in_reverse(facts: dict[str, object]) -> None:
    model = sharp(**facts)
    samples = sample(model, num=20, prompt="[4..20]GGHX", top_p=1.0)
    assert all(s.sequence.endswith("GGHX") and 8 <= len(s.sequence) <= 24 and s.way == "reverse" for s in samples)
    assert len({s.sequence for s in samples}) == 20 and all(s.finished for s in samples)
    scores = xtrimo.score(model, [s.sequence for s in samples], direction="reverse")
    np.testing.assert_allclose([s.nll for s in samples], [s.nll for s in scores], atol=1e-5)
    assert sample(model, prompt="[..]GGHX", max_length=9)[0].sequence.endswith("GGHX")


def test_lengths_are_kept(model: GLM) -> None:
    samples = sample(model, num=150, prompt="[5..8]", temperature=5.0, top_p=1.0)
    lengths = [len(s.sequence) for s in samples]
    assert set(lengths) == {5, 6, 7, 8} and all(s.finished for s in samples)
    assert {len(s.sequence) for s in sample(model, num=5, prompt="MK[7]")} == {9}
    short = sample(model, num=5, prompt="M[6..]", max_length=8, temperature=9.0, top_p=1.0)
    assert all(7 <= len(s.sequence) <= 8 and s.finished == (len(s.sequence) < 8) for s in short)


@pytest.mark.parametrize(
    ("objectives", "prompt", "way"),
    [
        (("gmask", "smask"), "M[2..4:AV]GGH[3:^C]K", "smask"),
        (("gmask", "mlm"), "M[2..4:AV]GGH[3:^C]K", "forward"),
        (("gmask", "smask"), "M[2..4:AV]GGH[3:^C]K[..]", "forward"),
        (("gmask", "smask"), "[..]M[2..4:AV]GGH[3:^C]K", "reverse"),
        (("mlm",), "M[2..4:AV]GGH[3:^C]K", "mlm"),
        (("smask",), "M[2..4:AV]GGH[3:^C]K", "smask"),
    ],
)
def test_templates(objectives: tuple[str, ...], prompt: str, way: str) -> None:
    samples = sample(sharp(objectives=objectives), num=12, prompt=prompt, max_length=30, seed=2)
    assert {s.way for s in samples} == {way} and {s.prompt for s in samples} == {str(parse(prompt))}
    shape = re.compile(r"M[AV]{2,4}GGH[^C]{3}K")
    found = [shape.search(s.sequence) for s in samples]
    assert all(found) and len({s.sequence for s in samples}) > 6
    assert all(m and ("[..]" in prompt or m.group() == s.sequence) for m, s in zip(found, samples, strict=True))
    assert sample(sharp(objectives=objectives), num=12, prompt=prompt, max_length=30, seed=2) == samples


def test_limits_hold(model: GLM) -> None:
    samples = sample(model, num=40, prompt="C[30..40]", limit=("C=2", "AVILMF=40%", "W=0"), temperature=3.0, top_p=1.0)
    for s in samples:
        assert s.sequence.count("C") <= 2 and "W" not in s.sequence
        assert sum(map(s.sequence.count, "AVILMF")) <= 0.4 * len(s.sequence)
    assert any(s.sequence.count("C") == 2 for s in samples)
    masks = sharp(objectives=("mlm",))
    filled = sample(masks, num=20, prompt="C[9]", limit=("LAG=0",), temperature=3.0, top_p=1.0)
    assert not {letter for s in filled for letter in s.sequence} & set("LAG")
    with pytest.raises(ConfigError, match="limit C=2 cannot be held by mlm"):
        sample(masks, prompt="C[9]", limit=("C=2",))


def test_cuts_and_penalties_are_obeyed(model: GLM) -> None:
    greedy = sample(model, prompt="MK", max_length=30, temperature=0.0)[0].sequence
    for settings in ({"top_k": 1}, {"min_p": 0.99}, {"top_p": 1e-9}):
        got = sample(model, prompt="MK[28]", temperature=1.0, **{"top_p": 1.0, **settings})[0].sequence
        assert got == sample(model, prompt="MK[28]", temperature=0.0)[0].sequence
    assert greedy.startswith("MK")
    runs = sample(model, num=6, prompt="[40]", temperature=0.0, complexity_penalty=50.0)
    assert not any(letter * 4 in s.sequence for s in runs for letter in AMINO_ACIDS)
    words = sample(model, num=6, prompt="[60]", temperature=0.1, top_p=1.0, repetition_penalty=50.0)
    for s in words:
        assert len({s.sequence[i : i + 4] for i in range(57)}) == 57


def test_guidance_stresses_the_prefix(model: GLM) -> None:
    """Against the same sum of logits, written out; the plain model stays untouched by what guidance 1 means."""
    with torch.no_grad():
        laws = []
        for given_ids in ([17, 12, 4], []):
            ids = torch.tensor([29, 32, 34, *given_ids])
            positions = torch.stack((torch.zeros(len(ids), dtype=torch.long), torch.arange(len(ids))), dim=1)
            laws.append(model(ids, positions, torch.tensor([[0, len(ids), 1]]))[-1][[*range(1, 21)]])
    stressed = laws[1] + 40.0 * (laws[0] - laws[1])
    expected = AMINO_ACIDS[int(stressed.argmax())]
    assert expected != AMINO_ACIDS[int(laws[0].argmax())]  # else this says nothing
    got = sample(model, prompt="MKV[1]", temperature=0.0, guidance=40.0)[0].sequence
    assert got == "MKV" + expected
    with pytest.raises(ConfigError, match="nothing to stress"):
        sample(model, guidance=2.0)


def test_hooks(model: GLM, caplog: pytest.LogCaptureFixture) -> None:
    plain = sample(model, num=12, prompt="[12]", seed=1)
    seen: list[str] = []

    def screen(sequence: str) -> str | None:
        seen.append(sequence)
        return "has a W" if "W" in sequence else None

    def count_l(sequence: str) -> float:
        assert "W" not in sequence  # what is refused goes no further
        return float(sequence.count("L"))

    ranked = sample(model, num=12, prompt="[12]", seed=1, screen=screen, score=count_l)
    assert sorted(seen) == sorted(s.sequence for s in plain)
    passed = [s for s in plain if "W" not in s.sequence]
    assert 0 < len(passed) < 12
    expected = sorted(passed, key=lambda s: (-s.sequence.count("L"), s.name))
    assert [(s.name, s.sequence, s.score) for s in ranked] == [
        (s.name, s.sequence, float(s.sequence.count("L"))) for s in expected
    ]
    assert f"refused {12 - len(passed)} proteins: {{'has a W': {12 - len(passed)}}}" in caplog.text

    def never_l(logits: torch.Tensor, history: History) -> torch.Tensor:
        return logits.index_fill(1, torch.tensor([0]), -torch.inf)

    assert all("L" not in s.sequence for s in sample(model, num=12, prompt="[12]", seed=1, logits=never_l))


@pytest.mark.parametrize("answer", [True, False, "", 0])
def test_a_screen_that_is_not_understood_lets_nothing_pass(model: GLM, answer: object) -> None:
    with pytest.raises(ConfigError, match="the screen said"):
        sample(model, prompt="[3]", screen=lambda sequence: answer)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("value", [float("nan"), None, "high"])
def test_a_score_is_a_number(model: GLM, value: object) -> None:
    with pytest.raises(ConfigError, match="score of a protein"):
        sample(model, prompt="[3]", score=lambda sequence: value)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(
    ("facts", "settings", "reason"),
    [
        ({}, {"prompt": "<family=A>MK"}, "no tag <family=A>"),
        ({}, {"prompt": "MK[0]"}, "leaves nothing to write"),
        ({"directions": ("forward",)}, {"prompt": "[..]GG"}, "from C to N"),
        ({"objectives": ("gmask",)}, {"prompt": "MK", "by": "smask"}, "not trained on smask"),
        ({}, {"prompt": "MK", "by": "smask"}, "upper end"),
        ({}, {"prompt": "MK", "by": "mlm"}, "upper end"),
        ({"objectives": ("gmask",)}, {"prompt": "MK[5]", "by": "mlm"}, "not trained on mlm"),
        ({"objectives": ("mlm",)}, {"prompt": "MK"}, "cannot generate 'MK': it was trained on mlm"),
        ({}, {"prompt": "MK[50]", "max_length": 51}, "has 52 residues"),
        ({}, {"prompt": "MK[0..3]", "max_length": 2}, "must be larger"),
        ({"max_length": 60}, {"prompt": "MK[58]"}, "takes 63 tokens at least"),
        ({}, {"limit": ("C=0",), "prompt": "CC"}, "demands 2"),
        ({}, {"limit": ("C",)}, "limit 'C'"),
        ({}, {"top_k": -1}, "top_k"),
        ({}, {"min_p": 1.0}, "min_p"),
        ({}, {"repetition_penalty": -1.0}, "repetition penalty"),
        ({"objectives": ("mlm",)}, {"prompt": "M[5]", "top_k": 3}, "top_k cannot be had by mlm"),
    ],
)
def test_what_cannot_be_satisfied_says_why(facts: dict, settings: dict, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        sample(GLM(GLMConfig(**SHAPE, **facts)), **settings)


def test_keywords_are_the_fields_of_the_configs() -> None:
    for settings, config in ((SamplingSettings, SamplingConfig), (InfillingSettings, InfillingConfig)):
        assert set(get_type_hints(settings)) == {field.name for field in fields(config)}


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
