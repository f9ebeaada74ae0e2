"""Figures of preferences: against scikit-learn, turned round, and of pairs that share proteins."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from heads.answers import Predictions
from heads.calibration import calibration_bins, calibration_error
from heads.counted import Items
from heads.metrics import METRICS, applicable, difference, evaluate
from heads.preferences import verdicts
from xtrimo.intervals import drawn_counts


def said_of(truth: Any, probability: Any, **more: Any) -> Predictions:
    truth = np.asarray(truth, np.float64)
    column = np.asarray(probability, np.float64)[:, None]
    return Predictions(truth=truth, prediction=column, length=np.full(len(truth), 9), **more)


def example(num: int = 80, *, soft: bool = False) -> Predictions:
    """Beliefs that are worth something; labels of 1 and 0, or how likely each is."""
    rng = np.random.default_rng(0)
    belief = np.round(rng.uniform(0.02, 0.98, num), 2) + 0.003  # no tie, which the library counts as wrong
    return said_of(np.round(rng.random(num), 2) if soft else (rng.random(num) < belief).astype(float), belief)


REFERENCES: dict[str, Callable[[Any, Any], float]] = {
    "order": lambda t, p: sk.accuracy_score(t > 0.5, p > 0.5),
    "log_loss": lambda t, p: sk.log_loss(t > 0.5, p, labels=[False, True]),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_figures_are_the_library_s(name: str) -> None:
    """And each draw is the figure of the pairs drawn, written out."""
    said = example()
    truth, belief = said.truth, said.prediction[:, 0]
    estimate = evaluate(name, said)
    assert estimate.value == pytest.approx(REFERENCES[name](truth, belief))
    assert estimate.low < estimate.value < estimate.high
    counted = METRICS[name].counted(Items(truth, said.prediction, np.arange(80), 80))
    for counts, _ in zip(drawn_counts(80, seed=3), range(100), strict=False):
        drawn = np.repeat(np.arange(80), counts)
        assert counted(counts.astype(float)) == pytest.approx(REFERENCES[name](truth[drawn], belief[drawn]))


@pytest.mark.parametrize("name", ["order", "log_loss", "calibration"])
def test_a_figure_and_its_counted_form_agree(name: str) -> None:
    for said in (example(), example(soft=True)):
        items = Items(said.truth, said.prediction, np.arange(80), 80)
        assert METRICS[name].counted(items)(np.ones(80)) == pytest.approx(METRICS[name].value(items))
    with np.errstate(all="raise"):
        assert np.isfinite(evaluate("log_loss", said_of([1, 0], [0.0, 1.0])).value)


@pytest.mark.parametrize("name", ["order", "log_loss", "calibration"])
def test_a_pair_turned_round_is_the_same_pair(name: str) -> None:
    said, turn = example(soft=True), np.random.default_rng(1).random(80) < 0.5
    turned = said_of(np.where(turn, 1 - said.truth, said.truth), np.where(turn, 1 - said.prediction[:, 0],
                     said.prediction[:, 0]))  # fmt: skip
    assert evaluate(name, turned).value == pytest.approx(evaluate(name, said).value)


def test_calibration_is_that_of_the_library() -> None:
    rng = np.random.default_rng(0)
    belief = rng.random(1000)
    is_so = (rng.random(1000) < belief**2).astype(float)
    found, expected = calibration_curve(is_so, belief, n_bins=10, strategy="quantile")
    ours = calibration_bins(belief, is_so)
    np.testing.assert_allclose((ours[0], ours[1]), (expected, found), atol=1e-12)
    assert calibration_error(belief, is_so) == pytest.approx(np.abs(expected - found).mean())


def test_the_sure_and_wrong_are_not_calibrated() -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random(20_000) < 0.7).astype(float)
    assert evaluate("calibration", said_of(truth, np.full(20_000, 0.7))).value < 0.03
    assert evaluate("calibration", said_of(truth, np.full(20_000, 0.99))).value == pytest.approx(0.29, abs=0.02)
    soft = evaluate("calibration", said_of(np.full(50, 0.3), np.full(50, 0.3)))
    assert soft.value == pytest.approx(0)


def test_ties() -> None:
    """Of truth they do not count, of beliefs one half."""
    assert evaluate("order", said_of([0.5, 1, 0, 1], [0.9, 0.9, 0.5, 0.2])).value == pytest.approx((1 + 0.5 + 0) / 3)
    assert verdicts(np.array([0.8, 0.8]), np.array([[0.3], [0.6]])).is_so.tolist() == pytest.approx([0.2, 0.8])


def test_pairs_that_share_proteins_tell_less() -> None:
    """Of all pairs of 12 proteins, right or wrong by the first: as uncertain as a dozen proteins are."""
    numbers = np.array(list(combinations(range(12), 2)))
    belief = np.where(numbers[:, 0] % 3 < 2, 0.9, 0.1)
    truth = np.ones(len(numbers))
    shared, alone = said_of(truth, belief, pairs=numbers), said_of(truth, belief)
    wide, narrow = evaluate("order", shared), evaluate("order", alone)
    assert wide.value == narrow.value and wide.high - wide.low > 2 * (narrow.high - narrow.low)
    assert difference("order", shared, shared).high == 0


def test_predictions_keep_their_pairs(tmp_path: Path) -> None:
    said = replace(example(6), pairs=np.array(list(combinations(range(4), 2))))
    said.save(tmp_path / "predictions.npz")
    again = Predictions.load(tmp_path / "predictions.npz").take(np.array([5, 0]))
    assert again.pairs is not None and again.pairs.tolist() == [[2, 3], [0, 1]] and again.of == "preferences"
    assert applicable(again) == ["order", "log_loss", "calibration"]
