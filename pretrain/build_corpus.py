"""`xtrimo corpus IN.fasta... --out DIR`: build a corpus and say what became of the records of each input."""

from collections.abc import Sequence

import tyro

from pretrain.corpus import SPLITS
from pretrain.corpus_building import CorpusConfig, build_corpus
from pretrain.corpus_selection import FATES
from pretrain.corpus_staging import DROPPED
from xtrimo.answer import give


def main(args: Sequence[str] | None = None) -> None:
    """The verb `xtrimo corpus`."""
    config = tyro.cli(CorpusConfig, args=args, prog="xtrimo corpus")
    meta = build_corpus(config)
    lines = []
    for source in meta.sources:
        left_out = ", ".join(
            f"{getattr(source, key):,} {key.replace('_', ' ')}"
            for key in (*DROPPED, *FATES[len(SPLITS) :])
            if getattr(source, key)
        )
        lines.append(
            f"{source.name}: {source.read:,} read, {source.train + source.valid:,} kept; left out: {left_out or 'none'}"
        )
    lines.append(
        f"{config.out}: {meta.train.num_proteins:,} proteins to train on ({meta.train.num_residues:,} residues),"
        f" {meta.valid.num_proteins:,} held out ({meta.valid.num_residues:,})"
    )
    facts = {"out": config.out, "sources": meta.sources, "train": meta.train, "valid": meta.valid}
    give(facts, "\n".join(lines))
