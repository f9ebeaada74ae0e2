"""The verb `doctor`: whether what is needed is here and works, and what to do where it does not.

A check that fails in a way nobody foresaw is a finding like the others: that is when a doctor is asked.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from xtrimo import installation, machine
from xtrimo.errors import UnwellError
from xtrimo.findings import Finding

CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "python": installation.check_python,
    "xtrimo": installation.check_folders,
    "packages": installation.check_packages,
    "extras": installation.check_extras,
    "releases": installation.check_releases,
    "torch": machine.check_torch,
    "threads": machine.check_threads,
    "memory": machine.check_memory,
    "gpu": machine.check_gpu,
    "places": machine.check_places,
    "programs": machine.check_programs,
    "hub": machine.check_hub,
}


def examine(checks: Mapping[str, Callable[[], Iterator[Finding]]] = CHECKS) -> Iterator[Finding]:
    """The findings of all checks, in their order, each as soon as it is known."""
    for name, check in checks.items():
        try:
            yield from check()
        except Exception as error:  # a broken library may raise anything at all while it is imported
            said = f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0]
            cure = f"repair what this names, often by installing it again: {installation.AGAIN}"
            yield Finding(name=name, state="broken", said=said, cure=cure)


@dataclass(frozen=True, kw_only=True, slots=True)
class DoctorOptions:
    """Look at Python, packages, threads, memory, GPUs, folders and the Hub; say what to do about what is wrong. The
    exit status is 1 where something is broken that every verb needs."""

    json: bool = False
    """Print a JSON list instead: name, state (ok, note, broken), said, cure."""


def main(args: Sequence[str] | None = None) -> None:
    """`xtrimo doctor`.

    Raises:
        UnwellError: something is broken.
    """
    import tyro

    options = tyro.cli(DoctorOptions, prog="xtrimo doctor", args=args)
    findings = []
    for finding in examine():
        findings.append(finding)
        if not options.json:
            print(f"{finding.state:<7} {finding.name:<18} {finding.said}", flush=True)
            if finding.cure:
                print(f"{'':<27}-> {finding.cure}")
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    if broken := [finding.name for finding in findings if finding.state == "broken"]:
        raise UnwellError(f"broken: {', '.join(broken)}; what to do is said beside each")
