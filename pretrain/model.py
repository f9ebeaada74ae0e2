"""The GLM on megatron-core: the same model as xtrimo/model.py, every weight under tensor and pipeline parallelism.

What megatron supplies: parallel embedding, linears and cross-entropy, the pipeline, sharded state. What is ours: the
DeepNorm order of a layer, attention over segments, and rotary angles in two channels. A micro-batch is one packed row,
so megatron's (sequence, batch, hidden) has batch 1. `segments` travel in the place of the attention mask, which lets
recomputation and pipelines carry them without knowing what they are.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from megatron.core import parallel_state, tensor_parallel
from megatron.core.extensions.transformer_engine import HAVE_TE
from megatron.core.extensions.transformer_engine_spec_provider import TESpecProvider
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType, ModelType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import (
    TransformerBlock,
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor

from xtrimo.attention import attend
from xtrimo.config import GLMConfig
from xtrimo.model import draw_weight
from xtrimo.names import pairs, to_megatron
from xtrimo.rope import angles


@dataclass
class GLMTransformerConfig(TransformerConfig):
    """megatron's config, with what its layers need to know of ours."""

    glm: GLMConfig = None  # type: ignore[assignment]  # megatron's fields before it have defaults
    embedding_gradient: float = 1.0


class Norm(torch.nn.LayerNorm):
    """LayerNorm in the parameters' precision; megatron's own wrapper refuses sequence parallelism."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__(hidden_size, eps, dtype=config.params_dtype)
        for weight in self.parameters():
            weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


class DeepNormLayer(TransformerLayer):
    """x = norm(x); x = alpha x + sublayer(x), twice; the next norm is the next layer's first, or the block's final one.

    megatron has a flag for residuals from the norm's output, but reads it nowhere; hence this forward.
    """

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor, rotary_pos_emb: Tensor, context: Any = None, **_: Any
    ) -> tuple[Tensor, Any]:
        def add(merge: Any, sublayer: tuple[Tensor, Tensor | None], x: Tensor) -> Tensor:
            out: Tensor = merge(self.training, False)(sublayer, self.config.glm.alpha * x, self.hidden_dropout)
            return out

        x = self.input_layernorm(hidden_states)
        x = add(self.self_attn_bda, self.self_attention(x, attention_mask, rotary_pos_emb=rotary_pos_emb), x)
        x = self.pre_mlp_layernorm(x)
        if not (self.recompute_mlp and self.training):
            return add(self.mlp_bda, self.mlp(x), x), context
        return add(self.mlp_bda, (tensor_parallel.checkpoint(self._feed_forward, False, x), None), x), context

    def _feed_forward(self, x: Tensor) -> Tensor:
        """The MLP with its bias added, since a recomputed function must not return a parameter."""
        out, bias = self.mlp(x)
        return out + bias


class SegmentAttention(MegatronModule):
    """Core attention over the segments of a packed row: one rank's heads and, of the queries, its chunk of the row."""

    def __init__(self, config: TransformerConfig, **_: Any) -> None:
        super().__init__(config)

    def forward(
        self,
        q: Float[Tensor, "chunk 1 head width"],
        k: Float[Tensor, "chunk 1 head width"],
        v: Float[Tensor, "chunk 1 head width"],
        segments: Int[Tensor, "segment 3"],
        **_: Any,
    ) -> Float[Tensor, "chunk 1 dim"]:
        k, v, first = k[:, 0], v[:, 0], 0
        if self.config.context_parallel_size > 1:
            group, first = (
                parallel_state.get_context_parallel_group(),
                parallel_state.get_context_parallel_rank() * len(q),
            )
            # forward all-gather, backward reduce-scatter: megatron names it after its other use
            k, v = gather_from_sequence_parallel_region(torch.stack([k, v], dim=1), group=group).unbind(1)
        return attend(q[:, 0], k, v, segments, first).flatten(1)[:, None]


def layer_spec() -> ModuleSpec:
    """One transformer layer in megatron's terms."""
    column, row, norm = parallel_layers()
    return ModuleSpec(
        module=DeepNormLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=norm,
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": AttnMaskType.arbitrary},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=column,
                    core_attention=SegmentAttention,
                    linear_proj=row,
                    q_layernorm=IdentityOp,
                    k_layernorm=IdentityOp,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=norm,
            mlp=ModuleSpec(module=MLP, submodules=MLPSubmodules(linear_fc1=column, linear_fc2=row)),
            mlp_bda=get_bias_dropout_add,
        ),
    )


def parallel_layers() -> tuple[type, type, type]:
    """Column-parallel linear, row-parallel linear and norm: Transformer Engine's on a GPU that has it, else megatron's.

    Norm and linear stay apart also there: the residual of DeepNorm is the norm's output, which a fused one hides.
    """
    if HAVE_TE and torch.cuda.is_available():
        te = TESpecProvider()
        return te.column_parallel_linear(), te.row_parallel_linear(), te.layer_norm()
    return tensor_parallel.ColumnParallelLinear, tensor_parallel.RowParallelLinear, Norm


