"""The verb `rerun`: a run again from its record, into another place, and whether all is as it was."""

import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import chdir, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path

from tyro.conf import Positional

from xtrimo.answer import as_text, give
from xtrimo.errors import ConfigError, OtherOutputError
from xtrimo.run_record import Files, Run, files_of, record_path, recorded, word_of

logger = logging.getLogger(__name__)

SHOWN = 5  # names of files that differ


@dataclass(frozen=True, kw_only=True, slots=True)
class RerunOptions:
    """Repeat a run from the record that it has left beside its output, into another place; say whether inputs, versions
    and output are the same. The exit status is 1 where the output is another."""

    record: Positional[Path]
    """The record, OUT.run.json beside the file or folder OUT."""
    out: Path | None = None
    """File or folder to write to; by default OUT.again beside the first. It must not be there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a second run compares with the first."""

    out: Path
    resumed: bool
    """The first run went on with what an earlier one had begun."""
    changed_inputs: tuple[str, ...]
    """Inputs that are other than they were, new, or no longer there."""
    other_versions: Mapping[str, str]
    """Package -> release then and now, where these differ."""
    num_files: int
    """Of both outputs together."""
    differing: tuple[str, ...]
    """Files of the output whose bytes differ, or that only one of both has."""
    unread: tuple[str, ...]
    """Files that were too large to be read, or not as they were when the first run ended: only their sizes are
    compared."""

    def told(self) -> str:
        """The same in lines."""
        same, resumed = self.num_files - len(self.differing), ["the first run went on with an earlier one's work"]
        output = f"same to the byte ({same} of {same} files)"
        if self.differing:
            output = f"{same} of {self.num_files} files same; other: {_some(self.differing)}"
        versions = [f"{name} {both}" for name, both in self.other_versions.items()]
        lines = [
            f"inputs    {'changed: ' + _some(self.changed_inputs) if self.changed_inputs else 'same'}",
            f"versions  {_some(versions) or 'same'}",
            *(f"resumed   {said}" for said in resumed if self.resumed),
            f"output    {output}",
            *(f"          of {_some(names)} the sizes alone" for names in [self.unread] if names),
        ]
        return "\n".join(lines)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def places(run: Run, out: Path) -> dict[str, Path]:
    """Where the outputs of a run go the second time: the one with the record to `out`, others beside that."""
    beside = {path: out.with_name(f"{out.stem}-{Path(path).name}") for path in run.outputs}
    return beside | {run.out: out}


def new_args(run: Run, new: Mapping[str, Path]) -> list[str]:
    """The words of a run, with its outputs elsewhere.

    Raises:
        DataError: the words do not name an output.
    """
    args = list(run.args)
    for path, place in new.items():
        word = word_of(path, run.args)
        args[word.number] = f"{word.flag}={place}" if args[word.number].startswith("--") else str(place)
    return args


def repeat(run: Run, out: Path | None = None) -> Outcome:
    """Run it again where it ran, with its answer on stderr.

    Raises:
        ConfigError: an output is there already, or the verb is unknown here.
        XtrimoError: whatever the verb raises.
    """
    from xtrimo.__main__ import VERBS
    from xtrimo.__main__ import run as run_verb

    if run.verb not in VERBS:
        raise ConfigError(f"the record is of a verb {run.verb!r}, which this xtrimo has not")
    folder = Path(run.folder)
    new = places(run, out.absolute() if out else again(folder / run.out))
    if there := [place for place in new.values() if place.exists()]:
        raise ConfigError(f"{there[0]} is there already; choose another --out")
    if not folder.is_dir():
        logger.warning("%s is gone, where the first run was; relative paths start here", folder)
        folder = Path.cwd()
    with chdir(folder), redirect_stdout(sys.stderr), as_text():
        changed = tuple(name for path, files in run.inputs.items() for name in _changed(path, files, run.outputs))
        if changed:
            logger.warning("not as they were: %s", _some(changed))
        with recorded(run.verb, new_args(run, new)):
            run_verb(run.verb, new_args(run, new))
    return compare(run, new, changed)


def again(out: Path) -> Path:
    """Where a second run goes by itself; the end of a file's name stays, which may tell its format."""
    return out.with_name(f"{out.name}.again" if out.is_dir() else f"{out.stem}.again{out.suffix}")


def compare(run: Run, new: Mapping[str, Path], changed: tuple[str, ...]) -> Outcome:
    """The output of a run beside that of its repetition."""
    then = {str(Path(path, name)): facts for path, files in run.outputs.items() for name, facts in files.items()}
    now = {str(Path(path, name)): facts for path, place in new.items() for name, facts in files_of(place).items()}
    versions = Run.read(record_path(new[run.out])).versions
    names = sorted(then.keys() | now.keys())
    return Outcome(
        out=new[run.out], resumed=run.resumed, changed_inputs=changed, num_files=len(names),
        other_versions={
            name: f"{run.versions.get(name)} then, {version} now"
            for name, version in versions.items()
            if run.versions.get(name) != version
        },
        differing=tuple(name for name in names if then.get(name) != now.get(name)),
        unread=tuple(name for name in names if then.get(name) == now.get(name) and then[name]["sha256"] is None),
    )  # fmt: skip


def _changed(path: str, then: Files, outputs: Mapping[str, Files]) -> list[str]:
    """The files of an input that are not as they were."""
    now = files_of(Path(path), apart=outputs)
    return [
        str(Path(path, name)) for name in sorted(then.keys() | now.keys())
        if name not in then or name not in now
        or now[name]["bytes"] != then[name]["bytes"]
        or then[name]["sha256"] not in (None, now[name]["sha256"])
    ]  # fmt: skip


def main(args: Sequence[str] | None = None) -> None:
    """`xtrimo rerun`.

    Raises:
        OtherOutputError: the output is not the same.
    """
    import tyro

    options = tyro.cli(RerunOptions, prog="xtrimo rerun", args=args)
    outcome = repeat(Run.read(options.record), options.out)
    give({"same_output": not outcome.differing, **asdict(outcome)}, outcome.told())
    if outcome.differing:
        raise OtherOutputError(f"{outcome.out} is not as {options.record} tells of the first run's output")
