"""Metrics against scikit-learn and scipy, the counted forms against proteins written out as often as drawn."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from heads.answers import UNSCORED, Predictions
from heads.counted import Items
from heads.metrics import METRICS, applicable, contact_precision, difference, evaluate
from xtrimo.errors import ConfigError, DataError
from xtrimo.intervals import Estimate, drawn_counts


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum(1, keepdims=True)


def of_classes(num: int = 80, num_classes: int = 3, *, seed: int = 0, skill: float = 1.0) -> Predictions:
    """One label a protein, rightly held likely more often than not; scores with ties."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(num_classes, size=num)
    noise = np.random.default_rng(seed + 100).normal(size=(num, num_classes))
    scores = np.round(noise + skill * np.eye(num_classes)[truth], 1)
    return Predictions(truth=truth, prediction=softmax(scores), length=np.full(num, 50))


def of_values(num: int = 80, *, seed: int = 0, noise: float = 1.0) -> Predictions:
    rng = np.random.default_rng(seed)
    truth = np.round(rng.normal(size=num), 1)
    return Predictions(
        truth=truth, prediction=np.round(truth + noise * rng.normal(size=num), 1), length=np.full(num, 50)
    )


def of_residues(*, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    length = rng.integers(3, 30, 40)
    truth = rng.integers(UNSCORED, 3, length.sum())
    prediction = softmax(rng.normal(size=(length.sum(), 3)) + 1.5 * np.eye(4)[truth][:, :3])
    return Predictions(truth=truth, prediction=prediction, length=length)


def of_contacts(*, num: int = 12, seed: int = 0, skill: float = 2.0) -> Predictions:
    rng = np.random.default_rng(seed)
    length = rng.integers(20, 60, num)
    maps = []
    for n in length:
        upper = np.triu(rng.random((n, n)) < 0.1, 1)
        maps.append((upper | upper.T).astype(np.int8).ravel())
    truth = np.concatenate(maps)
    return Predictions(truth=truth, prediction=truth * skill + rng.normal(size=len(truth)), length=length)


def one_against_rest(figure: Callable[..., float], t: np.ndarray, p: np.ndarray) -> float:
    """Of two classes the second's; of more the mean over those there."""
    judged = [1] if p.shape[1] == 2 else [label for label in range(p.shape[1]) if (t == label).any()]
    return float(np.mean([figure(t == label, p[:, label]) for label in judged]))


REFERENCES = {
    "accuracy": lambda t, p: sk.accuracy_score(t, p.argmax(1)),
    "mcc": lambda t, p: sk.matthews_corrcoef(t, p.argmax(1)),
    "f1": lambda t, p: sk.f1_score(t, p.argmax(1), average="macro"),
    "auroc": lambda t, p: sk.roc_auc_score(t, p, multi_class="ovr"),
    "auprc": partial(one_against_rest, sk.average_precision_score),
    "spearman": lambda t, p: stats.spearmanr(t, p).statistic,
    "pearson": lambda t, p: stats.pearsonr(t, p).statistic,
    "rmse": lambda t, p: np.sqrt(((t - p) ** 2).mean()),
}


def example(name: str) -> Predictions:
    of = METRICS[name].of
    return {"classes": of_classes, "values": of_values}[of]()


@pytest.mark.parametrize("name", REFERENCES)
def test_the_figure_is_the_library_s(name: str) -> None:
    predictions = example(name)
    expected = REFERENCES[name](predictions.truth, predictions.prediction)
    estimate = evaluate(name, predictions)
    assert estimate.value == pytest.approx(expected)
    assert estimate.low < estimate.value < estimate.high


@pytest.mark.parametrize("name", REFERENCES)
def test_a_draw_is_the_figure_of_the_proteins_drawn(name: str) -> None:
    """Written out with copies and given to the library: what the counted form has to agree with."""
    predictions = example(name)
    draws = []
    for counts, _ in zip(drawn_counts(len(predictions.length), seed=3), range(200), strict=False):
        drawn = np.repeat(np.arange(len(counts)), counts)
        draws.append(REFERENCES[name](predictions.truth[drawn], predictions.prediction[drawn]))
    metric = METRICS[name]
    counted = metric.counted(Items(predictions.truth, predictions.prediction, np.arange(80), 80))
    ours = [counted(c.astype(float)) for c, _ in zip(drawn_counts(80, seed=3), range(200), strict=False)]
    np.testing.assert_allclose(ours, draws, atol=1e-9)


@pytest.mark.parametrize("name, figure", [("auroc", sk.roc_auc_score), ("auprc", sk.average_precision_score)])
def test_areas_of_two_classes_and_of_classes_that_are_missing(name: str, figure: Callable[..., float]) -> None:
    two = of_classes(num_classes=2)
    assert evaluate(name, two).value == pytest.approx(figure(two.truth, two.prediction[:, 1]))
    few = of_classes(num=40, num_classes=9)
    truth = np.where(few.truth == 4, 5, few.truth)  # no item of class 4
    missing = Predictions(truth=truth, prediction=few.prediction, length=few.length)
    estimate = evaluate(name, missing)
    assert estimate.value == pytest.approx(one_against_rest(figure, truth, few.prediction))
    counted = METRICS[name].counted(Items(truth, few.prediction, np.arange(40), 40))
    for counts, _ in zip(drawn_counts(40, seed=5), range(50), strict=False):  # some draw lacks a class
        drawn = np.repeat(np.arange(40), counts)
        expected = one_against_rest(figure, truth[drawn], few.prediction[drawn])
        assert counted(counts.astype(float)) == pytest.approx(expected)


def test_residues_without_a_label_do_not_count() -> None:
    predictions = of_residues()
    scored = predictions.truth != UNSCORED
    right = predictions.prediction.argmax(1) == predictions.truth
    assert evaluate("accuracy", predictions).value == pytest.approx(right[scored].mean())
    assert (~scored).sum() > 0


def test_the_interval_is_over_proteins_not_residues() -> None:
    """Proteins that are wholly right or wholly wrong: as wide as of one label each, not as of 50 times as many."""
    num, each = 40, 50
    right = np.arange(num) % 2
    truth = np.repeat(right, each)
    prediction = np.tile([0.0, 1.0], (num * each, 1))
    by_residue = evaluate(
        "accuracy", Predictions(truth=truth, prediction=prediction, length=np.full(num, each, dtype=np.int64))
    )
    alone = evaluate("accuracy", Predictions(truth=right, prediction=prediction[:num], length=np.full(num, each)))
    assert by_residue == alone
    assert alone.high - alone.low == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(num), rel=0.15)


