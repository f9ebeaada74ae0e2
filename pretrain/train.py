"""The verb `xtrimo pretrain`. One CPU process, or the ranks of torchrun; start it again and it resumes.

xtrimo pretrain --corpus corpus --out runs/first --model glm-1m --steps 500
torchrun --nproc-per-node 2 -m xtrimo pretrain ... --parallel.tensor-degree 2
"""

import warnings
from collections.abc import Sequence

import tyro

from pretrain.config import PretrainConfig


def main(args: Sequence[str] | None = None) -> None:
    """The verb `xtrimo pretrain`."""
    config = tyro.cli(PretrainConfig, args=args, prog="xtrimo pretrain")
    warnings.filterwarnings("ignore", module="megatron")  # it tells which CUDA packages it does without

    from pretrain.loop import pretrain  # torch and megatron take seconds, which --help need not wait for

    pretrain(config)
