"""A GLM laid out for inference on this CPU: what a weight costs to re-arrange is paid once, not at every call.

oneDNN multiplies by weights in blocks of its own; a plain linear layer re-orders them on each call. A GEGLU gains most:
with value and gate as two products, the gelu and the bias come out of the product's own loop. Same mathematics, and in
fp32 the same numbers to rounding.
"""

import copy
from typing import NoReturn, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from xtrimo.attention import Attend
from xtrimo.batch import Sequences, named
from xtrimo.errors import ConfigError
from xtrimo.fasta import Record
from xtrimo.int8 import Int8GEGLU, Int8Linear
from xtrimo.model import GEGLU, GLM, DeepNormBlock, Hidden
from xtrimo.precision_loss import Answers, PrecisionLoss, answers
from xtrimo.rope import Rotary

MOST_LOST = PrecisionLoss(cosine=0.995, nll_rise=0.01)
"""By int8, unless told otherwise: 1 % of perplexity. bf16 loses 1e-5 and 1e-4."""

Part = TypeVar("Part", bound=nn.Module)

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
        self.dtype = plain.attention_norm.weight.dtype
        self.attention_norm, self.mlp_norm = _fp32(plain.attention_norm), _fp32(plain.mlp_norm)
        self.attention = copy.copy(plain.attention)
        self.attention._modules = {
            name: linear(part.weight, part.bias) for name, part in plain.attention.named_children()
        }  # a copy of a module shares this dictionary
        self.mlp = geglu(plain.mlp)

    def forward(self, x: Hidden, turn: Rotary, attend: Attend, layer: int) -> Hidden:
        if x.requires_grad and torch.is_grad_enabled():  # its products would answer with a wrong one
            raise ConfigError("a prepacked model has no gradients; use the one that it was made from")
        x = self.attention_norm(x.float())
        y = self.attention(x.to(self.dtype), turn, attend, layer)
        x = self.mlp_norm(x.mul_(self.alpha).add_(y))
        return self.mlp(x.to(self.dtype)).float().add_(x, alpha=self.alpha)


class PrepackedGLM(GLM):
    """A GLM for inference on this machine's CPU. Its states are fp32, whatever the precision of its products.

    It reads and generates as any GLM does, and can be neither trained, saved, cast nor moved.
    """

    def __init__(self, plain: GLM, linear: type[nn.Module], geglu: type[nn.Module]) -> None:
        nn.Module.__init__(self)
        self.config = plain.config
        self.embedding = nn.Embedding.from_pretrained(plain.embedding.weight.detach())  # the same memory
        blocks = (block for block in plain.blocks if isinstance(block, DeepNormBlock))
        self.blocks = nn.ModuleList(PackedBlock(block, linear, geglu) for block in blocks)
        self.final_norm, self.output = _fp32(plain.final_norm), _fp32(plain.output)
        self.requires_grad_(False).eval()

    @property
    def dtype(self) -> torch.dtype:
        """Of queries, keys and values."""
        return self.embedding.weight.dtype

    def state_dict(self, *args: object, **options: object) -> NoReturn:
        """Refused: most weights are no longer in a layout that a file could hold.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("a prepacked model cannot be saved; save the one that it was made from")

    def _apply(self, *args: object, **options: object) -> NoReturn:  # behind .to(), .cuda(), .half() ...
        raise ConfigError("a prepacked model stays as it is; cast or move the one that it was made from")


def can_be_prepacked(model: GLM) -> bool:
    """Whether there is a layout of this machine's for the weights."""
    mkldnn = torch.backends.mkldnn.is_available()
    half = mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    known = {torch.float32: mkldnn, torch.bfloat16: half}.get(model.dtype, False)
    return known and model.device.type == "cpu" and model.config.quantization == "none"


def prepack(model: GLM) -> GLM:
    """A copy of the model for inference on this CPU; drop the plain one to have the weights in memory only once.

    A model comes back as it is when it is prepacked already, not on the CPU, neither in fp32 nor bf16, in bf16 on a CPU
    that does not know it, or has quantized weights.
    """
    if isinstance(model, PrepackedGLM) or not can_be_prepacked(model):
        return model
    return PrepackedGLM(model, PackedLinear, PackedGEGLU)


def prepack_int8(model: GLM, proteins: Sequences, *, bounds: PrecisionLoss | None = None) -> tuple[GLM, PrecisionLoss]:
    """As `prepack`, with the products of the blocks in eight bits, if the model bears it on these proteins.

    Args:
        proteins: what the loss of precision is judged on; a handful like those to come.
        bounds: the most that may be lost; by default MOST_LOST.

    Raises:
        ConfigError: the model is not on the CPU, is quantized already, there is no protein, or more is lost than that.
    """
    judged = require_int8(model, proteins)
    eight = PrepackedGLM(model, Int8Linear, Int8GEGLU)
    return eight, judge_int8(answers(model, judged), answers(eight, judged), len(judged), bounds)


def require_int8(model: GLM, proteins: Sequences) -> list[Record]:
    """The proteins with names, if the model can be laid out in eight bits and there are any.

    Raises:
        ConfigError: it cannot, or there is none.
    """
    if isinstance(model, PrepackedGLM) or not can_be_prepacked(model):
        raise ConfigError(
            f"int8 is for plain fp32 or bf16 weights on the CPU, these are {model.dtype} on {model.device},"
            f" quantization {model.config.quantization}; use another precision"
        )
    judged = list(named(proteins))
    if not judged:
        raise ConfigError("int8 is judged on proteins, and none was given")
    return judged


def judge_int8(before: Answers, after: Answers, num_proteins: int, bounds: PrecisionLoss | None) -> PrecisionLoss:
    """What was lost between two sets of answers, if it is not more than `bounds`, by default MOST_LOST.

    Raises:
        ConfigError: it is more.
    """
    loss, bounds = PrecisionLoss.between(before, after), bounds or MOST_LOST
    if loss.cosine < bounds.cosine or loss.nll_rise > bounds.nll_rise:
        raise ConfigError(
            f"this model does not bear int8: on {num_proteins} proteins {loss}; allowed are {bounds};"
            " use --precision bf16"
        )
    return loss


def _fp32(part: Part) -> Part:
    return copy.deepcopy(part).float()
