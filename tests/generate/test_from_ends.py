"""Filling from both ends, by a model that knows three proteins by heart, of which neither side alone tells the span."""

from typing import get_args

import numpy as np
import pytest
import torch

from generate import designs, from_ends, infill, redesign, sample
from generate.answers import answer, measured
from generate.engine import Decoding
from generate.from_ends import ENDS, MASKS_WEIGHT, Frame, fill
from generate.preferences import log_likelihoods
from generate.prompt import parse
from generate.ways import FROM_ENDS, Way, choose_way
from xtrimo import score
from xtrimo.config import Direction
from xtrimo.errors import ConfigError
from xtrimo.model import GLM
from xtrimo.testing import toy_config, toy_sequences
from xtrimo.tokens import AMINO_ACIDS, FIRST_RESIDUE

LEFT, OTHER_LEFT, RIGHT, OTHER_RIGHT = toy_sequences(4, seed=1, min_length=8, max_length=8)
SPAN, AFTER_LEFT, BEFORE_RIGHT = toy_sequences(3, seed=2, min_length=20, max_length=20)
PROTEINS = LEFT + SPAN + RIGHT, LEFT + AFTER_LEFT + OTHER_RIGHT, OTHER_LEFT + BEFORE_RIGHT + RIGHT
TAG = parse("<family=toy>")
PROMPT = parse(f"<family=toy>{LEFT}[20]{RIGHT}")
FRAME = Frame.of(PROMPT)
DRAWING = Decoding()
ALIKE = np.full((20, 20), -np.log(20))


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


def other_than(letter: str) -> str:
    return "W" if letter != "W" else "A"


def test_the_likelihood_of_the_whole_tells_what_no_side_does(model: GLM) -> None:
    sides = {end: set(from_ends.drafted(model, FRAME, end, DRAWING, 0, 32)) for end in ENDS}
    assert {LEFT + SPAN + RIGHT, LEFT + AFTER_LEFT + RIGHT} <= sides["forward"]
    assert {LEFT + SPAN + RIGHT, LEFT + BEFORE_RIGHT + RIGHT} <= sides["reverse"]
    assert fill(model, PROMPT, DRAWING, number=0, slots=32, masks=False)[0] == PROTEINS[0]


def test_drafts_are_those_of_the_sampler(model: GLM) -> None:
    """Written towards the gap, without what is behind it; protein i of a prompt has drafts of its own."""
    for number in (0, 2):
        for end, prompt in (("forward", f"<family=toy>{LEFT}[20]"), ("reverse", f"<family=toy>[20]{RIGHT}")):
            own = sample(model, prompt=prompt, by=end, num=48, temperature=5.0, top_p=0.9, seed=3)[16 * number :][:16]
            likeliest = sample(model, prompt=prompt, by=end, temperature=0)
            expected = [one.sequence + RIGHT if end == "forward" else LEFT + one.sequence for one in likeliest + own]
            drawing = Decoding(temperature=5.0, top_p=0.9, seed=3)
            assert sorted(from_ends.drafted(model, FRAME, end, drawing, number, 5)) == sorted(expected)


