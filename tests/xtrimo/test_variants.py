"""Scores of variants against one protein after another, each masked by hand."""

import numpy as np
import pytest
import torch

from xtrimo.errors import ConfigError, DataError
from xtrimo.model import GLM
from xtrimo.mutation import Mutation, mutated, read_mutations
from xtrimo.scoring import score
from xtrimo.testing import toy_config, toy_sequences
from xtrimo.tokens import AMINO_ACIDS, MASK, encode_residues
from xtrimo.variants import _masked, score_variants, usual_method, windows

WILD = toy_sequences(1, min_length=40, max_length=40)[0]


def glm(**changes) -> GLM:
    torch.manual_seed(0)
    return GLM(toy_config(**changes)).eval()


def substituted(wild: str, *places: int, shift: int = 1) -> tuple[Mutation, ...]:
    """The residues at `places` (from 0) replaced by others."""
    new = (AMINO_ACIDS[(AMINO_ACIDS.index(wild[place]) + shift) % 20] for place in places)
    return tuple(Mutation(wild[place], place + 1, letter) for place, letter in zip(places, new, strict=True))


def some(wild: str = WILD) -> list[tuple[Mutation, ...]]:
    groups = [(3,), (3,), (7, 30), (0,), (len(wild) - 1,), (1, 2, 3)]
    return [substituted(wild, *places, shift=i + 1) for i, places in enumerate(groups)]


def by_hand(
    model: GLM, shown: str, start: int, variant: tuple[Mutation, ...], asked: set[int], masked: set[int] | None = None
) -> float:
    """Sum over `asked` of log p(mutant) - log p(wild type), the variant's positions masked in `shown`, or others."""
    example = model.tokenize(shown)
    tokens = torch.from_numpy(example.tokens.copy()).long()
    for place in {m.position - 1 for m in variant} if masked is None else masked:
        if 0 <= place - start < len(shown):
            tokens[place - start] = MASK  # an MLM row starts with the first residue
    segment = torch.tensor([[0, len(tokens), example.prefix]])
    with torch.inference_mode():
        logits = model(tokens, torch.from_numpy(example.positions).long(), segment)
    total = 0.0
    for m in variant:
        if m.position - 1 in asked:
            mutant, wild = (int(encode_residues(letter)[0]) for letter in (m.mutant, m.wild))
            own = logits[m.position - 1 - start]
            total += float(own[mutant] - own[wild])
    return total


def test_masked_marginals() -> None:
    model = glm()
    held = some()
    expected = [by_hand(model, WILD, 0, v, {m.position - 1 for m in v}) for v in held]
    got = score_variants(model, WILD, held, method="masked-marginals")
    np.testing.assert_allclose(got, expected, atol=2e-5)
    assert np.ptp(got) > 0.1


def test_marginals_of_the_official_script() -> None:
    """Each position masked alone, or none, and the parts of a variant added up."""
    model, held = glm(), some()
    places = [[m.position - 1 for m in v] for v in held]
    alone = [sum(by_hand(model, WILD, 0, v, {p}, {p}) for p in own) for v, own in zip(held, places, strict=True)]
    shown = [by_hand(model, WILD, 0, v, set(own), set()) for v, own in zip(held, places, strict=True)]
    np.testing.assert_allclose(score_variants(model, WILD, held, method="masked-alone"), alone, atol=2e-5)
    np.testing.assert_allclose(score_variants(model, WILD, held, method="wild-type-marginals"), shown, atol=2e-5)
    assert not np.allclose(alone, shown, atol=1e-2)
    assert not np.allclose(alone, score_variants(model, WILD, held, method="masked-marginals"), atol=1e-3)


def test_a_pass_serves_all_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    monkeypatch.setattr("xtrimo.variants._masked", lambda *args: counted.append(args[-1]) or _masked(*args))
    held = some()
    for method, passes in (("masked-marginals", 5), ("masked-alone", 7), ("wild-type-marginals", 1)):
        counted.clear()
        score_variants(glm(), WILD, held, method=method)
        assert len(counted) == passes


def test_long_proteins_are_windowed() -> None:
    model = glm(max_length=22)  # 21 residues and <eos>
    held = some()
    got = score_variants(model, WILD, held, method="masked-marginals")
    first, apart = held[0], held[2]
    assert got[0] == pytest.approx(by_hand(model, WILD[:21], 0, first, {3}), abs=2e-5)
    expected = by_hand(model, WILD[:21], 0, apart, {7}) + by_hand(model, WILD[19:], 19, apart, {30})
    assert got[2] == pytest.approx(expected, abs=2e-5)
    shown = score_variants(model, WILD, held, method="wild-type-marginals")
    assert shown[0] == pytest.approx(by_hand(model, WILD[:21], 0, first, {3}, set()), abs=2e-5)


