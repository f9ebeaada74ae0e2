"""One PretrainConfig in megatron's terms: model and layout, gradient buffers, optimizer, schedule."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer, get_standard_config_overrides
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from torch import Tensor

from pretrain.config import PretrainConfig
from pretrain.model import GLMTransformerConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
RECOMPUTE: dict[str, dict[str, Any]] = {
    "none": {},
    # attention keeps no T x T scores that would be worth computing again; the feed-forward's inner values are the most
    "selective": dict(recompute_granularity="selective", recompute_modules=["mlp"]),
    "full": dict(recompute_granularity="full", recompute_method="uniform", recompute_num_layers=1),
}


def transformer_config(config: PretrainConfig) -> GLMTransformerConfig:
    """megatron's config of the model and the layout. Its fused kernels need CUDA or a compiler; none is asked for."""
    glm, parallel = config.glm, config.parallel
    interleaved = parallel.virtual_stages > 1
    return GLMTransformerConfig(
        glm=glm, embedding_gradient=config.optimizer.embedding_gradient,
        num_layers=glm.num_layers, hidden_size=glm.hidden_size, num_attention_heads=glm.num_heads,
        ffn_hidden_size=glm.ffn_size, gated_linear_unit=True, activation_func=F.gelu, normalization="LayerNorm",
        layernorm_epsilon=glm.layer_norm_eps, hidden_dropout=config.dropout, attention_dropout=0.0,
        params_dtype=DTYPES[config.precision], pipeline_dtype=DTYPES[config.precision],
        bf16=config.precision == "bf16", fp16=config.precision == "fp16",
        tensor_model_parallel_size=parallel.tensor_degree, sequence_parallel=parallel.sequence_parallel,
        pipeline_model_parallel_size=parallel.pipeline_degree,
        virtual_pipeline_model_parallel_size=parallel.virtual_stages if interleaved else None,
        # the interleaved schedule sends while it computes, which the batched exchange cannot
        overlap_p2p_comm=interleaved, batch_p2p_comm=not interleaved,
        context_parallel_size=parallel.context_degree, **RECOMPUTE[parallel.recompute],
        variable_seq_lengths=True, moe_token_dispatcher_type="alltoall",  # rows differ in length; no experts here
        calculate_per_token_loss=True, use_cpu_initialization=True,
        # megatron marks its sharded weights while it initialises them; it draws nothing, draw_weights does
        init_method=_leave, output_layer_init_method=_leave, embedding_init_method=_leave,
        bias_activation_fusion=False, bias_dropout_fusion=False, masked_softmax_fusion=False, apply_rope_fusion=False,
        gradient_accumulation_fusion=False,
    )  # fmt: skip


def _leave(weight: Tensor) -> Tensor:
    return weight


def data_parallel_config(config: PretrainConfig) -> DistributedDataParallelConfig:
    """How gradients are kept and exchanged; sums below fp32 would lose the small ones."""
    parallel = config.parallel
    return DistributedDataParallelConfig(
        grad_reduce_in_fp32=config.precision != "fp32",
        use_distributed_optimizer=parallel.distributed_optimizer,
        overlap_grad_reduce=parallel.overlap,
        overlap_param_gather=parallel.overlap and parallel.distributed_optimizer,
    )


def build_optimizer(config: PretrainConfig, chunks: list[Any]) -> tuple[Any, OptimizerParamScheduler]:
    """AdamW over the model chunks, and the schedule, which alone applies the exemptions from weight decay."""
    o = config.optimizer
    smallest = o.learning_rate * o.min_learning_rate_ratio
    megatron = OptimizerConfig(
        optimizer="adam", lr=o.learning_rate, min_lr=smallest, weight_decay=o.weight_decay, adam_beta1=o.beta1,
        adam_beta2=o.beta2, adam_eps=o.eps, clip_grad=o.clip_norm, params_dtype=DTYPES[config.precision],
        bf16=config.precision == "bf16", fp16=config.precision == "fp16",
        # GLM-130B, table 11, starts at 2^16; it scales a row's mean loss, megatron its sum
        initial_loss_scale=2.0 ** (16 - math.ceil(math.log2(config.batch.row_length))), min_loss_scale=2.0**-16,
        loss_scale_window=2000, hysteresis=2,
        use_distributed_optimizer=config.parallel.distributed_optimizer,
        overlap_param_gather=config.parallel.overlap and config.parallel.distributed_optimizer,
    )  # fmt: skip
    optimizer = get_megatron_optimizer(megatron, chunks, config_overrides=get_standard_config_overrides(megatron))
    scheduler = OptimizerParamScheduler(
        optimizer, init_lr=0.0, max_lr=o.learning_rate, min_lr=smallest,
        lr_warmup_steps=min(round(o.warmup_ratio * config.steps), config.steps - 1), lr_decay_steps=config.steps,
        lr_decay_style="cosine", start_wd=o.weight_decay, end_wd=o.weight_decay, wd_incr_steps=config.steps,
        wd_incr_style="constant",
    )  # fmt: skip
    return optimizer, scheduler
