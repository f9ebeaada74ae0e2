"""External programs as screens: each protein is given to a program, whose exit status says whether it may be written.

    # my_screen.py, for --screen my_screen:check
    from generate.screening import program

    check = program("screen-tool", "--database", "hazards.db", "-")

The program reads one FASTA record from its standard input. Status 0 lets the protein pass; status 1 refuses it, with
the first line of the program's output as the reason. Whatever else happens stops the run: nothing is written that was
not screened. A program whose failures end with 1, as those of Python do, refuses all then; one that hides its failures
behind a 0, such as a shell's `!`, must not be used.
"""

import subprocess

from generate.hooks import Screen
from xtrimo.errors import XtrimoError

_PASSED, _REFUSED = 0, 1


def program(*command: str, seconds: float = 600.0) -> Screen:
    """A screen that runs `command` for each protein.

    Args:
        seconds: after which the program counts as failed.
    """

    def screen(sequence: str) -> str | None:
        try:
            done = subprocess.run(
                command, input=f">protein\n{sequence}\n", capture_output=True, text=True, timeout=seconds
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise XtrimoError(f"the screening program {command[0]} did not run: {error}") from error
        if done.returncode == _PASSED:
            return None
        if done.returncode == _REFUSED:
            return next(iter(done.stdout.strip().splitlines()), f"refused by {command[0]}")
        raise XtrimoError(
            f"the screening program {command[0]} ended with status {done.returncode}, where 0 is passed and 1 refused:"
            f" {done.stderr.strip()[-200:]}"
        )

    return screen
