"""The verb `quantize`: a GLM with the linear layers of its blocks in 8 or 4 bits, if it bears that.

Before anything is written, the model and its quantized form read the same proteins, in each way that the model was
trained to read: with an eighth of the residues masked, and from left to right as it writes. What the truth loses in
likelihood and how far states turn is printed, and stays with the model in its card and config.json.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from tyro.conf import Positional

from xtrimo.answer import give
from xtrimo.checkpoint import Stated, filled
from xtrimo.command import WORDS_AROUND
from xtrimo.config import Quantization
from xtrimo.conversion import Source, check_place, digest_of, read_source, told, write_model, written
from xtrimo.errors import ConfigError
from xtrimo.fasta import Record, read_fasta
from xtrimo.model import GLM
from xtrimo.precision_loss import Answers, PrecisionLoss, answers
from xtrimo.prepacking import MOST_LOST
from xtrimo.quantization import quantize_int4, quantize_int8

logger = logging.getLogger(__name__)

EXAMPLES = Path(__file__).resolve().parents[1] / "examples/proteins.fasta.gz"
JUDGED_RESIDUES = 4000
"""Proteins are taken in order until they have as many."""
KINDS: dict[tuple[int, bool], Quantization] = {(8, False): "int8", (8, True): "int8-dynamic", (4, False): "int4"}
"""(bits, dynamic) -> what GLMConfig calls it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizeOptions:
    """Store the linear layers of a GLM's blocks in 8 or 4 bits, with a scale a row. Refused where, on some proteins,
    more than 0.01 nats per residue are lost, or the cosine between states before and after is below 0.995."""

    model: Positional[str]
    """Model directory of a GLM that is not quantized; or its name on the Hugging Face Hub."""
    out: Positional[Path]
    """Directory of the quantized model, which must not be there yet."""
    bits: Literal[8, 4]
    """Of a weight. 4 is the layout of the published 100B checkpoint."""
    dynamic: bool = False
    """Multiply in eight bits as well, activations with a scale a token: faster on a CPU, and for CPUs alone."""
    fasta: Path | None = None
    """Proteins to judge on, like those the model is for; by default the first of examples/proteins.fasta.gz."""
    force: bool = False
    """Save it whatever is lost."""

    def __post_init__(self) -> None:
        if (self.bits, self.dynamic) not in KINDS:
            raise ConfigError(f"--dynamic is for --bits 8: CPUs multiply eight bits by eight, not {self.bits}")


class Judged(NamedTuple):
    """What quantization does to one way of reading."""

    ppl_before: float
    """Perplexity of the residues that were asked for."""
    ppl_after: float
    loss: PrecisionLoss

    @property
    def is_bearable(self) -> bool:
        """Whether it is within the bounds."""
        return self.loss.cosine >= MOST_LOST.cosine and self.loss.nll_rise <= MOST_LOST.nll_rise

    def to_dict(self) -> dict[str, float]:
        """JSON-ready."""
        return dict(ppl_before=self.ppl_before, ppl_after=self.ppl_after, **asdict(self.loss))


def quantized(model: GLM, quantization: Quantization) -> GLM:
    """The model with the linear layers of its blocks in `quantization`; all else is shared with it.

    Raises:
        ConfigError: it is quantized already, its weights are no numbers, or 4 bits for a shape with an odd side.
    """
    if model.config.quantization != "none":
        raise ConfigError(
            f"this model is in {model.config.quantization} already; quantize the one that it was made from"
        )
    config = replace(model.config, quantization=quantization)
    return filled(config, _in_bits(model, quantization), Path("the quantized model"), device=model.device)


def _in_bits(model: GLM, quantization: Quantization) -> Iterator[tuple[str, Tensor]]:
    """Each weight by name, one at a time; a quantized one as numbers and scales."""
    for name, weight in model.state_dict().items():
        if not name.startswith("blocks.") or weight.ndim != 2:
            yield name, weight.detach()
            continue
        if not weight.isfinite().all():
            raise ConfigError(f"{name} holds infinities or nan, which no scale can stand for; train the model again")
        numbers, scale = (quantize_int4 if quantization == "int4" else quantize_int8)(weight.detach().float())
        yield name, numbers
        yield f"{name}_scale", scale


