"""Rotary positions against rotations of complex numbers, one pair at a time."""

import cmath

import pytest
import torch
from torch import Tensor

from xtrimo.config import GLMConfig
from xtrimo.rope import rotary, rotate

HEADS, WIDTH = 2, 16
BASE = 10000.0
LAYOUTS = ("1d", "2d")


def config_of(layout: str) -> GLMConfig:
    objectives = ("mlm",) if layout == "1d" else ("mlm", "gmask", "smask")
    return GLMConfig(
        num_layers=1, hidden_size=HEADS * WIDTH, num_heads=HEADS, ffn_size=8, rotary=layout, objectives=objectives
    )


def pairs_1d(width: int) -> list[tuple[int, int, int, float]]:
    """(first, second, position channel, frequency) of every pair: (i, i + w/2) over the whole head."""
    return [(i, i + width // 2, 0, BASE ** (-2 * i / width)) for i in range(width // 2)]


def pairs_2d(width: int) -> list[tuple[int, int, int, float]]:
    """Each half of the head by itself: pairs (i, i + w/4), frequencies over w/2."""
    half = width // 2
    return [
        (channel * half + i, channel * half + i + half // 2, channel, BASE ** (-2 * i / half))
        for channel in (0, 1)
        for i in range(half // 2)
    ]


def turned(x: Tensor, positions: Tensor, pairs: list[tuple[int, int, int, float]]) -> Tensor:
    """x with each listed pair of channels multiplied by exp(i * position * frequency), in double precision."""
    out = x.double().clone()
    for token in range(x.shape[0]):
        for first, second, channel, frequency in pairs:
            spin = cmath.exp(1j * float(positions[token, channel]) * frequency)
            for head in range(x.shape[1]):
                for which in range(x.shape[2]):
                    z = complex(x[token, head, which, first], x[token, head, which, second]) * spin
                    out[token, head, which, first], out[token, head, which, second] = z.real, z.imag
    return out


def sample(seed: int = 0, tokens: int = 7, high: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, HEADS, 2, WIDTH, generator=generator)
    return x, torch.randint(0, high, (tokens, 2), generator=generator)


@pytest.mark.parametrize(("layout", "pairs"), [("1d", pairs_1d(WIDTH)), ("2d", pairs_2d(WIDTH))])
def test_rotation_is_a_complex_product_per_pair(layout, pairs):
    x, positions = sample()
    got = rotate(x, rotary(positions, config_of(layout), torch.float32))
    torch.testing.assert_close(got.double(), turned(x, positions, pairs), rtol=0, atol=2e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_far_positions(layout):
    x, _ = sample()
    positions = torch.tensor([[0, 0], [1, 2047], [2047, 1], [1023, 511], [2047, 2047], [4095, 3], [5, 4095]])
    pairs = pairs_1d(WIDTH) if layout == "1d" else pairs_2d(WIDTH)
    got = rotate(x, rotary(positions, config_of(layout), torch.float32))
    # an fp32 angle near 4096 is right to 2^-12 radians
    torch.testing.assert_close(got.double(), turned(x, positions, pairs), rtol=0, atol=2e-3)


def test_wrong_pairings_are_told_apart():
    """The two tempting mistakes in 2-D: pairs across the whole head, and interleaved neighbours."""
    x, positions = sample()
    got = rotate(x, rotary(positions, config_of("2d"), torch.float32)).double()
    quarter = WIDTH // 4
    frequencies = [BASE ** (-2 * i / (WIDTH // 2)) for i in range(quarter)]
    whole_head = [
        (channel * quarter + i, channel * quarter + i + WIDTH // 2, channel, frequencies[i])
        for channel in (0, 1)
        for i in range(quarter)
    ]
    interleaved = [
        (channel * 2 * quarter + 2 * i, channel * 2 * quarter + 2 * i + 1, channel, frequencies[i])
        for channel in (0, 1)
        for i in range(quarter)
    ]
    for pairs in (whole_head, interleaved):
        assert (got - turned(x, positions, pairs)).abs().max() > 0.5


def test_which_position_turns_which_half():
    x, positions = sample()
    moved = positions.clone()
    moved[:, 1] += 3
    first, second = (rotate(x, rotary(p, config_of("2d"), torch.float32)) for p in (positions, moved))
    half = WIDTH // 2
    torch.testing.assert_close(first[..., :half], second[..., :half], rtol=0, atol=0)
    assert (first[..., half:] - second[..., half:]).abs().amax(-1).min() > 1e-3
    first, second = (rotate(x, rotary(p, config_of("1d"), torch.float32)) for p in (positions, moved))
    torch.testing.assert_close(first, second, rtol=0, atol=0)  # 1-D never reads the second position


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_depend_on_distance_alone(layout):
    x, positions = sample()
    config = config_of(layout)

    def scores(shift: list[int]) -> Tensor:
        q, k = rotate(x, rotary(positions + torch.tensor(shift), config, torch.float32)).unbind(2)
        return torch.einsum("qhw,khw->hqk", q, k)

    torch.testing.assert_close(scores([0, 0]), scores([11, 5]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_is_the_rotation_back(layout):
    x, positions = sample(tokens=3)
    turn = rotary(positions, config_of(layout), torch.float64)
    x = x.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rotate(x, turn), x)
    (back,) = torch.autograd.grad(rotate(x, turn), x, rotate(x, turn).detach())
    torch.testing.assert_close(back, x.detach(), rtol=0, atol=1e-6)  # R^T R = 1, with cosines from fp32


@pytest.mark.parametrize("layout", LAYOUTS)
def test_views_are_read_and_left_alone(layout):
    """The model hands in a slice of [q, k, v]; a gradient may arrive expanded."""
    qkv = torch.randn(5, HEADS, 3, WIDTH, generator=torch.Generator().manual_seed(1))
    before, (_, positions) = qkv.clone(), sample(tokens=5)
    turn = rotary(positions, config_of(layout), torch.float32)
    sliced = qkv[:, :, :2].requires_grad_()
    torch.testing.assert_close(rotate(sliced, turn), rotate(before[:, :, :2].contiguous(), turn), rtol=0, atol=0)
    assert torch.equal(qkv, before)
    (expanded,) = torch.autograd.grad(rotate(sliced, turn).sum(), sliced)
    (dense,) = torch.autograd.grad(rotate(sliced, turn), sliced, torch.ones(5, HEADS, 2, WIDTH))
    torch.testing.assert_close(expanded, dense, rtol=0, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_half_precision_keeps_its_dtype_and_fp32_angles(layout):
    """Angles stay fp32 when activations do not: at position 2047 a bf16 angle would be off by several turns."""
    x, _ = sample()
    positions = torch.full((x.shape[0], 2), 2047)
    turn = rotary(positions, config_of(layout), torch.bfloat16)
    got = rotate(x.bfloat16(), turn)
    assert got.dtype == turn.cos.dtype == torch.bfloat16
    pairs = pairs_1d(WIDTH) if layout == "1d" else pairs_2d(WIDTH)
    # three roundings of 2^-9 (cosine, product, sum) of numbers up to |z| < 4
    torch.testing.assert_close(got.double(), turned(x.bfloat16(), positions, pairs), rtol=0, atol=4 * 3 * 2**-9)
