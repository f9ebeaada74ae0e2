"""What a score is worth on held-out proteins: the prompt a public harness forgets, and masking that one pass spares.

    python -m benchmarks.scores MODEL_DIR ... --proteins CORPUS --parts native-prompt one-pass

`native-prompt` reads each protein after `<gmask><sop><eos>`, as the model was trained to write it, and bare, `SEQ<eos>`
with each word read from the one before it, as a public harness does. A bare first residue has nothing to be read from,
so both sides count the same words: residues 2 to n and the closing `<eos>`.

`one-pass` masks each residue in turn, which is exact, beside the approximation from a single pass (likelihood.py), and
beside that pass taken at its word: the probability of a residue that is in full view.

Markdown on stdout; 95 % bootstrap intervals over proteins, Spearman's rank correlation over proteins.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import exp
from pathlib import Path
from typing import Literal

import numpy as np
import torch.nn.functional as F
import tyro
from jaxtyping import Float64, Int64
from torch import Tensor

from benchmarks import protocol
from pretrain.corpus import Corpus
from xtrimo.attention import within
from xtrimo.backbone import Backbone, load
from xtrimo.batch import Inputs, run
from xtrimo.fasta import Record, read_fasta
from xtrimo.intervals import Estimate, bootstrap
from xtrimo.likelihood import Method
from xtrimo.model import GLM
from xtrimo.objectives import Example
from xtrimo.reading import prompted_positions
from xtrimo.scoring import score
from xtrimo.tokens import Tokenizer

Nats = Float64[np.ndarray, "protein"]
Part = Literal["native-prompt", "one-pass"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoresConfig:
    """Judge ways of scoring on held-out proteins."""

    models: tyro.conf.Positional[tuple[str, ...]]
    """Whatever `xtrimo.load` takes."""
    proteins: Path
    """A corpus, of which the held-out proteins are drawn from, or a FASTA file of proteins that no model was trained
    on."""
    parts: tuple[Part, ...] = ("native-prompt", "one-pass")
    """Which tables."""
    num: int = 200
    """Proteins of native-prompt."""
    num_exact: int = 30
    """Proteins of one-pass, each of which is read once for each of its residues."""
    longest_exact: int = 150
    """Most residues of a protein of one-pass."""


def draw_proteins(source: Path, num: int, longest: int) -> list[Record]:
    """A fixed random choice of proteins of at most `longest` residues; all of them, if there are fewer."""
    if source.is_dir():
        held_out = Corpus.open(source).valid
        known = [Record(f"valid_{i}", Tokenizer().decode(held_out[i])) for i in range(len(held_out))]
    else:
        known = list(read_fasta(source))
    short = [protein for protein in known if len(protein.sequence) <= longest]
    return random.Random(protocol.SEED).sample(short, min(num, len(short)))


def read(model: Backbone, examples: list[Example]) -> list[Float64[np.ndarray, "token"]]:
    """Nats of each example's labels, all of them."""

    def nats(row: Inputs) -> Tensor:
        logits = model.logits(model.hidden(row.tokens, row.positions, within(row.segments))[-1])
        return F.cross_entropy(logits.float(), row.labels, reduction="none")

    return [values.astype(np.float64) for _, values in run(model, examples, nats)]


def bare_nats(model: Backbone, proteins: list[Record]) -> Nats:
    """Of residues 2 to n and `<eos>`, each read from what is before it, without a prompt."""
    assert isinstance(model, GLM)
    examples = []
    for protein in proteins:
        text = Tokenizer().encode(protein.sequence)
        positions = prompted_positions(len(text) - 1, model.config)
        examples.append(Example("gmask", text[:-1], positions, text[1:], prefix=0))
    return np.array([values.sum() for values in read(model, examples)])


def native_nats(model: Backbone, proteins: list[Record]) -> Nats:
    """Of the same words after the prompt."""
    scores = score(model, proteins, method="likelihood", direction="forward")
    return np.array([s.total_nll - float(s.residue_nll[0]) for s in scores])


def residue_nats(model: Backbone, proteins: list[Record], method: Method) -> Nats:
    """Of all residues, masked or as if."""
    return np.array([s.total_nll for s in score(model, proteins, method=method)])


def shown_nats(model: Backbone, proteins: list[Record]) -> Nats:
    """Of all residues, each in full view."""
    plain = [model.tokenize(protein.sequence, name=protein.name) for protein in proteins]
    nats = read(model, [replace(example, labels=example.tokens) for example in plain])
    before, after = model.words_around
    return np.array([values[before : len(values) - after].sum() for values in nats])


def compared(nats: list[Nats], sizes: Int64[np.ndarray, "protein"]) -> tuple[str, ...]:
    """Perplexity of each way, then nats above the first way and rank correlation with it for each of the others."""
    sums = np.stack((*nats, sizes), axis=1).astype(np.float64)
    total, drawn = sums.sum(0), bootstrap(sums)
    means, draws = total[:-1] / total[-1], drawn[:, :-1] / drawn[:, -1:]
    estimates = [Estimate.of(exp(mean), np.exp(draws[:, i])) for i, mean in enumerate(means)]
    above = [Estimate.of(means[i] - means[0], draws[:, i] - draws[:, 0]) for i in range(1, len(nats))]
    ranks = [np.argsort(np.argsort(own / sizes)) for own in nats]
    agreement = (f"{np.corrcoef(ranks[0], own)[0, 1]:.3f}" for own in ranks[1:])
    return *map(str, estimates), *map(str, above), *agreement


def table(
    title: str, ways: tuple[str, ...], models: tuple[str, ...], row: Callable[[Backbone], tuple[str, ...]], about: str
) -> str:
    """A row a model; `ways` are the first one and those held against it."""
    header = ("model", *(f"perplexity, {way}" for way in ways))
    header += tuple(f"nats of {way} above {ways[0]}" for way in ways[1:])
    header += tuple(f"Spearman, {way}" for way in ways[1:])
    rows = [(Path(name).name, *row(load(name))) for name in models]
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, ("---",) * len(header), *rows)]
    return "\n".join([f"### {title}", "", *lines, "", about, ""])


def native_prompt(config: ScoresConfig) -> str:
    proteins = draw_proteins(config.proteins, config.num, 1020)
    sizes = np.array([len(protein.sequence) for protein in proteins])
    return table(
        "The native prompt", ("native", "bare"), config.models,
        lambda model: compared([native_nats(model, proteins), bare_nats(model, proteins)], sizes),
        f"{len(proteins)} proteins, {sizes.sum():,} words: residues 2 to n and the closing `<eos>`.",
    )  # fmt: skip


def one_pass(config: ScoresConfig) -> str:
    proteins = draw_proteins(config.proteins, config.num_exact, config.longest_exact)
    sizes = np.array([len(protein.sequence) for protein in proteins])

    def row(model: Backbone) -> tuple[str, ...]:
        exact, approximate = (residue_nats(model, proteins, method) for method in ("pseudo", "one-pass"))
        return compared([exact, approximate, shown_nats(model, proteins)], sizes)

    return table(
        "Pseudo-perplexity in one pass", ("exact", "one-pass", "in full view"), config.models, row,
        f"{len(proteins)} proteins of at most {config.longest_exact} residues, {sizes.sum():,} residues.",
    )  # fmt: skip


def main() -> None:
    config = tyro.cli(ScoresConfig)
    protocol.one_thread()
    for part in config.parts:
        print({"native-prompt": native_prompt, "one-pass": one_pass}[part](config), flush=True)


if __name__ == "__main__":
    main()