def judge(before: GLM, after: GLM, proteins: Sequence[Record]) -> dict[str, Judged]:
    """What was lost, by way of reading: masked, written, or both, as the model was trained."""
    ways = {"masked": before.mask is not None, "written": before.config.prompt_style == "gmask" or before.mask is None}
    found = {}
    for way in (way for way, known in ways.items() if known):
        old, new = (answers(model, proteins, as_written=way == "written") for model in (before, after))
        found[way] = Judged(_perplexity(old), _perplexity(new), PrecisionLoss.between(old, new))
    return found


def _perplexity(told: Answers) -> float:
    return math.exp(float(told.nats.mean()))


def proteins_to_judge(fasta: Path | None, max_length: int) -> list[Record]:
    """The first proteins of a file, by default of the examples, each as far as a training row holds it.

    Raises:
        ConfigError: no file is given, and the examples are not here.
        FastaError, SequenceError: the file cannot be read.
    """
    path = fasta or EXAMPLES
    if not path.is_file() and fasta is None:
        raise ConfigError("the example proteins are not installed; give --fasta with some like those the model is for")
    chosen: list[Record] = []
    num_residues = 0
    for record in read_fasta(path, unknown="error"):
        if num_residues >= JUDGED_RESIDUES:
            break
        chosen.append(replace(record, sequence=record.sequence[: max_length - WORDS_AROUND]))
        num_residues += len(chosen[-1].sequence)
    return chosen


def quantize(
    source: Source, model: GLM, quantization: Quantization, proteins: Sequence[Record]
) -> tuple[Source, dict[str, Judged]]:
    """A model in `quantization`, ready to be written, and what it loses on these proteins."""
    after = quantized(model, quantization)
    judged = judge(model, after, proteins)
    facts: dict[str, Any] = dict(
        quantization=quantization, made_from=digest_of(source.state), proteins=len(proteins),
        residues=sum(len(record.sequence) for record in proteins), bounds=asdict(MOST_LOST),
        lost={way: of.to_dict() for way, of in judged.items()},
    )  # fmt: skip
    notes = "\n\n".join(filter(None, (source.notes, "## Quantization", _as_markdown(quantization, judged, proteins))))
    return Source.of(after, notes=notes, quantized=facts), judged


def _rows(judged: dict[str, Judged]) -> Iterator[tuple[str, ...]]:
    yield "reading", "perplexity", "quantized", "nats per residue", "cosine of states"
    for way, of in judged.items():
        yield way, f"{of.ppl_before:.4f}", f"{of.ppl_after:.4f}", f"{of.loss.nll_rise:+.5f}", f"{of.loss.cosine:.6f}"


def _as_markdown(quantization: str, judged: dict[str, Judged], proteins: Sequence[Record]) -> str:
    head, *rows = (f"| {' | '.join(row)} |" for row in _rows(judged))
    said = f"Weights of the blocks in {quantization}; before and after on {len(proteins)} proteins:"
    return "\n".join((said, "", head, "| --- " * 5 + "|", *rows))


def _as_text(rows: Iterable[tuple[str, ...]]) -> str:
    return "\n".join("".join(f"{cell:<18}" for cell in row).rstrip() for row in rows)


def write_quantized(options: QuantizeOptions) -> tuple[Stated, dict[str, Judged]]:
    """All of the verb but what it prints.

    Raises:
        ConfigError: the model loses more than the bounds, or cannot be quantized so; the output is there.
    """
    check_place(options.out, 0)
    source = read_source(options.model)
    model = filled(source.config, source.state.items(), Path(options.model))
    proteins = proteins_to_judge(options.fasta, model.max_length)
    with torch.inference_mode():
        made, judged = quantize(source, model, KINDS[options.bits, options.dynamic], proteins)
    worst = [f"{way}: {of.loss}" for way, of in judged.items() if not of.is_bearable]
    if worst and not options.force:
        raise ConfigError(
            f"this model does not bear {made.config.quantization}: on {len(proteins)} proteins {'; '.join(worst)};"
            f" allowed are {MOST_LOST}. Take --bits 8 without --dynamic, or --force to save it all the same"
        )
    if worst:
        logger.warning("saved by --force, with more lost than %s: %s", MOST_LOST, "; ".join(worst))
    return write_model(made, options.out), judged


def main(args: Sequence[str] | None = None) -> None:
    """`xtrimo quantize`."""
    import tyro

    options = tyro.cli(QuantizeOptions, prog="xtrimo quantize", args=args)
    stated, judged = write_quantized(options)
    facts = {"readings": judged, **written(stated, options.out)}
    give(facts, f"{_as_text(_rows(judged))}\n{told(stated, options.out)}")
