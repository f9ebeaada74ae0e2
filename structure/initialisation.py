"""AlphaFold 2's initial weights (supplement 1.11.4), for modules of OpenFold's port.

The port gives each linear layer a word, `init`, and acts on it only when transformers builds the whole ESMFold; a
module that is built alone has torch's defaults. Layers without the word, which ESMFold adds, keep these.
"""

import math
from typing import Any

import torch
from torch import nn

from structure.openfold import FoldingBlock, InvariantPointAttention, Linear

HEAD_WEIGHT = math.log(math.e - 1)  # softplus of it is 1


def initialise(model: nn.Module) -> None:
    """Draw the weights of OpenFold's modules inside `model`: each new branch adds nothing at first."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Linear):
                _linear(module)
            elif isinstance(module, InvariantPointAttention):
                nn.init.constant_(module.head_weights, HEAD_WEIGHT)
        for module in model.modules():  # last: ESMFold's own zeros go before what their layers say
            if isinstance(module, FoldingBlock):
                for branch in _branches(module):
                    nn.init.zeros_(branch.weight)
                    if branch.bias is not None:
                        nn.init.zeros_(branch.bias)


def _linear(layer: nn.Linear) -> None:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    match layer.init:
        case "final":
            nn.init.zeros_(layer.weight)
        case "gating":
            nn.init.zeros_(layer.weight)
            nn.init.ones_(layer.bias)
        case "glorot":
            nn.init.xavier_uniform_(layer.weight)
        case "normal":
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
        case kind:  # default: LeCun, relu: He; both cut at two deviations, which takes 12 % off the deviation
            std = math.sqrt((2.0 if kind == "relu" else 1.0) / layer.in_features) / 0.87962566103423978
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)


def _branches(block: Any) -> list[nn.Linear]:
    return [
        block.tri_mul_in.linear_z, block.tri_mul_out.linear_z, block.tri_att_start.mha.linear_o,
        block.tri_att_end.mha.linear_o, block.sequence_to_pair.o_proj, block.pair_to_sequence.linear,
        block.seq_attention.o_proj, block.mlp_seq.mlp[-2], block.mlp_pair.mlp[-2],
    ]  # fmt: skip
