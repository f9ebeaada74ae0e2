"""Rounds of alignment on a toy: rewards rise at a KL that is measured, a kill changes nothing, cheating is refused."""

import importlib
import json
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xtrimo
from generate import lessons as lessons_module
from generate.align import AlignConfig, align_generator, main
from generate.answers import measured
from generate.drafts import Drafts, mean_of, standing
from generate.lessons import METHODS, Plan, lessons_from
from generate.preferences import Kept, Pair
from generate.rewards import Shaping
from generate.tuning import Mix, Subject
from xtrimo import checkpoint
from xtrimo.errors import ConfigError, DataError
from xtrimo.fasta import Record, write_fasta
from xtrimo.model import GLM
from xtrimo.testing import killed, toy_config, toy_sequences
from xtrimo.tokens import encode_residues

CONFIG = toy_config(num_layers=2, max_length=128, control_words=("<rev>", "<family=a>", "<family=b>"))
PLAIN = Shaping(debias=False)
align = importlib.import_module("generate.align")


def lysines(proteins: Sequence[str]) -> np.ndarray:
    return np.array([protein.count("K") / len(protein) for protein in proteins])


def lengths(proteins: Sequence[str]) -> np.ndarray:
    return np.array([len(protein) for protein in proteins], dtype=float)


@pytest.fixture(autouse=True)
def no_mmseqs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("generate.drafts.best_method", lambda: "3-mers and alignment")  # starts no processes


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    checkpoint.save(GLM(CONFIG, seed=1), folder)
    return folder


def config(base: Path, out: Path, **changes: Any) -> AlignConfig:
    facts: dict[str, Any] = dict(
        model=str(base), out=out, num=64, rounds=2, steps=25, learning_rate=3e-3, max_length=12, debias=False,
        lessons=16,
    )  # fmt: skip
    return AlignConfig(**(facts | changes))


@pytest.mark.parametrize("method", METHODS)
def test_each_method_raises_the_reward(base: Path, tmp_path: Path, method: Any) -> None:
    asked = config(base, tmp_path / "run", method=method, beta={"dpo": 0.5, "dno": 0.05}.get(method))
    standings = align_generator(asked, lysines, judges={"length": lengths})
    first, last = standings[0], standings[-1]
    assert [each.round for each in standings] == [0, 1, 2]
    assert abs(first.kl.value) < 1e-4 and abs(first.gain.value) < 1e-9
    assert last.gain.low > 0.7 and last.reward.low > first.reward.high and last.kl.low > 0.3
    drafts = Drafts.load(tmp_path / "run/round-2/drafts.csv")
    model = xtrimo.load(tmp_path / "run/model")
    assert isinstance(model, GLM)
    np.testing.assert_allclose(measured(model, drafts.answers(model), 1.0), drafts.log_likelihoods, rtol=1e-5)
    start = xtrimo.load(base)
    assert isinstance(start, GLM)
    np.testing.assert_allclose(measured(start, drafts.answers(start), 1.0), drafts.start_log_likelihoods, rtol=1e-5)
    np.testing.assert_array_equal(drafts.rewards, lysines(drafts.proteins))
    assert last.judges["length"] == mean_of(lengths(drafts.proteins))
    assert align_generator(asked, lysines) == standings  # finished: read, not run


def test_each_prompt_has_its_own_reward(base: Path, tmp_path: Path) -> None:
    asked = config(base, tmp_path / "run", prompts=("<family=a>", "<family=b>MM"), steps=40)
    rewards = {"<family=a>": lysines, "<family=b>MM": lambda proteins: -lysines(proteins)}
    align_generator(asked, rewards)
    first, last = (Drafts.load(tmp_path / f"run/round-{number}/drafts.csv") for number in (0, 2))
    assert all(protein.startswith("MM") for protein in last.proteins[64:]) and len(last.proteins) == 128
    changes = [
        lysines([last.proteins[i] for i in last.places(p)]).mean()
        - lysines([first.proteins[i] for i in first.places(p)]).mean()
        for p in asked.prompts
    ]
    assert changes[0] > 0.04 and changes[0] > changes[1] + 0.06, changes
    with pytest.raises(ConfigError, match="prompt '<family=b>MM' has no reward"):
        align_generator(asked, {"<family=a>": lysines})


