"""What the verbs that run a model share: their flags, their input, their output file, their progress bar."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from xtrimo import fasta
from xtrimo.backbone import Backbone, load
from xtrimo.errors import ConfigError, FastaError, XtrimoError
from xtrimo.tokens import Unknown

if TYPE_CHECKING:
    from rich.progress import Progress


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOptions:
    """Which model, and how it runs."""

    model: str
    """Model directory."""
    precision: Literal["fp32", "bf16"] | None = None
    """Of weights and activations; by default as stored."""
    device: str = "cpu"
    """Where to run, such as cuda."""

    def load(self) -> Backbone:
        """The model, ready for inference.

        Raises:
            ConfigError: for a device that is not here.
            CheckpointError: for a directory that holds no model, or a damaged one.
        """
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:  # torch raises the latter where it was built without CUDA
            raise ConfigError(f"device {self.device!r} cannot be used here ({error}); try cpu") from error
        return load(self.model, device=self.device, dtype=self.precision and DTYPES[self.precision])


@dataclass(frozen=True, kw_only=True, slots=True)
class FastaOptions(ModelOptions):
    """Which model, and how the FASTA file it works on is read."""

    unknown: Unknown = "error"
    """A letter that is no residue: error stops, x reads it as X, skip leaves out the record."""
    force: bool = False
    """Read a file that looks like nucleotides."""

    def read(self, path: Path) -> tuple[int, Iterator[fasta.Record]]:
        """The number of records, and the records; they stream.

        The file is read through once before, so that a bad record is met now and not after hours of work.
        """
        num_records = sum(1 for _ in fasta.read_fasta(path, unknown=self.unknown, force=self.force))
        if not num_records:
            raise FastaError(f"{path}: no record is left to work on; correct the letters, or try --unknown x")
        return num_records, self._read_again(path)

    def _read_again(self, path: Path) -> Iterator[fasta.Record]:
        fasta.logger.disabled = True  # it has warned of all there is
        try:
            yield from fasta.read_fasta(path, unknown=self.unknown, force=self.force)
        finally:
            fasta.logger.disabled = False


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to; the file appears under its own name only when the block ends well.

    Raises:
        XtrimoError: if it cannot be written, before the block runs wherever that can be known.
    """
    partial = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a directory")
        partial.touch()
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise XtrimoError(f"{path} cannot be written: {error.strerror or error}; choose another path") from error
    finally:
        with suppress(OSError):
            partial.unlink()


def progress_bar() -> "Progress":
    """A bar on stderr with count, speed and time left; silent where stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # rich would else print to stderr what is printed to stdout while the bar is up
    return Progress(*columns, console=console, disable=not console.is_terminal, redirect_stdout=False)
