"""Model, optimizer and schedule of one rank, and the step: megatron's DDP, optimizer, pipeline schedule and reductions.

A rank holds one chunk of the model, or several that an interleaved pipeline takes turns with. Whatever the layout, a
step gives the same losses, gradient norm and weights as plain PyTorch (tests/pretrain/test_parity.py).
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import Float16Module
from torch import Tensor

from pretrain.agreement import gather
from pretrain.config import PretrainConfig
from pretrain.losses import Losses, global_losses, is_finite, weigh
from pretrain.megatron_config import build_optimizer, data_parallel_config, transformer_config
from pretrain.model import MegatronGLM
from pretrain.parallel import chunk, device, seed_dropout
from xtrimo.objectives import IGNORE, Example
from xtrimo.packing import Row, pack, pad
from xtrimo.tokens import EOS


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step did."""

    losses: Losses
    gradient_norm: float
    """Of all weights, before clipping; not finite when the step was skipped."""
    learning_rate: float
    bad_rows: tuple[int, ...] = ()
    """Rows of the global batch whose loss is not a number."""

    @property
    def skipped(self) -> bool:
        """Whether the gradient was not finite, so that no weight changed."""
        return not math.isfinite(self.gradient_norm)


class Trainer:
    """Everything that a rank trains with. Process groups must be up (`parallel.process_groups`)."""

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config
        self.megatron = transformer_config(config)
        self.cores = [self._core(stage) for stage in range(config.parallel.virtual_stages)]
        half = config.precision != "fp32"
        self.chunks = [
            DistributedDataParallel(
                self.megatron,
                data_parallel_config(config),
                Float16Module(self.megatron, core) if half else core,
                disable_bucketing=stage > 0,  # the exchange of later chunks hides behind the first one's computing
            )
            for stage, core in enumerate(self.cores)
        ]
        self.optimizer, self.scheduler = build_optimizer(config, self.chunks)
        self.megatron.finalize_model_grads_func = finalize_model_grads
        self.megatron.grad_scale_func = self.optimizer.scale_loss
        if config.parallel.overlap:
            waits: list[Any] = [chunk.no_sync for chunk in self.chunks]
            self.megatron.no_sync_func = waits if len(waits) > 1 else waits[0]

    def _core(self, stage: int) -> MegatronGLM:
        virtual = stage if self.config.parallel.virtual_stages > 1 else None
        core = MegatronGLM(
            self.megatron,
            first=parallel_state.is_pipeline_first_stage(ignore_virtual=virtual is None, vp_stage=virtual),
            last=parallel_state.is_pipeline_last_stage(ignore_virtual=virtual is None, vp_stage=virtual),
            stage=virtual,
        )
        core.draw_weights(self.config.seed)
        return core.to(device())

    def step(self, rows: Iterable[Row], batch: int = 0) -> StepResult:
        """One optimizer step on this rank's rows of global batch `batch`, whose number seeds dropout.

        A step whose gradient is not finite changes nothing but the place in the schedule (and fp16's loss scale).
        """
        for model in self.chunks:
            model.zero_grad_buffer()
        self.optimizer.zero_grad()
        local = list(rows)
        parts = self._run(local, batch, forward_only=False)
        losses = global_losses(parts, local, self.config.glm)
        self.scheduler.step(1)  # before the update, so that the first step already learns
        norm = self._update()
        bad = () if math.isfinite(norm) else _bad_rows(parts, len(local))
        return StepResult(losses, norm, self.optimizer.param_groups[0]["lr"], bad)

    def _update(self) -> float:
        """Clip and apply the gradient unless it is not finite; its norm."""
        if self.optimizer.prepare_grads():  # fp16: an overflow, which lowers the loss scale
            return math.inf
        norm = float(self.optimizer.get_grad_norm())
        if math.isfinite(norm):
            for part in self.optimizer.chained_optimizers:
                if part.get_parameters():  # a rank's shard may hold none
                    clip_grad_by_total_norm_fp32(part.get_parameters(), self.config.optimizer.clip_norm, norm)
            self.optimizer.step_with_ready_grads()
        return norm

    def evaluate(self, rows: Iterable[Row]) -> Losses:
        """Losses of this rank's rows, without gradients; every rank of a pipeline gets the same rows."""
        for model in self.chunks:
            model.eval()
        local = list(rows)
        with torch.no_grad(), self.whole_weights():
            losses = global_losses(self._run(local, 0, forward_only=True), local, self.config.glm)
        for model in self.chunks:
            model.train()
        return losses

    def _run(self, rows: list[Row], batch: int, forward_only: bool) -> list[dict[str, Tensor]]:
        """The losses' report of each row, in order; none before the last stage of a pipeline."""
        if not rows:
            return []
        parallel = self.config.parallel
        first = parallel_state.get_data_parallel_rank() * len(rows)
        if parallel.virtual_stages > 1:  # an interleaved pipeline takes rows in groups of its degree
            rows = rows + [_empty_row()] * (-len(rows) % parallel.pipeline_degree)
        rows = [pad(row, parallel.row_multiple) for row in rows]
        feeds = [iter(enumerate(rows, start=first)) for _ in self.chunks]
        several = len(feeds) > 1
        parts: list[dict[str, Tensor]] = get_forward_backward_func()(
            forward_step_func=partial(self._forward, batch),
            data_iterator=feeds if several else feeds[0],
            model=self.chunks if several else self.chunks[0],
            num_microbatches=len(rows),
            seq_length=max(len(row.tokens) for row in rows),
            micro_batch_size=1,
            forward_only=forward_only,
        )
        return parts

    def _forward(self, batch: int, rows: Iterator[tuple[int, Row]], model: Any) -> tuple[Tensor, Any]:
        number, row = next(rows)
        if self.config.dropout:
            seed_dropout(self.config.seed, batch, number, self.chunks.index(model))
        mine = chunk(len(row.tokens))
        tokens, positions, labels = (
            torch.as_tensor(values[mine], device=device()) for values in (row.tokens, row.positions, row.labels)
        )
        return model(tokens, positions, torch.from_numpy(row.segments), labels), partial(weigh, row)

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        """Inside, the weights are up to date without a training step's exchange, as for a save or an evaluation."""
        gathers = self.config.parallel.overlap and self.config.parallel.distributed_optimizer
        for model in self.chunks if gathers else ():
            model.disable_forward_pre_hook(param_sync=True)
        try:
            yield
        finally:
            for model in self.chunks if gathers else ():
                model.enable_forward_pre_hook()

    def sharded_state(self, metadata: Mapping[str, Any], *, loading: bool) -> dict[str, Any]:
        """Model and optimizer as megatron's checkpoints take them, with `metadata` on how to shard."""
        for part in self.optimizer.chained_optimizers:
            part.init_state_fn(part.optimizer)  # none before the first update, and what is not saved cannot be loaded
        with self.whole_weights():
            model = {f"model{i}": core.sharded_state_dict(metadata=dict(metadata)) for i, core in enumerate(self.cores)}
            optimizer = self.optimizer.sharded_state_dict(dict(model), is_loading=loading, metadata=dict(metadata))
        return {**model, "optimizer": optimizer}

    def load_state(self, state: Mapping[str, Any], step: int) -> None:
        """Take over what was saved after `step` steps."""
        for i, core in enumerate(self.cores):
            core.load_state_dict(state[f"model{i}"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.num_steps = 0
        self.scheduler.step(step)  # its state is the step; so a longer run may go on from a shorter one


def _empty_row() -> Row:
    """One token, of which nothing is asked."""
    tokens, positions = np.array([EOS], dtype=np.uint8), np.zeros((1, 2), dtype=np.int32)
    return pack([Example("mlm", tokens, positions, np.full_like(tokens, IGNORE), prefix=1)])


def _bad_rows(parts: list[dict[str, Tensor]], rows_per_rank: int) -> tuple[int, ...]:
    first = parallel_state.get_data_parallel_rank() * rows_per_rank
    mine = [first + i for i, part in enumerate(parts[:rows_per_rank]) if not is_finite(part)]
    return tuple(sorted(set().union(*gather(lambda: mine))))