def test_a_killed_run_ends_as_an_unbroken_one(base: Path, tmp_path: Path) -> None:
    write_fasta(tmp_path / "replay.fasta", (Record(f"r{i}", s) for i, s in enumerate(toy_sequences(60))))
    rest: dict[str, Any] = dict(method="dno", replay=tmp_path / "replay.fasta", train="lora", num=8, steps=6)
    whole = align_generator(config(base, tmp_path / "whole", **rest), lysines)
    broken = config(base, tmp_path / "broken", **rest)
    places = [("draw", 1), ("fit", 2), ("draw", 3)]

    def arm(name: str, call: int) -> None:
        original, calls = getattr(align, name), []

        def counted(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(align, name, counted)

    for name, _ in places:  # at its first call since the last start
        assert killed(lambda name=name: arm(name, 1), lambda: align_generator(broken, lysines)) or name == "draw"
    assert align_generator(broken, lysines) == whole
    for name in ("round-2/drafts.csv", "model/model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()
    assert set(whole[0].replay) == {"mlm", "gmask", "smask"} and whole[1].replay != whole[0].replay
    with pytest.raises(ConfigError, match="is of a run with other settings"):
        align_generator(config(base, tmp_path / "broken", **rest | {"seed": 1}), lysines)


def test_more_rounds_go_on_where_fewer_ended(base: Path, tmp_path: Path) -> None:
    few: dict[str, Any] = dict(num=8, steps=4)
    whole = align_generator(config(base, tmp_path / "whole", **few), lysines)
    part = config(base, tmp_path / "part", **few, rounds=1)
    assert align_generator(part, lysines) == whole[:2]
    more = config(base, tmp_path / "part", **few)
    assert align_generator(more, lysines) == whole
    weights = [(tmp_path / name / "model/model.safetensors").read_bytes() for name in ("whole", "part")]
    assert weights[0] == weights[1]
    assert align_generator(part, lysines) == whole  # all there is


def test_no_round_beyond_the_leash_counts(base: Path, tmp_path: Path) -> None:
    asked = config(base, tmp_path / "run", max_kl=0.2, learning_rate=4e-3, rounds=3)
    standings = align_generator(asked, lysines)
    assert len(standings) < 4 and standings[-1].kl.value > 0.2
    counts = json.loads((tmp_path / "run/results.json").read_text())["counts"]
    assert counts == len(standings) - 2
    assert align_generator(replace(asked, rounds=9), lysines) == standings
    chosen = base if not counts else tmp_path / f"run/round-{counts}/model"
    weights = (xtrimo.load(path).state_dict() for path in (chosen, tmp_path / "run/model"))
    assert all(bool((a == b).all()) for a, b in zip(*(each.values() for each in weights), strict=True))


def test_the_verb_finds_functions_and_keeps_to_them(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "wishes.py").write_text(
        "import numpy as np\n"
        "def lysines(proteins): return np.array([p.count('K') for p in proteins])\n"
        "def shorter(a, b): return np.array([float(len(x) < len(y)) for x, y in zip(a, b)])\n"
    )
    flags = [
        "--model", str(base), "--out", "run", "--method", "dno", "--reward", "wishes:lysines", "--preference",
        "wishes:shorter", "--judge", "wishes:lysines", "--num", "8", "--rounds", "1", "--steps",
        "2", "--max-length", "15",
    ]  # fmt: skip
    main(flags)
    shown = capsys.readouterr().out
    assert "gain" in shown and "KL" in shown and "lysines" in shown
    with pytest.raises(ConfigError, match="other settings .*functions"):
        main([*flags, "--judge", "wishes:shorter"])
    with pytest.raises(ConfigError, match="a preference is what dno learns from; dpo needs"):
        main([*flags[:3], "other", "--method", "dpo", *flags[6:]])


def test_what_is_refused(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for changes, words in (
        ({"num": 1}, "num is 1"), ({"prompts": ()}, "give one at least"), ({"prompts": ("", "")}, "each once"),
        ({"keep": 1.0}, "keep 1.0"), ({"prompts": ("[5]",)}, "cannot be learned for"), ({"beta": 0.0}, "beta 0.0"),
        ({"clip": -1.0}, "clip -1.0"), ({"temperature": 0.0}, "temperature 0.0"), ({"steps": 0}, "steps is 0"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            config(base, tmp_path / "run", **changes)
    with pytest.raises(ConfigError, match="has no tag <family=c>"):
        align_generator(config(base, tmp_path / "run", prompts=("<family=c>",)), lysines)
    checkpoint.save(GLM(toy_config(objectives=("mlm",)), seed=1), tmp_path / "mlm")
    with pytest.raises(ConfigError, match="does not generate"):
        align_generator(config(tmp_path / "mlm", tmp_path / "run"), lysines)
    assert not (tmp_path / "run").exists()
    with pytest.raises(DataError, match="all drafts of a prompt are worth the same"):
        align_generator(config(base, tmp_path / "same", num=4), lambda proteins: np.zeros(len(proteins)))


def drafts(rewards: Sequence[float], prompts: Sequence[str] = ("",)) -> Drafts:
    num = len(rewards)
    own = tuple(prompts[i * len(prompts) // num] for i in range(num))
    return Drafts(
        prompts=own, proteins=tuple(toy_sequences(num, min_length=8)), finished=np.arange(num) % 2 == 0,
        rewards=np.array(rewards), log_likelihoods=-np.arange(num) / 3, start_log_likelihoods=-np.arange(num) / 7 - 1,
        judges={"other, with a comma": np.arange(num) * np.pi},
    )  # fmt: skip


def test_drafts_come_back_to_the_bit(tmp_path: Path) -> None:
    ours = drafts([0.1, np.nan, 1 / 3, 4.0], prompts=("<family=a>", "MK"))
    ours.save(tmp_path / "drafts.csv")
    theirs = Drafts.load(tmp_path / "drafts.csv")
    for name in Drafts.__slots__:
        np.testing.assert_equal(getattr(theirs, name), getattr(ours, name))
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="is no table of drafts"):
        Drafts.load(tmp_path / "other.csv")


def test_a_standing_is_in_deviations_of_the_same_prompt() -> None:
    first = drafts([1.0, 3.0, 10.0, 30.0], prompts=("a", "b"))
    last = drafts([4.0, np.nan, 30.0, 40.0], prompts=("a", "b"))
    found = standing(1, last, first)
    assert found.gain.value == pytest.approx(np.mean([(4 - 2) / 1, (30 - 20) / 10, (40 - 20) / 10]))
    assert found.reward.value == pytest.approx(74 / 3) and found.finished == 0.5
    assert found.kl.value == pytest.approx(np.mean(np.arange(4) / 7 + 1 - np.arange(4) / 3))
    assert found.distinct == 1 and found.length == np.mean([len(p) for p in last.proteins])
    same = standing(
        1, Drafts(**{n: getattr(last, n) for n in Drafts.__slots__} | {"proteins": ("MKVLAAWWYHHC",) * 4}), first
    )
    assert same.distinct == 0.5


def test_what_each_method_learns_from_drafts() -> None:
    model, own = GLM(CONFIG, seed=1), drafts([3.0, 1.0, 2.0, 0.0, 5.0, 5.0, 5.0, 9.0], prompts=("<family=a>", "MK"))
    kept = lessons_from("rest", own, model, shaping=PLAIN, keep=0.25)
    assert all(isinstance(each, Kept) for each in kept) and len(kept) == 2
    read = own.answers(model)
    assert [bytes(each.answer.tokens) for each in kept] == [bytes(read[0].tokens), bytes(read[7].tokens)]
    pairs = lessons_from("dpo", own, model, shaping=PLAIN, keep=0.25)
    shaped = PLAIN.shaped(own.rewards, own.proteins, own.prompts)
    assert [(p.first.tokens.tobytes(), p.second.tokens.tobytes()) for p in pairs] == [
        (read[a].tokens.tobytes(), read[b].tokens.tobytes()) for a, b in ((0, 1), (2, 3), (7, 5))
    ]
    for pair, (a, b) in zip(pairs, ((0, 1), (2, 3), (7, 5)), strict=True):
        assert isinstance(pair, Pair)
        assert pair.chance == pytest.approx(1 / (1 + np.exp(shaped[b] - shaped[a])))
        assert pair.reference == pytest.approx((b - a) / 7)
    longest = lambda firsts, seconds: np.array([float(len(a) > len(b)) for a, b in zip(firsts, seconds, strict=True)])  # noqa: E731
    (pair, *_) = lessons_from("dno", own, model, shaping=PLAIN, keep=0.25, preference=longest)
    assert isinstance(pair, Pair) and len(pair.first.tokens) > len(pair.second.tokens) and pair.chance > 0.5


def test_steps_take_each_lesson_once_an_epoch_and_replay_beside() -> None:
    model, own = GLM(CONFIG, seed=1), drafts(np.arange(16.0))
    items = lessons_from("dpo", own, model, shaping=PLAIN, keep=0.5)
    subjects = [Subject(encode_residues(protein)) for protein in toy_sequences(5)]
    replay = Mix(
        subjects=subjects, replay=(), config=CONFIG, batch_size=3, replay_ratio=0.0, drop_ratio=0.0, seed=0
    )  # fmt: skip
    plan = Plan(items=items, num=4, replay=replay, seed=0)
    steps = [plan(step) for step in (0, 1)]
    assert sorted(items.index(each) for step in steps for each in step[:4]) == list(range(8))
    assert all(len(step) == 7 for step in steps) and [id(a) for a in plan(1)[:4]] == [id(a) for a in steps[1][:4]]
    assert lessons_module.METHODS == ("rest", "dpo", "dno")
