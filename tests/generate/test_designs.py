"""What a run of tasks promises: nothing beyond max_length, the same proteins whatever their number, honest headers."""

import math

import pytest

from generate import infill, redesign, sample
from xtrimo.config import GLMConfig
from xtrimo.errors import ConfigError, SequenceError
from xtrimo.fasta import Record
from xtrimo.model import GLM
from xtrimo.testing import toy_config


@pytest.fixture(scope="module")
def model() -> GLM:
    return GLM(toy_config()).eval()


@pytest.mark.parametrize("way", ["smask", "mlm", "forward", "reverse"])
def test_max_length_holds_and_the_motif_is_there(model: GLM, way: str) -> None:
    samples = sample(model, prompt="MK[5..90]GGH", max_length=20, num=6, by=way, temperature=9.0, top_p=1.0)
    assert all(s.sequence.startswith("MK") and s.sequence.endswith("GGH") for s in samples)
    assert all(10 <= len(s.sequence) <= 20 and s.finished for s in samples)
    assert len({len(s.sequence) for s in samples}) > 1
    (tight,) = sample(model, prompt="MK[5..90]GGH", max_length=10, by=way)
    assert len(tight.sequence) == 10 and tight.sequence.endswith("GGH") and tight.finished
    with pytest.raises(ConfigError, match="max_length is 9 and the prompt has 10 residues"):
        sample(model, prompt="MK[5..90]GGH", max_length=9, by=way)


def test_a_motif_is_never_cut_off(model: GLM) -> None:
    samples = sample(model, prompt="[5..90]GGHWW[..]", max_length=30, num=8)
    assert all(5 <= s.sequence.index("GGHWW") <= 25 and len(s.sequence) <= 30 for s in samples)


def test_the_first_proteins_of_each_prompt_are_the_same(model: GLM) -> None:
    prompts = ["M[4..9]K", "K[4..9]G", "G[4..9]"]
    for by in ("smask", "mlm"):
        few, many = (infill(model, prompts, num=num, by=by, seed=5, top_p=1.0) for num in (2, 4))
        assert [s.name for s in many] == [f"p{t}_{i:04}" for t in (1, 2, 3) for i in (1, 2, 3, 4)]
        again = {s.name: s.sequence for s in many}
        assert [s.sequence for s in few] == [again[s.name] for s in few]
        assert len({s.sequence[1:5] for s in many}) > 9  # each has a random stream of its own


def test_headers(model: GLM) -> None:
    cut, ended = sample(model, max_length=4, prompt="MKV")[0], sample(model, prompt="MKV[1]")[0]
    while cut.finished:  # this model ends one protein in tens
        cut = sample(model, max_length=4, prompt="MKV", seed=cut.seed + 1)[0]
    assert cut.record.description.endswith("prompt=MKV finished=no") and "finished" not in ended.record.description
    filled = infill(model, "MK[0..1]GG", num=20, by="mlm")
    assert {math.isnan(s.nll) for s in filled} == {True, False}
    for s in filled:
        assert s.record.description.startswith("seed=" if math.isnan(s.nll) else "nll=")


def test_limits_by_mlm(model: GLM) -> None:
    with pytest.raises(ConfigError, match="limit C=0 allows 0, and the prompt demands 1 residues of C"):
        sample(model, prompt="MC[5]", by="mlm", limit=("C=0",))
    by_share, by_number = (sample(model, prompt="M[9]", by="mlm", num=9, limit=(x,)) for x in ("LAG=0%", "LAG=0"))
    assert by_share == by_number and not {letter for s in by_share for letter in s.sequence} & set("LAG")
    with pytest.raises(ConfigError, match="limit C=5% cannot be held"):
        sample(model, prompt="M[9]", by="mlm", limit=("C=5%",))


def test_a_limit_may_be_one_text(model: GLM) -> None:
    settings = dict(prompt="[9]", num=3, seed=1)
    assert sample(model, limit="C=0", **settings) == sample(model, limit=("C=0",), **settings)


def test_guidance_without_anything_fixed(model: GLM) -> None:
    with pytest.raises(ConfigError, match="nothing to stress"):
        sample(model, prompt="[5..20]", by="smask", guidance=2.0)


@pytest.mark.parametrize("positions", ["2-3", "2-3[0..6]"])
def test_a_protein_beyond_the_training_rows_is_named(positions: str) -> None:
    model = GLM(GLMConfig(num_layers=2, hidden_size=64, num_heads=2, ffn_size=64, max_length=40))
    with pytest.raises(ConfigError, match="^b: a protein of .* too long for this model") as caught:
        redesign(model, [Record("a", "MKV"), Record("b", "MKV" * 20)], positions, by="smask")
    assert "MKVMKV" not in str(caught.value)


def test_two_proteins_of_one_name(model: GLM) -> None:
    with pytest.raises(ConfigError, match="d1 is the name of proteins 1 and 3"):
        redesign(model, [Record("d1", "MKV"), Record("d2", "MKV"), Record("d1", "MKA")], "2")


def test_a_stop_is_dropped(model: GLM) -> None:
    assert redesign(model, ["MKVA*"], "2") == redesign(model, ["MKVA"], "2")
    with pytest.raises(SequenceError, match=r"sequence_1: fixed residues are 'MK\*A'"):
        redesign(model, ["MK*A"], "2")
