"""Reading and writing FASTA, one record at a time; an error says which line is wrong.

What each oddity means here:

* lower case is folded; spaces inside a line, blank lines, CRLF and a byte-order mark are dropped;
* one final `*` (a translated stop codon) is dropped, with one warning per file; any other `*` is an unknown letter;
* records of the same name are all kept, with one warning; a header without a name becomes `record_<number>`, likewise;
* an empty record, text before the first `>`, a file without records, a truncated `.gz` are errors naming file, line;
* a file of which more than 95 % of the first 10,000 letters are A, C, G, T, U or N is refused as nucleotide.

Compression is recognised by content (gzip's magic bytes), not by the file's name.
"""

import gzip
import io
import itertools
import logging
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from xtrimo.errors import FastaError, SequenceError
from xtrimo.tokens import RESIDUES, Unknown, encode_residues

logger = logging.getLogger(__name__)

CHAIN_BREAK = ":"
NUCLEOTIDES = "ACGTUN"
NUCLEOTIDE_RATIO = 0.95
NUCLEOTIDE_SAMPLE = 10_000  # letters
_REMEMBERED_NAMES = 1_000_000  # bounds the memory of the look-out for duplicate names
_GZIP_MAGIC = b"\x1f\x8b"
_UNKNOWN_LETTER = re.compile(f"[^{RESIDUES}]")
# str.upper would turn a stray German sharp s into two valid serines.
_UPPER = str.maketrans("abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")


@dataclass(frozen=True, slots=True)
class Record:
    """One FASTA entry: the first word of its header, its letters in upper case, the rest of its header."""

    name: str
    sequence: str
    description: str = ""


def read_fasta(
    path: str | Path, *, unknown: Unknown | None = None, force: bool = False, chains: bool = False
) -> Iterator[Record]:
    """The records of a FASTA file, plain or gzipped, in file order, streaming.

    `unknown` says what to do with letters outside RESIDUES: "error" raises, "x" reads them as X, "skip" leaves out the
    record (and any empty one) and warns with their number at the end, None hands them on unchecked. `force` reads a
    file that looks like nucleotides. With `chains` a sequence may be several, joined by CHAIN_BREAK: "MKV:GGS";
    without, such a record is an error, or left out by "skip", and its break never an X.

    Raises:
        FastaError: not a readable FASTA file, or an empty record; names file and line.
        SequenceError: nucleotides, several chains, or an unknown letter; names file, line, record, position and letter.
    """
    skipped = 0
    for line, record in parse_fasta(path, force=force):
        parts = record.sequence.split(CHAIN_BREAK) if chains else [record.sequence]
        if unknown == "skip" and any(not part or _UNKNOWN_LETTER.search(part) for part in parts):
            skipped += 1
            continue
        if not record.sequence:
            raise FastaError(
                f"{path}, line {line}: record {record.name} has no sequence; remove it, or leave such records out"
                " (--unknown skip)"
            )
        if unknown and not chains:
            refuse_chains(record.sequence, name=f"{path}, line {line}: {record.name}")
        if unknown == "error":
            for name, part in zip(chain_names(record.name, len(parts)), parts, strict=True):
                encode_residues(part, name=f"{path}, line {line}: {name}")
        elif unknown == "x":
            known = CHAIN_BREAK.join(_UNKNOWN_LETTER.sub("X", part) for part in parts)
            record = Record(record.name, known, record.description)
        yield record
    if skipped:
        logger.warning("%s: left out %d records that are empty or hold letters outside %s", path, skipped, RESIDUES)


def chain_names(name: str, num_chains: int) -> list[str]:
    """What messages call the chains of a record: its name where there is one chain, else `name, chain 2` and so on."""
    return [name] if num_chains == 1 else [f"{name}, chain {number}" for number in range(1, num_chains + 1)]


def refuse_chains(sequence: str, *, name: str) -> None:
    """For readers of one chain.

    Raises:
        SequenceError: several chains, joined by CHAIN_BREAK; names `name`.
    """
    if CHAIN_BREAK in sequence:
        raise SequenceError(
            f"{name}: {sequence.count(CHAIN_BREAK) + 1} chains joined by '{CHAIN_BREAK}'; only `embed` reads several"
            " chains of one record, `score` and all others one: give each chain a record of its own, or drop such"
            " records (--unknown skip)"
        )


def parse_fasta(path: str | Path, *, raw: BinaryIO | None = None, force: bool = False) -> Iterator[tuple[int, Record]]:
    """Every record with the line number of its header, empty ones and unknown letters included.

    `raw` is the already opened file, for a caller that watches the reading; `path` then only names it.

    Raises:
        FastaError, SequenceError: as `read_fasta`, except for empty records and unknown letters.
    """
    entries = _entries(path, raw)
    head = []
    num_letters = 0
    for line, record in entries:
        head.append((line, record))
        num_letters += len(record.sequence)
        if num_letters >= NUCLEOTIDE_SAMPLE:
            break
    if not head:
        raise FastaError(f"{path}: holds no FASTA records; expected lines '>name' followed by protein sequences")
    num_bases = sum(record.sequence.count(base) for _, record in head for base in NUCLEOTIDES)
    if not force and num_bases > NUCLEOTIDE_RATIO * num_letters:
        raise SequenceError(
            f"{path}: {num_bases / num_letters:.0%} of the first {num_letters:,} letters are among {NUCLEOTIDES}, so"
            " this looks like nucleotides, not proteins; translate it first, or read it as it is with --force"
        )
    yield from itertools.chain(head, entries)


