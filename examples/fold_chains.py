"""An archive of chains to train folding on, without relatives of the chains that are held out.

    python examples/fold_chains.py CHAINS --held-out HELD_OUT --out OUT.npz

CHAINS is an archive of chains, or a folder of mmCIF and PDB files; HELD_OUT an archive whose chains say which of them
are valid and test. OUT has these, as they are, and of CHAINS all as train but for

    relatives     at least 30 % of the aligned residues identical, over half of either chain, to a held-out one
    short ones    of fewer than 40 residues, of which no search can say whose relatives they are

so that `xtrimo train-fold --data OUT.npz` is judged on the chains that a smaller archive was judged on. mmseqs2 looks
for relatives at its most sensitive, up to an E-value of 10, where chance finds some as well: these are left out too.
Then HMMER's phmmer (pyhmmer) searches what is left in its own way, each pair it finds is aligned by Biopython, and what
mmseqs2 has missed goes as well. OUT.json says how many chains each step has taken.
"""

import logging
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tyro.conf import Positional

from structure.data import COVERAGE, IDENTITY
from xtrimo import mmseqs
from xtrimo.alignment import align
from xtrimo.chains import BACKBONE, Chain, read_chains
from xtrimo.command import replacing
from xtrimo.durable import write_json
from xtrimo.errors import DataError
from xtrimo.log import configure

logger = logging.getLogger("xtrimo.examples")

SHORTEST = 40  # residues
MOST_BY_CHANCE = 10.0
"""E-value of a hit, at most: how many as good are expected among proteins that are not related."""
SENSITIVE = ("-s", "7.5", "--max-seqs", "100000", "--mask", "0", "--alignment-mode", "3")
"""Of mmseqs2: short words of any likeness, as many hits as there are, and none cut because it is of low complexity."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Leave relatives of held-out chains out of an archive."""

    chains: Positional[Path]
    """Chains to train on: an archive (.npz), or a folder of mmCIF and PDB files."""
    held_out: Path
    """Archive of chains, some of whose splits are valid and test."""
    out: Path
    """Archive to write (.npz); what was left out is told beside it, in OUT.json."""


def by_mmseqs(held_out: Sequence[str], chains: Sequence[str]) -> set[int]:
    """Numbers of the chains that have a relative among the held-out ones."""
    options = (*SENSITIVE, "-e", str(MOST_BY_CHANCE))
    hits = mmseqs.find_similar(held_out, chains, ("fident", "qcov", "tcov"), options)
    return {chain for _, chain, (identity, *covered) in hits if is_relative(float(identity), *map(float, covered))}


def by_phmmer(held_out: Sequence[str], chains: Sequence[str]) -> set[int]:
    """The same by another program: phmmer finds pairs, Biopython aligns them."""
    from pyhmmer.hmmer import phmmer

    found: set[int] = set()
    for query, hits in enumerate(phmmer(_block(held_out), _block(chains), cpus=1, E=MOST_BY_CHANCE)):
        for number in {int(hit.name) for hit in hits} - found:
            match = align(held_out[query], chains[number])
            if is_relative(match.identity, *match.covered):
                found.add(number)
    return found


def _block(sequences: Sequence[str]) -> Any:
    """Proteins as HMMER reads them, under their numbers."""
    from pyhmmer.easel import Alphabet, DigitalSequenceBlock, TextSequence

    letters = Alphabet.amino()
    texts = (TextSequence(name=str(number), sequence=sequence) for number, sequence in enumerate(sequences))
    return DigitalSequenceBlock(letters, [text.digitize(letters) for text in texts])


def is_relative(identity: float, *covered: float) -> bool:
    """By the share of identical residues, and the share of either chain that is aligned."""
    return identity >= IDENTITY and max(covered) >= COVERAGE


def write_archive(path: Path, chains: Iterable[Chain], splits: Sequence[str]) -> None:
    """Chains as `xtrimo.chains.read_archive` reads them, N, CA, C and O of each residue."""
    kept = list(chains)
    columns = [[chain.atoms.index(atom) for atom in BACKBONE] for chain in kept]
    arrays: dict[str, Any] = {
        "chain_id": np.array([chain.name for chain in kept]),
        "length": np.array([len(chain.sequence) for chain in kept], dtype=np.int32),
        "seq": np.array([chain.sequence for chain in kept]),
        "split": np.array(splits),
        "xyz": np.concatenate([chain.xyz[:, own] for chain, own in zip(kept, columns, strict=True)]),
    }
    if all(chain.numbers is not None and not np.any(np.diff(chain.numbers) != 1) for chain in kept):
        arrays["start_resnum"] = np.array([int(chain.numbers[0]) for chain in kept if chain.numbers is not None])
    with replacing(path) as work, work.open("wb") as file:
        np.savez_compressed(file, **arrays)


def leave_out(chains: Sequence[Chain], held_out: Sequence[Chain]) -> tuple[list[Chain], dict[str, int]]:
    """The chains to train on, and how many each step has taken.

    Raises:
        DataError: nothing is left.
    """
    counts = {"chains": len(chains)}
    kept = [chain for chain in chains if len(chain.sequence) >= SHORTEST]
    counts[f"shorter than {SHORTEST} residues"] = len(chains) - len(kept)
    sequences = [chain.sequence for chain in held_out]
    for name, search in (("relatives by mmseqs2", by_mmseqs), ("relatives that phmmer found besides", by_phmmer)):
        logger.info("%s: searching %d chains", name, len(kept))
        found = search(sequences, [chain.sequence for chain in kept])
        kept = [chain for number, chain in enumerate(kept) if number not in found]
        counts[name] = len(found)
    if not kept:
        raise DataError(f"of {len(chains):,} chains none is left to train on: {counts}")
    counts["to train on"] = len(kept)
    return kept, counts


def main(args: Sequence[str] | None = None) -> int:
    """Write the archive; the exit status."""
    import tyro

    options = tyro.cli(Options, args=args)
    configure()
    held_out = [chain for chain in read_chains(options.held_out) if chain.split in ("valid", "test")]
    if not held_out:
        raise DataError(f"{options.held_out} holds no chain out; expected some whose split is valid or test")
    train, counts = leave_out(list(read_chains(options.chains)), held_out)
    splits = ["train"] * len(train) + [str(chain.split) for chain in held_out]
    write_archive(options.out, [*train, *held_out], splits)
    counts |= {name: splits.count(name) for name in ("valid", "test")}
    counts["residues to train on"] = sum(len(chain.sequence) for chain in train)
    write_json(options.out.with_suffix(".json"), counts)
    print(*(f"{number:>10,}  {what}" for what, number in counts.items()), options.out, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
