"""Rewards learned from pairs: against strengths that are known, scikit-learn's regression, and chance."""

import csv
import re
import shlex
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from heads import evaluation, modules, prediction, report
from heads.answers import Predictions
from heads.baselines import for_task, run
from heads.finetune import FinetuneOptions, finetune_on
from heads.head_directory import HeadFacts
from heads.leaks import find_leaks
from heads.metrics import evaluate
from heads.modules import HeadConfig
from heads.prediction import reward_of
from heads.predictor import Predictor
from heads.preferences import apart
from heads.rows import Dataset, Row, read
from heads.tasks import Columns, Task, custom_task
from tests.heads.generated import made_dataset, mix, share
from xtrimo import checkpoint
from xtrimo.__main__ import main
from xtrimo.errors import ConfigError, DataError
from xtrimo.fasta import Record, write_fasta
from xtrimo.model import GLM
from xtrimo.states import LiveStates
from xtrimo.testing import toy_config, toy_sequences

ROOT = Path(__file__).resolve().parents[2]
PAIRS = Columns(sequence="better", second="worse")


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def the_task(**changes: Any) -> Task:
    return custom_task("made", level="sequence", target="preference", columns=PAIRS, **changes)


def proteins(num: int, seed: int = 0) -> list[str]:
    """Whose shares of hydrophobic residues, their reward, lie far apart."""
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list("AILVDEKN"), size=rng.integers(12, 30), p=mix(rng))) for _ in range(num)]


