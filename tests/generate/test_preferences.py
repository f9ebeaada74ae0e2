"""Losses at optima that are known in closed form."""

from collections.abc import Sequence
from itertools import combinations
from math import log

import numpy as np
import pytest
import torch
from torch import Tensor

from generate.answers import answer, measured
from generate.preferences import (
    Kept,
    Lesson,
    Loss,
    Pair,
    best_of,
    by_reward,
    check_prompt,
    kl_of_best,
    logistic,
    paired,
    preference_loss,
    win_rates,
)
from generate.prompt import parse
from xtrimo.config import GLMConfig
from xtrimo.errors import ConfigError, DataError
from xtrimo.model import GLM
from xtrimo.objectives import IGNORE, Example, Fragment, ObjectiveConfig, make_example
from xtrimo.testing import toy_config, toy_sequences
from xtrimo.tokens import AMINO_ACIDS, encode_residues
from xtrimo.training import fit
from xtrimo.training_config import TrainingConfig

TAGGED = toy_config(control_words=("<rev>", "<family=a>", "<family=b>"))
PRIOR = torch.from_numpy(np.random.default_rng(0).dirichlet(np.full(20, 3.0)))
WORTH = torch.from_numpy(np.random.default_rng(1).normal(size=20))


def test_prompts_that_leave_more_to_choose() -> None:
    for text in ("", "MK", "<family=a>", "<family=a>MK"):
        check_prompt(parse(text))
    for text in ("[5]", "[..]GG", "MK[2]W[..]", "[3..]", "MK[0]"):
        with pytest.raises(ConfigError, match="cannot be learned for"):
            check_prompt(parse(text))


def tilted(prior: Tensor, worth: Tensor, beta: float) -> Tensor:
    return prior.log().add(worth / beta).softmax(0)


def minimized(prior: Tensor, chances: Tensor, beta: float) -> Tensor:
    """The policy over single answers whose preference loss over all pairs is lowest."""
    own = prior.log().clone().requires_grad_()
    first, second = torch.tensor(list(combinations(range(len(prior)), 2))).T
    solver = torch.optim.LBFGS([own], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        ratios = own.log_softmax(0) - prior.log()
        value = preference_loss((ratios[first] - ratios[second]), chances[first, second], beta).sum()
        value.backward()
        return value

    solver.step(closure)
    return own.detach().softmax(0)


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_dpo_is_lowest_at_the_tilted_prior(beta: float) -> None:
    chances = torch.sigmoid(WORTH[:, None] - WORTH)
    torch.testing.assert_close(minimized(PRIOR, chances, beta), tilted(PRIOR, WORTH, beta), atol=1e-5, rtol=1e-4)


def test_a_round_of_dno_is_a_small_step_and_the_mean_is_nash() -> None:
    """Three answers that beat each other in a circle, by unlike margins: no reward explains it, and one mixture of them
    wins half against every answer."""
    beats = torch.tensor([[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]], dtype=torch.float64)
    nash = torch.linalg.solve(
        torch.cat((beats[:2] - beats[2], torch.ones(1, 3))), torch.tensor([0.0, 0, 1], dtype=torch.float64)
    )
    assert nash.min() > 0 and torch.allclose(beats @ nash, torch.full((3,), 0.5, dtype=torch.float64))
    policy, beta, total, rounds = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64), 30.0, torch.zeros(3), 6000
    start = policy
    for number in range(rounds):
        wins = beats @ policy
        expected = tilted(policy, wins, beta)
        if number % 2000 == 0:  # the loss's own optimum is this step
            found = minimized(policy, torch.sigmoid(wins[:, None] - wins), beta)
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
        policy = expected
        total = total + policy
    exploited, at_first = ((beats @ mixture).max() - 0.5 for mixture in (total / rounds, start))
    assert exploited < 0.01 < 0.05 < at_first  # what the best answer wins against it, above a half
    assert (total / rounds - nash).abs().max() < 0.03


def one_residue(config: GLMConfig, letter: str) -> Example:
    return answer(config, parse(""), letter, finished=False)


def chances_of(model: GLM) -> np.ndarray:
    return np.exp(measured(model, [one_residue(model.config, letter) for letter in AMINO_ACIDS], 1.0))


def taught(items: Sequence[Lesson], loss: Loss, folder: str, steps: int) -> np.ndarray:
    """Chances of the first residue, after learning from all items in every step."""
    model = GLM(toy_config(num_layers=2), seed=1)
    fit(model, loss, lambda step: items, TrainingConfig(steps=steps, learning_rate=3e-3, weight_decay=0), folder)
    return chances_of(model)


def test_a_model_learns_the_tilted_prior(tmp_path: str) -> None:
    """Of five residues; how much the others get, pairs of these do not say."""
    letters = AMINO_ACIDS[:5]
    prior = GLM(toy_config(num_layers=2), seed=1)
    answers = [one_residue(prior.config, letter) for letter in letters]
    logs, worth = measured(prior, answers, 1.0), WORTH[:5]
    items = [
        Pair(answers[a], answers[b], float(logs[a] - logs[b]), float(torch.sigmoid(worth[a] - worth[b])))
        for a, b in combinations(range(5), 2)
    ]
    found = taught(items, Loss(beta=0.7, temperature=1.0, leash=0.0), str(tmp_path), 60)[:5]
    before = torch.from_numpy(logs).softmax(0)
    expected = tilted(before, worth, 0.7)
    assert (before - expected).abs().max() > 0.1
    assert np.abs(found / found.sum() - expected.numpy()).max() < 0.005


