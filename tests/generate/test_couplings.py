"""Two-site correlations without a covariance matrix, against the matrix."""

import numpy as np
import pytest

from generate.couplings import GAP, correlation, correlation_of_halves


def covariances(columns: np.ndarray) -> np.ndarray:
    """All C_ij(a, b), i != j, by the definition, a loop at a time."""
    num = columns.shape[1]
    found = []
    for i in range(num):
        for j in range(num):
            for a in range(GAP):
                for b in range(GAP):
                    if i != j:
                        is_a, is_b = columns[:, i] == a, columns[:, j] == b
                        found.append((is_a & is_b).mean() - is_a.mean() * is_b.mean())
    return np.array(found)


def coupled(seed: int, num: int, columns: int = 6) -> np.ndarray:
    """Columns of which the second follows the first; with gaps."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, 3, size=(num, columns)).astype(np.uint8)
    drawn[:, 1] = (drawn[:, 0] + (rng.random(num) < 0.2)) % 3
    drawn[rng.random(drawn.shape) < 0.1] = GAP
    return drawn


def test_pearson_is_that_of_the_covariances() -> None:
    one, other = coupled(0, 30), coupled(1, 20)
    expected = np.corrcoef(covariances(one), covariances(other))[0, 1]
    found = correlation(one, other)
    assert found.value == pytest.approx(expected, abs=1e-10)
    assert 0.2 < expected < 0.95 and found.low < expected < found.high


def test_a_set_agrees_with_itself_and_not_with_independent_columns() -> None:
    one = coupled(0, 200)
    assert correlation(one, one).value == pytest.approx(1)
    shuffled = np.stack([np.random.default_rng(i).permutation(column) for i, column in enumerate(one.T)], axis=1)
    assert abs(correlation(shuffled, coupled(1, 200)).value) < 0.15
    assert correlation(one, coupled(1, 200)).value > 0.7


def test_halves_are_compared_as_sets_are() -> None:
    columns = coupled(2, 40)
    rng = np.random.default_rng(5)
    expected = []
    for _ in range(200):
        half = rng.permutation(40) < 20
        expected.append(np.corrcoef(covariances_of(columns[half]), covariances_of(columns[~half]))[0, 1])
    found = correlation_of_halves(columns, seed=5)
    assert found.value == pytest.approx(np.mean(expected), abs=1e-10)
    np.testing.assert_allclose((found.low, found.high), np.percentile(expected, (2.5, 97.5)), atol=1e-10)


def covariances_of(columns: np.ndarray) -> np.ndarray:
    """As `covariances`, by a matrix."""
    x = (columns[:, :, None] == np.arange(GAP)).reshape(len(columns), -1).astype(float)
    full = (x.T @ x / len(x) - np.outer(x.mean(0), x.mean(0))).reshape(columns.shape[1], GAP, columns.shape[1], GAP)
    return np.concatenate([full[i, :, j].ravel() for i in range(len(full)) for j in range(len(full)) if i != j])


def test_the_matrix_is_the_definition() -> None:
    np.testing.assert_allclose(covariances_of(coupled(0, 9)), covariances(coupled(0, 9)), atol=1e-12)


@pytest.mark.parametrize("num", [0, 3])
def test_too_few_say_nothing(num: int) -> None:
    few = coupled(0, 30)[:num]
    assert np.isnan(correlation(few, coupled(1, 20)).value)
    assert np.isnan(correlation(coupled(1, 20), few).value)


def test_one_protein_over_and_over_has_no_covariance() -> None:
    same = np.repeat(coupled(0, 30)[:1], 10, axis=0)
    assert np.isnan(correlation(same, coupled(1, 20)).value)
    assert np.isnan(correlation_of_halves(same, seed=0).value)


def test_proteins_without_any_covariance_say_nothing() -> None:
    """No draw of them has one either."""
    same, poly = np.repeat(coupled(0, 1), 6, axis=0), np.full((6, 6), 9, dtype=np.uint8)
    for own in (same, poly):
        for one, other in ((own, coupled(1, 20)), (coupled(1, 20), own)):
            found = correlation(one, other)
            assert np.isnan([found.value, found.low, found.high]).all()