class MegatronGLM(LanguageModule):
    """One pipeline stage of the GLM.

    Args:
        config: megatron's view of the model, from `megatron_config.transformer_config`.
        first, last: whether this stage holds the embedding, and the output layer with the loss.
        stage: which of a rank's chunks this is in an interleaved pipeline, else None.
    """

    def __init__(self, config: GLMTransformerConfig, *, first: bool, last: bool, stage: int | None = None) -> None:
        super().__init__(config)
        self.vp_stage = stage  # megatron's schedule reads it
        self.glm, self.pre_process, self.post_process = config.glm, first, last
        self.share_embeddings_and_output_weights = False
        self.model_type = ModelType.encoder_or_decoder
        if first:
            self.embedding = LanguageModelEmbedding(config, self.glm.vocab_size, self.glm.max_length, "none")
        layers = [layer_spec()] * get_num_layers_to_build(config, vp_stage=stage)
        spec = TransformerBlockSubmodules(layer_specs=layers, layer_norm=parallel_layers()[-1])
        self.decoder = TransformerBlock(config, spec, pre_process=first, post_process=last, vp_stage=stage)
        if last:
            self.output_layer = tensor_parallel.ColumnParallelLinear(
                self.glm.hidden_size, self.glm.vocab_size, config=config, init_method=config.init_method, bias=False
            )

    def set_input_tensor(self, input_tensor: list[Tensor | None]) -> None:
        """Called by the schedule: the hidden states that the previous stage sent, None on the first stage."""
        self.decoder.set_input_tensor(input_tensor[0])

    def forward(
        self,
        tokens: Int[Tensor, "chunk"],
        positions: Int[Tensor, "chunk 2"],
        segments: Int[Tensor, "segment 3"],
        labels: Int[Tensor, "chunk"] | None = None,
    ) -> Tensor:
        """Hidden states (chunk, 1, dim) before the last stage; there the loss of each token in nats, or logits.

        Args:
            tokens, positions, labels: of this rank's chunk of the row; the whole row without context parallelism.
            segments: of the whole row, on the CPU, where attention plans its work.
        """
        x = None
        if self.pre_process:
            x = self.embedding(tokens[None], None)
            scale = self.config.embedding_gradient
            x = scale * x + (1 - scale) * x.detach()
        turn = angles(positions, self.glm).flatten(1)[:, None, None]  # [a1 a2]: our channels side by side
        x = self.decoder(x, attention_mask=segments, rotary_pos_emb=torch.cat([turn, turn], dim=-1))
        if not self.post_process:
            return x
        logits, _ = self.output_layer(x)
        if labels is None:
            return logits[:, 0]
        losses: Tensor = self.compute_language_model_loss(labels[None], logits)
        return losses[0]

    @torch.no_grad()
    def draw_weights(self, seed: int) -> None:
        """The plain model's fresh weights, whatever the layout: each rank draws its own, then keeps its shard."""
        ours = {theirs: name for name, theirs in pairs(self.glm, "megatron").items()}
        for local, weight in self.named_parameters():
            name = ours[self.global_name(local)]
            full = draw_weight(name, self._full_shape(local, weight), self.glm, seed)
            weight.copy_(shard(local, to_megatron(name, full, self.glm), weight))

    def global_name(self, name: str) -> str:
        """A parameter's name with the layer counted over the whole pipeline."""
        if ".layers." not in name:
            return name
        head, tail = name.split("layers.")
        index, rest = tail.split(".", 1)
        return f"{head}layers.{self.decoder.layers[int(index)].layer_number - 1}.{rest}"

    def _full_shape(self, name: str, weight: Tensor) -> tuple[int, ...]:
        shape = list(weight.shape)
        if getattr(weight, "tensor_model_parallel", False):
            shape[weight.partition_dim] *= parallel_state.get_tensor_model_parallel_world_size()  # type: ignore[attr-defined]
        return tuple(shape)


def shard(name: str, full: Tensor, weight: Tensor) -> Tensor:
    """This tensor-parallel rank's part of a whole weight in megatron's row order."""
    rank = parallel_state.get_tensor_model_parallel_rank()
    degree = parallel_state.get_tensor_model_parallel_world_size()
    if "linear_fc1" in name:  # gate and value are each split, so that a rank's halves belong together
        return full.unflatten(0, (2, -1)).chunk(degree, 1)[rank].flatten(0, 1)
    if getattr(weight, "tensor_model_parallel", False):
        return full.chunk(degree, weight.partition_dim)[rank]  # type: ignore[attr-defined]
    return full
