"""The errors a user can meet. Each message says what we got, what we expected, and what to do about it."""

from typing import ClassVar


class XtrimoError(Exception):
    """Every error that xtrimo raises on purpose; the command line prints it without a traceback."""

    exit_status: ClassVar[int] = 2
    """Of the command that met it."""


class ConfigError(XtrimoError, ValueError):
    """A configuration that cannot work; the message names both numbers and the rule they break."""


class SequenceError(XtrimoError, ValueError):
    """A sequence that is not a protein: empty, nucleotide, or with letters outside the vocabulary."""


class FastaError(XtrimoError, ValueError):
    """A FASTA file that cannot be read; the message names the file and the line."""


class CorpusError(XtrimoError):
    """A token corpus that is missing, half-written, or altered."""


class DataError(XtrimoError, ValueError):
    """Labelled data that cannot be read, or is wrong; the message names the file, the row and the value."""


class CheckpointError(XtrimoError):
    """A model directory or training checkpoint that is missing, truncated, or altered."""


class MemoryShortError(XtrimoError, MemoryError):
    """Work that does not fit into memory, even in its smallest piece."""


class TrainingError(XtrimoError):
    """A training run that cannot go on, such as one whose loss is no longer a number."""


class StoppedError(XtrimoError):
    """A training run that was asked to stop, and is saved: the same command goes on; the exit status tells scripts."""

    exit_status: ClassVar[int] = 75  # EX_TEMPFAIL of sysexits.h: start the same command again


class UnwellError(XtrimoError):
    """`xtrimo doctor` has found something broken that is needed."""

    exit_status: ClassVar[int] = 1


class OtherOutputError(XtrimoError):
    """`xtrimo rerun` has got another output than the first run."""

    exit_status: ClassVar[int] = 1


class MissingExtraError(XtrimoError, ImportError):
    """An optional dependency is not installed; the message names the extra to install."""
