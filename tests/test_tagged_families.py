"""The example on two made-up families: figures of samples whose truth is known, verdicts by hand, the whole command."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tyro
from Bio.Align import PairwiseAligner, substitution_matrices

from examples import tagged_families as example
from examples import tagged_figures
from examples.infill_figures import MODEL_WAYS, Filling
from generate import sampler
from generate.judge_report import Judgement
from generate.measures import GENERATED, HELD_OUT, Finding
from generate.members import fact
from tests.generate.families import members, write_family
from xtrimo import checkpoint
from xtrimo.errors import ConfigError, DataError
from xtrimo.fasta import Record, read_fasta, write_fasta
from xtrimo.intervals import Estimate
from xtrimo.model import GLM
from xtrimo.testing import toy_config, toy_sequences

NUM = 12
NAMES = ("kinase", "lyase")


pytestmark = pytest.mark.usefixtures("quick_judge")


@dataclass
class Run:
    """A finished run."""

    data: Path
    model: Path
    out: Path
    page: str

    @property
    def arguments(self) -> list[str]:
        return arguments(self.data, self.model, self.out)

    @property
    def results(self) -> dict[str, Any]:
        return json.loads((self.out / "results.json").read_text())


def arguments(data: Path, model: Path, out: Path, num: int = NUM) -> list[str]:
    flags = ["--model", str(model), "--out", str(out), "--num", str(num), "--spans", "6"]
    return [str(data), *flags, "--families", *NAMES]


def known_samples(data: Path) -> dict[str, list[str]]:
    """Of kinase: 8 new members, a copy twice, a lyase, a stranger. Of lyase: 6 new ones, 2 kinases, 4 strangers."""
    copy = next(r.sequence for r in read_fasta(data / "families.fasta.gz") if "kinase split=train" in r.description)
    strangers = toy_sequences(5, min_length=50, max_length=60)
    return {
        "kinase": [*members(1, 60, change=0.4)[-8:], copy, copy, members(3, 40)[-1], strangers[0]],
        "lyase": [*members(3, 60, change=0.3)[-6:], *members(2, 40)[-2:], *strangers[1:]],
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, quick_judge: None) -> Run:
    """Samples of both tags are there as an earlier run would have left them; those without a tag are written."""
    folder = tmp_path_factory.mktemp("tagged")
    data, out = folder / "data", folder / "out"
    data.mkdir()
    files = write_family(folder)
    write_fasta(data / "families.fasta.gz", read_fasta(files["reference"]))
    files["hmm"].rename(data / "families.hmm.gz")
    files["thresholds"].rename(data / "families_hmm_scores.csv")
    write_fasta(data / "sample.fasta.gz", [Record(f"s{i}", s) for i, s in enumerate(toy_sequences(20))])
    words = ("<rev>", *(f"<family={name}>" for name in NAMES))
    checkpoint.save(GLM(toy_config(max_length=128, control_words=words), seed=0), folder / "model")
    (out / "samples").mkdir(parents=True)
    for name, sequences in known_samples(data).items():
        cut = ["", " finished=no"]
        records = [Record(f"s{i}", s, f"seed=0{cut[i >= 9]}") for i, s in enumerate(sequences)]
        write_fasta(out / "samples" / f"{name}.fasta", records)
    assert example.main(arguments(data, folder / "model", out)) == 0
    return Run(data, folder / "model", out, (out / "tagged_families.md").read_text())


def test_shares_are_those_of_samples_whose_truth_is_known(run: Run) -> None:
    found = run.results
    targets = {name: {what: x["value"] for what, x in own.items()} for name, own in found["targets"].items()}
    for name, member, other, clusters in (
        ("kinase", 10 / 12, 1 / 12, 11 / 12), ("lyase", 6 / 12, 2 / 12, 1.0), ("all", 16 / 24, 3 / 24, 23 / 24)
    ):  # fmt: skip
        assert targets[name]["members"] == pytest.approx(member)
        assert targets[name]["members of others"] == pytest.approx(other)
        assert targets[name]["clusters at 90 % a sample"] == pytest.approx(clusters)
        assert found["cut"][name] == 3 / 12
    met = {name: [x["met"] for x in own.values()][:3] for name, own in found["targets"].items()}
    assert met == {"kinase": [True, False, True], "lyase": [False, False, True], "all": [False, False, True]}
    figures = found["figures"]
    assert figures["kinase"]["held-out"]["members"]["value"] == 1
    assert figures["all"]["composition"]["members"]["value"] < 0.2 < figures["all"]["HMM"]["members"]["value"]


def nearest(sequences: list[str], training: list[str]) -> list[float]:
    """Of all alignments with training proteins the most identical residues, as a share of a protein's own."""
    aligner = PairwiseAligner(
        mode="local", substitution_matrix=substitution_matrices.load("BLOSUM62"), open_gap_score=-11,
        extend_gap_score=-1,
    )  # fmt: skip
    best = []
    for own in sequences:
        alignments = (aligner.align(own, other)[0] for other in training)
        best.append(max(alignment.counts().identities for alignment in alignments) / len(own))
    return best


