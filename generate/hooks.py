"""What users pass in: a processor of logits, a score to rank by, a screen that every protein has to pass.

On the command line each is named as module:function, found as Python finds modules, and then in the working directory.
"""

import hashlib
import importlib
import logging
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from generate.engine import Processor
from xtrimo.errors import ConfigError

Score = Callable[[str], float]
"""What a protein is worth, from its residues; higher is better."""
Screen = Callable[[str], str | None]
"""Why a protein must not be written, from its residues; None where it may be."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Hooks:
    """What users passed in; each may be missing."""

    logits: Processor | None = None
    """Applied last before temperature and cuts."""
    score: Score | None = None
    """Asked once for each protein."""
    screen: Screen | None = None
    """Asked once for each protein, before anything else is done with it."""

    def why_refused(self, sequence: str) -> str | None:
        """The screen's answer.

        Raises:
            ConfigError: it is neither a reason nor None. A screen that is not understood lets nothing pass.
        """
        reason = self.screen(sequence) if self.screen else None
        if reason is not None and not (isinstance(reason, str) and reason.strip()):
            raise ConfigError(
                f"the screen said {reason!r}; it must return None for a protein that may be written, and the reason, a"
                " text, for one that may not"
            )
        return reason

    def worth(self, sequence: str) -> float | None:
        """The score; None where nothing scores.

        Raises:
            ConfigError: it is not a number that ranks.
        """
        if self.score is None:
            return None
        value = self.score(sequence)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if math.isnan(number):
            raise ConfigError(f"the score of a protein is {value!r}; it must be a number")
        return number


def digest(target: str) -> str:
    """Of the file of module:function, once found: what the function says may change with it. Empty without a file."""
    file = getattr(sys.modules[target.partition(":")[0]], "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""


def find_function(target: str, flag: str) -> Callable[..., Any]:
    """The function that module:function names.

    Raises:
        ConfigError: there is none; names the flag.
    """
    module, _, name = target.partition(":")
    if not module or not name:
        raise ConfigError(f"{flag} is {target!r}; expected module:function, such as my_screen:check")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last, where it hides nothing
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0] and error.name != module:
            raise
        raise ConfigError(f"{flag} {target}: there is no module {module} here or where Python looks") from error
    if not callable(found):
        raise ConfigError(f"{flag} {target}: module {module} has no function {name}")
    return found
