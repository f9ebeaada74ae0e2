"""A GLM laid out for generation on this CPU: a few tokens at a time, where each operation costs more than its numbers.

Same mathematics as model.py, in as few operations as that takes:

    rotary   the rows of query and key weights re-ordered: the two of a pair lie side by side, and the rotation is one
             product of complex numbers; queries and keys are re-ordered alike, so no score changes
    stream   the residual stream, norms, queries and keys in fp32 whatever the products are in
    weights  in oneDNN's layout; in FBGEMM's, in half precision for very few tokens, or in eight bits with a scale for
             each output and one for each token, found as it is multiplied

Queries and keys are so turned that only `attend` functions that multiply one by the other understand them.
"""

import copy
import warnings
from collections.abc import Callable
from functools import partial
from math import inf, sqrt
from typing import NamedTuple

import torch
from jaxtyping import Complex, Float, Float32, Int
from torch import Tensor, nn

from xtrimo.attention import Attend
from xtrimo.batch import Sequences
from xtrimo.errors import ConfigError
from xtrimo.model import GEGLU, GLM, Attention, DeepNormBlock, Hidden, counted_from_start
from xtrimo.precision_loss import PrecisionLoss, answers
from xtrimo.prepacking import PrepackedGLM, can_be_prepacked, judge_int8, require_int8
from xtrimo.quantization import quantize_rows
from xtrimo.rope import angles, num_channels

MOST_FOR_FEW = 3
_TOKENS = 16  # that oneDNN chooses the blocks for

Turn = Complex[Tensor, "token 1 1 pair"]
Product = Callable[[Float32[Tensor, "token dim"]], Float[Tensor, "token out"]]
MakeProduct = Callable[[Float[Tensor, "out dim"], Float[Tensor, "out"]], Product]
MakeGEGLU = Callable[[GEGLU], Callable[[Hidden], Hidden]]


class PackedProduct:
    """x W^T + b with W in oneDNN's blocks and the precision that it came in; `activation` "gelu" is the exact one."""

    def __init__(self, weight: Float[Tensor, "out dim"], bias: Float[Tensor, "out"], activation: str = "none") -> None:
        self._dtype, self._bias, self._activation = weight.dtype, bias.detach().contiguous(), activation
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _TOKENS)
        self._multiply = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, x: Float[Tensor, "token dim"]) -> Float[Tensor, "token out"]:
        return self._multiply(x.to(self._dtype), self._weight, self._bias, self._activation, [], "none")


class PackedGEGLU:
    """`model.GEGLU` in three products, the gelu within one."""

    def __init__(self, plain: GEGLU) -> None:
        (value, gate), (value_bias, gate_bias) = plain.up.weight.chunk(2), plain.up.bias.chunk(2)
        self._dtype = plain.down.weight.dtype
        self._value, self._gate = PackedProduct(value, value_bias), PackedProduct(gate, gate_bias, "gelu")
        self._down = PackedProduct(plain.down.weight, plain.down.bias)

    def __call__(self, x: Hidden) -> Hidden:
        x = x.to(self._dtype)
        return self._down(self._value(x).mul_(self._gate(x)))


