"""What is installed, beside what is needed: Python, this project's own folders, its packages, their releases."""

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path

from packaging.requirements import Requirement

import xtrimo
from xtrimo.findings import Finding

OLDEST_PYTHON = (3, 11)
FOR_DEVELOPERS = ("bench", "dev", "docs")  # extras that no verb needs
ROOT = Path(xtrimo.__file__).resolve().parents[1]
AGAIN = "pip install --upgrade xtrimo, or in a checkout pip install --constraint constraints.txt --editable ."


def check_python() -> Iterator[Finding]:
    """The interpreter."""
    said = f"{sys.version.split()[0]} at {sys.executable}"
    if sys.version_info < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        yield Finding(name="python", state="broken", said=said, cure=f"install Python {oldest} or newer")
    else:
        yield Finding(name="python", state="ok", said=said)


def check_folders() -> Iterator[Finding]:
    """Whether the folders of the verbs are ours: a folder `generate` elsewhere on the path would hide the project's."""
    from xtrimo.__main__ import VERBS

    strangers = []
    for name in sorted({verb.target.partition(".")[0] for verb in VERBS.values()}):
        spec = util.find_spec(name)
        if spec is None or spec.origin is None or Path(spec.origin).resolve().parents[1] != ROOT:
            strangers.append(f"{name} is {spec.origin or 'a folder without code' if spec else 'not there'}")
    if strangers:
        cure = "take what hides it off PYTHONPATH, or install xtrimo into a virtual environment of its own"
        yield Finding(
            name="xtrimo", state="broken", said=f"{'; '.join(strangers)}; expected all beside {ROOT}", cure=cure
        )
    else:
        yield Finding(name="xtrimo", state="ok", said=f"{xtrimo.__version__} at {ROOT}")


def check_packages() -> Iterator[Finding]:
    """What every verb needs is installed, in a release that is new enough."""
    needs = _needs()
    if needs is None:
        yield Finding(
            name="packages", state="note", said="xtrimo is not installed, so its needs are unknown", cure=AGAIN
        )
    elif wrong := _wrong(needs.pop("")):
        yield Finding(name="packages", state="broken", said="; ".join(wrong), cure=AGAIN)
    else:
        yield Finding(name="packages", state="ok", said="all that every verb needs")


def check_extras() -> Iterator[Finding]:
    """What some verbs and models need beyond that, extra by extra."""
    from xtrimo.__main__ import VERBS

    complete = []
    for extra, needs in (_needs() or {}).items():
        if not extra or extra in FOR_DEVELOPERS:
            continue
        if wrong := _wrong(needs):
            verbs = ", ".join(name for name, verb in VERBS.items() if verb.extra == extra)
            said = f"{'; '.join(wrong)}{f'; wanted by {verbs}' if verbs else ''}"
            yield Finding(name=f"extra {extra}", state="note", said=said, cure=f"pip install 'xtrimo[{extra}]'")
        else:
            complete.append(extra)
    if complete:
        yield Finding(name="extras", state="ok", said=", ".join(complete))


def check_releases() -> Iterator[Finding]:
    """The releases that the tests run on, as the checkout's constraints.txt has them; a wheel brings no such file."""
    path = ROOT / "constraints.txt"
    if not path.is_file():
        return
    pinned = re.findall(r"^([\w.-]+)==(\S+)", path.read_text("utf-8"), flags=re.MULTILINE)
    here = {name: _installed(name) for name, _ in pinned}
    # A build of a release, such as torch 2.13.0+cpu, is that release.
    others = [f"{n} {here[n]}, not {v}" for n, v in pinned if here[n] and (here[n] or "").partition("+")[0] != v]
    if others:
        cure = f"pip install --constraint {path} --editable {ROOT}"
        yield Finding(name="releases", state="note", said=f"not those of the tests: {'; '.join(others)}", cure=cure)
    else:
        yield Finding(name="releases", state="ok", said="those that the tests run on")


def _needs() -> dict[str, list[Requirement]] | None:
    """Extra -> what it installs, "" for what is always installed; None where nothing says so.

    In a checkout pyproject.toml says so: what pip noted down when it installed that may be older.
    """
    path = ROOT / "pyproject.toml"
    if path.is_file():
        project = tomllib.loads(path.read_text("utf-8"))["project"]
        texts = {"": project["dependencies"]} | project["optional-dependencies"]
        return {extra: [Requirement(text) for text in needs] for extra, needs in texts.items()}
    try:
        own = metadata.metadata("xtrimo")
    except metadata.PackageNotFoundError:
        return None
    found: dict[str, list[Requirement]] = {extra: [] for extra in ("", *(own.get_all("Provides-Extra") or ()))}
    for need in map(Requirement, own.get_all("Requires-Dist") or ()):
        if need.marker is None:
            found[""].append(need)
        else:  # `extra == "name"`, the only marker that pyproject.toml leads to
            found[next(extra for extra in found if extra and need.marker.evaluate({"extra": extra}))].append(need)
    return found


def _installed(name: str) -> str | None:
    """The release of a package that is here."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _wrong(needs: list[Requirement]) -> list[str]:
    """What is missing, or of another release than asked for."""
    wrong = []
    for need in needs:
        version = _installed(need.name)
        if version is None:
            wrong.append(f"{need.name} is missing")
        elif not need.specifier.contains(version, prereleases=True):
            wrong.append(f"{need.name} is {version}, expected {need.specifier}")
    return wrong
