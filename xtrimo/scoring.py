"""How likely a model finds a protein, in nats under the softmax over all rows of the vocabulary.

A model that generates is fed `<gmask><sop><eos>R1..Rn`, each residue read from the token before it, then the closing
`<eos>`: an exact log-likelihood. A model that only fills masks gives the pseudo-likelihood: every residue in turn is
masked and read from all the others, which costs n passes over the protein; no closing `<eos>` there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, tee
from math import exp
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float, Float32, UInt8
from torch import Tensor
from tyro.conf import Positional

from xtrimo.batch import Inputs, Sequences, named, run
from xtrimo.command import FastaOptions, progress_bar, replacing
from xtrimo.config import GLMConfig
from xtrimo.errors import ConfigError
from xtrimo.model import GLM
from xtrimo.objectives import IGNORE, Example
from xtrimo.reading import prompted, whole
from xtrimo.tokens import MASK, encode_residues


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """The likelihood of one protein."""

    name: str
    """The record's name; `sequence_1`, ... for a bare string."""
    residue_nll: Float32[np.ndarray, "length"]
    """Negative log-likelihood of each residue, nats."""
    total_nll: float
    """Of the whole protein, nats: all residues, and the closing `<eos>` unless this is a pseudo-likelihood."""

    @property
    def nll(self) -> float:
        """Nats per residue."""
        return float(self.residue_nll.mean(dtype=np.float64))

    @property
    def ppl(self) -> float:
        """Perplexity per residue, exp(nll)."""
        return exp(self.nll)


def score(model: GLM, sequences: Sequences) -> list[Score]:
    """Likelihood of each protein, in input order.

    Args:
        sequences: strings or records.

    Raises:
        ConfigError: the model has no likelihood (sMASK alone).
        SequenceError: empty sequence or unknown letter.
    """
    return list(iter_scores(model, sequences))


def iter_scores(model: GLM, sequences: Sequences) -> Iterator[Score]:
    """`score`, streaming: takes as many proteins as fit a row, yields their scores, goes on."""
    _check(model.config)

    def losses(row: Inputs) -> Float[Tensor, "token"]:
        logits = model(row.tokens, row.positions, row.segments)
        return F.cross_entropy(logits.float(), row.labels, ignore_index=IGNORE, reduction="none")

    proteins, to_read = tee(
        (protein.name, encode_residues(protein.sequence, name=protein.name)) for protein in named(sequences)
    )
    examples = (example for _, residues in to_read for example in _examples(residues, model.config))
    answers = (loss for example, values in run(model, examples, losses) for loss in values[example.labels != IGNORE])
    for name, residues in proteins:
        own = np.fromiter(islice(answers, _num_answers(residues, model.config)), dtype=np.float32)
        yield Score(name, own[: len(residues)], float(own.sum(dtype=np.float64)))


def _examples(residues: UInt8[np.ndarray, "length"], config: GLMConfig) -> Iterator[Example]:
    """What is to be read to score one protein: itself, or a copy for each residue with that one masked."""
    if config.prompt_style == "gmask":
        yield prompted(residues, config)
        return
    plain = whole(residues)
    for i, residue in enumerate(residues):
        tokens, labels = plain.tokens.copy(), plain.labels.copy()
        tokens[i], labels[i] = MASK, residue
        yield replace(plain, tokens=tokens, labels=labels)


def _num_answers(residues: UInt8[np.ndarray, "length"], config: GLMConfig) -> int:
    return len(residues) + int(config.prompt_style == "gmask")


def _check(config: GLMConfig) -> None:
    if config.prompt_style == "none" and "mlm" not in config.objectives:
        raise ConfigError(
            f"a model trained on {', '.join(config.objectives)} alone never predicted a whole protein or a <mask>;"
            " scoring needs gmask, causal or mlm"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreOptions(FastaOptions):
    """Likelihood of each protein of a FASTA file, as CSV: name, length, nll (nats per residue), ppl, total_nll."""

    fasta: Positional[Path]
    """Proteins, plain or gzipped."""
    out: Path | None = None
    """CSV file; replaced, once the new one is complete. By default the rows go to stdout."""


def main(args: Sequence[str] | None = None) -> None:
    """`xtrimo score`."""
    import csv
    import sys
    from contextlib import ExitStack

    import tyro

    options = tyro.cli(ScoreOptions, prog="xtrimo score", args=args)
    model = options.load()
    num_records, records = options.read(options.fasta)
    with ExitStack() as stack:
        file = sys.stdout
        if options.out:
            partial = stack.enter_context(replacing(options.out))
            file = stack.enter_context(partial.open("w", encoding="utf-8", errors="surrogateescape", newline=""))
        progress = stack.enter_context(progress_bar())
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("name", "length", "nll", "ppl", "total_nll"))
        for s in progress.track(iter_scores(model, records), total=num_records, description="scoring"):
            numbers = (f"{value:.6f}" for value in (s.nll, s.ppl, s.total_nll))
            writer.writerow((s.name, len(s.residue_nll), *numbers))
