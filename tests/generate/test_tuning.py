"""Tagged and replayed examples by step; losses against a plain sum."""

from collections import Counter

import numpy as np
import pytest
import torch

from generate.tuning import (
    MASKED_SPANS,
    SHARES,
    Mix,
    Subject,
    balanced,
    held_out,
    in_epochs,
    loss,
    mean_nats,
    room,
)
from xtrimo import mmseqs
from xtrimo.config import GLMConfig
from xtrimo.model import GLM
from xtrimo.objectives import IGNORE, OBJECTIVES, Example, Fragment, ObjectiveConfig, make_example
from xtrimo.testing import toy_config, toy_sequences
from xtrimo.tokens import MASK, REV, encode_residues

CONFIG = toy_config(control_words=("<rev>", "<family=a>", "<family=b>"))
FIRST_TAG = 37


def subjects(num: int, *tags: int, seed: int = 0) -> list[Subject]:
    proteins = toy_sequences(num, seed=seed, min_length=20)
    return [Subject(encode_residues(protein), np.array(tags, dtype=np.uint8)) for protein in proteins]


def mix(**changes) -> Mix:
    facts = dict(
        subjects=subjects(7, FIRST_TAG), replay=subjects(5, seed=1), config=CONFIG, batch_size=4, replay_ratio=0.25,
        drop_ratio=0.1, seed=0,
    )  # fmt: skip
    return Mix(**facts | changes)


def content(example: Example) -> tuple[bytes, bytes, bytes]:
    return example.tokens.tobytes(), example.positions.tobytes(), example.labels.tobytes()


def test_a_step_is_a_pure_function() -> None:
    once, again, other = mix(), mix(), mix(seed=1)
    assert [content(e) for e in once(5)] == [content(e) for e in again(5)]
    assert [content(e) for e in once(5)] != [content(e) for e in once(6)]
    assert [content(e) for e in once(5)] != [content(e) for e in other(5)]


def test_every_protein_comes_once_an_epoch() -> None:
    seen = Counter(place for step in range(14) for place in in_epochs([0, 0], 7, 3 * step, 3))
    assert seen == dict.fromkeys(range(7), 6)
    first, second = (in_epochs([0, 0], 7, start, 7) for start in (0, 7))
    assert sorted(first) == sorted(second) == list(range(7)) and first != second


@pytest.mark.parametrize("name", OBJECTIVES)
def test_shares_tags_and_replay(name: str) -> None:
    objectives = ("causal",) if name == "causal" else ("mlm", "gmask", "smask")
    config = toy_config(
        objectives=objectives, rotary="1d" if name == "causal" else "2d", control_words=CONFIG.control_words
    )
    drawn = mix(subjects=subjects(7, 37, 38), config=config, batch_size=40, drop_ratio=0.2)
    examples = [example for step in range(60) for example in drawn(step)]
    shares = SHARES["writing"]
    expected = shares[name] / sum(shares[each] for each in objectives)
    assert np.mean([e.objective == name for e in examples]) == pytest.approx(expected, abs=0.03)
    tags = Counter(tuple(t for t in e.tokens.tolist() if t > REV) for e in examples)
    untagged = 0.25 + 0.75 * (0.2 + 0.8 * 0.2**2)
    assert tags[()] / len(examples) == pytest.approx(untagged, abs=0.03)
    assert tags[37, 38] / len(examples) == pytest.approx(0.75 * 0.8 * 0.8**2, abs=0.03)
    assert tags[37,] / len(examples) == pytest.approx(0.75 * 0.8 * 0.8 * 0.2, abs=0.02)
    for example in examples:  # in front of all else, <rev> included
        found = np.flatnonzero(example.tokens > REV)
        assert found.tolist() == list(range(len(found)))


def test_clusters_come_up_evenly_or_by_their_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmseqs, "is_installed", lambda: False)
    many, (rare,) = subjects(1, FIRST_TAG) * 9, subjects(1, FIRST_TAG, seed=5)
    assert balanced([*many, rare], 0) is None
    assert balanced([*many, rare], 1) == pytest.approx([1 / 18] * 9 + [1 / 2])
    chances = balanced([*many, rare], 0.5)
    assert chances == pytest.approx([1 / 12] * 9 + [1 / 4])  # 9 to the power of 1/2, to 1
    drawn = mix(subjects=[*many, rare], chances=chances, replay=subjects(1, seed=7), batch_size=40, drop_ratio=0)
    lengths = [len(group) for group in (many[0].residues, rare.residues)]
    assert lengths[0] != lengths[1]
    first = drawn(3)
    assert [content(e) for e in first] == [content(e) for e in drawn(3)] != [content(e) for e in drawn(4)]
    tagged = [e for step in range(60) for e in drawn(step) if FIRST_TAG in e.tokens]
    assert len(tagged) == 60 * 30  # what is replayed is not touched
    masked = [e for e in tagged if e.objective == "mlm"]
    assert np.mean([len(e.tokens) == lengths[1] + 2 for e in masked]) == pytest.approx(1 / 4, abs=0.05)


