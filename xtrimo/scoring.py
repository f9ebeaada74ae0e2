"""How likely a model finds a protein, in nats under the softmax over all rows of the vocabulary.

likelihood.py has the three ways to ask: the likelihood of a model that generates, the pseudo-likelihood of one that
fills masks, and its approximation in one pass. The total of a likelihood counts the closing `<eos>`, so that proteins
of different lengths are compared fairly: without it the shorter one always gains. A pseudo-likelihood has none.
"""

import logging
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice, tee
from math import exp, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Float32
from torch import Tensor
from tyro.conf import Positional

from xtrimo.attention import within
from xtrimo.backbone import Backbone
from xtrimo.batch import Inputs, Sequences, named, run
from xtrimo.command import FastaOptions, progress_bar, replacing
from xtrimo.errors import ConfigError, MemoryShortError
from xtrimo.fasta import Record
from xtrimo.intervals import Estimate, bootstrap_ratio
from xtrimo.likelihood import Asking, Method, Question, Reading, choose
from xtrimo.objectives import IGNORE, Example

if TYPE_CHECKING:
    from _csv import Writer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Score:
    """The likelihood of one protein."""

    name: str
    """The record's name; `sequence_1`, ... for a bare string."""
    residue_nll: Float32[np.ndarray, "length"]
    """Negative log-likelihood of each residue, nats, from N to C whatever the direction. NaN where the model has no
    word for the residue: it counts in no other figure, and a figure of no residue is NaN."""
    total_nll: float
    """Of the whole protein, nats: all residues, and the closing `<eos>` of a likelihood; a pseudo-likelihood has no
    `<eos>`. For comparing proteins of different lengths."""
    method: Method
    """What the nats are; those of one-pass approximate pseudo's."""
    direction: Reading | None
    """Of a likelihood: how the model read the protein, or the mean of both ways; None for the others."""

    @property
    def nll(self) -> float:
        """Nats per residue."""
        known = _known(self.residue_nll)
        return float(known.mean(dtype=np.float64)) if len(known) else nan

    @property
    def ppl(self) -> float:
        """Perplexity per residue, exp(nll)."""
        return exp(self.nll)


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """How well a model predicts a set of proteins, each residue counted alike."""

    method: Method
    direction: Reading | None
    num_proteins: int
    """Those with a residue that the model has a word for."""
    num_residues: int
    """Those that it has a word for."""
    nll: Estimate
    """Nats per residue, with a 95 % bootstrap interval over proteins; no interval of a single protein means anything,
    its ends are the figure itself."""

    @property
    def ppl(self) -> Estimate:
        """Perplexity, exp(nll)."""
        return Estimate(value=exp(self.nll.value), low=exp(self.nll.low), high=exp(self.nll.high))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; the interval is null for a single protein."""
        facts: dict[str, Any] = {name: getattr(self, name) for name in ("method", "direction")}
        facts |= {name: getattr(self, name) for name in ("num_proteins", "num_residues")}
        for name, figure in (("nll", self.nll), ("ppl", self.ppl)):
            facts[name] = figure.value
            facts[f"{name}_interval"] = [figure.low, figure.high] if self.num_proteins > 1 else None
        return facts

    def __str__(self) -> str:
        way = f"{self.method}, {self.direction}" if self.direction else self.method
        interval = f" (95 % interval {self.ppl.low:.3f} to {self.ppl.high:.3f})" if self.num_proteins > 1 else ""
        proteins = "1 protein" if self.num_proteins == 1 else f"{self.num_proteins:,} proteins"
        return f"perplexity {self.ppl.value:.3f}{interval} over {self.num_residues:,} residues of {proteins}; {way}"


def score(
    model: Backbone, sequences: Sequences, *, method: Method | None = None, direction: Reading | None = None
) -> list[Score]:
    """Likelihood of each protein, in input order.

    Args:
        sequences: strings or records.
        method: likelihood, pseudo or one-pass (see likelihood.py); by default likelihood where the model has one.
        direction: of a likelihood; forward, reverse (C to N), or both for the mean of their nats. By default the first
            one that the model was trained in, forward.

    Raises:
        ConfigError: a method or direction that the model was not trained for.
        SequenceError: empty sequence, several chains, unknown letter, or more residues than a model of learned places
            has these.
        MemoryShortError: a protein that does not fit into memory alone.
    """
    return list(iter_scores(model, sequences, method=method, direction=direction))


def iter_scores(
    model: Backbone, sequences: Sequences, *, method: Method | None = None, direction: Reading | None = None
) -> Iterator[Score]:
    """`score`, streaming: takes as many proteins as fit a row, yields their scores, goes on."""
    return _scores(model, sequences, choose(model, method, direction))


def _scores(model: Backbone, sequences: Sequences, asking: Asking) -> Iterator[Score]:
    def nats(row: Inputs) -> Float[Tensor, "token"]:
        states = model.hidden(row.tokens, row.positions, within(row.segments))[-1]
        return asking.nats(model, model.logits(states), row.labels)

    questions, to_run = tee(
        (protein.name, question) for protein in named(sequences) for question in asking.questions(model, protein)
    )
    answers = _answers(questions, run(model, (question.example for _, question in to_run), nats))
    num_unknown = 0
    for name, num_asked, first in answers:
        parts = [first, *(values for _, _, values in islice(answers, num_asked - 1))]
        if asking.method == "likelihood":  # a part a direction, each of all the residues and the <eos>
            own = np.mean(parts, axis=0)
            residues = own[:-1]
        else:
            residues = own = np.concatenate(parts)
        known = _known(own)
        num_unknown += len(own) - len(known)
        yield Score(
            name=name, residue_nll=residues, total_nll=float(known.sum(dtype=np.float64)) if len(known) else nan,
            method=asking.method, direction=asking.reading,
        )  # fmt: skip
    if num_unknown:
        logger.warning("left out %d residues that the model has no word for, such as X", num_unknown)


def _known(nats: Float32[np.ndarray, "_"]) -> Float32[np.ndarray, "_"]:
    return nats[~np.isnan(nats)]


def _answers(
    questions: Iterator[tuple[str, Question]], results: Iterator[tuple[Example, Float32[np.ndarray, "_"]]]
) -> Iterator[tuple[str, int, Float32[np.ndarray, "answer"]]]:
    """What was asked, taken out of what was read, with the protein's name and the number of its questions; NaN where
    the model has no word to ask for."""
    try:
        # the results first: where they break off, the next question is the one that could not be read
        for (_, values), (name, question) in zip(results, questions, strict=True):
            is_known = question.example.labels[question.places] != IGNORE
            yield name, question.num_asked, np.where(is_known, values[question.places], np.float32(nan))
    except MemoryShortError as error:
        name, _ = next(questions)
        raise MemoryShortError(f"{name}: {error}") from error


def summarize(scores: Iterable[Score]) -> Summary:
    """One figure for all proteins, scored in one way: the perplexity exp(sum of nats / sum of residues).

    Raises:
        ConfigError: without a score, or of no residue that the model has a word for.
    """
    nats, lengths, last = array("d"), array("d"), None
    for last in scores:
        known = _known(last.residue_nll)
        if len(known):
            nats.append(float(known.sum(dtype=np.float64)))
            lengths.append(len(known))
    if last is None:
        raise ConfigError("got no scores; a summary needs at least one protein")
    if not lengths:
        raise ConfigError("the model has no word for any residue of these proteins; take one that knows X, B, U, Z, O")
    return Summary(
        method=last.method, direction=last.direction, num_proteins=len(nats), num_residues=round(sum(lengths)),
        nll=bootstrap_ratio(np.array(nats), np.array(lengths)),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreOptions(FastaOptions):
    """Likelihood of each protein of a FASTA file, as CSV: name, length, method, nll (nats per residue), ppl, total_nll
    (with the closing <eos> of a likelihood). The perplexity of all together is logged at the end."""

    fasta: Positional[Path]
    """Proteins, one chain a record, plain or gzipped."""
    method: Method | None = None
    """likelihood: read word after word, for a model that generates. pseudo: each residue masked in turn, which takes a
    pass for each. one-pass: an approximation of pseudo. By default likelihood where the model has one, else pseudo."""
    direction: Reading | None = None
    """Of a likelihood: forward, reverse (C to N), or both, the mean of their nats. By default forward."""
    out: Path | None = None
    """CSV file; replaced, once the new one is complete. By default the rows go to stdout."""
    residues: Path | None = None
    """CSV file with a row for each residue: name, position (from 1), residue, nll (nan where the model has no word for
    the residue, which is left out of all other figures)."""
    summary: Path | None = None
    """JSON file: numbers of proteins and residues, nll and ppl over all of them, their 95 % bootstrap intervals over
    proteins."""

    def __post_init__(self) -> None:
        files = [path.absolute() for path in (self.out, self.residues, self.summary) if path]
        if len(set(files)) < len(files):
            raise ConfigError("two of --out, --residues and --summary name the same file; give each its own")


def main(args: Sequence[str] | None = None) -> None:
    """`xtrimo score`."""
    import json
    import sys

    import tyro

    options = tyro.cli(ScoreOptions, prog="xtrimo score", args=args)
    options.check_paths(options.fasta, options.out, options.residues, options.summary)
    model = options.load()
    asking = choose(model, options.method, options.direction)  # refused before hours of work, not after
    num_records, records = options.read(options.fasta, partial(asking.check, model))
    model = options.prepare(model, options.fasta)
    records, to_score = tee(records)
    with ExitStack() as stack:
        out = _table(stack, options.out, ("name", "length", "method", "nll", "ppl", "total_nll"))
        residues = _table(stack, options.residues, ("name", "position", "residue", "nll")) if options.residues else None
        summary_file = stack.enter_context(replacing(options.summary)) if options.summary else None
        progress = stack.enter_context(progress_bar())
        scores = progress.track(_scores(model, to_score, asking), total=num_records, description="scoring")
        summary = summarize(_written_out(zip(records, scores, strict=True), out, residues))
        if summary_file:
            facts = {"model": options.model, **summary.to_dict()}
            summary_file.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        sys.stdout.flush()
    logger.info("%s", summary)


def _table(stack: ExitStack, path: Path | None, columns: tuple[str, ...]) -> "Writer":
    """A CSV file with its head row, complete when the stack closes; stdout without a path."""
    import csv
    import sys

    file = sys.stdout
    if path:
        partial = stack.enter_context(replacing(path))
        file = stack.enter_context(partial.open("w", encoding="utf-8", errors="surrogateescape", newline=""))
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    return writer


def _written_out(scored: Iterable[tuple[Record, Score]], out: "Writer", residues: "Writer | None") -> Iterator[Score]:
    for record, s in scored:
        numbers = (f"{value:.6f}" for value in (s.nll, s.ppl, s.total_nll))
        out.writerow((s.name, len(s.residue_nll), s.method, *numbers))
        if residues:
            pairs = zip(record.sequence, s.residue_nll.tolist(), strict=True)
            residues.writerows((s.name, i, letter, f"{nll:.6f}") for i, (letter, nll) in enumerate(pairs, start=1))
        yield s