def test_a_draft_with_slips_is_mended(model: GLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """What both sides agree on stands in the end, though no draft had it."""
    slipped = "".join(other_than(x) if place in (4, 11, 12) else x for place, x in enumerate(SPAN))
    draft = LEFT + slipped + RIGHT
    assert from_ends.chosen(model, FRAME, {draft}, None) == PROTEINS[0]
    monkeypatch.setattr(from_ends, "READINGS", 0)
    assert from_ends.chosen(model, FRAME, {draft}, None) == draft


def test_a_third_expert_has_its_say(model: GLM) -> None:
    """One that holds all letters alike changes nothing; one that is sure prevails, with what no draft has."""
    drafts = {LEFT + AFTER_LEFT + RIGHT, LEFT + BEFORE_RIGHT + RIGHT, PROTEINS[0]}
    assert from_ends.chosen(model, FRAME, drafts, ALIKE) == PROTEINS[0]
    other = "WCWYHPDKLMNQRSTVAEFG"
    sure = np.full((20, 20), -100.0)
    sure[range(20), [AMINO_ACIDS.index(letter) for letter in other]] = 0
    assert from_ends.chosen(model, FRAME, drafts, sure) == LEFT + other + RIGHT


def test_the_third_expert_is_mlm(model: GLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where it is asked for; the span that it spells is among the drafts."""
    held = np.full((20, 20), -0.2)
    held[range(20), [AMINO_ACIDS.index(letter) for letter in SPAN]] = -0.1
    monkeypatch.setattr(from_ends, "marginals", lambda of, prompts: [held for prompt in prompts if of is model])
    seen: list[tuple[set[str], object]] = []
    monkeypatch.setattr(from_ends, "chosen", lambda _, frame, drafts, own: seen.append((drafts, own)) or max(drafts))
    monkeypatch.setattr(from_ends, "drafted", lambda *_: iter([LEFT + "G" * 20 + RIGHT]))
    for masks in (False, True):
        fill(model, PROMPT, DRAWING, number=0, slots=32, masks=masks)
    draft = LEFT + "G" * 20 + RIGHT
    assert seen[0] == ({draft}, None) and seen[1][0] == {draft, PROTEINS[0]} and seen[1][1] is held


def test_a_third_expert_mends(model: GLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """At one place the ends agree on a letter, and it holds another so surely that the likeliest protein has that."""
    letter = other_than(SPAN[7])
    held = ALIKE.copy()
    held[7] = -100.0
    held[7, AMINO_ACIDS.index(letter)] = 0
    spelled = FRAME.filled(held)
    assert spelled == LEFT + AMINO_ACIDS[0] * 7 + letter + AMINO_ACIDS[0] * 12 + RIGHT
    drafts = {LEFT + "G" * 20 + RIGHT, spelled}
    mended = from_ends.chosen(model, FRAME, drafts, held)
    assert mended[8 + 7] == letter
    monkeypatch.setattr(from_ends, "READINGS", 0)
    assert from_ends.chosen(model, FRAME, drafts, held) == spelled
    before, after = from_ends._worth(model, FRAME, held, [spelled, mended]).values()
    assert after > before + 1
    expected = LEFT + SPAN[:7] + letter + SPAN[8:] + RIGHT
    worth = from_ends._worth(model, FRAME, held, [expected, PROTEINS[0]])
    plain = from_ends.log_likelihoods(model, TAG, [expected, PROTEINS[0]])
    assert worth[expected] - plain[0] == pytest.approx(MASKS_WEIGHT * 19 * -np.log(20))
    assert worth[PROTEINS[0]] - plain[1] == pytest.approx(MASKS_WEIGHT * (19 * -np.log(20) - 100))


@pytest.mark.parametrize("end", ENDS)
def test_letters_are_those_of_one_side(model: GLM, end: Direction) -> None:
    """Against a softmax over the protein cut off before each place: what lies beyond says nothing."""
    protein = LEFT + SPAN + RIGHT
    found = from_ends.letters(model, FRAME, [protein, protein], end)
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
    assert from_ends.log_likelihoods(model, TAG, own).tolist() == pytest.approx(((ways[0] + ways[1]) / 2).tolist())


def test_spans_at_an_end_of_the_protein_and_the_whole_of_it(model: GLM) -> None:
    for prompt, is_fit in (
        (f"<family=toy>[20]{RIGHT}", lambda x: x[20:] == RIGHT),
        (f"<family=toy>{LEFT}[20]", lambda x: x[:8] == LEFT),
        ("<family=toy>[36]", lambda x: x in PROTEINS),
    ):
        (own,) = infill(model, prompt, by="ends", temperature=1.0, top_p=1.0)
        assert is_fit(own.sequence) and len(own.sequence) in (28, 36)


def test_samples_tell_how_they_came(model: GLM) -> None:
    """Named, in order, the same whatever else is asked for, and with the nats that `score` finds."""
    texts = [f"{LEFT}[20]{RIGHT}", f"{LEFT}[18..22]{OTHER_RIGHT}"]
    both = infill(model, texts, by="ends", num=2, temperature=1.3, top_p=1.0, seed=1)
    assert [one.name for one in both] == ["p1_0001", "p1_0002", "p2_0001", "p2_0002"]
    assert {one.way for one in both} == {"ends"} and "way=ends" in both[0].record.description
    alone = infill(model, texts[0], by="ends", num=3, temperature=1.3, top_p=1.0, seed=1)
    assert [one.sequence for one in alone[:2]] == [one.sequence for one in both[:2]]
    found = [one.nll for one in score(model, [one.sequence for one in both], direction="both")]
    assert [one.nll for one in both] == pytest.approx(found, rel=1e-4)
    lengths = [len(one.sequence) - 16 for one in infill(model, texts[1], by="ends", num=5)]
    assert len(set(lengths)) > 1 and set(lengths) <= set(range(18, 23))


def test_drafts_of_a_prompt_do_not_hang_on_others(model: GLM, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers: list[tuple[int, bool]] = []
    monkeypatch.setattr(designs, "fill", lambda *_, number, slots, masks: numbers.append((number, masks)) or ("M", 0.0))
    infill(model, ["MK[5]GG", "MKV[6]G"], by="ends+mlm", num=2)
    infill(model, "MK[5]GG", by="ends")
    assert numbers == [(0, True), (1, True), (0, True), (1, True), (0, False)]


def test_only_letters_that_the_gap_allows(model: GLM) -> None:
    """In drafts, where they are mended, and of the third expert; and none that a limit forbids."""
    few = infill(model, f"<family=toy>{LEFT}[20:DEK]{RIGHT}", by="ends+mlm", num=2)
    assert all(set(one.sequence[8:28]) <= set("DEK") for one in few)
    forbidden = set(SPAN) - set(LEFT + RIGHT)
    limits = tuple(f"{letter}=0" for letter in forbidden)
    (own,) = redesign(model, [PROTEINS[0]], "9-28", by="ends", limit=limits)
    assert forbidden and not forbidden & set(own.sequence)
    (own,) = redesign(model, [PROTEINS[0]], "9-28", by="ends")
    assert forbidden & set(own.sequence)


def test_a_range_of_which_nothing_was_drawn(model: GLM) -> None:
    seed = next(seed for seed in range(9) if not drawn(seed))
    (own,) = infill(model, f"{LEFT}[0..1]{RIGHT}", by="ends", seed=seed)
    (expected,) = score(model, [LEFT + RIGHT], direction="both")
    assert own.sequence == LEFT + RIGHT and own.nll == pytest.approx(expected.nll, rel=1e-4)


def drawn(seed: int) -> int:
    """Residues that protein 0 of a seed gets in a gap of none or one."""
    (gap,) = parse("M[0..1]K").drawn(np.random.default_rng([seed, 0, 1])).gaps or (None,)
    return 0 if gap is None else gap.shortest


@pytest.mark.parametrize(
    ("prompt", "settings", "error"),
    [
        ("MK[5]GG[5]K", {}, "one gap is filled, and here are 2"),
        ("MK[5..]", {}, "the gap needs an upper end"),
        ("MK[5]GG", {"guidance": 2.0}, "guidance cannot be had by ends"),
        ("MK[5]GG", {"complexity_penalty": 1.0}, "complexity_penalty cannot be had by ends"),
        ("MK[5]GG", {"limit": ("C=1",)}, "limit C=1 cannot be held by ends"),
        ("MK[5]GG", {"logits": lambda logits, _: logits}, "by ends many places"),
        ("MK[5000]GG", {}, "is too long for this model"),
    ],
)
def test_what_cannot_be_asked_for(model: GLM, prompt: str, settings: dict, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        infill(model, prompt, by="ends", **settings)


def test_models_that_write_from_one_end() -> None:
    for config, error in (
        (toy_config(objectives=("causal",)), "not trained on gmask both from N to C and from C to N"),
        (toy_config(directions=("forward",)), "not trained on gmask both from N to C and from C to N"),
        (toy_config(objectives=("mlm", "smask")), "generation needs a model trained on gmask"),
    ):
        with pytest.raises(ConfigError, match=error):
            infill(GLM(config), "MK[5]GG", by="ends")
    with pytest.raises(ConfigError, match="it was not trained on mlm"):
        infill(GLM(toy_config(objectives=("gmask",))), "MK[5]GG", by="ends+mlm")


def test_nobody_gets_it_unasked(model: GLM) -> None:
    for prompt in ("MK[5]GG", "MK[5]", "[5]GG", "[5..]", "MK[5]G[..]"):
        assert choose_way(model, parse(prompt), get_args(Way)) not in FROM_ENDS
