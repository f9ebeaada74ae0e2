"""A GLM laid out for inference on this CPU: what a weight costs to re-arrange is paid once, not at every call.

oneDNN multiplies by weights in blocks of its own; a plain linear layer re-orders them on each call. A GEGLU gains most:
with value and gate as two products, the gelu and the bias come out of the product's own loop. Same mathematics, and in
fp32 the same numbers to rounding. Such a model no longer trains.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from xtrimo.attention import Attend
from xtrimo.batch import Sequences, named
from xtrimo.errors import ConfigError
from xtrimo.int8 import Int8GEGLU, Int8Linear
from xtrimo.model import GEGLU, GLM, DeepNormBlock, Hidden
from xtrimo.precision_loss import PrecisionLoss, answers
from xtrimo.rope import Rotary

MOST_LOST = PrecisionLoss(cosine=0.995, nll_rise=0.01)
"""By int8, unless told otherwise: 1 % of perplexity. bf16 loses 1e-5 and 1e-4."""

_ROWS = 2048  # tokens that oneDNN chooses the blocks for


class PackedLinear(nn.Module):
    """x W^T + b with W in oneDNN's blocks; `activation` "gelu" is the exact, erf-based one."""

    def __init__(self, weight: Float[Tensor, "out dim"], bias: Float[Tensor, "out"] | None) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _ROWS)
        self.bias = None if bias is None else bias.detach().contiguous()

    def forward(self, x: Float[Tensor, "token dim"], activation: str = "none") -> Float[Tensor, "token out"]:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, activation, [], "none")


class PackedGEGLU(nn.Module):
    """`model.GEGLU` in three products."""

    def __init__(self, plain: GEGLU) -> None:
        super().__init__()
        (value, gate), (value_bias, gate_bias) = plain.up.weight.chunk(2), plain.up.bias.chunk(2)
        self.value, self.gate = PackedLinear(value, value_bias), PackedLinear(gate, gate_bias)
        self.down = PackedLinear(plain.down.weight, plain.down.bias)

    def forward(self, x: Hidden) -> Hidden:
        return self.down(self.value(x).mul_(self.gate(x, "gelu")))


class PackedBlock(nn.Module):
    """`model.DeepNormBlock` with the residual stream and its norms in fp32, whatever the products are in.

    They are a small share of the time, and in half precision most of the error: the stream is rounded twice a block.
    """

    def __init__(self, plain: DeepNormBlock, linear: type[nn.Module], geglu: type[nn.Module]) -> None:
        super().__init__()
        self.alpha = plain.alpha
        self.dtype = plain.attention.qkv.weight.dtype
        self.attention_norm, self.mlp_norm = plain.attention_norm.float(), plain.mlp_norm.float()
        self.attention = plain.attention
        self.mlp = geglu(plain.mlp)
        for name in ("qkv", "dense"):
            old = getattr(plain.attention, name)
            setattr(self.attention, name, linear(old.weight, old.bias))

    def forward(self, x: Hidden, turn: Rotary, attend: Attend, layer: int) -> Hidden:
        x = self.attention_norm(x.float())
        y = self.attention(x.to(self.dtype), turn, attend, layer)
        x = self.mlp_norm(x.mul_(self.alpha).add_(y))
        return self.mlp(x.to(self.dtype)).float().add_(x, alpha=self.alpha)


def can_be_prepacked(model: GLM) -> bool:
    """Whether there is a layout of this machine's for the weights."""
    plain = model.dtype in (torch.float32, torch.bfloat16) and model.config.quantization == "none"
    return plain and model.device.type == "cpu"


def prepack(model: GLM) -> GLM:
    """Re-arrange the weights of the blocks, in place, one at a time; the model is for inference from here on.

    A model stays as it is when it is not on the CPU, or neither in fp32 nor bf16, or has quantized weights.

    Returns:
        The same model. Its states are fp32, whatever the precision of its products.
    """
    return _with_blocks(model, PackedLinear, PackedGEGLU)


def prepack_int8(model: GLM, proteins: Sequences, *, bounds: PrecisionLoss | None = None) -> tuple[GLM, PrecisionLoss]:
    """As `prepack`, with the products of the blocks in eight bits, if the model bears it on these proteins.

    Args:
        proteins: what the loss of precision is judged on; a handful like those to come.
        bounds: the most that may be lost; by default MOST_LOST.

    Raises:
        ConfigError: the model is not on the CPU, is quantized already, there is no protein, or more is lost than that.
    """
    if not can_be_prepacked(model):
        raise ConfigError(
            f"int8 is for fp32 or bf16 weights on the CPU, these are {model.dtype} on {model.device}, quantization"
            f" {model.config.quantization}; leave --precision int8 out"
        )
    judged = list(named(proteins))
    if not judged:
        raise ConfigError("int8 is judged on proteins, and none was given")
    before = answers(model, judged)
    _with_blocks(model, Int8Linear, Int8GEGLU)
    loss = PrecisionLoss.between(before, answers(model, judged))
    bounds = bounds or MOST_LOST
    if loss.cosine < bounds.cosine or loss.nll_rise > bounds.nll_rise:
        raise ConfigError(
            f"this model does not bear int8: on {len(judged)} proteins {loss}; allowed are {bounds};"
            " use --precision bf16"
        )
    return model, loss


def _with_blocks(model: GLM, linear: type[nn.Module], geglu: type[nn.Module]) -> GLM:
    model.requires_grad_(False)
    if can_be_prepacked(model):
        for i, block in enumerate(model.blocks):
            if isinstance(block, DeepNormBlock):  # not one of ours already
                model.blocks[i] = PackedBlock(block, linear, geglu)
        model.final_norm.float()
        model.output.float()
    return model
