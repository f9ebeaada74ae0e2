"""Rewards of known proteins, and shaping against other ways to the same numbers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import zscore
from sklearn.linear_model import Ridge

from generate.membership import bit_scores, read_hmms
from generate.rewards import Shaping, asked, family_bits, naturalness, weighted
from tests.generate.families import members, write_family
from xtrimo.errors import ConfigError, DataError
from xtrimo.model import GLM
from xtrimo.scoring import score
from xtrimo.testing import toy_config, toy_sequences
from xtrimo.tokens import AMINO_ACIDS

PLAIN = Shaping(debias=False, clip=0)


def lengths(proteins: Sequence[str]) -> np.ndarray:
    return np.array([len(protein) for protein in proteins], dtype=float)


def leucines(proteins: Sequence[str]) -> np.ndarray:
    return np.array([protein.count("L") for protein in proteins], dtype=float)


def test_bits_are_the_best_of_the_family(tmp_path: Path) -> None:
    files = write_family(tmp_path)
    proteins = [*members(1, 2), *members(2, 2), *members(3, 2), "MKV"]
    table = bit_scores(read_hmms(files["hmm"]), proteins)
    found = family_bits(files["hmm"], "kinase")(proteins)
    np.testing.assert_array_equal(found, table[:, :2].max(axis=1))
    assert (found[:4] > 25).all() and (found[4:] < 10).all()
    with pytest.raises(DataError, match="no HMM is called globin_1"):
        family_bits(files["hmm"], "globin")


def test_naturalness_is_the_score() -> None:
    model, proteins = GLM(toy_config()).eval(), toy_sequences(5)
    np.testing.assert_allclose(naturalness(model)(proteins), [-each.nll for each in score(model, proteins)])


def test_sums_of_rewards() -> None:
    proteins = toy_sequences(6)
    both = weighted((lengths, 0.5), (leucines, -2.0))
    np.testing.assert_allclose(both(proteins), 0.5 * lengths(proteins) - 2 * leucines(proteins))
    with pytest.raises(ConfigError, match="give one reward at least"):
        weighted()
    with pytest.raises(ConfigError, match="finite weights"):
        weighted((lengths, np.inf))


def test_what_a_reward_says_is_checked() -> None:
    assert np.isnan(asked(lambda proteins: np.array([np.inf]), ["MK"])).all()
    with pytest.raises(DataError, match=r"shape \(2,\) for 1 proteins"):
        asked(lambda proteins: np.zeros(2), ["MK"])


def test_each_prompt_has_mean_0_and_deviation_1() -> None:
    rng = np.random.default_rng(0)
    values, prompts = rng.normal(size=30) * 7 + 3, [("a", "b", "c")[i % 3] for i in range(30)]
    found = PLAIN.shaped(values, toy_sequences(30), prompts)
    for name in "abc":
        mine = [i for i, prompt in enumerate(prompts) if prompt == name]
        np.testing.assert_allclose(found[mine], zscore(values[mine]))
    assert (PLAIN.shaped(np.full(4, 2.0), toy_sequences(4), "aabb") == 0).all()  # all alike: nothing to learn


def test_what_cannot_be_said_is_the_lowest_and_the_far_out_is_cut() -> None:
    values = np.array([1.0, np.nan, 2.0, 3.0, np.nan])
    np.testing.assert_allclose(PLAIN.shaped(values, ["MK"] * 5, "aaaab"), [*zscore([1.0, 1, 2, 3]), 0])
    far = np.append(np.zeros(50), 1000.0)
    found = Shaping(debias=False, clip=3).shaped(far, ["MK"] * 51, [0] * 51)
    assert found.max() == 3 and zscore(far).max() > 7


def test_length_and_composition_are_subtracted() -> None:
    """Against scikit-learn's ridge regression on columns standardised beforehand, one prompt."""
    proteins = toy_sequences(200, min_length=10)
    values = 5 * np.log(lengths(proteins)) + leucines(proteins) / lengths(proteins)
    values += np.random.default_rng(0).normal(size=200)
    columns = [np.log(lengths(proteins)), *([p.count(a) / len(p) for p in proteins] for a in AMINO_ACIDS)]
    x = zscore(np.stack(columns, axis=1))
    fitted = Ridge(alpha=4.0, fit_intercept=False).fit(x, zscore(values)).predict(x)
    found = Shaping(clip=0, ridge=4.0).shaped(values, proteins, ["p"] * 200)
    np.testing.assert_allclose(found, zscore(values) - fitted, atol=1e-6)
    raw = PLAIN.shaped(values, proteins, ["p"] * 200)
    assert np.corrcoef(raw, lengths(proteins))[0, 1] > 0.8 > 0.15 > abs(np.corrcoef(found, lengths(proteins))[0, 1])


def test_nothing_grows_out_of_a_prompt_without_differences() -> None:
    """What length says in one prompt makes no reward in another, where all are worth the same."""
    proteins = toy_sequences(80, min_length=10)
    values = np.append(5 * np.log(lengths(proteins[:40])), np.zeros(40))
    found = Shaping(clip=0).shaped(values, proteins, ["p"] * 40 + ["q"] * 40)
    alone = Shaping(clip=0).shaped(values[:40], proteins[:40], ["p"] * 40)
    assert (found[40:] == 0).all() and found[:40].std() < 0.2  # no deviation 1: what was length is gone
    np.testing.assert_allclose(found[:40], alone)


def test_what_differs_between_prompts_is_not_taken_for_length() -> None:
    """Long proteins of one prompt and short ones of another, each with rewards that length says nothing of."""
    rng = np.random.default_rng(0)
    short, long = toy_sequences(100, max_length=12), toy_sequences(100, seed=1, min_length=50)
    noise = rng.normal(size=200)
    found = Shaping(clip=0, ridge=50.0).shaped(
        noise + np.repeat([0, 100], 100), short + long, ["s"] * 100 + ["l"] * 100
    )
    apart = PLAIN.shaped(noise, short + long, ["s"] * 100 + ["l"] * 100)
    assert np.corrcoef(found, apart)[0, 1] > 0.9


def test_impossible_shaping_is_refused() -> None:
    with pytest.raises(ConfigError, match="2 values, 1 proteins and 2 prompts"):
        PLAIN.shaped(np.zeros(2), ["MK"], "ab")
    with pytest.raises(ConfigError, match="clip -1"):
        Shaping(clip=-1)