def test_identity_is_a_median_above_that_of_held_out_members(run: Run) -> None:
    records = list(read_fasta(run.data / "families.fasta.gz"))
    training = [record.sequence for record in records if fact(record, "split") == "train"]
    gaps = []
    for name in NAMES:
        held_out = [r.sequence for r in records if (fact(r, "family"), fact(r, "split")) == (name, "test")]
        own, real = (np.median(nearest(s, training)) for s in (known_samples(run.data)[name], held_out))
        gaps.append(own - real)
        figures = run.results["figures"][name]
        assert figures[GENERATED]["nearest training identity, median"]["value"] == pytest.approx(own, abs=0.03)
        assert figures[HELD_OUT]["nearest training identity, median"]["value"] == pytest.approx(real, abs=0.03)
        found = run.results["targets"][name]["nearest training identity above held-out members'"]
        assert found["value"] == pytest.approx(own - real, abs=0.03) and found["low"] < found["value"] < found["high"]
        assert found["met"] == (found["value"] <= 0.05)
    found = run.results["targets"]["all"]["nearest training identity above held-out members'"]
    assert found["value"] == pytest.approx(np.mean(gaps), abs=0.03)


def test_correlations_are_the_judge_s_and_the_gain_is_over_emission(run: Run) -> None:
    gains = []
    for name in NAMES:
        judged = json.loads((run.out / "judge" / name / "judge.json").read_text())["measures"]["couplings"]
        own, emitted = judged["generated"], judged["HMM"]
        gains.append(own["value"] - emitted["value"])
        ends = {"low": own["low"] - emitted["high"], "high": own["high"] - emitted["low"]}
        found = run.results["targets"][name]["two-site correlation above HMM emission's"]
        assert found == {"wanted": "above 0 beyond luck", "value": gains[-1], **ends, "met": ends["low"] > 0}
        figures = run.results["figures"][name]["generated"]["two-site correlation"]
        assert figures == {end: own[end] for end in ("value", "low", "high")}
    found = run.results["targets"]["all"]["two-site correlation above HMM emission's"]
    assert found["value"] == pytest.approx(np.mean(gains))
    assert (found["low"], found["high"]) == pytest.approx((min(gains), max(gains)))  # two families: drawn is either


def outcome(own: Estimate, emitted: Estimate) -> tagged_figures.Outcome:
    """Of a family of which nothing is known but correlations."""
    findings = (Finding("couplings", GENERATED, own, 9), Finding("couplings", "HMM", emitted, 9))
    judgement = Judgement(
        family="kinase", threshold=25.0, source="", sets={}, unreadable=(), findings=findings, methods={}, places=None
    )
    return tagged_figures.Outcome(judgement=judgement, clusters=np.ones(1), is_cut=np.ones(1))


def test_a_correlation_must_be_higher_beyond_luck() -> None:
    target = tagged_figures.TARGETS["two-site correlation above HMM emission's"]
    emitted = Estimate(value=0.1, low=0.05, high=0.15)
    for low, is_met in ((0.14, False), (0.16, True)):
        one = outcome(Estimate(value=0.3, low=low, high=0.4), emitted)
        found = target.estimate([one])
        assert (found.value, found.low, found.high) == pytest.approx((0.2, low - 0.15, 0.35))
        assert target.is_met(found) == is_met
        assert target.is_met(target.estimate([one, one]))  # over families that agree


def test_a_set_without_covariances_is_worth_nothing() -> None:
    unknown = Estimate(value=math.nan, low=math.nan, high=math.nan)
    emitted = Estimate(value=0.2, low=0.1, high=0.3)
    one = outcome(unknown, emitted)
    target = tagged_figures.TARGETS["two-site correlation above HMM emission's"]
    assert not target.is_met(target.estimate([one])) and not target.is_met(target.estimate([one, one]))
    assert tagged_figures.correlation_gain([one]).value == -0.2
    assert tagged_figures.correlation([one, one], GENERATED).value == 0
    assert math.isnan(tagged_figures.correlation([one], GENERATED).value)
    assert tagged_figures.correlation([one], "HMM") == emitted
    assert example.text(unknown) == "not defined"
    assert tagged_figures.to_dict(unknown) == {"value": None, "low": None, "high": None}


def test_controls_say_what_the_tag_does(run: Run) -> None:
    found = run.results
    assert found["hits"]["kinase"] == pytest.approx({"kinase": 10 / 12, "lyase": 1 / 12})
    assert found["hits"]["lyase"] == pytest.approx({"kinase": 2 / 12, "lyase": 6 / 12})
    right, wrong, untagged = (each["value"] for each in found["controls"].values())
    assert (right, wrong, untagged) == pytest.approx((16 / 24, 3 / 24, 0))
    assert "| kinase | 83.3 | 8.33 | 0 |" in run.page
    three = {name: np.zeros(4, bool) for name in "abc"}
    hits = {name: dict(three) for name in ("a", "b", "c", "untagged")}
    hits["c"]["a"], hits["a"]["c"] = np.ones(4, bool), np.arange(4) < 2  # the next of c is a, that of a is b
    assert [round(12 * x.value) for x in example.controls(hits, ("a", "b", "c")).values()] == [0, 4, 0]


