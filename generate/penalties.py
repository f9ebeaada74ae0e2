"""Penalties on what a protein repeats, as processors: pure functions of the logits and of what was written before.

A penalty is a number of nats taken off the logit of a residue: at 2.3 nats it is a tenth as likely beside the others.
The end of a protein has none. One that is passed to the engine from elsewhere looks the same: see engine.Processor.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from generate.engine import END, History, Processor
from xtrimo.errors import ConfigError

_WORD = 4  # residues; chance alone repeats few words of four in one protein
_LONGEST_PERIOD = 4
_WINDOW = 32  # residues; a repeat that is longer than this is penalised as one of this length

Logits = Float[Tensor, "row choice"]


def repetition_penalty(nats: float, size: int = _WORD) -> Processor:
    """Against words of `size` residues that the protein has already: `nats` off for each earlier one.

    Raises:
        ConfigError: negative or infinite nats, or a size below 2.
    """
    _check("repetition", nats)
    if size < 2:
        raise ConfigError(f"a repeated word has {size} residues; it must have at least 2")

    def process(logits: Logits, history: History) -> Logits:
        residues, lengths = history
        if residues.shape[1] < size:
            return logits
        last = _right_aligned(residues, lengths, size - 1)
        words = residues.unfold(1, size, 1)  # (row, place, size)
        place = torch.arange(words.shape[1], device=residues.device)
        is_met = (words[:, :, :-1] == last[:, None]).all(-1) & (place + size <= lengths[:, None])
        counts = torch.zeros_like(logits).scatter_add_(1, words[:, :, -1], is_met.to(logits.dtype))
        return logits - nats * counts

    return process


def complexity_penalty(nats: float) -> Processor:
    """Against runs (AAAA) and repeats of a short period (GSGSGS, up to four residues long).

    Free are two periods and one residue more: AAA, GSGSG. Each residue beyond costs `nats` more than the one before.

    Raises:
        ConfigError: negative or infinite nats.
    """
    _check("complexity", nats)

    def process(logits: Logits, history: History) -> Logits:
        window = _right_aligned(history.residues, history.lengths, _WINDOW)
        beyond = torch.zeros_like(logits)
        for period in range(1, _LONGEST_PERIOD + 1):
            same = (window[:, period:] == window[:, :-period]) & (window[:, :-period] >= 0)
            matched = same.flip(1).cumprod(1).sum(1)  # residues in a row that are those of a period before
            length = matched + period + 1  # of the repeat, with the residue that would continue it
            again = window[:, -period]
            excess = (length - (2 * period + 1)).clamp_min(0).to(logits.dtype).where(again >= 0, 0)
            here = torch.zeros_like(logits).scatter_(1, again.clamp_min(0)[:, None], excess[:, None])
            beyond = torch.maximum(beyond, here)
        return logits - nats * beyond

    return process


def _right_aligned(
    residues: Int[Tensor, "row step"], lengths: Int[Tensor, "row"], width: int
) -> Int[Tensor, "row width"]:
    """The last `width` residues of each row, -1 before the first."""
    place = lengths[:, None] - width + torch.arange(width, device=residues.device)
    padded = torch.nn.functional.pad(residues, (0, 1), value=END)  # so that there is something to gather
    return padded.gather(1, place.clamp_min(0)).where(place >= 0, -1)


def _check(what: str, nats: float) -> None:
    if not 0 <= nats < float("inf"):
        raise ConfigError(f"{what} penalty is {nats}; it must be at least 0 nats, and finite")
