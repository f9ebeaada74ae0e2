"""Contacts from attention, against formulas written out and a model whose one head looks at contacts."""

from typing import Any

import numpy as np
import pytest
import torch

from heads import contacts
from heads.answers import Predictions
from heads.contacts import ContactRegression, corrected_attentions, fit, predict, regress
from heads.metrics import evaluate, figure
from heads.rows import Dataset, Row
from tests.heads.generated import made_task
from xtrimo.errors import DataError
from xtrimo.model import GLM
from xtrimo.pair_maps import correct_maps
from xtrimo.testing import toy_config, toy_sequences


def test_maps_are_corrected() -> None:
    maps = torch.rand(3, 7, 7).softmax(-1)
    maps[2] = 0
    for raw, ours in zip(maps, correct_maps(maps), strict=True):
        both = (raw + raw.T).numpy()
        expected = both - np.outer(both.sum(1), both.sum(0)) / max(both.sum(), 1e-30)
        np.testing.assert_allclose(ours.numpy(), expected, atol=1e-6)
        np.testing.assert_allclose(ours.sum(0), np.zeros(7), atol=1e-5)  # what rows and columns share is gone


def rows(num: int, *, seed: int) -> list[Row]:
    rng = np.random.default_rng(seed)
    found = []
    for sequence in toy_sequences(num, seed=seed, min_length=40, max_length=50):
        upper = np.triu(rng.random((len(sequence),) * 2) < 0.06, 1)
        label = (upper | upper.T).astype(np.int8)
        label[:2] = label[:, :2] = -1
        found.append(Row(sequence=sequence, label=label))
    return found


@pytest.fixture
def one_telling_map(monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """12 rows, and attention of 2 layers x 3 heads: noise, but for one head that looks at contacts more."""
    proteins = {row.sequence: row for row in rows(12, seed=0)}

    def attentions(model: object, sequence: str) -> np.ndarray:
        rng = np.random.default_rng(len(sequence))
        scores = rng.normal(size=(2, 3, len(sequence), len(sequence)))
        scores[1, 0] += 3 * (proteins[sequence].label == 1)
        return torch.from_numpy(scores).softmax(-1).float().numpy()

    monkeypatch.setattr(contacts, "attentions", attentions)
    return list(proteins.values())


def test_the_head_that_looks_at_contacts_is_found(one_telling_map: list[Row]) -> None:
    model = GLM(toy_config())
    regression = fit(model, one_telling_map[:6])
    assert regression.weights.argmax() == 3  # layer 1, head 0
    others = np.delete(regression.weights, 3)
    assert np.abs(others).max() < 0.2 * regression.weights[3]
    predictions = predict(regression, model, one_telling_map[6:])
    estimate = evaluate("precision@L/5 sep6", predictions)
    assert estimate.low > 0.5
    shuffled = Predictions(
        truth=predictions.truth,
        prediction=np.random.default_rng(0).permutation(predictions.prediction),
        length=predictions.length,
    )
    assert evaluate("precision@L/5 sep6", shuffled).high < 0.3


def test_a_penalty_leaves_maps_out(one_telling_map: list[Row]) -> None:
    model = GLM(toy_config())
    strong = fit(model, one_telling_map[:6], penalty=5.0)
    assert (strong.weights != 0).sum() < (fit(model, one_telling_map[:6], penalty=0.01).weights != 0).sum()


def dataset_of(train: list[Row], valid: list[Row], test: list[Row]) -> Dataset:
    return Dataset(
        task=made_task("pair"), train=tuple(train), valid=tuple(valid), test=tuple(test), classes=("0", "1")
    )  # fmt: skip


def test_the_penalty_is_the_one_valid_likes_best(one_telling_map: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    """Valid alone is asked, and of what each penalty says; the test proteins are told by the one chosen."""
    monkeypatch.setattr(contacts, "NUM_PROTEINS", 4)
    dataset = dataset_of(one_telling_map[:6], one_telling_map[6:9], one_telling_map[9:])
    model, asked = GLM(toy_config()), []

    def likes(number: int) -> Any:
        def judged(said: Predictions) -> float:
            asked.append(said)
            return float(len(asked) % len(contacts.PENALTIES) == number)

        return judged

    for number, penalty in enumerate(contacts.PENALTIES, start=1):
        predictions, note = regress(model, dataset, likes(number % len(contacts.PENALTIES)))
        assert f"penalty {penalty:g}, chosen on 3 proteins" in note and "fitted on 4 proteins" in note
        expected = predict(fit(model, dataset.train, num_proteins=4, penalty=penalty), model, dataset.test)
        np.testing.assert_array_equal(predictions.prediction, expected.prediction)
    assert all(said.length.tolist() == [len(row.sequence) for row in dataset.valid] for said in asked)
    assert len({said.prediction.tobytes() for said in asked}) == len(contacts.PENALTIES)


def test_the_published_penalty_without_valid(one_telling_map: list[Row]) -> None:
    dataset = dataset_of(one_telling_map[:6], [], one_telling_map[6:])
    predictions, note = regress(GLM(toy_config()), dataset, lambda said: pytest.fail("there is nothing to judge"))
    assert "penalty 0.15, chosen on 0 proteins, " in note
    assert figure("precision@L/5 sep6", predictions) > 0.5


def test_probabilities_are_the_logistic_function(one_telling_map: list[Row]) -> None:
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(4, 5, 5)).astype(np.float32)
    regression = ContactRegression(weights=np.array([1.0, 0.0, -2.0, 0.5]), bias=-0.3)
    logits = sum(w * m for w, m in zip(regression.weights, maps, strict=True)) - 0.3
    np.testing.assert_allclose(regression.probabilities(maps), 1 / (1 + np.exp(-logits)), rtol=1e-5)
    with pytest.raises(DataError, match="5 attention maps; the regression was fitted on 4"):
        regression.probabilities(rng.normal(size=(5, 5, 5)).astype(np.float32))


def test_it_reads_a_model() -> None:
    torch.manual_seed(0)
    model = GLM(toy_config()).eval()
    found = rows(3, seed=1)
    maps = corrected_attentions(model, found[0].sequence)
    assert maps.shape == (16, len(found[0].sequence), len(found[0].sequence))
    np.testing.assert_allclose(maps, maps.transpose(0, 2, 1), atol=1e-6)
    predictions = predict(fit(model, found, num_proteins=2), model, found)
    assert predictions.of == "contacts" and len(predictions.length) == 3
    assert (predictions.truth == -1).any()


def test_what_cannot_be_fitted() -> None:
    model = GLM(toy_config()).eval()
    none = [Row(sequence="ACDEFGHIKLMN", label=np.zeros((12, 12), dtype=np.int8))]
    with pytest.raises(DataError, match="0 of 21 pairs 6 or more apart are contacts"):
        fit(model, none)
    with pytest.raises(DataError, match="is no contact map"):
        fit(model, [Row(sequence="ACDEFGHIKLMN", label=3, name="p")])
    with pytest.raises(DataError, match="no protein to predict"):
        predict(ContactRegression(weights=np.zeros(16), bias=0.0), model, [])
