"""Where designed proteins go: a FASTA file that survives kills, or the standard output.

Until the file is complete, each protein is a line of the journal beside it,

    .out.fasta.unfinished     settings, then a line for each protein as soon as it has ended

so that a run that was killed goes on where it was, and ends with the very bytes of an unbroken one. A line holds what
the screen let pass, or the reason why not and no residues. The first line says which work it is: a journal of other
work is refused, never mixed in. The tasks of a job array have a journal each, .out.fasta.2-of-8.unfinished, and the
last to end writes the file.
"""

import fcntl
import heapq
import io
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from generate.designs import Brief, Refused, Sample, passed, rank, ranked
from generate.drawing import DrawingConfig
from generate.hooks import Hooks, digest, find_function
from generate.prompt import parse
from generate.ways import Task, choose_way
from xtrimo import __version__
from xtrimo.backbone import Backbone
from xtrimo.command import TRIED, TRIED_RESIDUES, ModelOptions, progress_bar, replacing
from xtrimo.errors import ConfigError, XtrimoError
from xtrimo.fasta import Record, write_fasta
from xtrimo.model import GLM
from xtrimo.shards import WHOLE, Shard, parse_shard

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class DesignOptions(ModelOptions):
    """Which model, what is done with its proteins, and where they go."""

    out: Path | None = None
    """FASTA file, gzipped if it ends in .gz; replaced, once the new one is complete. Killed, the same command goes on.
    By default stdout."""
    score: str | None = None
    """module:function from residues to a number; the FASTA file is sorted by it, the highest first."""
    logits: str | None = None
    """module:function from (logits, history) to logits, applied before temperature; see generate/engine.py."""
    screen: str | None = None
    """module:function from residues to None, or to the reason why this protein must not be written."""
    shard: str = "1/1"
    """I/N: write the I-th of N shares, for job arrays; the last to finish writes the file."""

    def __post_init__(self) -> None:
        if parse_shard(self.shard).num > 1 and self.out is None:
            raise ConfigError(f"shard {self.shard} needs an --out, which the shares are put together in")

    @property
    def hooks(self) -> Hooks:
        """The functions named.

        Raises:
            ConfigError: one of them is not there.
        """
        return Hooks(**{
            name: find_function(target, f"--{name}")
            for name in ("score", "logits", "screen")
            if (target := getattr(self, name))
        })  # fmt: skip

    def prepare(self, model: Backbone, slots: int) -> Backbone:
        """The model laid out for `slots` proteins at a time; in fp32 it stays as it is, as Python's `sample` takes it.

        Raises:
            ConfigError: int8 for a model that loses by it, or for anything but a GLM that generates, on the CPU.
        """
        from xtrimo.stepping import prepack_int8_to_generate, prepack_to_generate

        if self.precision == "int8":
            if not isinstance(model, GLM) or model.config.prompt_style == "none":
                raise ConfigError("int8 is for GLMs that generate, since it is tried on what they write; take bf16")
            model, loss = prepack_int8_to_generate(model, _to_judge(prepack_to_generate(model)))
            logger.info("int8 against bf16 on proteins that it wrote: %s", loss)
            return model
        if self.precision == "bf16" and isinstance(model, GLM):
            return prepack_to_generate(model, slots=slots)
        return model

    def settings(self, model: Backbone, brief: Brief) -> dict[str, Any]:
        """All that decides what is in the file, but for how many there are."""
        from xtrimo.embedding_file import fingerprint

        drawing = asdict(brief.config)
        del drawing["batch_size"]
        if len(brief.tasks) == 1:  # then no number depends on it
            del drawing["num"]
        return dict(
            xtrimo_version=__version__, model_hash=fingerprint(model), precision=self.precision, device=self.device,
            prompts=[[task.name, str(task.prompt), task.way] for task in brief.tasks], max_length=brief.max_length,
            unmasking=asdict(brief.unmasking),
            **{name: _function(getattr(self, name)) for name in ("score", "logits", "screen")},
            drawing={name: list(x) if isinstance(x, tuple) else x for name, x in drawing.items()},
        )  # fmt: skip


def _function(target: str | None) -> list[str] | None:
    """What a journal says of a function: its name, and its file's digest, so that no protein of it passes for one of
    the changed file."""
    return [target, digest(target)] if target else None


