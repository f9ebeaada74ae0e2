"""Which records stay in a corpus, and on which side of the split: pure functions of digests, names and clusters.

The fate of a record, the first rule that applies:

1. an excluded sequence is the same                                -> excluded_exact
2. its cluster holds an excluded name or an excluded sequence      -> excluded_cluster
3. an earlier record, in the order of the inputs, is the same      -> duplicate
4. the hash of its cluster's representative (without a cluster
   file: of its sequence) falls in the lowest `valid_ratio`        -> valid
5. otherwise                                                       -> train

A hash, unlike a draw, says where a protein goes whatever else is in the corpus: what was held out once stays held out
when the corpus grows. Records are held as 128-bit and 64-bit BLAKE2b digests, about 200 bytes each at the peak.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64, UInt8, UInt64

from pretrain.corpus import SPLITS
from xtrimo.errors import CorpusError
from xtrimo.fasta import numbered_lines, open_text

FATES = (*SPLITS, "duplicate", "excluded_exact", "excluded_cluster")
TRAIN, VALID, DUPLICATE, EXCLUDED_EXACT, EXCLUDED_CLUSTER = range(len(FATES))
NO_CLUSTER = -1


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """What selection knows of each record."""

    digests: UInt64[np.ndarray, "record 2"]
    """128-bit digest of the encoded sequence."""
    names: UInt64[np.ndarray, "record 2"]
    """`name_keys` of the record's name."""


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """A cluster file: `members` is sorted, `cluster_of_member[i]` indexes `representatives`."""

    members: UInt64[np.ndarray, "member"]
    cluster_of_member: Int64[np.ndarray, "member"]
    representatives: UInt64[np.ndarray, "cluster"]

    def lookup(self, names: UInt64[np.ndarray, "record 2"]) -> Int64[np.ndarray, "record"]:
        """The cluster of each record, by its whole name or else by its accession; NO_CLUSTER where it has none."""
        found = np.full(len(names), NO_CLUSTER, dtype=np.int64)
        for column in (1, 0):  # the whole name has the last word
            at = np.searchsorted(self.members, names[:, column])
            at[at == len(self.members)] = 0
            listed = self.members[at] == names[:, column]
            found[listed] = self.cluster_of_member[at[listed]]
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """The outcome for each record."""

    fates: UInt8[np.ndarray, "record"]
    """Index into FATES."""
    clusters: Int64[np.ndarray, "record"]
    """Cluster of each kept record, numbered 0, 1, ... over the corpus without gaps; NO_CLUSTER for the others."""
    num_unlisted: int
    """Kept records that the cluster file does not name."""


def sequence_digest(ids: UInt8[np.ndarray, "length"]) -> bytes:
    """16 bytes that stand for a sequence: a billion sequences meet by chance with probability 1e-21."""
    return hashlib.blake2b(ids.data, digest_size=16).digest()


def name_keys(name: str) -> bytes:
    """Two 8-byte keys of a record's name: of the whole word, and of the accession that mmseqs2 cuts out of it.

    mmseqs2 writes `P69905` for `sp|P69905|HBA_HUMAN`, and `NP_000508.1` for `gi|4504347|ref|NP_000508.1|`.
    """
    fields = name.split("|")
    accession = fields[3] if fields[0] == "gi" and len(fields) > 3 else fields[1] if len(fields) > 1 else name
    return b"".join(
        hashlib.blake2b(word.encode("utf-8", errors="surrogateescape"), digest_size=8).digest()
        for word in (name, accession or name)
    )


def as_keys(digests: bytes | bytearray, num_columns: int = 2) -> UInt64[np.ndarray, "record column"]:
    """Concatenated digests as rows of 64-bit numbers, the same on every machine."""
    return np.frombuffer(digests, dtype="<u8").reshape(-1, num_columns)