def test_contact_precision_by_hand() -> None:
    """Length 10, |i-j| >= 6: ten pairs. L/5 takes the two most likely of those, L/2 five."""
    truth = np.zeros((10, 10), dtype=np.int8)
    score = np.zeros((10, 10))
    truth[0, 6] = truth[1, 9] = truth[3, 4] = 1
    score[3, 4], score[0, 6], score[2, 8], score[0, 9], score[1, 9], score[0, 7] = 9, 5, 4, 3, 2, 1
    predictions = Predictions(truth=truth.ravel(), prediction=score.ravel(), length=np.array([10]))
    assert contact_precision(predictions, 5, 6).tolist() == [1 / 2]  # (0, 6) yes, (2, 8) no; (3, 4) is too near
    assert contact_precision(predictions, 2, 6).tolist() == [2 / 5]
    assert contact_precision(predictions, 5, 7).tolist() == [1 / 2]  # (0, 9) no, (1, 9) yes
    assert contact_precision(predictions, 10, 6).tolist() == [1.0]
    assert contact_precision(predictions, 1, 8).tolist() == [1 / 3]  # only three pairs are that far apart
    assert np.isnan(contact_precision(predictions, 5, 10)).all()


def test_pairs_that_nobody_measured_are_not_taken() -> None:
    predictions = of_contacts()
    best = predictions.prediction.argmax()
    truth = np.where(predictions.prediction > 3, UNSCORED, predictions.truth)
    hidden = Predictions(truth=truth.astype(np.int8), prediction=predictions.prediction, length=predictions.length)
    lowered = np.where(truth == UNSCORED, -9.0, predictions.prediction)
    last = Predictions(truth=predictions.truth, prediction=lowered, length=predictions.length)
    assert truth[best] == UNSCORED
    np.testing.assert_array_equal(contact_precision(hidden, 5, 6), contact_precision(last, 5, 6))