class Journal:
    """The proteins of an unfinished file. `open_journal` makes one."""

    def __init__(self, file: BinaryIO, num: int) -> None:
        self._file, self._num = file, num
        self._places: dict[int, int] = {}
        self._scores: dict[int, float] = {}
        self._reasons: Counter[str] = Counter()

    @property
    def done(self) -> set[int]:
        """Numbers of the proteins that have ended."""
        return set(self._places)

    @property
    def refused(self) -> Counter[str]:
        """How many the screen refused, by reason."""
        return self._reasons

    def add(self, ended: Sample | Refused) -> None:
        """Write down a protein; once this returns, a kill of this process does not lose it."""
        facts = asdict(ended) if isinstance(ended, Sample) else ended._asdict()
        place = self._file.seek(0, io.SEEK_END)
        self._file.write(json.dumps(facts).encode() + b"\n")
        self._file.flush()
        self._enter(facts, place)

    def read(self, place: int) -> None:
        """Find what an earlier run wrote from `place` on; what it did not finish writing is cut off."""
        self._file.seek(place)
        for line in self._file:
            try:
                facts = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:  # the machine went down with the process
                facts = None
            if facts is None:
                break
            self._enter(facts, place)
            place += len(line)
        if self._file.writable():
            self._file.truncate(place)

    def samples(self) -> Iterator[Sample]:
        """Those that may be written: by score, the highest first, where they have one; then by number."""
        passed = sorted(self._scores, key=lambda number: (-self._scores[number], number))
        for number in passed:
            self._file.seek(self._places[number])
            yield Sample(**json.loads(self._file.readline()))

    def _enter(self, facts: Mapping[str, Any], place: int) -> None:
        if facts["number"] >= self._num:  # of a run that was to write more
            return
        self._places[facts["number"]] = place
        if "reason" in facts:
            self._reasons[facts["reason"]] += 1
        else:
            self._scores[facts["number"]] = facts["score"] or 0.0


def _journal_path(out: Path, shard: Shard) -> Path:
    return out.with_name(f".{out.name if shard.num == 1 else shard.name_in(out.name)}.unfinished")


@contextmanager
def open_journal(out: Path, settings: Mapping[str, Any], num: int, shard: Shard = WHOLE) -> Iterator[Journal]:
    """The journal of an output, or of a share of it, as an earlier run of the same settings left it.

    Args:
        num: proteins wanted in all.

    Raises:
        XtrimoError: it cannot be written, belongs to other work, or another process is writing it.
    """
    path = _journal_path(out, shard)
    try:
        if out.is_dir() or (out.exists() and not out.is_file()):
            raise OSError(0, "it is no regular file")
        file = path.open("a+b")
    except OSError as error:
        raise XtrimoError(f"{out} cannot be written: {error.strerror or error}; choose another path") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise XtrimoError(
                f"{out} is written by another process now; wait for it, or choose another path"
            ) from error
        file.seek(0)
        journal = Journal(file, num)
        if not _read(path, file, journal, settings):  # new, or of a run that was killed in its first line
            file.truncate(0)
            file.write(json.dumps(settings, sort_keys=True).encode() + b"\n")
            file.flush()
        yield journal


def _read(path: Path, file: BinaryIO, journal: Journal, settings: Mapping[str, Any]) -> bool:
    """Enter what a journal has; False if not even its first line is whole."""
    first = file.readline()
    if not first.endswith(b"\n"):
        return False
    _compare(path, json.loads(first), json.loads(json.dumps(settings)))
    journal.read(len(first))
    return True


def put_together(
    out: Path, settings: Mapping[str, Any], num: int, shard: Shard, record: Callable[[Sample], Record]
) -> Counter[str] | None:
    """Write the file, if the journals of all shares are complete, and remove these.

    Returns:
        How many the screen refused, by reason; None if some share has not ended, or another task was here first.
    """
    paths = [_journal_path(out, sibling) for sibling in shard.siblings]
    with ExitStack() as stack:
        journals = []
        for path in paths:
            try:
                file = stack.enter_context(path.open("rb"))
            except FileNotFoundError:
                return None
            journals.append(Journal(file, num))
            _read(path, file, journals[-1], settings)
        if sum(len(journal.done) for journal in journals) < num:
            return None
        with replacing(out) as partial:
            samples = heapq.merge(*(journal.samples() for journal in journals), key=rank)
            write_fasta(partial, map(record, samples))
        for path in paths:
            path.unlink(missing_ok=True)
        return sum((journal.refused for journal in journals), Counter())


