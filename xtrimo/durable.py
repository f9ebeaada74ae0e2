"""Small files that are whole or not there, whatever happens while they are written."""

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Replace the content of a file: written beside it, brought to the disk, renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_name(f".{path.name}.tmp")
    work.write_text(text, "utf-8")
    sync(work)
    work.rename(path)
    sync(path.parent)


def create_json(path: Path, content: object) -> None:
    """Write a file that is not there yet; of several processes that try, one does.

    Raises:
        FileExistsError: it is there now, whole.
    """
    work = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        work.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        sync(work)
        os.link(work, path)
        sync(path.parent)
    finally:
        work.unlink(missing_ok=True)


def write_json(path: Path, content: object) -> None:
    """Replace the content of a file by this, as indented JSON."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """What is other in settings that were written down than in ours, as an error tells it."""
    return [f"{name} {theirs.get(name)} to {value}" for name, value in ours.items() if theirs.get(name) != value]


def sync(path: Path) -> None:
    """Return when a file, or the names in a folder, have reached the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
