"""The record of a run: how an output came about, in a small file beside it, so that it can be made again.

    OUT.run.json     beside the file or folder OUT, never inside

`recorded` stands around every verb that the command runs, and knows none of them. What a run reads and writes it takes
from its words: of those that are paths, an output is what `--out` names, what was not there before, and a file that is
other than before; the rest are inputs. A run that fails or is stopped leaves no record; neither does a share of a job
array, whose output is what one process would have written, nor what goes to stdout; of the ranks of a training the
first does. A record that cannot be written is warned of, and hurts nothing.
"""

import hashlib
import json
import logging
import os
import platform
import shlex
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from xtrimo import __version__
from xtrimo.durable import write_json
from xtrimo.errors import DataError

logger = logging.getLogger(__name__)

FORMAT = 1
SUFFIX = ".run.json"
OUT = "--out"
LEFT_OUT = ("--cache",)
"""Flags whose paths are neither input nor output: what is there spares work, and changes nothing."""
TELL_TIME = ("metrics.jsonl", "events.out.tfevents")
"""How files begin that say when, and how fast, a run has worked: no two runs have the same."""
LARGE = 4 * 10**9
"""Bytes of a file or folder beyond which only names and sizes are noted: to read more would take minutes."""

Files = dict[str, dict[str, Any]]
"""Path below a folder, or "." for a file -> its bytes and SHA-256; null where it was not read."""
Stamps = dict[str, tuple[int, int]]
"""The same paths -> size, and when it was changed."""


class Word(NamedTuple):
    """A word of a command that may be a path."""

    number: int
    """Its place among the words."""
    flag: str
    """The flag before it; "" for none."""
    path: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What a record says."""

    format: int
    verb: str
    args: list[str]
    """The words after the verb."""
    folder: str
    """Where it ran, and relative paths start."""
    out: str
    """The output that the record lies beside."""
    resumed: bool
    """Part of the output was there when the run began: an earlier run, of which nothing is known here, has begun it."""
    command: str
    """As a shell takes it."""
    began: str
    seconds: float
    versions: dict[str, str]
    machine: dict[str, Any]
    inputs: dict[str, Files]
    """Path -> its files."""
    outputs: dict[str, Files]

    @classmethod
    def read(cls, path: Path) -> "Run":
        """The record at a path.

        Raises:
            DataError: it is none.
        """
        try:
            content = json.loads(path.read_text("utf-8"))
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']}, and {FORMAT} is known")
            return cls(**content)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{path} is no record of a run ({error}); give an OUT{SUFFIX} that a verb has left beside OUT"
            ) from error


@dataclass(slots=True)
class Trace:
    """What a run in progress leaves behind; filled when it has ended well."""

    outputs: list[str] = field(default_factory=list)
    record: Path | None = None


def record_path(out: Path) -> Path:
    """Where the record of an output lies."""
    return out.absolute().with_name(f"{out.absolute().name}{SUFFIX}")


def words(args: Sequence[str]) -> list[Word]:
    """The words that may be paths, each with the flag that it follows.

    >>> words(["in.fasta", "--out=a.h5", "--unknown", "x", "--force"])
    [Word(number=0, flag='', path='in.fasta'), Word(number=1, flag='--out', path='a.h5'), \
Word(number=3, flag='--unknown', path='x')]
    """
    found, flag = [], ""
    for number, word in enumerate(args):
        value = word
        if word.startswith("--"):
            flag, given, value = word.partition("=")
            if not given:
                continue
        # as hooks are named; the module is of the working directory, or none
        module, _, function = value.partition(":")
        found.append(Word(number, flag, f"{module.replace('.', '/')}.py" if function.isidentifier() else value))
        flag = ""
    return [word for word in found if word.flag not in LEFT_OUT]


@contextmanager
def recorded(verb: str, args: Sequence[str]) -> Iterator[Trace]:
    """Leave a record of the verb that runs in the block, if it ends well and has written what its words name."""
    trace = Trace()
    began, clock, folder = datetime.now(UTC), time.monotonic(), Path.cwd()
    before = {word.path: stamps(Path(word.path)) for word in words(args)}
    begun = {path for path in before if _is_begun(Path(path))}
    yield trace
    trace.outputs = outputs_of(args, before)
    if not trace.outputs or not _is_whole(args, Path(trace.outputs[0])):
        return
    out = trace.outputs[0]
    inputs = [path for path, then in before.items() if then and path not in trace.outputs]
    try:
        run = Run(
            format=FORMAT, verb=verb, args=list(args), folder=str(folder), out=out, resumed=out in begun,
            command=shlex.join(("xtrimo", verb, *args)), began=began.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - clock, 3), versions=_versions(), machine=_machine(),
            inputs={path: _as_then(Path(path), before[path], trace.outputs) for path in inputs},
            outputs={path: files_of(Path(path)) for path in trace.outputs},
        )  # fmt: skip
        trace.record = record_path(Path(out))
        if not _is_told(trace.record, run):
            write_json(trace.record, asdict(run))
    except OSError as error:
        trace.record = None
        logger.warning("no record of this run is left beside %s: %s", out, error)


def outputs_of(args: Sequence[str], before: Mapping[str, Stamps]) -> list[str]:
    """The paths among the words that the run has written; what `--out` names comes first."""
    found = []
    for word in sorted(words(args), key=_likeness_to_output):
        now = stamps(Path(word.path))
        if now and now != before[word.path] and (word.flag == OUT or not before[word.path] or "." in now):
            found.append(word.path)
    return list(dict.fromkeys(found))


def word_of(path: str, args: Sequence[str]) -> Word:
    """The word that names an output; another may be of the same letters.

    Raises:
        DataError: there is none.
    """
    named = [word for word in words(args) if word.path == path]
    if not named:
        raise DataError(f"the record's words do not name {path}, which they should have written: {shlex.join(args)}")
    return min(named, key=_likeness_to_output)


def _likeness_to_output(word: Word) -> int:
    return (OUT, "", word.flag).index(word.flag)


def _is_told(record: Path, run: Run) -> bool:
    """Whether a record says already how this very output came about: a run that found all done adds nothing to that."""
    with suppress(DataError):
        before = Run.read(record)
        return run.resumed and (before.verb, before.args, before.outputs) == (run.verb, run.args, run.outputs)
    return False


def _is_begun(path: Path) -> bool:
    """Whether an unfinished output is there: a folder that is not empty, or what a file is put together from."""
    with suppress(OSError, ValueError):
        if path.is_dir():
            return any(path.iterdir())
        beside = (each.name for each in path.absolute().parent.iterdir())
        return any(name.startswith(f".{path.name}.") and not name.endswith(".tmp") for name in beside)
    return False


def _is_whole(args: Sequence[str], out: Path) -> bool:
    """Whether this process has seen an output come to its end: no share of it, not one rank of several, not stopped."""
    shares = {word.path for word in words(args) if word.flag == "--shard"}
    if not shares <= {"1/1"} or not is_first_rank():
        return False
    if not out.is_dir():
        return True
    from xtrimo.stopping import STOPPED  # brings torch, which whatever writes a folder has loaded

    return not (out / STOPPED).exists()


def is_first_rank() -> bool:
    """Whether this process is the first of a training on several, or alone."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def stamps(path: Path) -> Stamps:
    """The stamps of a file, or of those in a folder; empty where there is none, and for what is no regular file.

    Records of runs are of nobody's work, and files that tell time are never the same: both are left out of a folder.
    """
    found: Stamps = {}
    with suppress(OSError, ValueError):  # too long for a path, or with a letter that no path has
        files = [(".", path)] if path.is_file() else []
        for folder, _, names in os.walk(path):
            kept = (Path(folder, name) for name in sorted(names) if not _is_aside(name))
            files += [(file.relative_to(path).as_posix(), file) for file in kept]
        for name, file in files:
            with suppress(FileNotFoundError):  # gone meanwhile
                if file.is_file():
                    found[name] = (file.stat().st_size, file.stat().st_mtime_ns)
    return found


