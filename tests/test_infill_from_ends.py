"""Filling from both ends, by a model that knows three proteins by heart, of which neither side alone tells the span."""

import numpy as np
import pytest
import torch

from examples import infill_from_ends as example
from generate.preferences import answer, log_likelihoods, measured
from generate.prompt import parse
from xtrimo.config import Direction
from xtrimo.errors import ConfigError
from xtrimo.model import GLM
from xtrimo.testing import toy_config, toy_sequences
from xtrimo.tokens import AMINO_ACIDS, FIRST_RESIDUE

LEFT, OTHER_LEFT, RIGHT, OTHER_RIGHT = toy_sequences(4, seed=1, min_length=8, max_length=8)
SPAN, AFTER_LEFT, BEFORE_RIGHT = toy_sequences(3, seed=2, min_length=20, max_length=20)
PROTEINS = LEFT + SPAN + RIGHT, LEFT + AFTER_LEFT + OTHER_RIGHT, OTHER_LEFT + BEFORE_RIGHT + RIGHT
TAG = parse("<family=toy>")


@pytest.fixture(scope="module")
def model() -> GLM:
    model = GLM(toy_config(num_layers=2, control_words=("<rev>", "<family=toy>")), seed=0)
    answers = [answer(model.config, TAG, one, reverse=reverse) for one in PROTEINS for reverse in (False, True)]
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        (-log_likelihoods(model, answers, 1.0).mean()).backward()
        optimizer.step()
    return model.eval()


def test_the_likelihood_of_the_whole_tells_what_no_side_does(model: GLM) -> None:
    prompt = parse(f"<family=toy>{LEFT}[20]{RIGHT}")
    sides = {end: set(example.drafted(model, prompt, end, 1.0, seed=0)) for end in example.ENDS}
    assert {LEFT + SPAN + RIGHT, LEFT + AFTER_LEFT + RIGHT} <= sides["forward"]
    assert {LEFT + SPAN + RIGHT, LEFT + BEFORE_RIGHT + RIGHT} <= sides["reverse"]
    assert example.by_ends(model, prompt, 1.0, seed=0) == PROTEINS[0]


def test_a_draft_with_slips_is_mended(model: GLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """What both sides agree on stands in the end, though no draft had it."""
    prompt = parse(f"<family=toy>{LEFT}[20]{RIGHT}")
    slipped = list(SPAN)
    for place in (4, 11, 12):
        slipped[place] = "W" if SPAN[place] != "W" else "A"
    draft = LEFT + "".join(slipped) + RIGHT
    monkeypatch.setattr(example, "drafted", lambda *_: iter([draft]))
    assert example.by_ends(model, prompt, 1.0, seed=0) == PROTEINS[0]
    monkeypatch.setattr(example, "READINGS", 0)
    assert example.by_ends(model, prompt, 1.0, seed=0) == draft


def test_a_third_expert_has_its_say(model: GLM) -> None:
    """One that holds all letters alike changes nothing; one that is sure prevails, with a draft that no end wrote."""
    prompt = parse(f"<family=toy>{LEFT}[20]{RIGHT}")
    alike = np.full((20, 20), -np.log(20))
    assert example.by_ends(model, prompt, 1.0, seed=0, held=alike) == PROTEINS[0]
    other = "WCWYHPDKLMNQRSTVAEFG"
    sure = np.full((20, 20), -100.0)
    sure[range(20), [AMINO_ACIDS.index(letter) for letter in other]] = 0
    assert example.by_ends(model, prompt, 1.0, seed=0, held=sure) == LEFT + other + RIGHT


def test_a_third_expert_mends(model: GLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """At one place the ends agree on a letter, and it holds another so surely that the likeliest protein has that."""
    prompt = parse(f"<family=toy>{LEFT}[20]{RIGHT}")
    monkeypatch.setattr(example, "drafted", lambda *_: iter([LEFT + "G" * 20 + RIGHT]))
    letter = "W" if SPAN[7] != "W" else "A"
    held = np.full((20, 20), -np.log(20))
    held[7] = -100.0
    held[7, AMINO_ACIDS.index(letter)] = 0
    expected = LEFT + SPAN[:7] + letter + SPAN[8:] + RIGHT
    assert example.by_ends(model, prompt, 1.0, seed=0, held=held)[8 + 7] == letter
    worth = example._worth(model, prompt, held, [expected, PROTEINS[0]])
    mended = example.by_ends(model, prompt, 1.0, seed=0, held=held)
    monkeypatch.setattr(example, "READINGS", 0)
    spelled = example.by_ends(model, prompt, 1.0, seed=0, held=held)
    assert spelled == LEFT + AMINO_ACIDS[0] * 7 + letter + AMINO_ACIDS[0] * 12 + RIGHT  # its own draft
    before, after = example._worth(model, prompt, held, [spelled, mended]).values()
    assert after > before + 1
    plain = example.log_likelihoods(model, TAG, [expected, PROTEINS[0]])
    assert worth[expected] - plain[0] == pytest.approx(example.MASKS_WEIGHT * 19 * -np.log(20))
    assert worth[PROTEINS[0]] - plain[1] == pytest.approx(example.MASKS_WEIGHT * (19 * -np.log(20) - 100))


@pytest.mark.parametrize("end", example.ENDS)
def test_letters_are_those_of_one_side(model: GLM, end: Direction) -> None:
    """Against a softmax over the protein cut off before each place: what lies beyond says nothing."""
    protein = LEFT + SPAN + RIGHT
    found = example.letters(model, parse(f"<family=toy>{LEFT}[20]{RIGHT}"), [protein, protein], end)
    assert found.shape == (2, 20, 20) and (found[0] == found[1]).all()
    for place in range(8, 28):
        seen = protein[:place] if end == "forward" else protein[place + 1 :]
        read = answer(model.config, TAG, seen, reverse=end == "reverse")
        logits = model(
            torch.from_numpy(read.tokens.astype(int)), torch.from_numpy(read.positions.astype(int)),
            torch.tensor([[0, len(read.tokens), read.prefix]]),
        )  # fmt: skip
        expected = torch.softmax(logits[-1, FIRST_RESIDUE : FIRST_RESIDUE + 20].double(), 0).log()
        assert found[0, place - 8].tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def test_both_directions_count_alike(model: GLM) -> None:
    own = toy_sequences(3, seed=3)
    ways = [measured(model, [answer(model.config, TAG, one, reverse=r) for one in own], 1.0) for r in (False, True)]
    assert example.log_likelihoods(model, TAG, own).tolist() == pytest.approx(((ways[0] + ways[1]) / 2).tolist())


def test_spans_at_an_end_of_the_protein(model: GLM) -> None:
    assert example.by_ends(model, parse(f"<family=toy>[20]{RIGHT}"), 1.0, seed=0)[20:] == RIGHT
    assert example.by_ends(model, parse(f"<family=toy>{LEFT}[20]"), 1.0, seed=0)[:8] == LEFT


def test_models_that_write_from_one_end() -> None:
    assert isinstance(example.writer(GLM(toy_config())), GLM)
    for config in (toy_config(objectives=("mlm", "smask")), toy_config(directions=("forward",))):
        with pytest.raises(ConfigError, match="both ends takes a model that was trained on gmask"):
            example.writer(GLM(config))
