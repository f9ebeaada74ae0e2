"""From logits to a choice: temperature, nucleus, draw. All in float64, and a row's result depends on that row alone."""

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor


def distribution(
    logits: Float[Tensor, "batch choice"], temperature: float, top_p: float, keep: int | None = None
) -> Float64[Tensor, "batch choice"]:
    """Probabilities after temperature and nucleus.

    Args:
        temperature: divides the logits; 0 gives all to the likeliest choice (the first of equals).
        top_p: keeps the fewest likeliest choices that reach this probability together (Holtzman et al. 2020).
        keep: a choice outside the nucleus: its own probability stays, the others share the rest.

    >>> distribution(torch.tensor([[0.5, 0.3, 0.2]]).log(), 1.0, 0.7)
    tensor([[0.6250, 0.3750, 0.0000]], dtype=torch.float64)
    """
    if temperature == 0:
        return torch.zeros_like(logits, dtype=torch.float64).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    probabilities = (logits.double() / temperature).softmax(-1)
    if top_p == 1:
        return probabilities
    if keep is None:
        return _nucleus(probabilities, top_p)
    others = probabilities.clone()
    others[:, keep] = 0
    share = others.sum(-1, keepdim=True)
    out = _nucleus(others / share, top_p) * share
    out[:, keep] = probabilities[:, keep]
    return out


def _nucleus(probabilities: Float64[Tensor, "batch choice"], top_p: float) -> Float64[Tensor, "batch choice"]:
    ranked, order = probabilities.sort(descending=True, stable=True)
    before = ranked.cumsum(-1) - ranked
    kept = ranked.masked_fill_(before >= top_p, 0.0)
    return torch.zeros_like(kept).scatter_(-1, order, kept / kept.sum(-1, keepdim=True))


def draw(probabilities: Float64[Tensor, "batch choice"], uniform: Float64[Tensor, "batch"]) -> Int[Tensor, "batch"]:
    """The choice where the cumulative probability first reaches `uniform`, a number in (0, 1].

    Open at 0, so that a choice of probability 0 is never drawn.
    """
    cumulative = probabilities.cumsum(-1)
    return (cumulative < uniform[:, None] * cumulative[:, -1:]).sum(-1)
