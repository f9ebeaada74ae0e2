"""Seconds of an optimizer step, from shapes, data sheets and two fitted numbers.

A matrix product takes the longer of its arithmetic and its memory traffic; it is cut in tiles, and a last round that
fills only some multiprocessors costs a whole one. What is no product is bound by memory: its passes over the values are
counted. Collectives move (n - 1) / n of their bytes over the slowest link they cross. A pipeline of p stages takes

    m (slowest stage + sends) + (p - 1) / v of a stage        m rows, v interleaved groups of layers (1F1B)

and the exchange of gradients and weights adds what no backward (forward) pass of a row hides. Of the peak arithmetic a
large product reaches ARITHMETIC, and of the peak of any memory or link its user gets BANDWIDTH: one pair of numbers for
all GPUs, models and layouts, fitted to published runs by benchmarks/planner.py, which prints how far off it is for runs
that it did not see. The formulas follow Narayanan et al. 2021 (section 3) and Korthikanti et al. 2022.
"""

import math
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

from pretrain.config import ParallelConfig
from pretrain.hardware import GPU, NODE
from xtrimo.config import GLMConfig


class Efficiency(NamedTuple):
    """What is reached of what data sheets promise."""

    arithmetic: float
    """Of the tensor operations a second, in a product that fills the GPU."""
    bandwidth: float
    """Of the bytes a second, of memory and of links."""


FITTED = Efficiency(arithmetic=0.671, bandwidth=0.940)
TILES = ((256, 128), (128, 256), (128, 128))  # of cuBLAS; the one that wastes least is taken
SIZE = 2  # bytes of a bf16 or fp16 number
ADAM = 30  # bytes moved a weight: gradient, two moments, fp32 copy read, the last three and the bf16 weight written


class Passes(NamedTuple):
    """Numbers that the forward pass of a layer reads or writes, a token, besides its products."""

    hidden: float
    """Times the width, where tokens are split by sequence parallelism: norms, residuals."""
    heads: float
    """Times the width, split over the tensor ranks: biases and rotation of q, k, v."""
    ffn: float
    """Times the feed-forward width, split over the tensor ranks: bias, gelu, gate."""
    scores: float = 0.0
    """Times heads and tokens seen, where attention writes its scores out."""


OURS = Passes(hidden=18, heads=24, ffn=11)
"""pretrain/model.py without fused kernels: norm 2 h, alpha x 2 h, bias 2 h, sum 3 h, twice; bias of q, k, v 6 h and
rotation of q and k 9 passes of 2 h; bias 4 f, gelu 2 f, copy 2 f, product 3 f."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Transformer:
    """What a step's time depends on of a model, ours or a published one."""

    num_layers: int
    """Layers."""
    hidden_size: int
    """Width."""
    num_heads: int
    """Attention heads."""
    ffn_size: int
    """Inner width of the feed-forward."""
    gated: bool
    """Whether the first product of the feed-forward is twice as wide."""
    vocab_size: int
    """Rows of the output layer."""
    passes: Passes
    """Traffic besides the products."""
    selective: Literal["feed-forward", "attention"]
    """What selective recomputation computes again."""
    ends_count: bool = False
    """Whether embedding and output layer each take the place of a layer in the pipeline's first and last stage."""

    @property
    def first_size(self) -> int:
        """Width of the first product of the feed-forward."""
        return (1 + self.gated) * self.ffn_size

    @property
    def flops_per_layer(self) -> int:
        """Floating-point operations of a layer's products, a token, forward."""
        return 2 * self.hidden_size * (4 * self.hidden_size + self.first_size + self.ffn_size)


