"""Model, optimizer and schedule of one rank, and the step: megatron's DDP, optimizer, pipeline schedule and reductions.

The loss of a step is sum(weight * nll) / sum(weight) over the whole global batch (see packing.py for the weights), so
neither the layout nor the cut into micro-batches shows in it. Metrics count per objective: nats and loss tokens.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer import get_megatron_optimizer, get_standard_config_overrides
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import Float16Module
from torch import Tensor

from pretrain.config import PretrainConfig
from pretrain.model import GLMTransformerConfig, MegatronGLM
from pretrain.parallel import device
from xtrimo.config import GLMConfig
from xtrimo.objectives import OBJECTIVES
from xtrimo.packing import Row
from xtrimo.tokens import FIRST_RESIDUE, LAST_RESIDUE, MASK

NAMES = tuple(OBJECTIVES)


@dataclass(frozen=True, slots=True)
class Losses:
    """Loss sums over the global batch, the same on every rank."""

    loss: float
    """The trained loss: weighted mean, nats."""
    nats: dict[str, float]
    """Mean nats per loss token of each objective that occurred."""
    num_tokens: int
    """Tokens of all rows."""
    num_residues: int
    """Residues among them."""
    num_flops: float
    """Floating-point operations of one forward pass; a training step takes three times as many."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step did."""

    losses: Losses
    gradient_norm: float
    learning_rate: float


def transformer_config(config: PretrainConfig) -> GLMTransformerConfig:
    """megatron's config of the model and the layout. Its fused kernels need CUDA or a compiler; none is asked for."""
    glm = config.glm
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    return GLMTransformerConfig(
        glm=glm, embedding_gradient=config.optimizer.embedding_gradient,
        num_layers=glm.num_layers, hidden_size=glm.hidden_size, num_attention_heads=glm.num_heads,
        ffn_hidden_size=glm.ffn_size, gated_linear_unit=True, activation_func=F.gelu, normalization="LayerNorm",
        layernorm_epsilon=glm.layer_norm_eps, hidden_dropout=0.0, attention_dropout=0.0,
        params_dtype=dtype, pipeline_dtype=dtype, bf16=config.precision == "bf16",
        tensor_model_parallel_size=config.parallel.tensor_degree,
        pipeline_model_parallel_size=config.parallel.pipeline_degree,
        variable_seq_lengths=True, moe_token_dispatcher_type="alltoall",  # rows differ in length; no experts here
        calculate_per_token_loss=True, use_cpu_initialization=True,
        # megatron marks its sharded weights while it initialises them; it draws nothing, draw_weights does
        init_method=_leave, output_layer_init_method=_leave, embedding_init_method=_leave,
        bias_activation_fusion=False, bias_dropout_fusion=False, masked_softmax_fusion=False, apply_rope_fusion=False,
        gradient_accumulation_fusion=False,
    )  # fmt: skip


def _leave(weight: Tensor) -> Tensor:
    return weight


class Trainer:
    """Everything that a rank trains with. Process groups must be up (`parallel.process_groups`)."""

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config
        self.megatron = transformer_config(config)
        model: Any = MegatronGLM(
            self.megatron,
            first=parallel_state.is_pipeline_first_stage(),
            last=parallel_state.is_pipeline_last_stage(),
        )
        model.draw_weights(config.seed)
        model = model.to(device())
        if config.precision == "bf16":
            model = Float16Module(self.megatron, model)
        distributed = config.parallel.distributed_optimizer
        self.model = DistributedDataParallel(
            self.megatron,
            DistributedDataParallelConfig(
                use_distributed_optimizer=distributed, grad_reduce_in_fp32=config.precision == "bf16"
            ),
            model,
        )
        self.optimizer, self.scheduler = _optimizer(config, self.model)
        self.megatron.finalize_model_grads_func = finalize_model_grads
        self.megatron.grad_scale_func = self.optimizer.scale_loss
        self.last = parallel_state.is_pipeline_last_stage()

    @property
    def core(self) -> MegatronGLM:
        """The model inside megatron's wrappers."""
        inner = self.model.module
        core: MegatronGLM = inner.module if isinstance(inner, Float16Module) else inner
        return core

    def step(self, rows: Iterable[Row]) -> StepResult:
        """One optimizer step on this rank's rows of the global batch."""
        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        losses = self._run(list(rows), forward_only=False)
        self.scheduler.step(1)  # before the update, so that the first step already learns
        _, norm, _ = self.optimizer.step()
        return StepResult(losses, float(norm or 0.0), self.optimizer.param_groups[0]["lr"])

    def evaluate(self, rows: Iterable[Row]) -> Losses:
        """Losses of this rank's rows, without gradients; every rank of a pipeline gets the same rows."""
        self.model.eval()
        with torch.no_grad():
            losses = self._run(list(rows), forward_only=True)
        self.model.train()
        return losses

    def _run(self, rows: list[Row], forward_only: bool) -> Losses:
        sums: Float[Tensor, "sum 3"] = torch.zeros(len(NAMES) + 2, 3, dtype=torch.float64)
        if rows:
            parts = get_forward_backward_func()(
                forward_step_func=_forward_step,
                data_iterator=iter(rows),
                model=self.model,
                num_microbatches=len(rows),
                seq_length=max(len(row.tokens) for row in rows),
                micro_batch_size=1,
                forward_only=forward_only,
            )
            sums = sum((part["sums"].cpu() for part in parts), sums)  # megatron gives none before the last stage
            sums[-1] = sum((_size(row, self.config.glm) for row in rows), sums[-1])
        return _global_losses(sums if self.last else torch.zeros_like(sums))