def test_windows_hold_what_is_asked() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        length, room = int(rng.integers(5, 60)), int(rng.integers(3, 30))
        places = tuple(sorted(rng.choice(length, min(3, length), replace=False).tolist()))
        found = windows(length, places, room)
        assert sorted(place for _, asked in found for place in asked) == list(places)
        for start, asked in found:
            assert 0 <= start <= max(0, length - room)
            assert all(start <= place < start + room for place in asked)


def test_likelihood_reads_both_ways_and_is_of_the_wild_type() -> None:
    model = glm(directions=("forward", "reverse"), control_words=("<rev>",))
    held = some()
    both = score(model, [WILD, *(mutated(WILD, v) for v in held)], method="likelihood", direction="both")
    expected = [both[0].total_nll - own.total_nll for own in both[1:]]
    assert usual_method(model, held) == "likelihood"
    np.testing.assert_allclose(score_variants(model, WILD, held), expected, atol=1e-4)
    forward = score_variants(model, WILD, held, direction="forward")
    assert not np.allclose(forward, expected, atol=1e-3)


def test_whole_proteins() -> None:
    held = [WILD + "GG", WILD[3:]]
    model = glm()
    totals = [-own.total_nll for own in score(model, held, method="likelihood")]
    np.testing.assert_allclose(score_variants(model, "", held, direction="forward"), totals, atol=1e-4)
    with pytest.raises(ConfigError, match="no masked-marginals; use likelihood or pseudo"):
        score_variants(model, "", held, method="masked-marginals")
    masked = glm(objectives=("mlm",))
    assert usual_method(masked, held) == "pseudo" and usual_method(masked, some()) == "masked-marginals"
    expected = [-own.total_nll for own in score(masked, held, method="pseudo")]
    np.testing.assert_allclose(score_variants(masked, "", held), expected, atol=1e-4)


def test_insertions_and_deletions() -> None:
    texts = [f"{WILD[4]}5del", f"{WILD[4]}5_{WILD[5]}6insGS", f"{WILD[0]}1delinsGG{WILD[0]}"]
    held = [read_mutations(text, WILD) for text in texts]
    proteins = [WILD[:4] + WILD[5:], WILD[:5] + "GS" + WILD[5:], "GG" + WILD]
    for model, method in ((glm(), "likelihood"), (glm(objectives=("mlm",)), "pseudo")):
        first, *rest = (-own.total_nll for own in score(model, [WILD, *proteins], method=method))
        got = score_variants(model, WILD, held, method=method, direction="forward" if method == "likelihood" else None)
        np.testing.assert_allclose(got, np.array(rest) - first, atol=1e-4)
    with pytest.raises(ConfigError, match="no wild-type-marginals"):
        score_variants(glm(), WILD, held, method="wild-type-marginals")


def test_likelihoods_of_long_proteins_are_of_windows() -> None:
    """20 residues and four words; a change near the start, one near the end, both, and one longer than a window."""
    model = glm(max_length=24, directions=("forward", "reverse"), control_words=("<rev>",))
    texts = [
        f"{WILD[2]}3G",
        f"{WILD[36]}37_{WILD[37]}38insGG",
        f"{WILD[2]}3G:{WILD[36]}37del",
        f"{WILD[3]}4_{WILD[30]}31del",
    ]

    def gained(before: str, after: str) -> float:
        first, second = score(model, [before, after], method="likelihood", direction="both")
        return first.total_nll - second.total_nll

    got = score_variants(model, WILD, [read_mutations(text, WILD) for text in texts], method="likelihood")
    near = gained(WILD[:20], WILD[:2] + "G" + WILD[3:20])
    assert got[0] == pytest.approx(near, abs=2e-5)
    tail = WILD[22:]  # the two that come in make the window shorter
    assert got[1] == pytest.approx(gained(tail, tail[:15] + "GG" + tail[15:]), abs=2e-5)
    tail = WILD[20:]
    assert got[2] == pytest.approx(near + gained(tail, tail[:16] + tail[17:]), abs=2e-5)
    assert got[3] == pytest.approx(gained(WILD, WILD[:3] + WILD[31:]), abs=2e-5)


def test_mutations_that_do_not_fit_are_found() -> None:
    wrong = [(Mutation("W" if WILD[3] != "W" else "A", 4, "G"),)]
    for method in ("likelihood", "masked-marginals"):
        with pytest.raises(DataError, match="p, variant 1: expected . at position 4 of 40 residues"):
            score_variants(glm(), WILD, wrong, method=method, name="p")
    with pytest.raises(ConfigError, match="got direction forward for masked-alone"):
        score_variants(glm(), WILD, some(), method="masked-alone", direction="forward")


def test_the_wild_type_scores_nothing() -> None:
    for method in ("likelihood", "masked-marginals", "masked-alone", "wild-type-marginals"):
        assert score_variants(glm(), WILD, [()], method=method)[0] == pytest.approx(0, abs=1e-5)


def test_a_model_without_masks() -> None:
    with pytest.raises(ConfigError, match="never predicted a <mask>"):
        score_variants(glm(objectives=("gmask",)), WILD, some(), method="masked-marginals")
