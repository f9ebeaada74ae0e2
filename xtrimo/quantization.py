"""Linear layers whose weights are stored as signed whole numbers with one scale a row, in the published layout.

A row of weights w becomes numbers q = round(w / s) and one scale in half precision, s = max|w| / 7 for 4 bits (the
published 100B checkpoint) and max|w| / 127 for 8. Eight bits are a byte each; of four, two columns share a byte, the
even one in its upper half, both halves in two's complement:

    q = [-8, 7, 1, 0]   ->   bytes [0x87, 0x10]   ->   w = s q

Weight-only layers multiply in the precision of the activations: the weights of one layer at a time are written out,
used and dropped (GLM-130B, section 3.4; biases, norms, embedding and output layer stay as they are). A dynamic layer
multiplies in eight bits: a token's activations get a scale of their own, so that it depends on itself alone.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int8
from torch import Tensor, nn

from xtrimo.errors import ConfigError

LARGEST_4, LARGEST_8 = 7, 127  # -8 and -128 exist in the layouts, but a symmetric scale never produces them
_ROWS = 128  # of a product, scaled together: 1 MB in fp32 at the width of a 1B model's GEGLU half


def quantize_int4(
    weight: Float[Tensor, "out in"],
) -> tuple[Int8[Tensor, "out half"], Float[Tensor, "out"]]:
    """Packed 4-bit numbers and half-precision scales of `weight`, each number at most half a scale off.

    >>> packed, scale = quantize_int4(torch.tensor([[7.0, -3.0], [0.0, 0.0]]))
    >>> packed.tolist(), scale.tolist()
    ([[125], [0]], [1.0, 0.0])
    """
    numbers, scale = _in_steps(weight, LARGEST_4)
    return pack_int4(numbers), scale


def quantize_int8(
    weight: Float[Tensor, "out in"],
) -> tuple[Int8[Tensor, "out in"], Float[Tensor, "out"]]:
    """8-bit numbers and half-precision scales of `weight`, each number at most half a scale off.

    >>> numbers, scale = quantize_int8(torch.tensor([[254.0, -3.0], [0.0, 0.0]]))
    >>> numbers.tolist(), scale.tolist()
    ([[127, -2], [0, 0]], [2.0, 0.0])
    """
    return _in_steps(weight, LARGEST_8)


def _in_steps(weight: Float[Tensor, "out in"], largest: int) -> tuple[Int8[Tensor, "out in"], Float[Tensor, "out"]]:
    scale = (weight.abs().amax(dim=1) / largest).half()
    steps = weight / torch.where(scale > 0, scale, 1).to(weight.dtype)[:, None]
    return steps.round_().clamp_(-largest - 1, largest).to(torch.int8), scale


def pack_int4(numbers: Int8[Tensor, "out in"]) -> Int8[Tensor, "out half"]:
    """Two neighbouring columns to a byte; whole numbers in -8..7, an even number of columns.

    >>> pack_int4(torch.tensor([[-8, 7, 1, 0]], dtype=torch.int8)).tolist()
    [[-121, 16]]
    """
    even, odd = numbers.unflatten(1, (-1, 2)).unbind(2)
    return even << 4 | odd & 0xF


def unpack_int4(
    packed: Int8[Tensor, "out half"], scale: Float[Tensor, "out"], dtype: torch.dtype | None = None
) -> Float[Tensor, "out in"]:
    """The weights that `packed` and `scale` stand for: products in fp32, rounded once.

    Args:
        dtype: of the result; by default that of the scale.

    >>> unpack_int4(torch.tensor([[-121, 16]], dtype=torch.int8), torch.tensor([0.5])).tolist()
    [[-4.0, 3.5, 0.5, 0.0]]
    """
    # shifts of signed numbers carry the sign along
    return unpack_int8(torch.stack((packed >> 4, packed << 4 >> 4), dim=2).flatten(1), scale, dtype)


def unpack_int8(
    numbers: Int8[Tensor, "out in"], scale: Float[Tensor, "out"], dtype: torch.dtype | None = None
) -> Float[Tensor, "out in"]:
    """The weights that `numbers` and `scale` stand for; as `unpack_int4`."""
    out = torch.empty(numbers.shape, dtype=dtype or scale.dtype, device=numbers.device)
    return torch.mul(numbers, scale.float()[:, None], out=out)


def quantize_rows(x: Float[Tensor, "row column"]) -> tuple[Int8[Tensor, "row column"], Float32[Tensor, "row 1"]]:
    """(numbers, scales) with x near numbers * scales; a row of zeros stays one. For activations: fp32 scales."""
    scale = x.abs().amax(dim=1, keepdim=True).float().clamp_min_(torch.finfo(torch.float32).tiny) / LARGEST_8
    return (x * scale.reciprocal()).round_().to(torch.int8), scale


def blocks_of_rows(num_rows: int) -> list[slice]:
    """Rows of a product that are scaled together, while they are in the cache."""
    return [slice(start, start + _ROWS) for start in range(0, num_rows, _ROWS)]


class QuantizedLinear(nn.Module):
    """x W^T + b with W stored as bytes and scales; undefined until a checkpoint fills it.

    W and its scales are buffers: nothing trains them, and a cast of the model on loading leaves them as stored.
    """

    columns_a_byte = 1
    weight: Tensor
    weight_scale: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        columns = in_features // self.columns_a_byte
        self.register_buffer("weight", torch.empty(out_features, columns, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.empty(out_features, dtype=torch.float16))
        self.bias = nn.Parameter(torch.empty(out_features))


class Int4Linear(QuantizedLinear):
    """Four bits, weight-only."""

    columns_a_byte = 2

    def forward(self, x: Float[Tensor, "token in"]) -> Float[Tensor, "token out"]:
        return F.linear(x, unpack_int4(self.weight, self.weight_scale, x.dtype), self.bias)


class Int8RowLinear(QuantizedLinear):
    """Eight bits, weight-only."""

    def forward(self, x: Float[Tensor, "token in"]) -> Float[Tensor, "token out"]:
        return F.linear(x, unpack_int8(self.weight, self.weight_scale, x.dtype), self.bias)


class Int8DynamicLinear(QuantizedLinear):
    """Eight bits on both sides, for CPUs; products add up in int32 exactly, and are scaled in fp32."""

    def forward(self, x: Float[Tensor, "token in"]) -> Float[Tensor, "token out"]:
        if x.requires_grad and torch.is_grad_enabled():  # the product would answer with none
            raise ConfigError(
                "int8-dynamic weights have no gradients; read with torch.inference_mode(), or train the model that they"
                " were made from"
            )
        numbers, scale = quantize_rows(x)
        product = torch._int_mm(numbers, self.weight.t())
        weight_scale, bias = self.weight_scale.float(), self.bias.float()
        out = x.new_empty(product.shape)
        for rows in blocks_of_rows(len(x)):
            out[rows] = torch.addcmul(bias, product[rows] * scale[rows], weight_scale)
        return out


LINEARS = {"int4": Int4Linear, "int8": Int8RowLinear, "int8-dynamic": Int8DynamicLinear}
"""What GLMConfig.quantization may say, and the linear layer of a block that it means."""