def open_text(path: str | Path, raw: BinaryIO | None = None) -> io.TextIOWrapper:
    """A text file for reading line by line, decompressed if its content is gzip.

    Raises:
        FastaError: there is no such file, it is a directory, or it may not be read.
    """
    try:
        raw = raw or open(path, "rb", buffering=0)  # noqa: SIM115 (the wrapper returned closes it)
    except OSError as error:
        raise FastaError(f"{path}: cannot be read ({error.strerror}); give the path of a file") from error
    buffered = io.BufferedReader(cast(io.RawIOBase, raw), 1 << 20)
    packed = buffered.peek(2)[:2] == _GZIP_MAGIC
    binary = cast(BinaryIO, gzip.GzipFile(fileobj=buffered)) if packed else buffered
    return io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape")


def numbered_lines(handle: Iterable[str], path: str | Path) -> Iterator[tuple[int, str]]:
    """(line number, line) from 1; damage in the compression becomes a FastaError that names the last good line."""
    number = 0
    try:
        for number, line in enumerate(handle, start=1):
            yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FastaError(
            f"{path}: the gzip data is truncated or damaged after line {number} ({error}); fetch the file again"
        ) from error


def write_fasta(path: str | Path, records: Iterable[Record], *, width: int = 60) -> None:
    """Write `records`, gzipped if `path` ends in .gz; the file appears under its name only when it is complete.

    Raises:
        FastaError: a name that is empty or not one word, or a line break in a header.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as raw:
            # No name and no time in the gzip header: the same records give the same bytes.
            binary = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if path.suffix == ".gz" else raw
            with io.TextIOWrapper(cast(BinaryIO, binary), encoding="utf-8", errors="surrogateescape") as text:
                for record in records:
                    text.write(_format(record, width))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def file_names(names: Sequence[str]) -> list[str]:
    """A file name for each record, all different whatever the case of their letters.

    >>> file_names(["sp|P1|A", "x", "X"])
    ['sp_P1_A', 'x', 'X_2']
    """
    found: list[str] = []
    taken: set[str] = set()
    for name in names:
        base = re.sub(r"[^A-Za-z0-9._-]", "_", name).strip(".") or "_"
        unique, number = base[:200], 1
        while unique.lower() in taken:
            number += 1
            unique = f"{base[:200]}_{number}"
        taken.add(unique.lower())
        found.append(unique)
    return found


def _format(record: Record, width: int) -> str:
    if record.name.split() != [record.name] or len(record.description.splitlines()) > 1:
        raise FastaError(
            f"record {record.name!r} cannot be written: its name must be one word and its header one line"
            f" (description {record.description!r})"
        )
    header = f">{record.name} {record.description}".rstrip()
    rows = [record.sequence[i : i + width] for i in range(0, len(record.sequence), width)]
    return "\n".join([header, *rows, ""])


def _entries(path: str | Path, raw: BinaryIO | None) -> Iterator[tuple[int, Record]]:
    """Cleaned records with their header's line, each kind of oddity warned about once."""
    names: set[str] = set()
    warned: set[str] = set()

    def warn_once(oddity: str, line: int, message: str) -> None:
        if oddity not in warned:
            warned.add(oddity)
            logger.warning("%s, line %d: %s; further ones are not reported", path, line, message)

    with open_text(path, raw) as handle:
        entries = _split(numbered_lines(handle, path), path)
        for number, (line, title, sequence) in enumerate(entries, start=1):
            name, description = (*title.split(maxsplit=1), "", "")[:2]
            if not name:
                name = f"record_{number}"
                warn_once("nameless", line, f"the header has no name, the record is called {name}")
            if sequence.endswith("*"):
                sequence = sequence[:-1]
                warn_once("stop", line, f"dropped the final '*' of {name}")
            if name in names:
                warn_once("duplicate", line, f"{name} is the name of more than one record, all are kept")
            elif len(names) < _REMEMBERED_NAMES:
                names.add(name)
            yield line, Record(name, sequence.translate(_UPPER), description)


def _split(lines: Iterable[tuple[int, str]], path: str | Path) -> Iterator[tuple[int, str, str]]:
    """(line number of the header, header without its ">", letters) of each entry, spaces dropped.

    As Biopython's SimpleFastaParser has it, whose import alone would be a third of what embedding one protein adds to
    that of torch; and with the line numbers, which it does not keep.
    """
    started = 0
    title, parts = "", list[str]()
    for number, line in lines:
        if line[0] == ">":
            if started:
                yield started, title, "".join(parts)
            started, title, parts = number, line[1:].rstrip(), []
        elif started:
            parts.append(line.rstrip().replace(" ", ""))
        elif line.strip():
            raise FastaError(
                f"{path}, line {number}: starts with {line.strip()[:20]!r}, but a FASTA file starts with '>name';"
                " convert the file to FASTA"
            )
    if started:
        yield started, title, "".join(parts)