def test_contacts_are_averaged_over_proteins_that_are_long_enough() -> None:
    predictions = of_contacts(seed=2)
    precision = contact_precision(predictions, 5, 24)
    assert np.isnan(precision).any()
    assert evaluate("precision@L/5", predictions).value == pytest.approx(np.nanmean(precision))
    assert evaluate("precision@L/5 sep6", predictions).value != evaluate("precision@L/5 sep7", predictions).value


def test_a_difference_is_paired() -> None:
    """Of two models that err on the same proteins the difference is known better than either figure."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=200)
    shared = truth + rng.normal(size=200)
    length = np.full(200, 9)
    better = Predictions(truth=truth, prediction=shared + 0.1 * rng.normal(size=200), length=length)
    worse = Predictions(truth=truth, prediction=shared + 0.5 * rng.normal(size=200), length=length)
    gain = difference("spearman", better, worse)
    assert gain.low > 0
    one, other = evaluate("spearman", better), evaluate("spearman", worse)
    assert gain.value == pytest.approx(one.value - other.value)
    assert one.low < other.high  # which the two intervals alone would leave open
    back = difference("spearman", worse, better)
    assert (back.value, back.low, back.high) == pytest.approx((-gain.value, -gain.high, -gain.low))
    assert difference("rmse", better, worse).low > 0  # smaller is better there
    assert difference("spearman", better, better) == Estimate(value=0.0, low=0.0, high=0.0)


def test_a_difference_needs_the_same_proteins() -> None:
    with pytest.raises(ConfigError, match="of the same proteins in the same order"):
        difference("accuracy", of_classes(seed=0), of_classes(seed=1))


def test_what_is_not_defined_is_nan_and_what_orders_nothing_is_zero() -> None:
    flat = Predictions(truth=np.arange(5.0), prediction=np.ones(5), length=np.ones(5, dtype=int))
    assert evaluate("spearman", flat) == evaluate("pearson", flat) == Estimate(value=0.0, low=0.0, high=0.0)
    one_class = Predictions(truth=np.ones(5, dtype=int), prediction=np.full((5, 2), 0.5), length=np.ones(5, dtype=int))
    assert np.isnan(evaluate("auroc", one_class).value)
    constant = Predictions(truth=np.ones(5), prediction=np.arange(5.0), length=np.ones(5, dtype=int))
    assert np.isnan(evaluate("spearman", constant).value)


def test_a_draw_of_one_class_alone_is_left_out() -> None:
    predictions = of_classes(num=4, num_classes=2, seed=3)
    assert len(set(predictions.truth)) == 2
    assert np.isfinite(evaluate("auroc", predictions).low)


def test_metrics_are_for_what_they_are_for() -> None:
    for num_classes in (2, 3):
        predictions = of_classes(num_classes=num_classes)
        assert applicable(predictions) == ["accuracy", "mcc", "f1", "auroc", "auprc"]
    assert applicable(of_values()) == ["spearman", "pearson", "rmse"]
    assert len(applicable(of_contacts())) == 13
    with pytest.raises(ConfigError, match="auroc is a metric of classes, the predictions are of values; try one"):
        evaluate("auroc", of_values())
    with pytest.raises(ConfigError, match="no metric 'auc'; known: accuracy, mcc"):
        evaluate("auc", of_values())


def test_items_must_fit_the_proteins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users, who meet our own check
    with pytest.raises(ConfigError, match="5 items of 2 proteins with 7 residues"):
        Predictions(truth=np.zeros(5), prediction=np.zeros(5), length=np.array([3, 4]))
    with pytest.raises(ConfigError, match="4 labels, 5 predictions"):
        Predictions(truth=np.zeros(4), prediction=np.zeros(5), length=np.array([3, 4]))


def test_some_proteins(tmp_path: Path) -> None:
    predictions = of_contacts()
    few = predictions.take(np.array([3, 0]))
    np.testing.assert_array_equal(contact_precision(few, 5, 6), contact_precision(predictions, 5, 6)[np.array([3, 0])])
    few.save(tmp_path / "predictions.npz")
    again = Predictions.load(tmp_path / "predictions.npz")
    np.testing.assert_array_equal(again.prediction, few.prediction)
    (tmp_path / "predictions.npz").write_bytes(b"")
    with pytest.raises(DataError, match="holds no predictions"):
        Predictions.load(tmp_path / "predictions.npz")
