"""Linear layers whose weights are stored as signed 4-bit numbers, in the layout of the published 100B checkpoint.

A row of weights w becomes whole numbers q = round(w / s) and one scale s = max|w| / 7 in half precision. Two columns
share a byte, the even one in its upper half; both halves are in two's complement:

    q = [-8, 7, 1, 0]   ->   bytes [0x87, 0x10]   ->   w = s q

Multiplying happens in the precision of the activations: the weights of one layer at a time are written out, used and
dropped (GLM-130B, section 3.4; biases, norms, embedding and output layer stay as they are).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8
from torch import Tensor, nn

LARGEST = 7  # -8 exists in the layout, but a symmetric scale never produces it


def quantize_int4(
    weight: Float[Tensor, "out in"],
) -> tuple[Int8[Tensor, "out half"], Float[Tensor, "out"]]:
    """Packed 4-bit numbers and half-precision scales of `weight`, each number at most half a scale off.

    >>> packed, scale = quantize_int4(torch.tensor([[7.0, -3.0], [0.0, 0.0]]))
    >>> packed.tolist(), scale.tolist()
    ([[125], [0]], [1.0, 0.0])
    """
    scale = (weight.abs().amax(dim=1) / LARGEST).half()
    steps = weight / torch.where(scale > 0, scale, 1).to(weight.dtype)[:, None]
    return pack_int4(steps.round().clamp(-LARGEST - 1, LARGEST).to(torch.int8)), scale


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
    numbers = torch.stack((packed >> 4, packed << 4 >> 4), dim=2).flatten(1)
    out = torch.empty(numbers.shape, dtype=dtype or scale.dtype, device=packed.device)
    return torch.mul(numbers, scale.float()[:, None], out=out)


class Int4Linear(nn.Module):
    """x W^T + b with W in 4 bits; undefined until a checkpoint fills it.

    W and its scales are buffers: nothing trains them, and a cast of the model on loading leaves them as stored.
    """

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(out_features, in_features // 2, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.empty(out_features, dtype=torch.float16))
        self.bias = nn.Parameter(torch.empty(out_features))

    def forward(self, x: Float[Tensor, "token in"]) -> Float[Tensor, "token out"]:
        return F.linear(x, unpack_int4(self.weight, self.weight_scale, x.dtype), self.bias)
