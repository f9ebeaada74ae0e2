"""What a verb says at its end, on stdout: as text, or with `--json` as one JSON object, of one shape for all verbs.

    {"verb": "finetune", "seconds": 61.2, "outputs": ["runs/mine"], "record": "runs/mine.run.json", "results": {...}}

`results` are the facts that a verb hands to `give`, beside the text that says the same. What it writes to stdout in any
other way, such as proteins, stands there as text; a verb that says nothing has null.
"""

import io
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

_kept: ContextVar["Answer | None"] = ContextVar("_kept", default=None)


class Answer:
    """What a verb has said; whatever else reached stdout meanwhile is in `text`."""

    def __init__(self) -> None:
        self.facts: Any = None
        self.text = io.StringIO()

    @property
    def is_empty(self) -> bool:
        """Whether nothing was said."""
        return self.facts is None and not self.text.getvalue()

    def in_json(self, **about: Any) -> str:
        """One object: what there is to say about the run, and its results."""
        results = self.text.getvalue() or None if self.facts is None else self.facts
        return json.dumps(_plain({**about, "results": results}), indent=1, allow_nan=False)


@contextmanager
def keeping() -> Iterator[Answer]:
    """Within the block answers are kept, and nothing reaches stdout."""
    answer = Answer()
    before = _kept.set(answer)
    try:
        with redirect_stdout(answer.text):
            yield answer
    finally:
        _kept.reset(before)


@contextmanager
def as_text() -> Iterator[None]:
    """Within the block answers are text, whatever was asked for outside."""
    before = _kept.set(None)
    try:
        yield
    finally:
        _kept.reset(before)


def give(facts: Any, text: str) -> None:
    """Answer with the facts, or with the text that says the same.

    `facts` may hold dataclasses, paths and numbers of numpy; what JSON has no number for, such as NaN, becomes null.
    """
    if answer := _kept.get():
        answer.facts = facts
    else:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


@contextmanager
def giving_rows(name: str, head: str) -> Iterator[Callable[[Mapping[str, Any], str], None]]:
    """A function that takes a row as facts and as text: text at once, below `head`; facts at the end, a list `name`."""
    rows: list[Mapping[str, Any]] = []
    in_text = _kept.get() is None

    def add(facts: Mapping[str, Any], text: str) -> None:
        if in_text:
            give(None, text)
        else:
            rows.append(facts)

    if in_text:
        give(None, head)
    yield add
    if not in_text:
        give({name: rows}, "")


def _plain(value: Any) -> Any:
    """The value as JSON can hold it."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(own) for key, own in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(own) for own in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, (str, int, float)) or value is None:
        return value
    return _plain(value.item())  # a number of numpy or torch