def test_tagged_proteins_are_shown_with_substitutions_and_asked_as_they_are() -> None:
    plain, other = mix(batch_size=40, drop_ratio=0), mix(batch_size=40, drop_ratio=0, substitutions=0.5)
    for one, two in zip(plain(0), other(0), strict=True):
        assert (one.labels == two.labels).all()
        assert FIRST_TAG in one.tokens or content(one) == content(two)
    pairs = [pair for step in range(5) for pair in zip(plain(step), other(step), strict=True)]
    assert np.mean([(one.tokens != two.tokens).any() for one, two in pairs]) > 0.5


def test_filling_is_taught_by_masks_over_whole_spans() -> None:
    drawn = mix(subjects=subjects(7, FIRST_TAG), batch_size=40, purpose="filling")
    examples = [example for step in range(40) for example in drawn(step)]
    shares = Counter(example.objective for example in examples)
    assert {name: round(num / len(examples), 1) for name, num in shares.items()} == {
        "mlm": 0.6,
        "gmask": 0.3,
        "smask": 0.1,
    }
    masked = [example for example in examples if example.objective == "mlm"]
    runs = ["".join("#" if token == MASK else "." for token in example.tokens) for example in masked]
    assert np.mean(["####" in run for run in runs]) == pytest.approx(MASKED_SPANS["filling"], abs=0.15)
    (judged, plain) = (held_out(subjects(40), "mlm", CONFIG, 0, purpose) for purpose in ("filling", "writing"))
    masks = [sum(int((example.tokens == MASK).sum()) for example in each) for each in (judged, plain)]
    assert masks[0] > 1.5 * masks[1]


def test_one_tag_is_dropped_by_its_own_chance_alone() -> None:
    drawn = mix(replay=[], batch_size=40, drop_ratio=0.2)
    examples = [example for step in range(40) for example in drawn(step)]
    assert np.mean([FIRST_TAG in e.tokens for e in examples]) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("directions", [("forward",), ("reverse",), ("forward", "reverse")])
def test_directions_are_those_of_the_model(directions: tuple) -> None:
    config = toy_config(objectives=("gmask",), directions=directions)
    examples = held_out(subjects(60), "gmask", config, seed=0)
    share = np.mean([REV in e.tokens for e in examples])
    assert share == pytest.approx(directions.count("reverse") / len(directions), abs=0.2)


@pytest.mark.parametrize("config", [CONFIG, toy_config(rotary="1d", objectives=("causal",), max_length=64)])
def test_what_fits_the_room_fits_the_rows(config: GLMConfig) -> None:
    most = room(config, num_tags=3)
    fragment, longer = (Fragment(np.ones(num, dtype=np.uint8)) for num in (most, most + 1))
    rng = np.random.default_rng(0)
    sizes = [len(make_example(fragment, name, rng, ObjectiveConfig()).tokens) for name in config.objectives]
    assert max(sizes) + 3 <= config.max_length
    bounds = [int(OBJECTIVES[name].max_tokens(np.array(len(longer.residues)))) for name in config.objectives]
    assert max(bounds) + 3 > config.max_length


def nats_one_by_one(model: GLM, example: Example) -> np.ndarray:
    """Of each label, the example alone in its row."""
    segments = torch.tensor([[0, len(example.tokens), example.prefix]])
    tokens, positions = torch.tensor(example.tokens.astype(int)), torch.tensor(example.positions.astype(int))
    logits = model(tokens, positions, segments).detach().double().numpy()
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    asked = np.flatnonzero(example.labels != IGNORE)
    return -np.log(chances[asked, example.labels[asked]])


def test_losses_are_those_of_the_examples_one_by_one() -> None:
    model = GLM(CONFIG, seed=3).eval()
    examples = mix(batch_size=12)(0)
    nats = [nats_one_by_one(model, example) for example in examples]
    total, weight = loss(model, examples)
    assert weight == pytest.approx(sum(len(example.tokens) for example in examples))
    expected = sum(each.mean() * len(example.tokens) for each, example in zip(nats, examples, strict=True))
    assert total.item() == pytest.approx(expected, rel=1e-5)
    judged = mean_nats(model, examples)
    assert judged.value == pytest.approx(np.concatenate(nats).mean(), rel=1e-5)
    assert judged.low < judged.value < judged.high