def _compare(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    if different := sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)):
        raise XtrimoError(
            f"{path} holds proteins of an unfinished run that differs in {', '.join(different)}; run that command again"
            " to finish it, remove the file, or choose another output"
        )


def deliver(options: DesignOptions, model: Backbone, brief: Brief, what: str) -> Iterator[Record]:
    """Write all proteins to the file of the options; without one, give them out for the standard output.

    Those come as soon as all of lower numbers are there, or when all are there to be ranked.

    Raises:
        XtrimoError: see open_journal; and whatever the brief raises.
    """
    if options.out:
        _write(options, options.out, model, brief, what)
        return
    refused: Counter[str] = Counter()
    with progress_bar() as progress:
        bar = progress.add_task(what, total=brief.num)
        ended = brief.written(
            options.prepare(model, _rows_at_a_time(brief)), on_ended=lambda num: progress.advance(bar, num)
        )
        samples = passed(_by_number(ended), refused)
        for sample in ranked(list(samples)) if options.score else samples:
            yield _record(options, sample)
    _report(options, brief.num, refused)


def _write(options: DesignOptions, out: Path, model: Backbone, brief: Brief, what: str) -> None:
    shard = parse_shard(options.shard)
    settings = options.settings(model, brief)
    if shard.num > 1:
        settings["num"] = brief.num  # shares of other numbers would not make up the whole
    brief.check(model)
    model = options.prepare(model, _rows_at_a_time(brief))
    own = set(shard.of(range(brief.num)))
    with open_journal(out, settings, brief.num, shard) as journal, progress_bar() as progress:
        done = journal.done
        if done:
            logger.info("%s: going on after %d of %d proteins", out, len(done), len(own))
        bar = progress.add_task(what, total=len(own), completed=len(done))
        others = set(range(brief.num)) - own
        for ended in brief.written(model, done | others, lambda num: progress.advance(bar, num)):
            journal.add(ended)
        refused = put_together(out, settings, brief.num, shard, lambda sample: _record(options, sample))
    if refused is None:
        logger.info("share %s: %d proteins; the share that ends last writes %s", options.shard, len(own), out)
    else:
        _report(options, brief.num, refused)


def _record(options: DesignOptions, sample: Sample) -> Record:
    """A protein as FASTA, with the screen that it passed."""
    record = sample.record
    if options.screen:
        return Record(record.name, record.sequence, f"{record.description} screen={options.screen}:passed")
    return record


def _report(options: DesignOptions, num: int, refused: Counter[str]) -> None:
    """Log how many were written, and what the screen refused, by reason."""
    passed = num - refused.total()
    if not options.screen:
        logger.info("proteins: %d", num)
        return
    reasons = "".join(f"; {count} for: {reason}" for reason, count in refused.most_common())
    logger.info("proteins: %d; %s let %d pass and refused %d%s", num, options.screen, passed,
                refused.total(), reasons)  # fmt: skip


def _rows_at_a_time(brief: Brief) -> int:
    return min(brief.num, brief.config.batch_size) * (2 if brief.config.guidance != 1 else 1)


def _to_judge(model: GLM) -> list[str]:
    """Proteins that the model writes by itself."""
    prompt = parse(f"[1..{TRIED_RESIDUES}]")
    task = Task("", prompt, choose_way(model, prompt, ("forward", "reverse")))
    brief = Brief(tasks=(task,), config=DrawingConfig(num=TRIED, batch_size=TRIED), max_length=TRIED_RESIDUES)
    return [ended.sequence for ended in brief.written(model) if isinstance(ended, Sample)]


def _by_number(ended: Iterable[Sample | Refused]) -> Iterator[Sample | Refused]:
    waiting: dict[int, Sample | Refused] = {}
    number = 0
    for one in ended:
        waiting[one.number] = one
        while number in waiting:
            yield waiting.pop(number)
            number += 1
