"""Who is a member of a family and who was held out, as headers of FASTA files say; and the families' thresholds.

A header may carry `family=NAME` and `split=train`, `valid` or `test` among its words:

    >A0ALU7 family=adenylate_kinase split=train

A record without a split was trained on. A file without such words is taken as it is: all of it belongs to the family,
all of it was trained on.
"""

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xtrimo.errors import DataError
from xtrimo.fasta import Record, open_text, read_fasta

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Real:
    """The real proteins that generated ones are held against."""

    training: Sequence[Record]
    """All that a model has been trained on, of any family: a copy is a copy of one of these."""
    members: Sequence[Record]
    """Those of the family: controls are made from them."""
    held_out: Sequence[Record]
    """Members that were not trained on."""


def read_real(reference: Path, held_out: Path | None, family: str | None) -> Real:
    """Training proteins from `reference`; held-out members from `held_out`, or from the splits of `reference`.

    Without a family, all proteins are its members.

    Held out are those of split=test; where there are none, those of split=valid.

    Raises:
        FastaError, SequenceError: a file that cannot be read.
        DataError: no training or no held-out member of the family.
    """
    records = list(read_fasta(reference, unknown="skip"))
    own = _of_family(records, family, reference)
    training, members = _trained_on(records), _trained_on(own)
    if not members:
        raise DataError(f"{reference} holds no {_called(family)} with split=train; give the proteins trained on")
    is_split = any(fact(record, "split") for record in records)
    if held_out is not None:
        rest = _of_family(list(read_fasta(held_out, unknown="skip")), family, held_out)
        is_split = any(fact(record, "split") for record in rest)
    else:
        rest = own
    found = _held_out(rest) if is_split or held_out is None else rest
    if not found:
        raise DataError(
            f"{held_out or reference} holds no held-out {_called(family)} (split=test or split=valid in the header);"
            " give such by --held-out"
        )
    known = {record.sequence for record in training}
    num_known = sum(record.sequence in known for record in found)
    if num_known:
        logger.warning(
            "%d of the %d held-out proteins of %s are training proteins, letter by letter; leave them"
            " out: with them the figures of held-out members say too much",
            num_known, len(found), (held_out or reference).name,
        )  # fmt: skip
    return Real(training=training, members=members, held_out=found)


def read_thresholds(path: Path) -> dict[str, float]:
    """Bits from which a protein counts as a member, by family: the columns `family` and `threshold_bits` of a CSV file.

    Raises:
        DataError: no such columns, a threshold that is no number, or a family that is there twice.
    """
    found: dict[str, float] = {}
    with open_text(path) as file:
        rows = csv.DictReader(file)
        missing = {"family", "threshold_bits"} - set(rows.fieldnames or ())
        if missing:
            raise DataError(
                f"{path} has no column {' and no column '.join(sorted(missing))}; expected a CSV file with the columns"
                " family and threshold_bits"
            )
        for number, row in enumerate(rows, start=1):
            try:
                bits = float(row["threshold_bits"])
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"{path}, row {number}: threshold_bits is {row['threshold_bits']!r}; expected a number"
                ) from error
            if row["family"] in found:
                raise DataError(f"{path}, row {number}: {row['family']} is there twice; keep one row a family")
            found[row["family"]] = bits
    return found


def _called(family: str | None) -> str:
    return f"member of {family}" if family is not None else "protein"


def _of_family(records: Sequence[Record], family: str | None, path: Path) -> list[Record]:
    """Those whose header names the family; all where no header names any, or none is asked for."""
    families = dict.fromkeys(fact(record, "family") for record in records)
    if family is None or not any(families):
        return list(records)
    if family not in families:
        known = ", ".join(sorted(name for name in families if name))
        raise DataError(f"{path} holds no record of family={family}; its families are {known}")
    return [record for record in records if fact(record, "family") == family]


def _trained_on(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if fact(record, "split") in ("train", "")]


def _held_out(records: Sequence[Record]) -> list[Record]:
    for split in ("test", "valid"):
        found = [record for record in records if fact(record, "split") == split]
        if found:
            return found
    return []


def fact(record: Record, name: str) -> str:
    """What a header says of `name`, or nothing."""
    words = (word.partition("=") for word in record.description.split())
    return next((value for key, _, value in words if key == name), "")
