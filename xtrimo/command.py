"""What the verbs that run a model share: their flags, their input, their output file, their progress bar."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from xtrimo import fasta
from xtrimo.backbone import Backbone, load
from xtrimo.errors import ConfigError, FastaError, XtrimoError
from xtrimo.model import GLM
from xtrimo.tokens import Unknown

if TYPE_CHECKING:
    from rich.progress import Progress

logger = logging.getLogger(__name__)
REPORT_EVERY = 30.0  # seconds

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.bfloat16}
TRIED = 8  # proteins that int8 is judged on


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOptions:
    """Which model, and how it runs."""

    model: str
    """Model directory; a name on the Hugging Face Hub, org/name or org/name@revision; or antiberty."""
    precision: Literal["fp32", "bf16", "int8"] | None = None
    """Of the matrix products; by default as the weights are stored. int8, for embed and score on a CPU, is tried on the
    first proteins and refused where the model loses by it."""
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

    def prepare(self, model: Backbone, path: Path) -> Backbone:
        """The model laid out for inference here; int8 is tried on the first proteins of the file.

        Raises:
            ConfigError: int8 for a model that loses by it, or for anything but a GLM on the CPU.
        """
        from xtrimo.prepacking import prepack, prepack_int8

        if not isinstance(model, GLM):
            if self.precision == "int8":
                raise ConfigError("int8 is for GLMs; this model runs in fp32 or bf16")
            return model
        if self.precision != "int8":
            return prepack(model)
        short = (record for record in self.read_again(path, chains=True) if _is_plain(record, model))
        model, loss = prepack_int8(model, islice(short, TRIED))
        logger.info("int8 against bf16 on the first proteins: %s", loss)
        return model

    def read(self, path: Path) -> tuple[int, Iterator[fasta.Record]]:
        """The number of records, and the records; they stream.

        The file is read through once before, so that a bad record is met now and not after hours of work.
        """
        num_records = sum(1 for _ in fasta.read_fasta(path, unknown=self.unknown, force=self.force))
        if not num_records:
            raise FastaError(f"{path}: no record is left to work on; correct the letters, or try --unknown x")
        return num_records, self.read_again(path)

    def read_again(self, path: Path, *, chains: bool = False) -> Iterator[fasta.Record]:
        """The records of a file that has been read through once, without its warnings."""
        fasta.logger.disabled = True  # it has warned of all there is
        try:
            yield from fasta.read_fasta(path, unknown=self.unknown, force=self.force, chains=chains)
        finally:
            fasta.logger.disabled = False


def _is_plain(record: fasta.Record, model: GLM) -> bool:
    """Whether it is one chain that the model reads whole."""
    return fasta.CHAIN_BREAK not in record.sequence and len(record.sequence) + 4 <= model.max_length


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


@contextmanager
def counting(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """A function that is told of each piece of work how large it was, and shows how far and how fast it all goes.

    On a terminal a bar on stderr, elsewhere a line of the log every REPORT_EVERY seconds. `total` is in `unit`s, such
    as residues.
    """
    began = reported = time.monotonic()
    done = 0

    def speed() -> str:
        return f"{done / max(time.monotonic() - began, 1e-9):,.0f} {unit}/s"

    def log(amount: int) -> None:
        nonlocal done, reported
        done += amount
        if time.monotonic() - reported >= REPORT_EVERY:
            reported = time.monotonic()
            logger.info("%s: %s of %s %s, %s", what, f"{done:,}", f"{total:,}", unit, speed())

    if not sys.stderr.isatty():  # rich takes a tenth of a second to import
        yield log
        return
    with progress_bar() as progress:
        bar = progress.add_task(what, total=total)

        def show(amount: int) -> None:
            nonlocal done
            done += amount
            progress.update(bar, advance=amount, description=f"{what}, {speed()}")

        yield show
