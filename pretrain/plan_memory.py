"""Bytes that one rank holds while it trains, part by part: the formulas of our model as megatron-core runs it.

What autograd keeps of a layer, in values a token (h width, f feed-forward width, d width of a head, t tensor degree, s
the same if the tokens are split over the tensor ranks, else 1):

    4 h/s   inputs and outputs of the two norms
    6 h/t   q, k and v as they leave their product, which v is a view of; q and k turned; the mixture of values
    5 f/t   value and gate as they leave theirs, a copy of the value, gelu of the gate, the product of the two
    4 d     cosines and sines, for q and for k

There is no row x row matrix: attention keeps one log-sum-exp a head and token. Selective recomputation drops the 5 f/t
of all layers but the one at work; full recomputation keeps a layer's input alone. tests/pretrain/test_plan_memory.py
counts the tensors of real steps in several layouts.
"""

import math
from dataclasses import dataclass, fields
from typing import Literal

from pretrain.config import ParallelConfig
from xtrimo.config import GLMConfig

Recompute = Literal["none", "selective", "full"]
RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")
FRAMEWORK = 2e9
"""Bytes taken before the first tensor: CUDA's kernels, measured as 1,573 MiB on an A100 40G (BigScience, train/
tr11-176B-ml/chronicles-prequel.md), and the buffers of NCCL."""
FRAGMENTATION = 0.05
"""Share of all tensors that the allocator cannot use; an allowance, not a measurement."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes of the rank that holds most."""

    weights: float
    """The model's weights, as they are computed with."""
    gradients: float
    """Gradients, summed in fp32 (which fp32 training needs as well)."""
    optimizer: float
    """Adam's two moments and, below fp32, an fp32 copy of the weights."""
    activations: float
    """What autograd keeps for the backward pass, at its most."""
    logits: float
    """Probabilities of the vocabulary that the loss keeps, in fp32, on the last stage."""
    working: float
    """Gradients of one layer's values, gathered tokens, outputs held for the next stage; scores of the vocabulary."""
    allowance: float
    """For the framework, and for what fragmentation wastes."""

    @property
    def total(self) -> float:
        """All parts."""
        return sum(getattr(self, part.name) for part in fields(self))


def parameters_per_rank(glm: GLMConfig, parallel: ParallelConfig, stage: int) -> int:
    """Weights that a rank of pipeline stage `stage` holds."""
    h, f, t = glm.hidden_size, glm.ffn_size, parallel.tensor_degree
    split = (3 * h * h + 3 * h + 2 * f * h + 2 * f + h * h + f * h) // t
    count = glm.num_layers // parallel.pipeline_degree * (split + 2 * h + 4 * h)
    if stage == 0:
        count += glm.vocab_size * h // t
    if stage == parallel.pipeline_degree - 1:
        count += glm.vocab_size * h // t + 2 * h
    return count


def layer_activations(glm: GLMConfig, parallel: ParallelConfig, tokens: int, size: int) -> tuple[float, float, float]:
    """Bytes that one layer keeps of `tokens` tokens of this rank: its input, its feed-forward's values, the rest.

    Args:
        tokens: of a micro-batch, after context parallelism has split the row.
        size: bytes of a number.
    """
    h, t = glm.hidden_size, parallel.tensor_degree
    s = t if parallel.sequence_parallel else 1
    c = parallel.context_degree
    heads = 6 if c == 1 else 2 + 2 * c  # else keys and values of the whole row, gathered into tensors of their own
    inner = 5 * glm.ffn_size / t
    rest = 3 * h / s + heads * h / t + 4 * glm.head_dim + 4 / s
    return size * tokens * h / s, size * tokens * inner, tokens * (size * rest + 4 * glm.num_heads / t)


def rows_in_flight(parallel: ParallelConfig, stage: int, rows: int) -> float:
    """Micro-batches whose values a stage holds at once; fractions are of a stage's layers (interleaved schedules).

    Narayanan et al. 2021, section 2.2: 1F1B holds as many as stages follow, and itself; interleaved, the first rank
    holds (p - 1) / (p v) more.
    """
    p, v = parallel.pipeline_degree, parallel.virtual_stages
    if v == 1:
        return min(rows, p - stage)
    chunks = min(rows * v, 2 * (p - stage - 1) + (v - 1) * p + 1)
    return chunks / v


def memory(
    glm: GLMConfig, parallel: ParallelConfig, *, row_length: int, rows: int, data_degree: int, size: int = 2
) -> Memory:
    """What the fullest rank holds.

    Args:
        row_length: tokens of a micro-batch.
        rows: micro-batches of one data-parallel rank in a step.
        size: bytes of a weight or activation: 2 for bf16 and fp16, 4 for fp32.
    """
    stages = {0, parallel.pipeline_degree - 1}
    kept = [_of_stage(glm, parallel, stage, row_length, rows, data_degree, size) for stage in sorted(stages)]
    return max(kept, key=lambda part: part.total)


def _of_stage(
    glm: GLMConfig, parallel: ParallelConfig, stage: int, row_length: int, rows: int, data_degree: int, size: int
) -> Memory:
    t, last = parallel.tensor_degree, stage == parallel.pipeline_degree - 1
    tokens = math.ceil(row_length / parallel.context_degree)
    s = t if parallel.sequence_parallel else 1
    count = parameters_per_rank(glm, parallel, stage)
    shards = data_degree * parallel.context_degree if parallel.distributed_optimizer else 1

    flying = rows_in_flight(parallel, stage, rows)
    layers = glm.num_layers // parallel.pipeline_degree
    first, inner, rest = layer_activations(glm, parallel, tokens, size)
    kept, again = {
        "none": (first + inner + rest, 0.0),
        "selective": (first + rest, inner),
        "full": (first, inner + rest),
    }[parallel.recompute]
    width = size * tokens * glm.hidden_size
    logits = last * tokens * 4 * glm.vocab_size / t
    ends = last * 2 * (width + size * tokens) / s  # of the final norm; with the logits gone once a layer works again
    activations = flying * layers * kept + max(ends, again - logits)
    sent = 0.0 if last else flying * parallel.virtual_stages * width / s
    working = sent + size * tokens * (5 * glm.ffn_size + last * glm.vocab_size) / t + 2 * width
    parts = dict(
        weights=float(size * count), gradients=4.0 * count, optimizer=(8.0 + 4 * (size < 4)) * count / shards,
        activations=activations, logits=logits, working=working,
    )  # fmt: skip
    return Memory(**parts, allowance=FRAMEWORK + FRAGMENTATION * sum(parts.values()))
