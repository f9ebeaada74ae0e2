"""From logits to a choice: temperature, cuts, draw. All in float64, and a row's result depends on that row alone.

A cut leaves out unlikely choices, and what stays shares their probability. Each is made of what the one before left:

    top-k   the k likeliest                                          (Fan et al. 2018, arXiv:1805.04833)
    top-p   the fewest likeliest that reach p together: the nucleus  (Holtzman et al. 2020, arXiv:1904.09751)
    min-p   those with at least this share of the likeliest one      (Nguyen et al. 2024, arXiv:2407.01082)
"""

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor


def distribution(
    logits: Float[Tensor, "batch choice"],
    temperature: float,
    top_p: float = 1.0,
    keep: int | None = None,
    *,
    top_k: int = 0,
    min_p: float = 0.0,
) -> Float64[Tensor, "batch choice"]:
    """Probabilities after temperature and cuts.

    Args:
        logits: -inf where a choice is forbidden; at least one is not.
        temperature: divides the logits; 0 gives all to the likeliest choice (the first of equals).
        keep: a choice that no cut touches: its own probability stays, the others share the rest.
        top_k: 0 for all.

    >>> distribution(torch.tensor([[0.5, 0.3, 0.2]]).log(), 1.0, 0.7)
    tensor([[0.6250, 0.3750, 0.0000]], dtype=torch.float64)
    """
    if temperature == 0:
        return torch.zeros_like(logits, dtype=torch.float64).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    probabilities = (logits.double() / temperature).softmax(-1)
    if not top_k and top_p == 1 and not min_p:
        return probabilities
    if keep is None:
        return _cut(probabilities, top_k, top_p, min_p)
    others = probabilities.clone()
    others[:, keep] = 0
    share = others.sum(-1, keepdim=True)
    # where nothing but `keep` is allowed there is nothing to share
    out = (_cut(others / share, top_k, top_p, min_p) * share).where(share > 0, 0.0)
    out[:, keep] = probabilities[:, keep]
    return out


def _cut(
    probabilities: Float64[Tensor, "batch choice"], top_k: int, top_p: float, min_p: float
) -> Float64[Tensor, "batch choice"]:
    kept, order = probabilities.sort(descending=True, stable=True)
    if top_k:
        kept[:, top_k:] = 0
        kept = kept / kept.sum(-1, keepdim=True)
    if top_p < 1:
        kept = kept.masked_fill(kept.cumsum(-1) - kept >= top_p, 0.0)
    if min_p:
        kept = kept.masked_fill(kept < min_p * kept[:, :1], 0.0)
    return torch.zeros_like(kept).scatter_(-1, order, kept / kept.sum(-1, keepdim=True))


def draw(probabilities: Float64[Tensor, "batch choice"], uniform: Float64[Tensor, "batch"]) -> Int[Tensor, "batch"]:
    """The choice where the cumulative probability first reaches `uniform`, a number in (0, 1].

    Open at 0, so that a choice of probability 0 is never drawn.
    """
    cumulative = probabilities.cumsum(-1)
    return (cumulative < uniform[:, None] * cumulative[:, -1:]).sum(-1)
