"""Profile HMMs of protein families, by pyhmmer: who is a member, where its residues belong, what an HMM itself writes.

A family may have several HMMs, named FAMILY_1, FAMILY_2 and so on, one for each group of homologous members. Which
families there are says the file of thresholds: cyp_450 is the family of that name if there is one, else the 450th HMM
of cyp. A protein
is as much a member as its best bit score over all of them, that of the whole protein with all its domains; 0 where
HMMER reports no hit. It counts as a member from the threshold of the family on.
"""

import gzip
import io
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from generate.couplings import GAP
from xtrimo.errors import DataError
from xtrimo.fasta import Record
from xtrimo.tokens import AMINO_ACIDS

LONGEST = 100_000  # residues that HMMER takes
Hmm = Any  # a pyhmmer.plan7.HMM, imported where it is used
_GZIP_MAGIC = b"\x1f\x8b"
_PLACES = np.full(256, GAP, dtype=np.uint8)
_PLACES[np.frombuffer(AMINO_ACIDS.encode(), np.uint8)] = np.arange(len(AMINO_ACIDS))

Bits = Float64[np.ndarray, "protein hmm"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """The family that proteins should belong to, among others."""

    name: str
    hmms: Sequence[Hmm]
    """Of all families."""
    own: Sequence[int]
    """Numbers of its own."""
    main: int
    """The one of these that is the best of most held-out members."""
    thresholds: Mapping[str, float]
    """Bits from which a protein counts as a member, by family."""

    @property
    def threshold(self) -> float:
        """Its own."""
        return self.thresholds[self.name]


def read_hmms(path: Path) -> list[Hmm]:
    """All profile HMMs of a HMMER3 file, plain or gzipped.

    Raises:
        DataError: a file that cannot be read, holds no HMM, or HMMs of nucleotides.
    """
    from pyhmmer.plan7 import HMMFile

    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content.startswith(_GZIP_MAGIC) else content
        with HMMFile(io.BytesIO(content)) as file:
            hmms = list(file)
    except (OSError, EOFError, ValueError, RuntimeError) as error:
        raise DataError(f"{path} is no file of HMMs ({error}); expected HMMER3 profiles, as hmmbuild writes") from error
    if not hmms:
        raise DataError(f"{path} holds no HMM; expected HMMER3 profiles, as hmmbuild writes")
    if not all(hmm.alphabet.is_amino() for hmm in hmms):
        raise DataError(f"{path} holds HMMs that are not of proteins; build them with hmmbuild --amino")
    return hmms


def family_of(name: str, families: Collection[str]) -> str | None:
    """The one of `families` that an HMM of this name belongs to: of just this name, else of it without its number."""
    stem = re.sub(r"_\d+$", "", name)
    return name if name in families else stem if stem in families else None


def families_of(hmms: Sequence[Hmm], families: Collection[str]) -> list[str | None]:
    """The one of `families` that each HMM belongs to; None for an HMM of another.

    Raises:
        DataError: a name that may be of two of them: of one that has numbered HMMs too, or a number of the other.
    """
    found = [family_of(hmm.name, families) for hmm in hmms]
    numbered = {family: hmm.name for hmm, family in zip(hmms, found, strict=True) if family not in (None, hmm.name)}
    for hmm in hmms:
        other = family_of(hmm.name, set(families) - {hmm.name})
        if hmm.name in numbered and other is not None:
            raise DataError(
                f"HMM {hmm.name} may be of family {hmm.name}, as {numbered[hmm.name]} is, or of {other};"
                f" give it a number of its own, such as {hmm.name}_0 or {other}_0"
            )
    return found


def of_family(hmms: Sequence[Hmm], family: str, families: Collection[str] = ()) -> list[int]:
    """Numbers of the family's HMMs, among those of other `families`.

    Raises:
        DataError: there are none, or a name may be of two families.
    """
    own = families_of(hmms, {family, *families})
    found = [number for number, name in enumerate(own) if name == family]
    if not found:
        known = ", ".join(dict.fromkeys(re.sub(r"_\d+$", "", hmm.name) for hmm in hmms))
        raise DataError(f"no HMM is called {family}_1, {family}_2 ... or {family}; there are HMMs of {known}")
    return found


def bit_scores(hmms: Sequence[Hmm], sequences: Sequence[str]) -> Bits:
    """Of each protein under each HMM, in bits.

    Raises:
        DataError: a protein of more than LONGEST residues.
    """
    from pyhmmer.hmmer import hmmsearch

    refuse_long(Record(f"protein {number}", sequence) for number, sequence in enumerate(sequences, start=1))
    bits = np.zeros((len(sequences), len(hmms)))
    # Z is the number of proteins that E-values count with; held fixed, it keeps a score from depending on the company.
    queries: Any = hmms  # their type is generic, over alphabets
    for number, hits in enumerate(hmmsearch(queries, _block(sequences), cpus=1, Z=1000)):
        for hit in hits:
            bits[int(hit.name), number] = max(0.0, hit.score)
    return bits


def refuse_long(records: Iterable[Record]) -> None:
    """Tell of a protein that HMMER does not take.

    Raises:
        DataError: it has more than LONGEST residues.
    """
    for record in records:
        if len(record.sequence) > LONGEST:
            raise DataError(
                f"{record.name} has {len(record.sequence):,} residues; HMMER takes at most {LONGEST:,}; leave it out"
            )


def main_hmm(hmms: Sequence[Hmm], sequences: Sequence[str]) -> int:
    """Number of the HMM that is the best of most proteins that have a hit; the first without any."""
    bits = bit_scores(hmms, sequences)
    best = bits.argmax(1)[bits.max(1) > 0]
    return int(np.bincount(best, minlength=len(hmms)).argmax())


def best_of_families(
    bits: Bits, hmms: Sequence[Hmm], families: Collection[str]
) -> Mapping[str, Float64[np.ndarray, "protein"]]:
    """Of each of `families` that has HMMs the best score of each protein over these.

    Raises:
        DataError: a name may be of two families.
    """
    own = families_of(hmms, families)
    numbers = {name: [i for i, other in enumerate(own) if other == name] for name in own if name is not None}
    return {name: bits[:, of_it].max(1) for name, of_it in numbers.items()}


def aligned(hmm: Hmm, sequences: Sequence[str]) -> UInt8[np.ndarray, "protein column"]:
    """The residue of each protein in each match column: its place in AMINO_ACIDS, GAP for any other letter or none.

    Any protein is aligned, end to end, whether it is a member or not.
    """
    from pyhmmer.hmmer import hmmalign

    if not sequences:
        return np.zeros((0, hmm.M), dtype=np.uint8)
    alignment: Any = hmmalign(hmm, _block(sequences), cpus=1, trim=True, all_consensus_cols=True)
    rows = {}
    for name, text in zip(alignment.names, alignment.alignment, strict=True):
        letters = np.frombuffer(text.encode(), np.uint8)
        is_insert = (letters == ord(".")) | ((letters >= ord("a")) & (letters <= ord("z")))
        rows[int(name)] = _PLACES[letters[~is_insert]]
    return np.stack([rows[number] for number in range(len(sequences))])


def emitted(hmms: Sequence[Hmm], num: int, seed: int) -> list[str]:
    """Proteins that the HMMs write, each HMM as often as it has members; never an empty one."""
    from pyhmmer.easel import Randomness

    members = np.array([max(1, hmm.nseq or 1) for hmm in hmms], dtype=np.float64)
    rng = np.random.default_rng(seed)
    chosen: Int64[np.ndarray, "protein"] = rng.choice(len(hmms), size=num, p=members / members.sum())
    randomness = Randomness(seed=1 + seed % (2**32 - 1))  # 0 would be the clock
    written: list[str] = []
    for number in chosen.tolist():
        sequence = ""
        while not sequence:
            sequence = hmms[number].emit_sequence(randomness).textize().sequence.upper()
        written.append(sequence)
    return written


def _block(sequences: Sequence[str]) -> Any:
    """Proteins as HMMER reads them, under their numbers."""
    from pyhmmer.easel import Alphabet, DigitalSequenceBlock, TextSequence

    letters = Alphabet.amino()
    texts = (TextSequence(name=str(number), sequence=sequence) for number, sequence in enumerate(sequences))
    return DigitalSequenceBlock(letters, [text.digitize(letters) for text in texts])
