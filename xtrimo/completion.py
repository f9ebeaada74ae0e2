"""The verb `completion`: a script that lets a shell complete verbs, flags and the values of those that name them.

The script holds all its words, so that a Tab starts no Python. What no word fits, the shell completes as a file. The
words are those that `xtrimo VERB --help` shows.
"""

import io
import logging
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from typing import Literal

from tyro.conf import Positional

from xtrimo.errors import MissingExtraError

logger = logging.getLogger(__name__)

Shell = Literal["bash", "zsh", "fish"]
COLUMNS = "100"  # wider, tyro sets two columns


@dataclass(frozen=True, kw_only=True, slots=True)
class VerbWords:
    """What may follow a verb."""

    summary: str
    flags: Sequence[str] = ()
    values: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Flag -> its values, where they can be listed; "" stands for what comes first after the verb."""


def words_of(help_text: str) -> tuple[list[str], dict[str, list[str]]]:
    """The flags in the --help of a verb, and the values of those that list them.

    >>> words_of("  --unknown {error,x}  What\\n  --force, --no-force\\n  --num INT  How many\\n  {bash,fish}  Shell")
    (['--unknown', '--force', '--no-force', '--num'], {'--unknown': ['error', 'x'], '': ['bash', 'fish']})
    """
    flags: list[str] = []
    values: dict[str, list[str]] = {}
    # Into a text buffer tyro draws its boxes with blanks: one column of blank frame, one of margin, then the flag.
    for row in re.findall(r"^  (\S.*?)(?:  .*)?$", help_text, flags=re.MULTILINE):
        names = re.findall(r"(?<![\w-])--?[a-z][\w.-]*", row) if row.startswith("-") else []
        flags += names
        listed = re.fullmatch(r"(?:(\S+) )?\{(\S+)\}", row)
        if listed and (names or not row.startswith("-")):
            values[listed[1] or ""] = listed[2].split(",")
    return flags, values


def all_words() -> dict[str, VerbWords]:
    """What may follow each verb; a verb that lacks a package is there without flags, which is warned of."""
    from xtrimo.__main__ import VERBS, run

    found: dict[str, VerbWords] = {}
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = COLUMNS
    try:
        for name, verb in VERBS.items():
            text = io.StringIO()
            try:
                with redirect_stdout(text), suppress(SystemExit):
                    run(name, ["--help"])
            except MissingExtraError as error:
                logger.warning("the flags of %s are left out: %s", name, error)
            flags, values = words_of(text.getvalue())
            found[name] = VerbWords(summary=verb.summary, flags=flags, values=values)
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
    return found


def script(shell: Shell, verbs: Mapping[str, VerbWords]) -> str:
    """The script that makes a shell complete `xtrimo`."""
    return WRITERS[shell](verbs)


def _after(verbs: Mapping[str, VerbWords]) -> dict[str, Sequence[str]]:
    """The verb and the word before the cursor -> values that fit there."""
    return {f"{name} {flag or name}": values for name, verb in verbs.items() for flag, values in verb.values.items()}


def _cases(words: Mapping[str, Sequence[str]], indent: str) -> str:
    """Branches of `case`, each of which sets `known`."""
    return "\n".join(f"{indent}{shlex.quote(key)}) known={shlex.quote(' '.join(w))} ;;" for key, w in words.items())


BASH = """\
# xtrimo's words for bash; written by `xtrimo completion bash`.
_xtrimo() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} known=
    if ((COMP_CWORD == 1)); then
        known={verbs}
    else
        case "${{COMP_WORDS[1]}} ${{COMP_WORDS[COMP_CWORD - 1]}}" in
{values}
        esac
        [[ -n $known || $cur != -* ]] || case ${{COMP_WORDS[1]}} in
{flags}
        esac
    fi
    COMPREPLY=($(compgen -W "$known" -- "$cur"))
}}
complete -o default -F _xtrimo xtrimo
"""


def _bash(verbs: Mapping[str, VerbWords]) -> str:
    return BASH.format(
        verbs=shlex.quote(" ".join((*verbs, "--help", "--version"))),
        values=_cases(_after(verbs), " " * 12),
        flags=_cases({name: verb.flags for name, verb in verbs.items()}, " " * 12),
    )


ZSH = """\
#compdef xtrimo
# xtrimo's words for zsh; written by `xtrimo completion zsh`.
_xtrimo() {{
    local verb=${{words[2]}} previous=${{words[CURRENT-1]}} current=${{words[CURRENT]}}
    if ((CURRENT == 2)); then
        local -a verbs=(
{verbs}
        )
        _describe verb verbs
        return
    fi
    local known=
    case "$verb $previous" in
{values}
    esac
    [[ -n $known || $current != -* ]] || case $verb in
{flags}
    esac
    if [[ -n $known ]]; then compadd -- ${{=known}}; else _files; fi
}}
# From a folder of $fpath zsh runs this file as the function; sourced, it says what it completes.
if [[ ${{funcstack[1]}} == _xtrimo ]]; then _xtrimo "$@"; else compdef _xtrimo xtrimo; fi
"""


def _zsh(verbs: Mapping[str, VerbWords]) -> str:
    return ZSH.format(
        verbs="\n".join(f"            {shlex.quote(f'{name}:{verb.summary}')}" for name, verb in verbs.items()),
        values=_cases(_after(verbs), " " * 8),
        flags=_cases({name: verb.flags for name, verb in verbs.items()}, " " * 8),
    )


FISH = """\
# xtrimo's words for fish; written by `xtrimo completion fish`.
function __xtrimo_is
    set -l words (commandline -opc)
    test (count $words) -ge 2; and test $words[2] = $argv[1]
    and begin; test (count $argv) -eq 1; or test $words[-1] = $argv[2]; end
end
complete -c xtrimo -n 'test (count (commandline -opc)) -eq 1' -f
"""


def _fish(verbs: Mapping[str, VerbWords]) -> str:
    lines = []
    for name, verb in verbs.items():
        first = "-n 'test (count (commandline -opc)) -eq 1'"
        lines.append(f"complete -c xtrimo {first} -a {name} -d {_fish_quote(verb.summary)}")
        for flag in verb.flags:
            option = f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
            values = f" -x -a {_fish_quote(' '.join(verb.values[flag]))}" if flag in verb.values else ""
            lines.append(f"complete -c xtrimo -n '__xtrimo_is {name}' {option}{values}")
        if "" in verb.values:
            values = _fish_quote(" ".join(verb.values[""]))
            lines.append(f"complete -c xtrimo -n '__xtrimo_is {name} {name}' -f -a {values}")
    return FISH + "\n".join(lines) + "\n"


def _fish_quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


WRITERS: dict[str, Callable[[Mapping[str, VerbWords]], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionOptions:
    """Print a script by which a shell completes verbs and flags; docs/cli.md says where to put it."""

    shell: Positional[Shell]
    """The shell that is to read it."""


def main(args: Sequence[str] | None = None) -> None:
    """`xtrimo completion`."""
    import tyro

    options = tyro.cli(CompletionOptions, prog="xtrimo completion", args=args)
    print(script(options.shell, all_words()), end="")
