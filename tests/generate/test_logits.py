"""The law that is drawn from: each cut against its definition written out, and by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from generate.logits import distribution, draw


def logits_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities]).log()


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 1.0, [0.1, 0.4, 0.2, 0.3]),
        (1.0, 0.75, [0, 4 / 9, 2 / 9, 3 / 9]),
        (1.0, 0.65, [0, 4 / 7, 0, 3 / 7]),
        (1.0, 0.01, [0, 1, 0, 0]),
        (0.5, 1.0, [1 / 30, 16 / 30, 4 / 30, 9 / 30]),  # squares
        (0.5, 0.8, [0, 16 / 25, 0, 9 / 25]),  # the nucleus is of the tempered law
        (0.0, 0.8, [0, 1, 0, 0]),
    ],
)
def test_distribution(temperature: float, top_p: float, expected: list[float]) -> None:
    got = distribution(logits_of(0.1, 0.4, 0.2, 0.3), temperature, top_p)
    np.testing.assert_allclose(got[0], expected, atol=1e-7)


def test_nucleus_keeps_the_choice_that_reaches_top_p() -> None:
    got = distribution(torch.zeros(1, 4), 1.0, 0.5)  # equal ones: as many as are needed, the first of them
    np.testing.assert_allclose(got[0], [0.5, 0.5, 0, 0])


@pytest.mark.parametrize(("top_p", "others"), [(0.8, [0.5 / 0.85, 0.35 / 0.85, 0]), (0.01, [1, 0, 0])])
def test_a_choice_kept_out_of_the_nucleus_has_its_own_chance(top_p: float, others: list[float]) -> None:
    got = distribution(logits_of(0.05, 0.5, 0.35, 0.1), 1.0, top_p, keep=0)
    np.testing.assert_allclose(got[0], [0.05, *(0.95 * chance for chance in others)], atol=1e-6)


def cut(law: list[float], top_k: int, top_p: float, min_p: float) -> list[float]:
    """The definitions, choice by choice."""
    kept = sorted((i for i in range(len(law)) if law[i]), key=lambda i: -law[i])
    if top_k:
        kept = kept[:top_k]
    share, nucleus, reached = sum(law[i] for i in kept), [], 0.0
    for i in kept:
        if reached >= top_p * share:
            break
        nucleus.append(i)
        reached += law[i]
    kept = [i for i in nucleus if law[i] >= min_p * law[nucleus[0]]]
    return [law[i] / sum(law[j] for j in kept) if i in kept else 0.0 for i in range(len(law))]


@given(
    st.lists(st.integers(0, 1000), min_size=5, max_size=21, unique=True),
    st.sampled_from([0, 1, 2, 5, 30]),
    st.sampled_from([0.05, 0.37, 0.81, 1.0]),
    st.sampled_from([0.0, 0.1, 0.45]),
    st.booleans(),
)
def test_cuts_follow_their_definitions(
    weights: list[int], top_k: int, top_p: float, min_p: float, keeps_last: bool
) -> None:
    law = (np.array(weights) / sum(weights)).tolist()
    got = distribution(torch.tensor([law, law], dtype=torch.float64).log(), 1.0, top_p,
                       len(law) - 1 if keeps_last else None, top_k=top_k, min_p=min_p)  # fmt: skip
    if keeps_last:
        *others, last = law
        rest = sum(others)
        expected = [*(rest * chance for chance in cut([chance / rest for chance in others], top_k, top_p, min_p)), last]
    else:
        expected = cut(law, top_k, top_p, min_p)
    np.testing.assert_allclose(got[0], expected, atol=1e-12)
    assert torch.equal(got[0], got[1])


def test_forbidden_choices_stay_so() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 1.0], [-torch.inf, -torch.inf, 0.0]])
    for keep in (None, 2):
        got = distribution(logits, 0.7, 0.9, keep, top_k=2, min_p=0.01)
        assert got[0, 1] == 0 and got[1].tolist() == [0, 0, 1]
        np.testing.assert_allclose(got.sum(-1), 1)


def test_draw_follows_the_distribution() -> None:
    law = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0], dtype=torch.float64)
    uniform = torch.arange(1, 1001, dtype=torch.float64) / 1000
    counts = torch.bincount(draw(law.expand(1000, 6), uniform), minlength=6)
    assert counts.tolist() == [0, 250, 0, 500, 250, 0]
    ends = torch.tensor([2.0**-53, 1.0], dtype=torch.float64)
    assert draw(law.expand(2, 6), ends).tolist() == [1, 4]  # never a choice of probability 0