class HalfProduct:
    """x W^T + b with W in fp16 and all else in fp32, for few tokens.

    fp16 holds weights of bf16 exactly from 6e-5 to 65,504; smaller ones move by 3e-8 at most.
    """

    def __init__(self, weight: Float[Tensor, "out dim"], bias: Float[Tensor, "out"]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._packed = torch.ops.quantized.linear_prepack_fp16(weight.detach().float(), bias.detach().float())
        # past the wrapper, which looks through all arguments for something that these never are
        self._multiply = torch.ops.quantized.linear_dynamic_fp16._op

    def __call__(self, x: Float32[Tensor, "token dim"]) -> Float32[Tensor, "token out"]:
        return self._multiply(x, self._packed)


class Int8Product:
    """x W^T + b in eight bits; a row of x has its own scale, so it depends on itself alone."""

    def __init__(self, weight: Float[Tensor, "out dim"], bias: Float[Tensor, "out"]) -> None:
        self._bias = bias.detach().float()
        numbers, scale = quantize_rows(weight.detach().float())
        with warnings.catch_warnings():  # the only door to FBGEMM is a kind of tensor that torch wants to be rid of
            warnings.simplefilter("ignore")
            zeros = torch.zeros(len(scale), dtype=torch.long)
            quantized = torch._make_per_channel_quantized_tensor(numbers, scale.flatten().double(), zeros, 0)
            self._packed = torch.ops.quantized.linear_prepack(quantized, self._bias)
        self._multiply_row = torch.ops.quantized.linear_dynamic._op
        self._multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32._op

    def __call__(self, x: Float32[Tensor, "token dim"]) -> Float32[Tensor, "token out"]:
        if x.shape[0] == 1:  # one scale for all of x, found inside
            return self._multiply_row(x, self._packed, False)
        scale = torch.linalg.vector_norm(x, inf, dim=1, keepdim=True).clamp_min_(1e-30).mul_(1 / 127)
        # x is rounded to whole numbers, and 128 added for the kernel's unsigned side; the bias is in the product
        return torch.lerp(self._bias, self._multiply(x / scale, 1.0, 128, self._packed), scale)


class FusedGEGLU:
    """`model.GEGLU` in two products.

    With g and v the gate and the value over sqrt(2), which is done to the weights: gelu(gate) value = (g + g erf g) v.
    """

    def __init__(self, plain: GEGLU, product: MakeProduct) -> None:
        self._up = product(plain.up.weight.float() / sqrt(2), plain.up.bias.float() / sqrt(2))
        self._down = product(plain.down.weight, plain.down.bias)

    def __call__(self, x: Hidden) -> Hidden:
        value, gate = self._up(x).chunk(2, dim=1)
        # torch's own gelu goes through oneDNN, which takes longer to set up than a few tokens take
        return self._down(torch.addcmul(gate, gate, torch.erf(gate)).mul_(value))


class Layout(NamedTuple):
    """What the products of a block are made by."""

    product: MakeProduct
    geglu: MakeGEGLU


MANY = Layout(PackedProduct, PackedGEGLU)
FEW = Layout(HalfProduct, partial(FusedGEGLU, product=HalfProduct))
EIGHT_BITS = Layout(Int8Product, partial(FusedGEGLU, product=Int8Product))


class Norm:
    """A LayerNorm in fp32."""

    def __init__(self, plain: nn.LayerNorm) -> None:
        self._shape, self._eps = plain.normalized_shape, plain.eps
        self._weight, self._bias = plain.weight.detach().float(), plain.bias.detach().float()

    def __call__(self, x: Float32[Tensor, "token dim"]) -> Float32[Tensor, "token dim"]:
        return torch.layer_norm(x, self._shape, self._weight, self._bias, self._eps)


class StepBlock(nn.Module):
    """`model.DeepNormBlock`."""

    def __init__(self, plain: DeepNormBlock, layout: Layout, channels: int) -> None:
        super().__init__()
        attention = plain.attention
        self.alpha, self.shape = plain.alpha, (-1, *attention.shape)
        self.attention_norm, self.mlp_norm = Norm(plain.attention_norm), Norm(plain.mlp_norm)
        self.qkv = layout.product(*_side_by_side(attention, channels))
        self.dense = layout.product(attention.dense.weight, attention.dense.bias)
        self.mlp = layout.geglu(plain.mlp)

    def forward(self, x: Hidden, turn: Turn, attend: Attend, layer: int) -> Hidden:
        x = self.attention_norm(x)
        qkv = self.qkv(x).view(self.shape)  # (token, head, q k v, width)
        pairs = torch.view_as_complex(qkv[:, :, :2].float().unflatten(3, (-1, 2)))
        q, k = torch.view_as_real(pairs * turn).flatten(3).unbind(2)
        mixed = attend(layer, q, k, qkv[:, :, 2])
        x = self.mlp_norm(torch.add(self.dense(mixed.flatten(1)), x, alpha=self.alpha))
        return torch.add(self.mlp(x), x, alpha=self.alpha)


class StepGLM(PrepackedGLM):
    """A GLM for generation on this machine's CPU; it can be neither trained, saved, cast nor moved."""

    def __init__(self, plain: GLM, layout: Layout) -> None:
        nn.Module.__init__(self)
        self.config, self._dtype = plain.config, plain.dtype
        self.embedding = nn.Embedding.from_pretrained(plain.embedding.weight.detach().float())
        channels = num_channels(plain.config)
        blocks = (block for block in plain.blocks if isinstance(block, DeepNormBlock))
        self.blocks = nn.ModuleList(StepBlock(block, layout, channels) for block in blocks)
        self.final_norm = copy.deepcopy(plain.final_norm).float()
        self.output = copy.deepcopy(plain.output).float()
        self.requires_grad_(False).eval()

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and what keys and values are kept in."""
        return self._dtype

    @torch.inference_mode()
    def hidden(
        self,
        tokens: Int[Tensor, "token"],
        positions: Int[Tensor, "token 2"],
        attend: Attend,
        *,
        layers: tuple[int, ...] = (-1,),
        input_gradient: float = 1.0,
    ) -> list[Hidden]:
        """As GLM.hidden, without gradients."""
        wanted = counted_from_start(layers, len(self.blocks))
        x = self.embedding(tokens)
        turned = angles(positions, self.config)
        turn = torch.polar(torch.ones_like(turned), turned).flatten(1)[:, None, None]
        states = {0: x}
        for layer, block in enumerate(self.blocks):
            x = block.forward(x, turn, attend, layer)
            if layer + 1 in wanted:
                states[layer + 1] = x
        states[len(self.blocks)] = self.final_norm(x)
        return [states[i] for i in wanted]


def prepack_to_generate(model: GLM, *, slots: int | None = None) -> GLM:
    """The model laid out for generation on this CPU; as it is where prepack has no layout for it.

    Args:
        slots: proteins that are to be written at a time. For bf16 weights and at most MOST_FOR_FEW another layout is
            faster, which reads long prompts half as fast.
    """
    if isinstance(model, PrepackedGLM) or not can_be_prepacked(model):
        return model
    few = model.dtype == torch.bfloat16 and slots is not None and slots <= MOST_FOR_FEW and _has_fbgemm()
    return StepGLM(model, FEW if few else MANY)


def prepack_int8_to_generate(
    model: GLM, proteins: Sequences, *, bounds: PrecisionLoss | None = None
) -> tuple[GLM, PrecisionLoss]:
    """As `prepack_to_generate`, with the products of the blocks in eight bits, if the model bears it on these proteins.

    Judged is what the model says of each residue as it reads when it writes, from left to right.

    Args:
        proteins: what the loss of precision is judged on; a handful like those to come.
        bounds: the most that may be lost; by default prepacking.MOST_LOST.

    Raises:
        ConfigError: the model is not on the CPU, is quantized already, there is no protein, or more is lost than that;
            or this build of torch has no FBGEMM.
    """
    if not _has_fbgemm():
        raise ConfigError("int8 for generation needs torch with FBGEMM, which this build lacks; use --precision bf16")
    judged = require_int8(model, proteins)
    eight = StepGLM(model, EIGHT_BITS)
    before, after = (answers(m, judged, as_written=True) for m in (model, eight))
    return eight, judge_int8(before, after, len(judged), bounds)


def _has_fbgemm() -> bool:
    return "fbgemm" in torch.backends.quantized.supported_engines


def _side_by_side(attention: Attention, channels: int) -> tuple[Float[Tensor, "out dim"], Float[Tensor, "out"]]:
    """Weight and bias of qkv with the two of each rotary pair next to each other in queries and keys.

    Of a channel [a0 a1 b0 b1], where a turns with b, becomes [a0 b0 a1 b1].
    """
    num_heads, _, width = attention.shape
    rows = torch.arange(num_heads * 3 * width).view(attention.shape)
    rows[:, :2] = rows[:, :2].unflatten(2, (channels, 2, -1)).transpose(3, 4).flatten(2)
    rows = rows.flatten()
    return attention.qkv.weight[rows], attention.qkv.bias[rows]
