"""Rotary positions in the published layouts: 1-D over the whole head, 2-D where each half of the head turns by itself.

A channel of width w rotates the pairs (i, i + w/2), i < w/2, by the angle position * base^(-2i/w) (Su et al. 2021, in
the "rotate half" pairing). 1-D has one channel as wide as the head, driven by the position in the chain. 2-D has two of
half the width: the first driven by the position in the chain (for a generated span, of the place it belongs to), the
second by the position inside the span (GLM-130B, section 2.1). So in 2-D, with head width 64, row 0 pairs with row 16,
not 32.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from xtrimo.config import GLMConfig


class Rotary(NamedTuple):
    """What turns each element of a head, ready to broadcast over (token, head, q or k, width)."""

    cos: Float[Tensor, "token 1 1 width"]
    sin: Float[Tensor, "token 1 1 width"]
    """Negative for the first element of a pair, positive for the second."""
    channels: int


def num_channels(config: GLMConfig) -> int:
    """Position channels that turn a head: 1 or 2."""
    return 2 if config.rotary == "2d" else 1


def frequencies(config: GLMConfig, device: torch.device | None = None) -> Float[Tensor, "pair"]:
    """Radians a step of each pair of a channel, fp32: those of the weights, or else of the formula.

    The formula is the reciprocal of a power, as published checkpoints have it: theirs come out equal to the bit.
    """
    if config.rotary_frequencies is not None:
        return torch.tensor(config.rotary_frequencies, dtype=torch.float32, device=device)
    width = config.head_dim // num_channels(config)
    return 1 / config.rotary_base ** (torch.arange(0, width, 2, dtype=torch.float32, device=device) / width)


def angles(positions: Int[Tensor, "token 2"], config: GLMConfig) -> Float[Tensor, "token channel pair"]:
    """Rotation angle in radians, fp32, of each pair of each channel. A 1-D model reads only the first position."""
    return positions[:, : num_channels(config), None].float() * frequencies(config, positions.device)


def rotary(positions: Int[Tensor, "token 2"], config: GLMConfig, dtype: torch.dtype) -> Rotary:
    """Cosine and sine for `rotate`; computed in fp32, then cast to the dtype of the activations."""
    turn = angles(positions, config)
    cos, sin = turn.cos(), turn.sin()

    def over_pairs(first: Tensor, second: Tensor) -> Tensor:
        return torch.stack((first, second), dim=-2).flatten(1)[:, None, None].to(dtype)

    return Rotary(over_pairs(cos, cos), over_pairs(-sin, sin), num_channels(config))


class _Rotate(torch.autograd.Function):
    """Three passes over memory instead of autograd's eleven; the gradient of a rotation is the rotation back."""

    @staticmethod
    def forward(ctx, x, cos, sin, channels):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(cos, sin)
        ctx.channels = channels
        return torch.addcmul(x * cos, _swap(x, channels), sin)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        cos, sin = ctx.saved_tensors
        return torch.addcmul(grad * cos, _swap(grad, ctx.channels), sin, value=-1), None, None, None


def _swap(x: Tensor, channels: int) -> Tensor:
    """Each element's partner in its pair: [a b|c d] -> [b a|d c]."""
    return x.unflatten(-1, (channels, 2, -1)).flip(-2).flatten(-3)


def rotate(x: Float[Tensor, "token head qk width"], turn: Rotary) -> Float[Tensor, "token head qk width"]:
    """Turn queries and keys by their positions."""
    out: Tensor = _Rotate.apply(x, *turn)  # type: ignore[no-untyped-call]
    return out
