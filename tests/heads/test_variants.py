"""Scores of variants against one protein after another, each masked by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from heads.proteingym import Assay, Mutation, Variant
from heads.variants import _masked, score_variants, usual_method, windows
from xtrimo.errors import ConfigError
from xtrimo.model import GLM
from xtrimo.scoring import score
from xtrimo.testing import toy_config, toy_sequences
from xtrimo.tokens import AMINO_ACIDS, MASK, encode_residues

WILD = toy_sequences(1, min_length=40, max_length=40)[0]


def glm(**changes) -> GLM:
    torch.manual_seed(0)
    return GLM(toy_config(**changes)).eval()


def substituted(wild: str, *places: int, shift: int = 1) -> Variant:
    """The wild type with the residues at `places` (from 0) replaced by others."""
    letters, mutations = list(wild), []
    for place in places:
        new = AMINO_ACIDS[(AMINO_ACIDS.index(wild[place]) + shift) % 20]
        mutations.append(Mutation(wild[place], place + 1, new))
        letters[place] = new
    return Variant(sequence="".join(letters), score=0.0, mutations=tuple(mutations))


def assay(wild: str = WILD) -> Assay:
    groups = [(3,), (3,), (7, 30), (0,), (len(wild) - 1,), (1, 2, 3)]
    variants = [substituted(wild, *places, shift=i + 1) for i, places in enumerate(groups)]
    return Assay(name="a", variants=tuple(variants), wild_type=wild)


def by_hand(
    model: GLM, shown: str, start: int, variant: Variant, asked: set[int], masked: set[int] | None = None
) -> float:
    """Sum over `asked` of log p(mutant) - log p(wild type), the variant's positions masked in `shown`, or others."""
    example = model.tokenize(shown)
    tokens = torch.from_numpy(example.tokens.copy()).long()
    for place in {m.position - 1 for m in variant.mutations} if masked is None else masked:
        if 0 <= place - start < len(shown):
            tokens[place - start] = MASK  # an MLM row starts with the first residue
    segment = torch.tensor([[0, len(tokens), example.prefix]])
    with torch.inference_mode():
        logits = model(tokens, torch.from_numpy(example.positions).long(), segment)
    total = 0.0
    for m in variant.mutations:
        if m.position - 1 in asked:
            mutant, wild = (int(encode_residues(letter)[0]) for letter in (m.mutant, m.wild))
            own = logits[m.position - 1 - start]
            total += float(own[mutant] - own[wild])
    return total


def test_masked_marginals() -> None:
    model = glm()
    held = assay()
    expected = [by_hand(model, WILD, 0, v, {m.position - 1 for m in v.mutations}) for v in held.variants]
    got = score_variants(model, held, method="masked-marginals")
    np.testing.assert_allclose(got, expected, atol=2e-5)
    assert np.ptp(got) > 0.1


def test_marginals_of_the_official_script() -> None:
    """Each position masked alone, or none, and the parts of a variant added up."""
    model, held = glm(), assay()
    places = [[m.position - 1 for m in v.mutations] for v in held.variants]
    alone = [
        sum(by_hand(model, WILD, 0, v, {p}, {p}) for p in own) for v, own in zip(held.variants, places, strict=True)
    ]
    shown = [by_hand(model, WILD, 0, v, set(own), set()) for v, own in zip(held.variants, places, strict=True)]
    np.testing.assert_allclose(score_variants(model, held, method="masked-alone"), alone, atol=2e-5)
    np.testing.assert_allclose(score_variants(model, held, method="wild-type-marginals"), shown, atol=2e-5)
    assert not np.allclose(alone, shown, atol=1e-2)
    assert not np.allclose(alone, score_variants(model, held, method="masked-marginals"), atol=1e-3)


def test_a_pass_serves_all_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    monkeypatch.setattr("heads.variants._masked", lambda *args: counted.append(args[-1]) or _masked(*args))
    held = assay()
    for method, passes in (("masked-marginals", 5), ("masked-alone", 7), ("wild-type-marginals", 1)):
        counted.clear()
        score_variants(glm(), held, method=method)
        assert len(counted) == passes


def test_long_proteins_are_windowed() -> None:
    model = glm(max_length=22)  # 21 residues and <eos>
    held = assay()
    got = score_variants(model, held, method="masked-marginals")
    first, apart = held.variants[0], held.variants[2]
    assert got[0] == pytest.approx(by_hand(model, WILD[:21], 0, first, {3}), abs=2e-5)
    expected = by_hand(model, WILD[:21], 0, apart, {7}) + by_hand(model, WILD[19:], 19, apart, {30})
    assert got[2] == pytest.approx(expected, abs=2e-5)
    shown = score_variants(model, held, method="wild-type-marginals")
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
    held = assay()
    both = score(model, [WILD, *(v.sequence for v in held.variants)], method="likelihood", direction="both")
    expected = [both[0].total_nll - own.total_nll for own in both[1:]]
    assert usual_method(model, held) == "likelihood"
    np.testing.assert_allclose(score_variants(model, held), expected, atol=1e-4)
    forward = score_variants(model, held, direction="forward")
    assert not np.allclose(forward, expected, atol=1e-3)


def test_indels() -> None:
    held = Assay(name="a", variants=tuple(Variant(sequence=s, score=0.0) for s in (WILD + "GG", WILD[3:])))
    model = glm()
    totals = [-own.total_nll for own in score(model, [WILD + "GG", WILD[3:]], method="likelihood")]
    np.testing.assert_allclose(score_variants(model, held, direction="forward"), totals, atol=1e-4)
    with pytest.raises(ConfigError, match="no masked-marginals; use pseudo"):
        score_variants(model, held, method="masked-marginals")
    masked = glm(objectives=("mlm",))
    assert usual_method(masked, held) == "pseudo" and usual_method(masked, assay()) == "masked-marginals"
    expected = [-own.total_nll for own in score(masked, [WILD + "GG", WILD[3:]], method="pseudo")]
    np.testing.assert_allclose(score_variants(masked, held), expected, atol=1e-4)


def test_the_wild_type_scores_nothing() -> None:
    same = replace(assay(), variants=(Variant(sequence=WILD, score=0.0, mutations=()),))
    for method in ("likelihood", "masked-marginals", "masked-alone", "wild-type-marginals"):
        assert score_variants(glm(), same, method=method)[0] == pytest.approx(0, abs=1e-5)


def test_a_model_without_masks() -> None:
    with pytest.raises(ConfigError, match="never predicted a <mask>"):
        score_variants(glm(objectives=("gmask",)), assay(), method="masked-marginals")