def _is_aside(name: str) -> bool:
    return name.endswith(SUFFIX) or name.startswith(TELL_TIME)


def files_of(path: Path, apart: Collection[str] = ()) -> Files:
    """The files at a path with their hashes, without those that lie at or below the paths in `apart`.

    Raises:
        OSError: one cannot be read.
    """
    left_out = [Path(other).resolve() for other in apart]
    sizes = {
        name: size
        for name, (size, _) in stamps(path).items()
        if not any((path / name).resolve().is_relative_to(other) for other in left_out)
    }
    is_large = sum(sizes.values()) > LARGE
    return {name: {"bytes": size, "sha256": None if is_large else _sha256(path / name)} for name, size in sizes.items()}


def _as_then(path: Path, then: Stamps, outputs: Collection[str]) -> Files:
    """The files of an input as they were when the run began; of one that has changed since, the bytes then."""
    now, files = stamps(path), files_of(path, apart=outputs)
    changed = {name for name in files if now.get(name) != then.get(name)}
    return {
        name: {"bytes": then[name][0], "sha256": None} if name in changed else facts
        for name, facts in files.items() if name in then
    }  # fmt: skip


def _sha256(file: Path) -> str | None:
    with suppress(FileNotFoundError), file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
    return None


def _versions() -> dict[str, str]:
    found = {"xtrimo": __version__, "python": platform.python_version()}
    for package in ("torch", "numpy"):
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _machine() -> dict[str, Any]:
    """What it ran on, as far as a result may depend on it."""
    from xtrimo.machine import usable_cores

    cpu = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    facts: dict[str, Any] = {"system": platform.platform(), "processor": cpu, "cores": usable_cores()}
    facts["ranks"] = int(os.environ.get("WORLD_SIZE", "1"))
    if torch := sys.modules.get("torch"):  # a verb that has not loaded it has not used it
        facts["threads"] = torch.get_num_threads()
        if torch.cuda.is_initialized():
            facts["gpus"] = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return facts
