"""Logging: every module writes through `logging.getLogger(__name__)`; the command line decides here how it looks.

As a library xtrimo configures nothing: without `configure` Python shows warnings on stderr and drops the rest.
"""

import logging
import sys

PACKAGES = ("xtrimo", "pretrain", "heads", "structure", "generate")
_warned: set[tuple[str, str]] = set()


def configure(level: int = logging.INFO) -> None:
    """Send our packages' messages from `level` up, and everybody's warnings, to stderr: rich on a terminal, else plain.

    stdout stays free for results, so that a verb can be piped. Where a program has set up logging, its handlers stay.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_handler()])
    for package in PACKAGES:
        logging.getLogger(package).setLevel(level)


def is_quiet() -> bool:
    """Whether `configure` was asked for warnings alone: then there are no progress bars either."""
    return logging.getLogger("xtrimo").level > logging.INFO


def warn_once(logger: logging.Logger, message: str, *values: object) -> None:
    """Warn on the first call with this text in this process; for input that is degraded but usable.

    The text after formatting counts, so a warning that names its file is given once a file.
    """
    text = message % values if values else message
    if (logger.name, text) not in _warned:
        _warned.add((logger.name, text))
        logger.warning("%s", text)


def _handler() -> logging.Handler:
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        return RichHandler(console=Console(stderr=True), show_path=False)
    plain = logging.StreamHandler()
    plain.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    return plain