def _forward_step(rows: Iterator[Row], model: Any) -> tuple[Tensor, Any]:
    row = next(rows)
    to = partial(torch.as_tensor, device=device())
    out = model(to(row.tokens), to(row.positions), to(row.segments), to(row.labels))
    return out, partial(_weigh, row)


def _weigh(row: Row, nll: Float[Tensor, " token"]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """megatron's loss contract: the sum to differentiate, the count to divide it by, and what to report."""
    weights = torch.as_tensor(row.weights, device=nll.device)
    total = (weights * nll.float()).sum()
    count = weights.sum().round().int()
    detached = nll.detach().double()
    objectives = torch.as_tensor(row.objectives, device=nll.device)
    sums = torch.zeros(len(NAMES) + 2, 3, dtype=torch.float64, device=nll.device)
    asked = weights > 0
    sums[:-2, 0].index_add_(0, objectives[asked], detached[asked])
    sums[:-2, 1].index_add_(0, objectives[asked], torch.ones_like(detached[asked]))
    sums[-2, :2] = torch.stack([(weights * detached).sum(), count.double()])
    return total, count, {"sums": sums}


def _size(row: Row, glm: GLMConfig) -> Float[Tensor, "3"]:
    """Tokens, residues and forward FLOPs of a row."""
    residues = ((row.tokens >= FIRST_RESIDUE) & (row.tokens <= LAST_RESIDUE)) | (row.tokens == MASK)
    flops = sum(length * glm.flops_per_token(length) for length in row.segments[:, 1].tolist())
    return torch.tensor([len(row.tokens), residues.sum(), flops], dtype=torch.float64)


def _global_losses(sums: Float[Tensor, "sum 3"]) -> Losses:
    """Add the last stages' sums over the data-parallel ranks; tensor ranks of a stage hold copies of one another."""
    sums = sums.to(device()) / parallel_state.get_tensor_model_parallel_world_size()
    dist.all_reduce(sums)
    *objectives, (weighted, weight, _), (tokens, residues, flops) = sums.tolist()
    nats = {name: row[0] / row[1] for name, row in zip(NAMES, objectives, strict=True) if row[1]}
    return Losses(weighted / max(1.0, weight), nats, round(tokens), round(residues), flops)


def _optimizer(config: PretrainConfig, model: Any) -> tuple[Any, OptimizerParamScheduler]:
    o = config.optimizer
    smallest = o.learning_rate * o.min_learning_rate_ratio
    megatron = MegatronOptimizerConfig(
        optimizer="adam", lr=o.learning_rate, min_lr=smallest, weight_decay=o.weight_decay, adam_beta1=o.beta1,
        adam_beta2=o.beta2, adam_eps=o.eps, clip_grad=o.clip_norm, bf16=config.precision == "bf16",
        params_dtype=torch.bfloat16 if config.precision == "bf16" else torch.float32,
        use_distributed_optimizer=config.parallel.distributed_optimizer,
    )  # fmt: skip
    # the overrides exempt biases and norms from decay, and only the scheduler applies them
    optimizer = get_megatron_optimizer(megatron, [model], config_overrides=get_standard_config_overrides(megatron))
    scheduler = OptimizerParamScheduler(
        optimizer, init_lr=0.0, max_lr=o.learning_rate, min_lr=smallest,
        lr_warmup_steps=min(round(o.warmup_ratio * config.steps), config.steps - 1), lr_decay_steps=config.steps,
        lr_decay_style="cosine", start_wd=o.weight_decay, end_wd=o.weight_decay, wd_incr_steps=config.steps,
        wd_incr_style="constant",
    )  # fmt: skip
    return optimizer, scheduler
