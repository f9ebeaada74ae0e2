"""What a check says: `Finding`."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "broken"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing looked at."""

    name: str
    state: State
    """ok; note: what not everybody needs is missing or slower than it could be; broken: what all verbs need."""
    said: str
    """What was found, in one line."""
    cure: str = ""
    """What to do about it; empty where it is ok."""
