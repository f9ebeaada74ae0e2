"""What the verbs that run a model share: their flags, their input, their output file, their progress bar."""

import logging
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from xtrimo import fasta
from xtrimo.backbone import Backbone, load
from xtrimo.errors import ConfigError, FastaError, XtrimoError
from xtrimo.log import is_quiet
from xtrimo.model import GLM
from xtrimo.tokens import Unknown

if TYPE_CHECKING:
    from rich.progress import Progress

logger = logging.getLogger(__name__)
REPORT_EVERY = 30.0  # seconds

# What the weights are cast to; those of int8 go on from there.
CASTS = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.bfloat16}
WORDS_AROUND = 4  # the most that a GLM writes around a protein
TRIED, TRIED_RESIDUES = 8, 200  # int8 is judged on as many chains, and on more where these are short


def check_device(device: str) -> None:
    """Meet a device that is not here before any work.

    Raises:
        ConfigError: it cannot be used.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises the latter where it was built without CUDA
        raise ConfigError(f"device {device!r} cannot be used here ({error}); try cpu") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOptions:
    """Which model, and how it runs."""

    model: str
    """Model directory; a name on the Hugging Face Hub, org/name or org/name@revision; or antiberty."""
    precision: Literal["fp32", "bf16", "int8"] | None = None
    """Of the matrix products; by default as the weights are stored. int8, on a CPU, is tried on some proteins first and
    refused where the model loses by it."""
    device: str = "cpu"
    """Where to run, such as cuda."""

    def load(self) -> Backbone:
        """The model, ready for inference.

        Raises:
            ConfigError: for a device that is not here.
            CheckpointError: for a directory that holds no model, or a damaged one.
        """
        check_device(self.device)
        return load(self.model, device=self.device, dtype=self.precision and CASTS[self.precision])


@dataclass(frozen=True, kw_only=True, slots=True)
class FastaOptions(ModelOptions):
    """Which model, and how the FASTA file it works on is read."""

    unknown: Unknown = "error"
    """A letter that is no residue: error stops, x reads it as X, skip leaves out the record."""
    force: bool = False
    """Read a file that looks like nucleotides."""

    def check_paths(self, path: Path, *outputs: Path | None) -> None:
        """Refuse, before any work, an input that cannot be read again and an output that is an input.

        Raises:
            FastaError: `path` is a pipe or the like.
            ConfigError: one of `outputs` is the input or the model.
        """
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise FastaError(
                f"{path} is a pipe or a device, and the proteins are read more than once; write them to a file first"
            )
        for out in filter(None, outputs):
            for read in (path, Path(self.model)):
                with suppress(OSError):  # one of them is not there
                    if out.samefile(read):
                        raise ConfigError(f"{out} is read by this run, and would be replaced; choose another output")

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
        model, loss = prepack_int8(model, self._to_judge(path, model.max_length))
        logger.info("int8 against bf16 on the first proteins: %s", loss)
        return model

    def _to_judge(self, path: Path, max_length: int) -> list[fasta.Record]:
        """The first chains of a file, each as far as a training row holds it with the words around."""
        judged: list[fasta.Record] = []
        num_residues = 0
        for record in self.read_again(path, chains=True):
            chains = record.sequence.split(fasta.CHAIN_BREAK)
            for name, chain in zip(fasta.chain_names(record.name, len(chains)), chains, strict=True):
                judged.append(fasta.Record(name, chain[: max_length - WORDS_AROUND]))
                num_residues += len(judged[-1].sequence)
            if len(judged) >= TRIED and num_residues >= TRIED_RESIDUES:
                return judged
        if num_residues < TRIED_RESIDUES:
            logger.warning(
                "int8 is judged on the %d residues that %s has; fewer than %d say little, --precision bf16 is safe",
                num_residues, path, TRIED_RESIDUES,
            )  # fmt: skip
        return judged

    def read(
        self, path: Path, check: Callable[[fasta.Record], object] | None = None
    ) -> tuple[int, Iterator[fasta.Record]]:
        """The number of records, and the records; they stream.

        The file is read through once before, so that a bad record is met now and not after hours of work; `check` sees
        each record then, and raises for what the work cannot use.
        """
        num_records = 0
        for record in fasta.read_fasta(path, unknown=self.unknown, force=self.force):
            if check:
                check(record)
            num_records += 1
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


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to; the file appears under its own name only when the block ends well.

    Raises:
        XtrimoError: if it cannot be written, before the block runs wherever that can be known.
    """
    partial = path.with_name(f".{secrets.token_hex(8)}.partial.{path.name}")  # other hosts have the same pids
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a directory")
        if path.exists() and not path.is_file():  # a device, which root could replace
            raise OSError(0, "it is no regular file")
        partial.touch()
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise XtrimoError(f"{path} cannot be written: {error.strerror or error}; choose another path") from error
    finally:
        with suppress(OSError):
            partial.unlink()


def progress_bar() -> "Progress":
    """A bar on stderr with count, speed and time left; silent with --quiet and where stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # rich would else print to stderr what is printed to stdout while the bar is up
    return Progress(*columns, console=console, disable=is_quiet() or not console.is_terminal, redirect_stdout=False)


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

    if is_quiet() or not sys.stderr.isatty():  # rich takes a tenth of a second to import
        yield log
        return
    with progress_bar() as progress:
        bar = progress.add_task(what, total=total)

        def show(amount: int) -> None:
            nonlocal done
            done += amount
            progress.update(bar, advance=amount, description=f"{what}, {speed()}")

        yield show
