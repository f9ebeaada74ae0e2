"""Attention maps for a pair head: those of `backbone.attentions`, of the asked layers, laid out by pairs."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from xtrimo.backbone import attentions
from xtrimo.model import GLM
from xtrimo.pair_maps import correct_maps, num_pairs, pair_rows
from xtrimo.states import LiveStates, num_maps
from xtrimo.testing import toy_config, toy_sequences

PROTEIN = toy_sequences(1, min_length=30, max_length=30)[0]


def model(**changes: Any) -> GLM:
    return GLM(toy_config(**changes), seed=3).eval()


def by_hand(maps: Tensor) -> Tensor:
    """Pair by pair."""
    corrected = correct_maps(maps)
    rows = []
    for i in range(maps.shape[1]):
        for j in range(i, maps.shape[1]):
            rows.append([float(one[i, j] / one.std()) for one in corrected])
    return torch.tensor(rows)


def test_a_row_a_pair() -> None:
    maps = torch.rand(3, 6, 6).softmax(-1)
    torch.testing.assert_close(pair_rows(maps), by_hand(maps))
    assert pair_rows(maps).shape == (num_pairs(6), 3) == (21, 3)
    maps[1] = 0  # a map of nothing says nothing
    assert not pair_rows(maps)[:, 1].any() and pair_rows(maps).isfinite().all()


@pytest.mark.parametrize("objectives", [("mlm", "gmask"), ("causal",)])
@pytest.mark.parametrize("layers, blocks", [((-1,), [3]), ((0, 2, -1), [1, 3]), ((4, -1), [3]), ((3, 1), [2, 0])])
def test_maps_of_the_asked_layers(objectives: tuple[str, ...], layers: tuple[int, ...], blocks: list[int]) -> None:
    """Layer i is block i - 1; the embedding has none. The states beside them are as without maps."""
    read = model(objectives=objectives)
    expected = attentions(read, PROTEIN)[blocks].reshape(-1, 30, 30)
    with torch.no_grad():
        states, maps = LiveStates(read, layers, False, maps=True).of_pairs(PROTEIN)
        alone, none = LiveStates(read, layers, False).of_pairs(PROTEIN)
        packed, _ = LiveStates(read, layers, False)([PROTEIN])
    torch.testing.assert_close(maps, pair_rows(torch.from_numpy(expected)), atol=1e-3, rtol=1e-3)
    assert none is None and torch.equal(states, alone)
    torch.testing.assert_close(states, packed)
    assert num_maps(read, layers, PROTEIN) == 4 * len(blocks)


def test_the_embedding_has_no_maps() -> None:
    assert num_maps(model(), (0,), PROTEIN) == 0


def test_a_model_that_shows_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that mixes by itself, and asks nobody."""
    hidden = GLM.hidden

    def secret(self: GLM, tokens: Tensor, positions: Tensor, attend: Any, **more: Any) -> Any:
        return hidden(self, tokens, positions, lambda layer, q, k, v: v, **more)

    monkeypatch.setattr(GLM, "hidden", secret)
    assert num_maps(model(), (1, -1), PROTEIN) == 0


def test_gradients_go_through_the_maps() -> None:
    """By queries and keys of the asked block: against differences of the weights."""
    read = model(num_layers=1).double()
    live = LiveStates(read, (1,), False, maps=True)
    weight = read.blocks[0].attention.qkv.weight
    chosen = np.random.default_rng(0).normal(size=(num_pairs(30), 4))

    def figure() -> Tensor:
        maps = live.of_pairs(PROTEIN)[1]
        assert maps is not None
        return (maps.double() * torch.from_numpy(chosen)).sum()

    (gradient,) = torch.autograd.grad(figure(), [weight])
    step = torch.zeros_like(weight)
    step[:32] = gradient[:32] / gradient[:32].norm()
    with torch.no_grad():
        weight += 1e-2 * step
        more = figure()
        weight -= 2e-2 * step
        less = figure()
    assert float((more - less) / 2e-2) == pytest.approx(float(gradient[:32].norm()), rel=0.02)
