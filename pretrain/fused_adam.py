"""AdamW that counts its steps per parameter group, as Apex's and Transformer Engine's FusedAdam do.

Where neither is installed megatron-core 0.16.1 falls back to torch's AdamW, whose `step` sits in each parameter's
state, and there the distributed optimizer's re-shardable checkpoint is broken: it fails on a fresh optimizer, and ends
with one step tensor shared by all parameters. With this class in FusedAdam's place, a machine without Transformer
Engine runs the branches that users of it run. The arithmetic is torch's own (`torch.optim.adamw.adamw`, fused kernel).
"""

from typing import Any

import torch
from torch.optim.adamw import adamw


class FusedAdam(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019) over parameter groups that each carry their own step count."""

    def __init__(
        self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.0, **_: Any,
    ) -> None:  # fmt: skip
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # megatron never gives a closure
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                if not self.state[p]:
                    self.state[p] = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            done = group.get("step", 0)
            group["step"] = done + 1
            if params:
                steps = [torch.tensor(float(done), device=p.device) for p in params]
                adamw(
                    params, [p.grad for p in params], [self.state[p]["exp_avg"] for p in params],
                    [self.state[p]["exp_avg_sq"] for p in params], [], steps,
                    fused=True, amsgrad=False, beta1=group["betas"][0], beta2=group["betas"][1], lr=group["lr"],
                    weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
                )  # fmt: skip


def install() -> None:
    """Put FusedAdam where megatron looks for Transformer Engine's, unless that (or Apex's) is there."""
    from megatron.core import optimizer
    from megatron.core.optimizer import distrib_optimizer

    if not distrib_optimizer.HAVE_APEX_OR_TE:
        optimizer.Adam = distrib_optimizer.Adam = FusedAdam
        optimizer.USING_PYTORCH_OPTIMIZER = False
        distrib_optimizer.HAVE_APEX_OR_TE = distrib_optimizer.USING_APEX_OPTIMIZER = True
