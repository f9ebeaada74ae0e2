"""The verb `antibody`: where the loops of antibodies lie, and how natural a model finds each part.

Variable domains are found and numbered by immunum (MIT), which aligns them to profiles of IMGT positions and needs no
network; its IMGT or Chothia boundaries and so on divide a domain into frameworks and CDRs. Each domain is read by
itself, as models of antibodies were trained on domains: a chain with constant domains, or two domains on a linker, is
first cut into them. Naturalness is the perplexity of a part's residues in the whole domain, by scoring.py.
"""

import csv
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from tyro.conf import Positional

from xtrimo.backbone import Backbone
from xtrimo.command import FastaOptions, progress_bar, replacing
from xtrimo.errors import SequenceError
from xtrimo.fasta import Record
from xtrimo.scoring import iter_scores

Scheme = Literal["imgt", "kabat", "chothia", "martin", "aho"]
REGIONS = ("fr1", "cdr1", "fr2", "cdr2", "fr3", "cdr3", "fr4")
DOMAIN = "domain"


class Region(NamedTuple):
    """A stretch of a protein, both ends included, from 1."""

    chain: str
    """H of a heavy domain, K or L of a light one."""
    name: str
    """One of REGIONS, or DOMAIN for all of them."""
    first: int
    last: int


class Naturalness(NamedTuple):
    """What a model says of a region."""

    region: Region
    nll: float
    """Nats per residue; NaN of a region without residues that the model has a word for."""
    ppl: float


def regions_of(sequence: str, *, scheme: Scheme = "imgt", name: str = "sequence") -> list[Region]:
    """The variable domains of an antibody, from N to C: each whole, then its parts; parts without residues left out.

    Raises:
        SequenceError: no variable domain of an antibody is found.
    """
    from immunum import Annotator

    annotator = Annotator(chains=["ig"], scheme=scheme)
    numbered, divided = annotator.number_domains(sequence), annotator.segment_domains(sequence)
    found: list[Region] = []
    done = 0
    for domain, parts in zip(numbered, divided, strict=True):
        if domain.error or domain.chain is None:
            raise SequenceError(
                f"{name}: no variable domain of an antibody ({domain.error}); give heavy or light chains, or drop it"
            )
        lengths = {part: len(residues or "") for part, residues in parts.as_dict().items()}
        done += lengths["prefix"]
        own = []
        first = done + 1
        for part in REGIONS:
            if lengths[part]:
                own.append(Region(domain.chain, part, done + 1, done + lengths[part]))
            done += lengths[part]
        found += [Region(domain.chain, DOMAIN, first, done), *own]
    return found


def naturalness(model: Backbone, record: Record, *, scheme: Scheme = "imgt") -> list[Naturalness]:
    """How natural `model` finds each domain of an antibody, and each of its parts; lower perplexity is more natural.

    Raises:
        SequenceError: no variable domain, or letters that are no residues.
    """
    regions = regions_of(record.sequence, scheme=scheme, name=record.name)
    domains = [region for region in regions if region.name == DOMAIN]
    proteins = [Record(f"{record.name}, {d.chain}", record.sequence[d.first - 1 : d.last]) for d in domains]
    nats = np.full(len(record.sequence), np.nan)
    for domain, score in zip(domains, iter_scores(model, proteins), strict=True):
        nats[domain.first - 1 : domain.last] = score.residue_nll
    found = []
    for region in regions:
        own = nats[region.first - 1 : region.last]
        nll = float(np.mean(own[~np.isnan(own)])) if not np.isnan(own).all() else float("nan")
        found.append(Naturalness(region, nll, float(np.exp(nll))))
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class AntibodyOptions(FastaOptions):
    """Frameworks and CDRs of antibodies, and how natural a model finds them, as CSV: name, chain, region, first, last,
    residues, nll (nats per residue), ppl."""

    fasta: Positional[Path]
    """Heavy and light chains, or single chains of both, plain or gzipped."""
    scheme: Scheme = "imgt"
    """Whose boundaries divide a domain."""
    out: Path | None = None
    """CSV file; replaced, once the new one is complete. By default the rows go to stdout."""


def main(args: Sequence[str] | None = None) -> None:
    """`xtrimo antibody`."""
    import tyro

    options = tyro.cli(AntibodyOptions, prog="xtrimo antibody", args=args)
    options.check_paths(options.fasta, options.out)
    num_records, records = options.read(options.fasta, lambda record: regions_of(record.sequence, name=record.name))
    model = options.prepare(options.load(), options.fasta)
    with ExitStack() as stack:
        file = sys.stdout
        if options.out:
            partial = stack.enter_context(replacing(options.out))
            file = stack.enter_context(partial.open("w", encoding="utf-8", newline=""))
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("name", "chain", "region", "first", "last", "residues", "nll", "ppl"))
        progress = stack.enter_context(progress_bar())
        for record in progress.track(records, total=num_records, description="scoring"):
            writer.writerows(_rows(record, naturalness(model, record, scheme=options.scheme)))


def _rows(record: Record, found: Sequence[Naturalness]) -> Iterator[tuple[str, ...]]:
    for region, nll, ppl in found:
        residues = record.sequence[region.first - 1 : region.last]
        yield record.name, *(str(fact) for fact in region), residues, f"{nll:.6f}", f"{ppl:.6f}"
