"""Penalties on repeats against the same rules read off the text of the protein, one row and one letter at a time."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from generate.engine import CHOICES, END, History, Processor
from generate.penalties import complexity_penalty, repetition_penalty
from xtrimo.errors import ConfigError
from xtrimo.tokens import AMINO_ACIDS

# Few letters repeat much.
TEXTS = st.lists(st.text("LAG", max_size=24) | st.text(AMINO_ACIDS, max_size=50) | st.just("LAGL" * 15), min_size=1,
                 max_size=4)  # fmt: skip


def penalties(process: Processor, texts: list[str]) -> list[dict[str, float]]:
    """Nats taken off each choice, of each protein so far."""
    longest = max(map(len, texts))
    rows = [[AMINO_ACIDS.index(a) for a in text] + [END] * (longest - len(text)) for text in texts]
    history = History(
        torch.tensor(rows, dtype=torch.long).reshape(len(texts), longest), torch.tensor([*map(len, texts)])
    )
    logits = torch.randn(len(texts), len(CHOICES), dtype=torch.float64)
    before = logits.clone()
    off = logits - process(logits, history)
    assert torch.equal(logits, before)
    return [dict(zip(CHOICES, row, strict=True)) for row in off.tolist()]


def repeated_words(text: str, letter: str, size: int) -> int:
    word = (text + letter)[-size:]
    return sum(text[i:].startswith(word) for i in range(len(text))) if len(word) == size else 0


def residues_beyond(text: str, letter: str) -> int:
    grown = (text + letter)[-33:]
    worst = 0
    for period in range(1, 5):
        length = period
        while length < len(grown) and grown[-length - 1] == grown[-length - 1 + period]:
            length += 1
        if length > period:  # the new letter is that of a period before
            worst = max(worst, length - (2 * period + 1))
    return worst


@given(TEXTS, st.sampled_from([2, 3, 4]))
def test_repeated_words(texts: list[str], size: int) -> None:
    for text, off in zip(texts, penalties(repetition_penalty(1.5, size), texts), strict=True):
        assert off.pop("<end>") == 0
        assert off == pytest.approx({a: 1.5 * repeated_words(text, a, size) for a in AMINO_ACIDS}, abs=1e-9)


@given(TEXTS)
def test_low_complexity(texts: list[str]) -> None:
    for text, off in zip(texts, penalties(complexity_penalty(0.5), texts), strict=True):
        assert off.pop("<end>") == 0
        assert off == pytest.approx({a: 0.5 * residues_beyond(text, a) for a in AMINO_ACIDS}, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "letter", "beyond"),
    [("AA", "A", 0), ("AAA", "A", 1), ("KAAAA", "A", 2), ("GSGS", "G", 0), ("GSGSG", "S", 1), ("GSGSG", "G", 0),
     ("LAGLAG", "L", 0), ("LAGLAGL", "A", 1), ("MMMLMMMLM", "M", 1), ("MMMLMMMLMM", "M", 2)],
)  # fmt: skip
def test_what_is_free(text: str, letter: str, beyond: int) -> None:
    assert penalties(complexity_penalty(1.0), [text])[0][letter] == pytest.approx(beyond)


def test_forbidden_choices_stay_so() -> None:
    history = History(torch.zeros(1, 9, dtype=torch.long), torch.tensor([9]))
    logits = torch.full((1, len(CHOICES)), -torch.inf)
    for process in (repetition_penalty(1.0), complexity_penalty(1.0)):
        assert torch.equal(process(logits, history), logits)


def test_impossible_penalties() -> None:
    for value in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="repetition penalty"):
            repetition_penalty(value)
        with pytest.raises(ConfigError, match="complexity penalty"):
            complexity_penalty(value)
    with pytest.raises(ConfigError, match="at least 2"):
        repetition_penalty(1.0, 1)