def read_clusters(path: Path) -> Clusters:
    """Read mmseqs2's `cluster.tsv`, one `representative TAB member` a line, plain or gzipped.

    Raises:
        FastaError: the file cannot be read.
        CorpusError: a line of another form, no line at all, or a member in two clusters.
    """
    members = bytearray()
    owners = bytearray()
    with open_text(path) as handle:
        for number, line in numbered_lines(handle, path):
            fields = line.rstrip("\r\n").split("\t")
            if len(fields) != 2 or not fields[0].strip() or not fields[1].strip():
                raise CorpusError(
                    f"{path}, line {number}: got {line.strip()[:60]!r}, expected 'representative TAB member' as"
                    " `mmseqs createtsv` writes it"
                )
            owner, member = (name_keys(field.split()[0])[:8] for field in fields)
            owners += owner
            members += member
    if not members:
        raise CorpusError(f"{path}: the cluster file is empty; expected lines 'representative TAB member'")
    representatives, cluster_of_line = np.unique(as_keys(owners, 1)[:, 0], return_inverse=True)
    keys = as_keys(members, 1)[:, 0]
    order = np.argsort(keys, kind="stable")
    keys, cluster_of_line = keys[order], cluster_of_line[order].astype(np.int64)
    torn = (keys[1:] == keys[:-1]) & (cluster_of_line[1:] != cluster_of_line[:-1])
    if torn.any():
        raise CorpusError(
            f"{path}, line {order[1:][torn].min() + 1}: this member already belongs to another representative, but a"
            " clustering puts each name in one cluster; were the names in the clustered FASTA unique?"
        )
    return Clusters(keys, cluster_of_line, representatives)


def select(records: Records, exclusions: Records, clusters: Clusters | None, valid_ratio: float) -> Selection:
    """Apply the rules at the top of this file to `records`, given in the order of the inputs.

    Raises:
        CorpusError: no name is in the cluster file, or nothing is left to train on.
    """
    num_records = len(records.digests)
    excluded, duplicate = _repeats(records.digests, exclusions.digests)
    fates = np.full(num_records, TRAIN, dtype=np.uint8)
    fates[duplicate] = DUPLICATE
    if clusters is None:
        # Each distinct sequence is a unit of its own: once duplicates are gone, that is each record.
        units, hashes = np.arange(num_records), records.digests[:, 0]
    else:
        found = clusters.lookup(records.names)
        if num_records and np.all(found == NO_CLUSTER):
            raise CorpusError(
                "none of the records is named in the cluster file; it must come from these FASTA files, with the first"
                " word of each header (or its accession) as the member"
            )
        listed = found != NO_CLUSTER
        banned = np.concatenate([found[excluded], clusters.lookup(exclusions.names)])
        fates[listed & np.isin(found, banned)] = EXCLUDED_CLUSTER
        units = np.where(listed, found, len(clusters.representatives) + np.arange(num_records))
        hashes = np.where(listed, clusters.representatives[found], records.digests[:, 0])
    fates[excluded] = EXCLUDED_EXACT
    kept = np.flatnonzero(fates == TRAIN)
    fates[kept[_held_out(units[kept], hashes[kept], valid_ratio)]] = VALID
    numbers = np.full(num_records, NO_CLUSTER, dtype=np.int64)
    numbers[kept] = np.unique(units[kept], return_inverse=True)[1]
    unlisted = 0 if clusters is None else int(np.count_nonzero(~listed[kept]))
    return Selection(fates, numbers, unlisted)


def _repeats(
    digests: UInt64[np.ndarray, "record 2"], exclusions: UInt64[np.ndarray, "exclusion 2"]
) -> tuple[Bool[np.ndarray, "record"], Bool[np.ndarray, "record"]]:
    """For each record: is it an excluded sequence, is it the same as an earlier record."""
    # Exclusions first: the sort is stable, so each group of equal digests begins with an exclusion if it has one.
    everything = np.concatenate([exclusions, digests])
    order = np.lexsort((everything[:, 1], everything[:, 0]))
    ranked = everything[order]
    begins = np.ones(len(ranked), dtype=bool)
    begins[1:] = np.any(ranked[1:] != ranked[:-1], axis=1)
    first = np.empty(len(ranked), dtype=np.int64)
    first[order] = order[np.maximum.accumulate(np.where(begins, np.arange(len(ranked)), 0))]
    first = first[len(exclusions) :]
    return first < len(exclusions), first != len(exclusions) + np.arange(len(digests))


def _held_out(
    units: Int64[np.ndarray, "kept"], hashes: UInt64[np.ndarray, "kept"], valid_ratio: float
) -> Bool[np.ndarray, "kept"]:
    """Which of the kept records go to validation, unit by unit.

    Raises:
        CorpusError: there is nothing to split, or validation would take everything.
    """
    if not len(units):
        raise CorpusError("no record is left; the counts of `xtrimo corpus` say why (length, letters, exclusions)")
    held_out = hashes < np.uint64(int(valid_ratio * 2**64))
    if valid_ratio and not held_out.any():  # a small corpus: the unit that is next in line
        held_out = units == units[np.argmin(hashes)]
    if held_out.all():
        raise CorpusError(
            f"all {len(np.unique(units)):,} clusters (or distinct sequences) would be held out at valid_ratio"
            f" {valid_ratio}, leaving none to train on; give more sequences, or --valid-ratio 0"
        )
    return held_out
