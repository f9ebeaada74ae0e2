"""Proteins that a model writes without any prompt, judged beside proteins held out of its corpus, and controls.

    python examples/free_samples.py MODEL CORPUS --out OUT

CORPUS is what `xtrimo corpus` wrote and the model was trained on. All of its training proteins are the reference, some
of those that it held out what good looks like. OUT receives samples.fasta and the files of `xtrimo judge`.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from generate.judge import JudgeOptions, judge_generated
from generate.judge_report import write_judgement
from generate.sampler import SamplingConfig, iter_samples
from pretrain.corpus import Corpus, Split
from xtrimo.backbone import load
from xtrimo.fasta import Record, write_fasta
from xtrimo.log import configure
from xtrimo.tokens import Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class FreeSamplesConfig:
    """Write proteins freely, and judge them."""

    model: tyro.conf.Positional[str]
    """Whatever `xtrimo.load` takes and can write."""
    corpus: tyro.conf.Positional[Path]
    """What it was trained on."""
    out: Path
    """Folder of all files."""
    num: int = 200
    """Proteins to write, and to hold them against."""
    temperature: float = 1.0
    """Of the drawing; 1 draws as the model says."""
    top_p: float = 1.0
    """Of the drawing; 1 leaves nothing out."""
    max_length: int = 1000
    """Residues at which a protein is cut; longer ones of the corpus are not held against those written."""
    independent: str | None = None
    """Another model, for a second perplexity."""
    seed: int = 0
    """Of the drawing, and of the choice among those held out."""


def records(split: Split, numbers: Iterable[int]) -> Iterator[Record]:
    """Proteins of a corpus by their numbers."""
    tokenizer = Tokenizer()
    return (Record(f"p{number}", tokenizer.decode(split[int(number)])) for number in numbers)


def main(config: FreeSamplesConfig) -> None:
    """Write samples.fasta and the judge's files."""
    config.out.mkdir(parents=True, exist_ok=True)
    corpus, model = Corpus.open(config.corpus), load(config.model)
    paths = {name: config.out / f"{name}.fasta" for name in ("trained-on", "held-out", "samples")}
    write_fasta(paths["trained-on"], records(corpus.train, range(len(corpus.train))))
    order = np.random.default_rng(config.seed).permutation(len(corpus.valid))
    fitting = (record for record in records(corpus.valid, order) if len(record.sequence) <= config.max_length)
    write_fasta(paths["held-out"], itertools.islice(fitting, config.num))
    sampling = SamplingConfig(
        num=config.num, temperature=config.temperature, top_p=config.top_p, max_length=config.max_length,
        seed=config.seed,
    )  # fmt: skip
    samples = sorted(iter_samples(model, sampling), key=lambda sample: sample.number)
    write_fasta(paths["samples"], (sample.record for sample in samples))
    options = JudgeOptions(
        fasta=paths["samples"], reference=paths["trained-on"], held_out=paths["held-out"], model=config.model,
        independent=config.independent, seed=config.seed,
    )  # fmt: skip
    files = write_judgement(judge_generated(options), config.out)
    ended = sum(sample.finished for sample in samples) / len(samples)
    print(f"{ended:.0%} of {len(samples)} proteins came to an end by themselves; {files[0]}")


if __name__ == "__main__":
    configure()
    main(tyro.cli(FreeSamplesConfig))
