"""The verb `fold`, before any model is loaded: what is large is imported when it runs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from xtrimo.answer import give
from xtrimo.errors import FastaError
from xtrimo.fasta import read_fasta
from xtrimo.shards import parse_shard
from xtrimo.tokens import Unknown

Format = Literal["mmcif", "pdb", "both"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FoldOptions:
    """Predict the structure of each protein of a FASTA file; ":" joins the chains of one."""

    fasta: Positional[Path]
    """Proteins, plain or gzipped."""
    out: Positional[Path]
    """Folder of structures and scores; what is finished in it is not done again."""
    model: Path
    """Folding model: the `model` folder of a run of train-fold, or a directory of ESMFold."""
    lm: str = ""
    """The language model that it reads, if it is no longer where it was."""
    num_recycles: int | None = None
    """Times that the trunk's output is fed back; by default as many as in training."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the matrix products of the trunk; bf16 is faster on CPUs that know it, and errs by 0.4 % of what a block
    adds."""
    cache: Path | None = None
    """Folder of the language model's states, in fp16: the same proteins are not read by it again."""
    chunk: int | None = None
    """Rows of pairs at a time, which saves memory and changes no atom; by default as memory asks, 0 is all at once."""
    format: Format = "mmcif"
    """mmcif (ModelCIF), pdb, or both; the B column is the pLDDT, 0..100."""
    pae: bool = False
    """Write the expected error of each pair of residues into the mmCIF file as well: length^2 lines."""
    page: bool = False
    """Also write page.html, to look at the structures in a browser, without a network, and NAME.pae.json, the expected
    error of each pair; of the 100 proteins of the highest pLDDT at most."""
    unknown: Unknown = "error"
    """A letter that is no residue: error stops, x reads it as X, skip leaves out the record."""
    device: str = "cpu"
    """Where to run, such as cuda."""
    shard: str = "1/1"
    """I/N: fold the I-th of N shares, for job arrays; the last to finish writes the scores of all."""

    def __post_init__(self) -> None:
        parse_shard(self.shard)


def main(args: Sequence[str] | None = None) -> None:
    """`xtrimo fold`."""
    import tyro

    options = tyro.cli(FoldOptions, prog="xtrimo fold", args=args)
    from structure.fold_directory import load_fold  # seconds, which a question for help does not wait for
    from structure.fold_files import fold_all
    from structure.reader import with_cache

    records = list(read_fasta(options.fasta, unknown=options.unknown, chains=True))
    if not records:
        raise FastaError(f"{options.fasta}: no record is left to fold; correct the letters, or try --unknown x")
    pipeline = load_fold(options.model, lm=options.lm, device=options.device, precision=options.precision)
    if options.cache:
        reader = with_cache(pipeline.reader, options.cache, [record.sequence for record in records])
        pipeline = replace(pipeline, reader=reader)
    scores = fold_all(pipeline, records, options)
    mean = sum(each.mean_plddt for each in scores) / max(1, len(scores))  # a share may be empty
    facts = {"out": options.out, "num_structures": len(scores), "mean_plddt": mean if scores else None}
    give(facts, f"{len(scores)} structures in {options.out}, mean pLDDT {mean:.1f}")
