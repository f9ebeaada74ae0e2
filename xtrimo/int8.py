"""Eight-bit products on the CPU (W8A8, dynamic): weights and activations as int8, one scale a row of each.

A token's scale depends on that token alone, so a protein's states do not depend on what it is read with. Products add
up in int32 exactly; scales, bias and gelu are applied in fp32, some rows at a time, while these are in the cache.
What a model loses by it, prepacking.py measures before it is used.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int8, Int32
from torch import Tensor, nn

from xtrimo.model import GEGLU, Hidden
from xtrimo.quantization import blocks_of_rows, quantize_rows


class Int8Weight:
    """A weight as int8 with a scale for each output, and the product with it."""

    def __init__(self, weight: Float[Tensor, "out dim"], bias: Float[Tensor, "out"]) -> None:
        numbers, scale = quantize_rows(weight.detach().float())
        self.columns, self.scale, self.bias = numbers.t(), scale.flatten(), bias.detach().float()

    def times(self, numbers: Int8[Tensor, "token dim"]) -> Int32[Tensor, "token out"]:
        """The bare product."""
        return torch._int_mm(numbers, self.columns)

    def scaled(
        self, product: Int32[Tensor, "token out"], scale: Float32[Tensor, "token 1"]
    ) -> Float32[Tensor, "token out"]:
        """What the bare product stands for, bias added."""
        return torch.addcmul(self.bias, product * scale, self.scale)


class Int8Linear(nn.Module):
    """x W^T + b with both sides in eight bits."""

    def __init__(self, weight: Float[Tensor, "out dim"], bias: Float[Tensor, "out"]) -> None:
        super().__init__()
        self.weight = Int8Weight(weight, bias)

    def forward(self, x: Float[Tensor, "token dim"]) -> Float[Tensor, "token out"]:
        numbers, scale = quantize_rows(x)
        product = self.weight.times(numbers)
        out = x.new_empty(product.shape)
        for rows in blocks_of_rows(len(x)):
            out[rows] = self.weight.scaled(product[rows], scale[rows])
        return out


class Int8GEGLU(nn.Module):
    """`model.GEGLU` in eight bits; its inner state goes from one product to the next as int8 too."""

    def __init__(self, plain: GEGLU) -> None:
        super().__init__()
        self.up = Int8Weight(plain.up.weight, plain.up.bias)
        self.down = Int8Weight(plain.down.weight, plain.down.bias)

    def forward(self, x: Hidden) -> Hidden:
        numbers, scale = quantize_rows(x)
        product = self.up.times(numbers)
        inner = x.new_empty((len(x), product.shape[1] // 2), dtype=torch.int8)
        for rows in blocks_of_rows(len(x)):
            value, gate = self.up.scaled(product[rows], scale[rows]).chunk(2, dim=-1)
            inner[rows], scale[rows] = quantize_rows(F.gelu(gate).mul_(value))
        product = self.down.times(inner)
        out = x.new_empty(product.shape)
        for rows in blocks_of_rows(len(x)):
            out[rows] = self.down.scaled(product[rows], scale[rows])
        return out