def ours(glm: GLMConfig) -> Transformer:
    """One of our models."""
    return Transformer(
        num_layers=glm.num_layers, hidden_size=glm.hidden_size, num_heads=glm.num_heads, ffn_size=glm.ffn_size,
        gated=True, vocab_size=glm.vocab_size, passes=OURS, selective="feed-forward",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a data-parallel rank does in a step."""

    tokens: int
    """Of a micro-batch."""
    length: float
    """Tokens that a token sees, on average."""
    rows: int
    """Micro-batches."""
    data_degree: int
    """Data-parallel ranks."""
    gradient_size: int = 4
    """Bytes of a gradient as it is exchanged."""
    sends_split: bool = False
    """Whether tensor ranks share what goes to the next stage even where they all hold all tokens (Megatron-LM of 2021,
    Narayanan et al. section 4.1; megatron-core does not)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """Seconds of a step by what the slowest pipeline stage does, without what overlaps."""

    products: float
    """Matrix products, forward and backward."""
    attention: float
    """Scores and mixtures."""
    elementwise: float
    """What is bound by memory: norms, residuals, gelu, rotation, the loss."""
    recompute: float
    """Computed again in the backward pass, with its exchanges."""
    tensor: float
    """Exchanges of tensor-parallel ranks."""
    context: float
    """Exchanges of context-parallel ranks."""
    pipeline: float
    """Sends between stages."""
    bubble: float
    """Waiting for the pipeline to fill and to drain."""
    data: float
    """Exchange of gradients and weights that nothing hides."""
    optimizer: float
    """AdamW."""

    @property
    def total(self) -> float:
        """The step."""
        return sum(getattr(self, part.name) for part in fields(self))


class _Layer(NamedTuple):
    """Seconds of a micro-batch in one layer, in one direction."""

    products: float
    attention: float
    elementwise: float
    tensor: float
    context: float


class StepClock:
    """Times the parts of a step of one model, layout and GPU."""

    def __init__(
        self, model: Transformer, layout: ParallelConfig, work: Work, gpu: GPU, efficiency: Efficiency = FITTED
    ) -> None:
        self.model, self.layout, self.work, self.gpu = model, layout, work, gpu
        self.arithmetic = gpu.teraflops * 1e12 * efficiency.arithmetic
        self.memory = gpu.memory_speed * 1e9 * efficiency.bandwidth
        self.links = efficiency.bandwidth
        self.tokens = math.ceil(work.tokens / layout.context_degree)

    def step(self) -> StepTime:
        """The whole step."""
        model, layout, work = self.model, self.layout, self.work
        forward, backward = self._layer(backward=False), self._layer(backward=True)
        again = self._recomputed(forward)
        of_layer = sum(forward) + sum(backward) + again
        layers = (model.num_layers + 2 * model.ends_count) / layout.pipeline_degree
        output = self._output()
        # the last stage is the slowest, unless its output layer stands in for a layer that takes longer
        extra = max(0.0, sum(output) - model.ends_count * of_layer)
        parts = _Layer(*(work.rows * layers * (a + b) for a, b in zip(forward, backward, strict=True)))
        return StepTime(
            products=parts.products + work.rows * extra * output[0] / sum(output),
            attention=parts.attention,
            elementwise=parts.elementwise + work.rows * extra * output[1] / sum(output),
            recompute=work.rows * layers * again,
            tensor=parts.tensor,
            context=parts.context,
            pipeline=self._sends(),
            bubble=(layout.pipeline_degree - 1) / layout.virtual_stages * layers * of_layer,
            data=self._exchange(layers * sum(forward), layers * sum(backward)),
            optimizer=self._optimizer(),
        )

    def _product(self, rows: int, inner: int, columns: int) -> float:
        """Seconds of (rows x inner) (inner x columns)."""
        waste = min(
            math.ceil(math.ceil(rows / a) * math.ceil(columns / b) / self.gpu.multiprocessors)
            * a * b * self.gpu.multiprocessors
            for a, b in TILES
        )  # fmt: skip
        traffic = SIZE * (rows * inner + inner * columns + rows * columns)
        return max(2 * inner * waste / self.arithmetic, traffic / self.memory)

    def _products(self, inner: int, columns: int, *, backward: bool) -> float:
        """A linear layer: forward one product; backward two, for its input and its weights."""
        n = self.tokens
        if not backward:
            return self._product(n, inner, columns)
        return self._product(n, columns, inner) + self._product(inner, n, columns)

    def _layer(self, *, backward: bool) -> _Layer:
        model, t = self.model, self.layout.tensor_degree
        h, f = model.hidden_size, model.ffn_size
        shapes = ((h, 3 * h // t), (h // t, h), (h, model.first_size // t), (f // t, h))
        written = SIZE * model.passes.scores * self.tokens * self.work.length * model.num_heads / t / self.memory
        scores = 4 * self.tokens * self.work.length * h / t / self.arithmetic
        # a kernel that keeps no scores computes them again: five products for the forward pass's two
        return _Layer(
            products=sum(self._products(a, b, backward=backward) for a, b in shapes),
            attention=(1 + backward) * written + (1 + backward * (1.5 if model.passes.scores == 0 else 1)) * scores,
            elementwise=(1 + backward) * self._elementwise(),
            tensor=2 * self._tensor_exchange(),
            context=self._context_exchange(),
        )

    def _elementwise(self) -> float:
        """Forward."""
        model, t = self.model, self.layout.tensor_degree
        s = t if self.layout.sequence_parallel else 1
        numbers = (model.passes.hidden / s + model.passes.heads / t) * model.hidden_size
        return SIZE * self.tokens * (numbers + model.passes.ffn * model.ffn_size / t) / self.memory

    def _recomputed(self, forward: _Layer) -> float:
        """Seconds of what the backward pass of a layer computes again."""
        model, t = self.model, self.layout.tensor_degree
        if self.layout.recompute == "full":
            return sum(forward)
        if self.layout.recompute == "none":
            return 0.0
        if model.selective == "attention":
            return forward.attention
        h, f = model.hidden_size, model.ffn_size
        both = self._products(h, model.first_size // t, backward=False) + self._products(f // t, h, backward=False)
        return both + SIZE * self.tokens * model.passes.ffn * f / t / self.memory + self._tensor_exchange()

    def _moved(self, size: float, degree: int, stride: int) -> float:
        """Seconds to gather, or to reduce and scatter, `size` bytes over `degree` ranks."""
        if degree == 1:
            return 0.0
        return (degree - 1) / degree * size / (self.gpu.speed_between(degree, stride) * self.links)

    def _tensor_exchange(self) -> float:
        """A sublayer's sum over the tensor ranks: reduce-scatter and gather, whether tokens stay split or not."""
        return 2 * self._moved(SIZE * self.tokens * self.model.hidden_size, self.layout.tensor_degree, 1)

    def _context_exchange(self) -> float:
        """Keys and values of the whole row gathered; backward their gradients, reduced and scattered."""
        t, c = self.layout.tensor_degree, self.layout.context_degree
        return self._moved(SIZE * c * self.tokens * 2 * self.model.hidden_size / t, c, t)

    def _output(self) -> tuple[float, float]:
        """Products, and traffic of the loss in fp32 (two passes forward, two backward), of a micro-batch."""
        columns = max(1, self.model.vocab_size // self.layout.tensor_degree)
        both = [self._products(self.model.hidden_size, columns, backward=backward) for backward in (False, True)]
        return sum(both), 4 * 4 * self.tokens * columns / self.memory

    def _sends(self) -> float:
        """A micro-batch's values forward, its gradients backward, at each border of the rank's groups of layers."""
        layout = self.layout
        if layout.pipeline_degree == 1:
            return 0.0
        inner = layout.tensor_degree * layout.context_degree * self.work.data_degree
        within = inner * layout.pipeline_degree <= NODE
        speed = (self.gpu.nvlink * 1e9 if within else self.gpu.speed_between(2, NODE)) * self.links
        split = layout.sequence_parallel or self.work.sends_split
        sends = 2 * layout.virtual_stages * self.work.rows + 2 * (layout.pipeline_degree - 1)
        size = SIZE * self.tokens * self.model.hidden_size / (layout.tensor_degree if split else 1)
        return sends * size / speed

    @property
    def _weights(self) -> float:
        """Of a rank."""
        model, layout = self.model, self.layout
        layers = model.num_layers / layout.pipeline_degree * model.flops_per_layer / 2
        ends = model.vocab_size * model.hidden_size * (2 if layout.pipeline_degree == 1 else 1)
        return (layers + ends) / layout.tensor_degree

    def _exchange(self, forward: float, backward: float) -> float:
        """What is left of the data-parallel exchange after hiding behind a row's passes, if it overlaps."""
        layout = self.layout
        degree = self.work.data_degree * layout.context_degree
        scatter = self._moved(self.work.gradient_size * self._weights, degree, layout.tensor_degree)
        gather = self._moved(SIZE * self._weights, degree, layout.tensor_degree)
        if not layout.distributed_optimizer:  # an all-reduce: the gradients travel both ways
            scatter, gather = 2 * scatter, 0.0
        if not layout.overlap:
            return scatter + gather
        return max(0.0, scatter - backward) + max(0.0, gather - forward)

    def _optimizer(self) -> float:
        degree = self.work.data_degree * self.layout.context_degree
        return ADAM * self._weights / (degree if self.layout.distributed_optimizer else 1) / self.memory