def made_pairs(num: int = 64, *, seed: int = 0, shuffled: bool = False) -> Dataset:
    """`num` pairs to train on, half as many to validate and to test, no protein twice; labels are 1 or 0.

    Args:
        shuffled: let a coin say which is better.
    """
    rng, own = np.random.default_rng(seed), proteins(4 * num, seed)
    rows = []
    for first, second in zip(own[::2], own[1::2], strict=True):
        label = rng.integers(2) if shuffled else share(first) > share(second)
        rows.append(Row(sequence=first, second=second, label=float(label)))
    return Dataset(
        task=the_task(), train=tuple(rows[:num]), valid=tuple(rows[num : num * 3 // 2]),
        test=tuple(rows[num * 3 // 2 :]), classes=(),
    )  # fmt: skip


def options(folder: Path, **changes: Any) -> FinetuneOptions:
    facts: dict[str, Any] = dict(task="made", model=str(folder / "model"), out=folder / "run", learning_rate=3e-3,
                                 epochs=20.0, patience=0, baselines=False, leaks=False)  # fmt: skip
    return FinetuneOptions(**(facts | changes))


def trained(folder: Path, made: Dataset, **changes: Any) -> dict[str, Any]:
    """What a run in folder/run says, on the model in folder/model."""
    model = GLM(toy_config(), seed=0).eval()
    if not (folder / "model").exists():
        checkpoint.save(model, folder / "model")
    return finetune_on(made, model, options(folder, **changes))


# Learning


def test_known_strengths_are_found() -> None:
    """Of each pair how likely the first wins is told exactly: then differences of rewards are those of strengths."""
    items, strengths = proteins(6), np.array([-1.5, -0.6, -0.2, 0.3, 0.9, 1.4])
    rows = [
        Row(sequence=items[i], second=items[j], label=float(sigmoid(strengths[i] - strengths[j])))
        for i, j in combinations(range(6), 2)
    ]
    source = Kept(items)
    torch.manual_seed(0)
    predictor = Predictor(the_task(), source, HeadConfig(level="sequence", width=64, pooling="mean", dropout=0.0))
    optimizer = torch.optim.Adam((w for w in predictor.parameters() if w.requires_grad), lr=3e-3)
    for _ in range(400):
        optimizer.zero_grad()
        total, weight = predictor.loss(rows)
        (total / weight).backward()
        optimizer.step()
    expected = np.array([row.label for row in rows])
    np.testing.assert_allclose(predictor.predict(rows).prediction[:, 0], expected, atol=0.01)
    alone = Predictor(HEAD_OF_ONE, source, predictor.config, scale=modules.Scale())
    alone.load_state_dict(predictor.state_dict())
    rewards = alone.predict([Row(sequence=item, label=0.0) for item in items]).prediction
    np.testing.assert_allclose(rewards - rewards.mean(), strengths - strengths.mean(), atol=0.05)


class Kept(torch.nn.Module):
    """States of some proteins, read once."""

    def __init__(self, items: list[str]) -> None:
        super().__init__()
        with torch.no_grad():
            states, _ = LiveStates(GLM(toy_config(), seed=0).eval(), (-1,), pooled=True)(items)
        self.states = dict(zip(items, states, strict=True))

    def forward(self, sequences: Any) -> Any:
        return torch.stack([self.states[s] for s in sequences]), torch.ones(len(sequences), dtype=torch.long)

    def of_pairs(self, sequence: str) -> Any:
        raise NotImplementedError


HEAD_OF_ONE = custom_task("made", level="sequence", target="regression")


def test_the_loss_is_that_of_logistic_regression_on_differences() -> None:
    """A linear reward, fitted by this loss and by scikit-learn."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 200, 5))
    labels = (rng.random(200) < sigmoid((first - second) @ np.array([1.0, -2.0, 0.5, 0.0, 1.5]))).astype(np.float64)
    expected = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-10, max_iter=1000).fit(first - second, labels)
    reward = torch.nn.Parameter(torch.zeros(5, 1))
    a, b, wanted = (torch.from_numpy(x).float() for x in (first, second, labels))
    optimizer = torch.optim.LBFGS([reward], max_iter=200, tolerance_change=1e-12)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = 200 * modules.loss(the_task(), a @ reward - b @ reward, wanted) + 0.5 * (reward**2).sum()
        value.backward()
        return value

    optimizer.step(closure)
    np.testing.assert_allclose(reward.detach().numpy()[:, 0], expected.coef_[0], atol=2e-3)


def test_a_probe_learns_the_order_and_nothing_from_coins(tmp_path: Path) -> None:
    results = trained(tmp_path, made_pairs(128), epochs=12.0)
    assert results["metric"] == "order" and results["value"] > 0.85
    coins = trained(tmp_path, made_pairs(128, shuffled=True), out=tmp_path / "coins", epochs=12.0)
    assert coins["low"] < 0.5 < coins["high"] and coins["value"] < 0.7


def test_a_probe_is_as_good_as_regression_on_differences_of_states(tmp_path: Path) -> None:
    made = made_pairs(128)
    source = LiveStates(GLM(toy_config(), seed=0).eval(), (-1,), pooled=True)

    def differences(rows: tuple[Row, ...]) -> np.ndarray:
        with torch.no_grad():
            a, b = (source([getattr(row, name) for row in rows])[0].numpy() for name in ("sequence", "second"))
        return a - b

    train, test = (np.array([row.label for row in rows]) for rows in (made.train, made.test))
    linear = LogisticRegression(fit_intercept=False, max_iter=1000).fit(differences(made.train), train)
    ours = trained(tmp_path, made)["value"]
    assert ours > linear.score(differences(made.test), test) - 0.08


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_model_is_trained_with_it(tmp_path: Path, method: Any) -> None:
    changes = dict(method=method, epochs=6.0, learning_rate=4e-3 if method == "lora" else 2e-3, batch_size=8)
    assert trained(tmp_path, made_pairs(), **changes)["value"] > 0.8
    reward = reward_of(tmp_path / "run")
    low, high = reward(["DEKNDEKNDEKN", "AILVAILVAILV"])
    assert low < high


def test_a_protein_of_many_pairs_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    tokenize = GLM.tokenize

    def noted(self: GLM, sequence: str, **more: Any) -> Any:
        seen.append(sequence)
        return tokenize(self, sequence, **more)

    monkeypatch.setattr(GLM, "tokenize", noted)
    source = LiveStates(GLM(toy_config()).eval(), (-1,), pooled=True)
    predictor = Predictor(the_task(), source, HeadConfig(level="sequence", width=64)).eval()
    rows = [Row(sequence=a, second=b, label=1.0) for a, b in combinations(proteins(5), 2)]
    predictor(rows)
    assert sorted(seen) == sorted(proteins(5))


# Files


def table(path: Path, rows: list[tuple[Any, ...]], head: str = "better,worse") -> Path:
    path.write_text("\n".join([head, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def test_pairs_from_a_file(tmp_path: Path) -> None:
    rows = [("MKV", "AAA", 1, "train"), ("MKV", "CCC", 0.25, "test"), ("mkv", "MKV", 1, "train"),
            ("MKV", "", 1, "train"), ("DDD", "EEE", "", "train"), ("DDD", "EEE", 0.5, "valid")]  # fmt: skip
    made = read(table(tmp_path / "pairs.csv", rows, "better,worse,label,split"), the_task())
    assert [(row.sequence, row.second, row.label) for row in made.train] == [("MKV", "AAA", 1.0)]
    assert made.test[0].label == 0.25 and made.valid[0].label == 0.5 and made.classes == ()
    assert made.left_out == {"of a protein with itself": 1, "without a second sequence": 1, "without a label": 1}


def test_a_file_need_not_say_more_than_which_is_better(tmp_path: Path) -> None:
    own = toy_sequences(400, max_length=20)
    made = read(table(tmp_path / "pairs.csv", list(zip(own[::2], own[1::2], strict=True))), the_task())
    assert {row.label for rows in made.splits.values() for row in rows} == {1.0} and not made.left_out
    assert len(made.train) > 140 and len(made.valid) > 9 and len(made.test) > 9
    with pytest.raises(DataError, match=r"no label 'wins' among better, worse"):
        read(tmp_path / "pairs.csv", wins())


def wins() -> Task:
    columns = replace(PAIRS, label="wins")
    return custom_task("made", level="sequence", target="preference", columns=columns)


def test_a_label_is_a_probability(tmp_path: Path) -> None:
    path = table(tmp_path / "pairs.csv", [("MKV", "AAA", 7, "train")], "better,worse,label,split")
    with pytest.raises(DataError, match="line 2: label 7 is not how likely the first is better; expected 0 to 1"):
        read(path, the_task())


def ends(rows: tuple[Row, ...]) -> set[str]:
    return {protein for row in rows for protein in (row.sequence, row.second)}


@pytest.mark.parametrize("shape", ["chains", "all against all"])
@pytest.mark.parametrize("given", [False, True])
def test_no_protein_is_on_two_sides(tmp_path: Path, shape: str, given: bool) -> None:
    own = toy_sequences(90, max_length=40, min_length=20)
    chains = [pair for i in range(0, 90, 3) for pair in ((own[i], own[i + 1]), (own[i + 2], own[i + 1]))]
    pairs = chains if shape == "chains" else list(combinations(own, 2))
    rows = [(*pair, "train") for pair in pairs] if given else pairs
    made = read(table(tmp_path / "pairs.csv", rows, "better,worse,split" if given else "better,worse"), the_task())
    train, valid, test = map(ends, made.splits.values())
    assert not train & valid and not train & test and not valid & test
    assert train and valid and bool(test) != given
    kept = sum(map(len, made.splits.values()))
    lost = made.left_out.get("of proteins on two sides of the split", 0)
    assert kept + lost == len(pairs) and (lost == 0) == (shape == "chains")


def test_sides_are_of_chains_or_of_proteins() -> None:
    """c-d hangs together with d-e; 20 pairs of one hub are too large to stay together."""
    alone: list[tuple[str, str]] = [(f"x{i}", f"y{i}") for i in range(20)]
    chain = [("c", "d"), ("e", "d")]
    hub = [("h", f"z{i}") for i in range(20)]
    found = apart([*alone, *chain, *hub], lambda protein: protein)
    assert found[:20] == [f"x{i}" for i in range(20)] and found[20:22] == ["c", "c"] and found[22:] == [None] * 20
    assert apart([("a", "b")], lambda protein: protein) == ["a"] and apart([], str) == []


def test_leaks_are_looked_for_protein_by_protein() -> None:
    own = toy_sequences(8, min_length=60, max_length=80)
    rows = [Row(sequence=a, second=b, label=1.0) for a, b in zip(own[::2], own[1::2], strict=True)]
    turned = Row(sequence=own[1], second=own[7], label=1.0)  # worse in train, better here
    made = Dataset(task=the_task(), train=tuple(rows[:3]), valid=(), test=(turned,), classes=())
    (overlap,) = find_leaks(made).overlaps
    assert (overlap.num_proteins, overlap.num_copies) == (2, 1)


@pytest.mark.parametrize("changes", [dict(level="residue"), dict(level="two_sequences"), dict(columns=Columns())])
def test_a_preference_is_between_two_whole_proteins(changes: dict[str, Any]) -> None:
    facts: dict[str, Any] = dict(level="sequence", target="preference", columns=PAIRS)
    with pytest.raises(ConfigError, match="a preference is of level sequence, with a column for the second protein"):
        custom_task("made", **(facts | changes))


def test_the_floor_of_composition() -> None:
    made = made_pairs(200)
    assert for_task(made) == ["composition"]
    assert evaluate("order", run("composition", made).predictions).value > 0.9
    turned = replace(made, test=tuple(replace(r, sequence=r.second, second=r.sequence, label=1 - r.label)
                                      for r in made.test))  # fmt: skip
    one, other = (run("composition", which).predictions.prediction for which in (made, turned))
    np.testing.assert_allclose(one, 1 - other, atol=1e-6)
    first_wins = replace(made, train=tuple(better_first(row) for row in made.train))  # as files have it
    assert evaluate("order", run("composition", first_wins).predictions).value > 0.9
    chance = evaluate("order", run("composition", made_pairs(200, shuffled=True)).predictions)
    assert chance.low < 0.5 < chance.high


def better_first(row: Row) -> Row:
    return row if row.label == 1 else replace(row, sequence=row.second, second=row.sequence, label=1.0)


# A trained head


def test_predict_and_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = made_pairs()
    results = trained(tmp_path, made, epochs=3.0)
    records = [
        Record(f"{end}{i}", getattr(row, end)) for i, row in enumerate(made.test) for end in ("sequence", "second")
    ]
    write_fasta(tmp_path / "in.fasta", records)
    prediction.main([str(tmp_path / "in.fasta"), str(tmp_path / "out.csv"), "--head", str(tmp_path / "run")])
    head, *lines = csv.reader((tmp_path / "out.csv").open())
    rewards = np.array([float(line[1]) for line in lines])
    assert head == ["name", "prediction"]
    said = Predictions.load(tmp_path / "run/predictions.npz")
    np.testing.assert_allclose(sigmoid(rewards[::2] - rewards[1::2]), said.prediction[:, 0], atol=1e-4)
    np.testing.assert_allclose(reward_of(tmp_path / "run")([r.sequence for r in records]), rewards, atol=1e-4)
    rows = [(row.sequence, row.second, row.label) for row in made.test]
    table(tmp_path / "made.csv", rows, "better,worse,label")
    evaluation.main([str(tmp_path / "run"), "--data", str(tmp_path / "made.csv"), "--every"])
    told = capsys.readouterr().out
    assert f"* pairs in order               {results['value']:.3f}" in told
    assert "log loss (nats)" in told and "calibration error" in told


def test_any_head_is_a_reward(tmp_path: Path) -> None:
    for target, label in (("regression", None), ("classes", None), ("classes", "0")):
        folder = tmp_path / f"{target}-{label}"
        made = made_dataset("sequence", target)  # type: ignore[arg-type]
        trained(folder, made, epochs=1.0)
        said = Predictions.load(folder / "run/predictions.npz").prediction
        expected = said if said.ndim == 1 else said[:, 0 if label else 1]
        reward = reward_of(folder / "run", label)
        own = [row.sequence for row in made.test]
        found = reward([*own, ""])
        assert found.dtype == np.float64 and np.isnan(found[-1]) and reward([]).shape == (0,)
        np.testing.assert_allclose(found[:-1], expected, atol=1e-4)
    with pytest.raises(ConfigError, match="label '2' is none of this head's: 0, 1"):
        reward_of(tmp_path / "classes-0/run", "2")
    with pytest.raises(ConfigError, match="label '1' is none of this head's: it has none"):
        reward_of(tmp_path / "regression-None/run", "1")
    trained(tmp_path / "residue", made_dataset("residue"), epochs=1.0)
    with pytest.raises(ConfigError, match="level residue gives no number for each protein"):
        reward_of(tmp_path / "residue/run")


def test_a_head_of_pairs_keeps_its_task(tmp_path: Path) -> None:
    trained(tmp_path, made_pairs(), epochs=1.0)
    facts = HeadFacts.read(tmp_path / "run")
    assert facts.task.target == "preference" and facts.scale is None and facts.of_one().task.target == "regression"


def test_the_report_draws_calibration(tmp_path: Path) -> None:
    trained(tmp_path, made_pairs(), epochs=1.0, leaks=True, baselines=True)
    report.main([str(tmp_path / "run")])
    page = (tmp_path / "run/report/report.md").read_text()
    assert "pairs in order" in page and "composition" in page
    assert [path.name for path in (tmp_path / "run/report").glob("*calibration*.png")]
    assert not list((tmp_path / "run/report").glob("*confusion*"))


# The page

PAGE = (ROOT / "docs/align.md").read_text()
BLOCKS = re.findall(r"^```(\w*)(?: file=(\S+))?\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(GLM(toy_config(), seed=0), tmp_path / "models/first")
    samples = toy_sequences(140, min_length=20, max_length=40)
    write_fasta(tmp_path / "samples.fasta", [Record(f"s{i}", sample) for i, sample in enumerate(samples)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("generate.drafts.best_method", lambda: "3-mers and alignment")  # starts no processes
    for kind, file, code in BLOCKS:
        if file:
            (tmp_path / file).write_text(code)
        elif kind == "python":
            exec(compile(code, "docs/align.md", "exec"), {"__name__": "page"})
        else:
            for line in code.splitlines():
                program, *args = shlex.split(line)
                assert program == "xtrimo" and main(args) == 0, line
    values = {row["name"]: float(row["prediction"]) for row in csv.DictReader((tmp_path / "rewards.csv").open())}
    own = {"__name__": "rewards"}
    exec((tmp_path / "rewards.py").read_text(), own)
    reward: Any = own["reward"]
    np.testing.assert_allclose(reward(samples), list(values.values()), atol=1e-4)