def test_rest_learns_the_shares_of_what_is_kept(tmp_path: str) -> None:
    config = toy_config(num_layers=2)
    kept = [Kept(one_residue(config, letter), 1.0) for letter in "AAAWWY"]
    found = dict(zip(AMINO_ACIDS, taught(kept, Loss(beta=1, temperature=1, leash=0), str(tmp_path), 80), strict=True))
    assert [round(found[letter], 2) for letter in "AWYV"] == pytest.approx([0.5, 0.33, 0.17, 0.0], abs=0.011)


def test_the_parts_of_a_step_add_up() -> None:
    model = GLM(TAGGED, seed=1)
    a, b, c = (answer(TAGGED, parse("<family=a>"), protein) for protein in ("MKV", "MW", "CCCCC"))
    replayed = make_example(Fragment(encode_residues("MKVLAA")), "mlm", np.random.default_rng(0), ObjectiveConfig())
    logs = measured(model, [a, b, c], 0.8).tolist()
    d = 0.3 * (logs[0] - logs[1] - 1.5)
    with torch.no_grad():
        row = torch.tensor([[0, len(replayed.tokens), replayed.prefix]])
        logits = model(torch.tensor(replayed.tokens).int(), torch.tensor(replayed.positions), row).log_softmax(-1)
    labels = torch.tensor(replayed.labels).long()
    said = -logits[torch.arange(len(labels)), labels][labels != IGNORE].mean()
    expected = -0.9 * log(1 / (1 + np.exp(-d))) - 0.1 * log(1 / (1 + np.exp(d))) - logs[2] / 4 + 2 * float(said)
    total, weight = Loss(beta=0.3, temperature=0.8, leash=2.0)(model, [Pair(a, b, 1.5, 0.9), replayed, Kept(c, 4.0)])
    assert float(total.detach()) == pytest.approx(expected, rel=1e-5) and weight == 3


def test_win_rates_are_over_the_others() -> None:
    proteins = toy_sequences(6)
    table = np.random.default_rng(0).random((6, 6))

    def preference(firsts: Sequence[str], seconds: Sequence[str]) -> np.ndarray:
        return np.array([table[proteins.index(a), proteins.index(b)] for a, b in zip(firsts, seconds, strict=True)])

    expected = [
        sum(table[i, j] if i < j else 1 - table[j, i] for j in range(6) if j != i) / 5 for i in range(6)
    ]  # fmt: skip
    np.testing.assert_allclose(win_rates(preference, proteins), expected)
    values = dict(zip(proteins, np.arange(6.0), strict=True))
    assert (np.diff(win_rates(by_reward(values), proteins)) > 0).all()
    for wrong in (lambda a, b: np.zeros(3), lambda a, b: np.full(15, 1.2), lambda a, b: np.full(15, np.nan)):
        with pytest.raises(DataError, match="a preference gave"):
            win_rates(wrong, proteins)


def test_pairs_have_a_better_and_a_worse_one() -> None:
    assert paired(np.array([3.0, 1.0, 4.0, 0.0, 2.0])) == [(2, 4), (0, 1)]
    assert paired(np.ones(4)) == [] and paired(np.ones(1)) == []
    assert paired(np.array([1.0, 1.0, 1.0, 0.0])) == [(1, 3)]


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_best_of_n_is_the_mean_over_all_choices(n: int) -> None:
    values = np.random.default_rng(0).normal(size=7)
    assert best_of(values, n) == pytest.approx(np.mean([max(chosen) for chosen in combinations(values, n)]))
    other = np.random.default_rng(1).normal(size=7)
    chosen = [values[max(places, key=lambda place: other[place])] for places in combinations(range(7), n)]
    assert best_of(values, n, by=other) == pytest.approx(np.mean(chosen))
    with pytest.raises(ConfigError, match="best of 8 of 7"):
        best_of(values, 8)


def test_kl_of_best_of_n_by_counting() -> None:
    """Of N equally likely answers of unlike worth, the k-th from below is the best of n with (k/N)^n - ((k-1)/N)^n."""
    num, n = 200_000, 4
    shares = np.diff((np.arange(num + 1) / num) ** n)
    assert kl_of_best(n) == pytest.approx(float((shares * np.log(shares * num)).sum()), abs=1e-4)
    assert kl_of_best(1) == 0


def test_wrong_settings() -> None:
    for changes in ({"beta": 0}, {"temperature": 0}, {"leash": -1}):
        with pytest.raises(ConfigError, match="must be above 0"):
            Loss(**{"beta": 1.0, "temperature": 1.0, "leash": 0.0} | changes)
    np.testing.assert_allclose(logistic(np.array([-800.0, 0.0, 3.0])), [0, 0.5, 1 / (1 + np.exp(-3))])
