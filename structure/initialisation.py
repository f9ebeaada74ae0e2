"""AlphaFold 2's initial weights (supplement 1.11.4), for modules of OpenFold's port.

The port gives each linear layer a word, `init`, and acts on it only when transformers builds the whole ESMFold; a
module that is built alone has torch's defaults. Layers of ours draw their weights themselves.
"""

import math

import torch
from torch import Tensor, nn

from structure.openfold import InvariantPointAttention, Linear

HEAD_WEIGHT = math.log(math.e - 1)  # softplus of it is 1


def initialise(model: nn.Module) -> None:
    """Draw the weights of OpenFold's modules inside `model`: each new branch adds nothing at first."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Linear):
                _linear(module)
            elif isinstance(module, InvariantPointAttention):
                nn.init.constant_(module.head_weights, HEAD_WEIGHT)


def lecun_(weight: Tensor, gain: float = 1.0) -> None:
    """Normal, of variance gain / inputs, cut at two deviations, which takes 12 % off the deviation."""
    std = math.sqrt(gain / weight.shape[1]) / 0.87962566103423978
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


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
        case kind:  # default: LeCun, relu: He
            lecun_(layer.weight, gain=2.0 if kind == "relu" else 1.0)
