"""Checkpoints as files: names, checksums, what comes into sight and goes. Knows neither torch nor ranks.

    run/checkpoints/step-00000100/                   facts.json, and the files it vouches for
    run/checkpoints/.step-00000200-5f0c9a1b.tmp/     being written or being removed; nothing reads it

A checkpoint comes into sight by one rename, after all of it has reached the disk, and goes by another. So wherever a
run is killed, each name in sight stands for a whole checkpoint. What disks do to one later, its checksums tell.
"""

import json
import re
import shutil
import uuid
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xtrimo.durable import sync
from xtrimo.errors import CheckpointError

FACTS = "facts.json"
_STEP = re.compile(r"step-(\d{8})")
_CHUNK = 1 << 22

Stamp = tuple[int, str]
"""Size in bytes and checksum of a file."""


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, ascending."""
    found = (_STEP.fullmatch(path.name) for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted(int(match.group(1)) for match in found if match)


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:08}"


def hidden(checkpoint: Path) -> Path:
    """A name out of sight, new at each call: a writer may outlive its killed run, and still write under an old one."""
    return checkpoint.with_name(f".{checkpoint.name}-{uuid.uuid4().hex[:8]}.tmp")


def checksum(content: bytes) -> str:
    """CRC-32 in 8 hex digits: finds what happens by accident, not by intent, and is the fastest in Python's library."""
    return f"{zlib.crc32(content):08x}"


def stamp(path: Path) -> Stamp:
    """Size and checksum of a file, read once and never whole."""
    crc = size = 0
    with path.open("rb", buffering=0) as file:
        buffer = memoryview(bytearray(_CHUNK))
        while count := file.readinto(buffer):
            crc = zlib.crc32(buffer[:count], crc)
            size += count
    return size, f"{crc:08x}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What a checkpoint says of itself, in `facts.json`."""

    step: int
    """Steps done."""
    config: dict[str, Any]
    """What a run must share to go on from here."""
    progress: dict[str, Any]
    """Where the loop was."""
    files: dict[str, Stamp] | None
    """Every other file of the folder; None in the first format, which had no checksums."""

    def write(self, folder: Path) -> None:
        """Write them, guarded by a checksum of their own."""
        facts = {"step": self.step, "config": self.config, "progress": self.progress, "files": self.files}
        text = json.dumps(facts, sort_keys=True)
        (folder / FACTS).write_text(json.dumps({"checksum": checksum(text.encode()), **json.loads(text)}, indent=1))

    @classmethod
    def read(cls, checkpoint: Path) -> "Facts":
        """Read them back.

        Raises:
            CheckpointError: if the file is missing or damaged.
        """
        try:
            facts: dict[str, Any] = json.loads((checkpoint / FACTS).read_bytes())
            if set(facts) == {"step", "config"}:
                return cls(**facts, progress={}, files=None)
            if facts.pop("checksum") != checksum(json.dumps(facts, sort_keys=True).encode()):
                raise CheckpointError(f"{FACTS} was altered")
            return cls(**facts | {"files": {name: (size, crc) for name, (size, crc) in facts["files"].items()}})
        except FileNotFoundError as error:
            raise CheckpointError(f"{FACTS} is missing") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{FACTS} was cut or altered") from error


def verify(checkpoint: Path, files: Mapping[str, Stamp]) -> None:
    """Read these files of a checkpoint again.

    Raises:
        CheckpointError: naming those that are not as they were written.
    """
    found = [phrase for name, expected in files.items() if (phrase := _damage(checkpoint / name, *expected))]
    if found:
        raise CheckpointError(", ".join(found))


def _damage(path: Path, size: int, crc: str) -> str:
    if not path.exists():
        return f"{path.name} is missing"
    found = path.stat().st_size
    if found != size:
        return f"{path.name} has {found:,} bytes of {size:,}"
    return "" if stamp(path)[1] == crc else f"{path.name} was altered"


def publish(work: Path, checkpoint: Path) -> None:
    """Bring a complete checkpoint into sight, once all of it is on the disk; one of that name and later ones go.

    Later ones are of a future that the run has left, by going back to before them.
    """
    for file in work.iterdir():
        sync(file)
    sync(work)
    folder, step = checkpoint.parent, int(checkpoint.name.removeprefix("step-"))
    left = [_hide(path_of(folder, other)) for other in reversed(steps(folder)) if other >= step]
    work.rename(checkpoint)
    sync(folder)
    sync(folder.parent)  # where the folder itself may be new
    _remove(left)


def prune(folder: Path, keep: int, keep_every: int) -> None:
    """Remove all but the newest `keep` checkpoints and those at multiples of `keep_every` steps (0: none)."""
    old = [step for step in steps(folder)[:-keep] if not keep_every or step % keep_every]
    _remove([_hide(path_of(folder, step)) for step in old])


def sweep(folder: Path) -> None:
    """Remove what a killed save or removal left behind."""
    _remove(folder.glob(".step-*.tmp"))


def free_bytes(folder: Path) -> int:
    """Room on the disk of a folder, which need not exist yet."""
    return shutil.disk_usage(next(place for place in (folder, *folder.absolute().parents) if place.is_dir())).free


def _hide(checkpoint: Path) -> Path:
    return checkpoint.rename(hidden(checkpoint))


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)  # an orphaned writer may be adding to it; the next sweep tries again
