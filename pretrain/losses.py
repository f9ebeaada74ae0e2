"""What a row's losses add up to: the sum that megatron differentiates, and the figures a run reports.

The loss of a step is sum(weight * nll) / sum(weight) over the whole global batch (see packing.py for the weights), so
neither the layout nor the cut into micro-batches shows in it. Figures are counted per objective: nats and labels.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float, Float64
from megatron.core import parallel_state
from torch import Tensor

from pretrain.parallel import chunk, device
from xtrimo.config import GLMConfig
from xtrimo.objectives import OBJECTIVES
from xtrimo.packing import Row
from xtrimo.tokens import FIRST_RESIDUE, LAST_RESIDUE, MASK, PAD

NAMES = tuple(OBJECTIVES)
# One vector holds a rank's sums, so that one reduction adds them all: the trained loss and its weight, nats and labels
# of each objective, then tokens, residues and FLOPs.
_LOSSES, _SIZES = 2 + 2 * len(NAMES), 3


@dataclass(frozen=True, slots=True)
class Losses:
    """Loss sums over the global batch, the same on every rank."""

    loss: float
    """The trained loss: weighted mean, nats."""
    nats: dict[str, float]
    """Mean nats per loss token of each objective that occurred."""
    num_tokens: int
    """Tokens of all rows, without the padding that makes a row divisible."""
    num_residues: int
    """Residues among them."""
    num_flops: float
    """Floating-point operations of one forward pass; a training step takes three times as many."""


def weigh(row: Row, nll: Float[Tensor, " token"]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """megatron's loss contract over this rank's chunk: what to differentiate, what to divide it by, what to report."""
    mine = chunk(len(row.tokens))
    weights = torch.as_tensor(row.weights[mine], device=nll.device)
    # an example's weights add up to a whole number, its part in a chunk does not: one context rank counts for all
    first = parallel_state.get_context_parallel_rank() == 0
    count = torch.as_tensor(round(float(row.weights.sum())) * first, dtype=torch.int, device=nll.device)
    asked = weights > 0
    detached, objectives = nll.detach().double(), torch.as_tensor(row.objectives[mine], device=nll.device)
    nats, labels = (
        torch.zeros(len(NAMES), dtype=torch.float64, device=nll.device).index_add_(0, objectives[asked], values[asked])
        for values in (detached, torch.ones_like(detached))
    )
    total = torch.stack([(weights * detached).sum(), count.double()])
    return (weights * nll.float()).sum(), count, {"sums": torch.cat([total, nats, labels])}


def row_size(row: Row, glm: GLMConfig) -> Float64[Tensor, "3"]:
    """Tokens, residues and forward FLOPs of a row."""
    residues = ((row.tokens >= FIRST_RESIDUE) & (row.tokens <= LAST_RESIDUE)) | (row.tokens == MASK)
    real = [length for start, length, _ in row.segments.tolist() if row.tokens[start] != PAD]
    flops = sum(length * glm.flops_per_token(length) for length in real)
    return torch.tensor([sum(real), residues.sum(), flops], dtype=torch.float64)


def global_losses(parts: list[dict[str, Tensor]], rows: list[Row], glm: GLMConfig) -> Losses:
    """Add what the ranks counted.

    Args:
        parts: the reports of `weigh` on this rank, one a row; none before the last stage of a pipeline.
        rows: this rank's rows.
    """
    sums: Float64[Tensor, "sum"] = torch.zeros(_LOSSES + _SIZES, dtype=torch.float64, device=device())
    if parallel_state.get_tensor_model_parallel_rank() == 0:  # the tensor ranks of a stage hold copies
        for part in parts:
            sums[:_LOSSES] += part["sums"]
        if parts and parallel_state.get_context_parallel_rank() == 0:  # context ranks read parts of the same rows
            sums[_LOSSES:] += sum(row_size(row, glm) for row in rows).to(sums)  # type: ignore[union-attr]
    dist.all_reduce(sums)
    weighted, weight, *counts, tokens, residues, flops = sums.tolist()
    nats, labels = counts[: len(NAMES)], counts[len(NAMES) :]
    means = {name: total / count for name, total, count in zip(NAMES, nats, labels, strict=True) if count}
    return Losses(weighted / max(1.0, weight), means, round(tokens), round(residues), flops)


def is_finite(part: dict[str, Tensor]) -> bool:
    """Whether the losses of a row's report are numbers."""
    return bool(part["sums"].isfinite().all())