def test_what_lacks_is_written_with_the_one_setting(run: Run, tmp_path: Path) -> None:
    """As `xtrimo generate` writes it with these flags."""
    longest = max(len(r.sequence) for r in read_fasta(run.data / "families.fasta.gz"))
    flags = [
        "--model", str(run.model), "--num", str(NUM), "--temperature", "0.8", "--top-p", "1", "--seed", "0",
        "--max-length", str(longest), "--precision", "bf16",
    ]  # fmt: skip
    options = tyro.cli(example.Options, args=arguments(run.data, run.model, tmp_path))
    lengths = example.longest_lengths(options)
    assert lengths == dict.fromkeys((*NAMES, "untagged"), longest)
    paths = example.write_samples(options, example.ModelOptions(model=str(run.model), precision="bf16").load(), lengths)
    for name, prompt in (("untagged", ""), ("kinase", "<family=kinase>")):
        sampler.main([*flags, "--prompt", prompt, "--out", str(tmp_path / "expected.fasta")])
        assert paths[name].read_bytes() == (tmp_path / "expected.fasta").read_bytes()
    assert (run.out / "samples/untagged.fasta").read_bytes() == paths["untagged"].read_bytes()


def test_the_page_and_its_pictures(run: Run) -> None:
    for heading in ("Families on request", "What the tag does", "Infilling of held-out family members"):
        assert f"# {heading}\n" in run.page
    assert "longest training member were kinase 25%, lyase 25%." in run.page and "<family=..> in front" in run.page
    # two targets of smask and mlm in three moods, and of ends, ends+mlm and guided in one
    assert run.page.count("**met**") + run.page.count("**short**") == 3 * 5 + 2 * 9
    for name in ("tagged_families.png", "infilling.png"):
        assert f"({name})" in run.page and (run.out / name).read_bytes().startswith(b"\x89PNG")
    assert (run.out / "judge/kinase/judge.md").exists()
    assert len(run.results["infilling"]) == 2 * 9 and all(f"| {way} |" in run.page for way in MODEL_WAYS)


def test_infilling_by_hand() -> None:
    def filling(way: str, mood: str, right: list[int], lost: list[float]) -> Filling:
        return Filling(way=way, mood=mood, num_right=np.array(right, float), bits_lost=np.array(lost))

    fillings = [
        filling("composition", "drawn", [1, 1, 1], [8.0, 20.0, 14.0]),
        filling("smask", "drawn", [12, 8, 7], [7.5, 3.0, 90.0]),
        filling("smask", "likeliest", [12, 8, 10], [7.0, 3.0, 90.0]),
        filling("ends", "likeliest", [10, 8, 9], [6.0, 8.0, 0.0]),
        filling("consensus", "likeliest", [9, 9, 9], [0.0, 0.0, 0.0]),
    ]
    found = tagged_figures.infilling_verdicts(fillings)
    assert [verdict.estimate.value for verdict in found] == pytest.approx([0, 0.5, 5, 0, 0, -1])  # 14 / 2 is half
    assert [verdict.is_met for verdict in found] == [False, False, True, True, False, True]
    assert found[2].estimate.low <= 5 <= found[2].estimate.high


def test_medians_of_draws() -> None:
    values = np.random.default_rng(0).normal(size=101)
    draws = tagged_figures.medians(values, seed=0)
    rng = np.random.default_rng(1)
    expected = [np.median(rng.choice(values, len(values))) for _ in range(2000)]
    assert draws.mean() == pytest.approx(np.mean(expected), abs=0.05)
    assert draws.std() == pytest.approx(np.std(expected), rel=0.2)


def test_a_finished_run_is_found_another_goes_on_or_is_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.out.rglob("*")}
    assert example.main(run.arguments) == 0
    assert capsys.readouterr().out == run.page + "\n"
    assert {path: path.stat().st_mtime_ns for path in run.out.rglob("*")} == before
    with pytest.raises(ConfigError, match="other settings .*num 12 to 13"):
        example.main(arguments(run.data, run.model, run.out, num=NUM + 1))


def test_what_cannot_be_asked_for(run: Run, tmp_path: Path) -> None:
    base = arguments(run.data, run.model, tmp_path / "out")
    with pytest.raises(ConfigError, match="expected two or more, each once"):
        example.Options(data=run.data, model="", families=("kinase", "kinase"))
    with pytest.raises(DataError, match="no record of family=ligase"):
        example.main([*base, "--families", "kinase", "ligase"])
    checkpoint.save(GLM(toy_config(control_words=("<rev>", "<family=kinase>"))), tmp_path / "one")
    with pytest.raises(ConfigError, match="no tag <family=lyase>"):
        example.main(arguments(run.data, tmp_path / "one", tmp_path / "out"))
    assert not list((tmp_path / "out").rglob("*.fasta"))  # told before anything is written
