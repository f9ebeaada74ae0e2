"""The site of docs/: it builds without a warning, its pages are all in its menu, and what they show can be run."""

import ast
import csv
import importlib
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from xtrimo import mmseqs
from xtrimo.__main__ import VERBS, main
from xtrimo.checkpoint import save
from xtrimo.fasta import Record, read_fasta, write_fasta
from xtrimo.model import GLM
from xtrimo.testing import toy_config, toy_sequences

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
SMALLER = {"--steps 120": "--steps 2 --valid-tokens 500", "--steps 500": "--steps 2 --valid-tokens 500"}
NUM_PROTEINS = 20
PICTURES = {"segments": 60, "positions": 60, "block": 60, "ranks": 60, "scan": 150, "report": 150, "judge": 150}
"""Those that scripts draw for these pages, and their most kibibytes."""
LINK = re.compile(r"!?\[[^\]]*\]\(([^)#\s]*)(?:#[^)\s]*)?\)")


def menu(entries: list[object]) -> list[str]:
    """The pages of a part of the menu, in order."""
    found: list[str] = []
    for entry in entries:
        inner = list(entry.values())[0] if isinstance(entry, dict) else entry
        found += menu(inner) if isinstance(inner, list) else [str(inner)]
    return found


def prose(page: Path) -> str:
    """A page without its code."""
    return re.sub(r"^```.*?^```$|`[^`\n]+`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def config() -> dict[str, object]:
    content: dict[str, object] = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    return content


@pytest.mark.timeout(120)
def test_it_builds_and_asks_no_other_machine(config: dict[str, object], tmp_path: Path) -> None:
    """A link, an anchor or a name of an API page that is not there is a warning, and any warning an error."""
    (tmp_path / "mkdocs.yml").write_text(
        (ROOT / "mkdocs.yml").read_text().replace("paths: [.]", f"paths: [{ROOT}]").replace("build/site", "site")
    )
    shutil.copytree(DOCS, tmp_path / "docs")
    command = [str(Path(sys.executable).parent / "zensical"), "build", "--strict"]
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert built.returncode == 0, built.stdout + built.stderr
    site = tmp_path / "site"
    for page in PAGES:
        html = (site / page.relative_to(DOCS)).with_suffix(".html").read_text()
        asked = re.findall(r"<(?:script|img|iframe)[^>]*\bsrc=\"?(https?:[^\s\">]+)", html)
        asked += re.findall(r"<link[^>]*rel=\"?stylesheet[^>]*href=\"?(https?:[^\s\">]+)", html)
        assert not asked, page
    api = (site / "api/xtrimo.html").read_text()
    assert 'id="xtrimo.embedding.embed"' in api and "row_tokens" in api


def test_a_broken_link_ends_the_building(tmp_path: Path) -> None:
    (tmp_path / "mkdocs.yml").write_text("site_name: broken\nnav: [index.md]\n")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("# One\n\n[nothing](nothing.md)\n")
    command = [str(Path(sys.executable).parent / "zensical"), "build", "--strict"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60).returncode != 0


def test_every_page_is_in_the_menu_once(config: dict[str, object]) -> None:
    entries = config["nav"]
    assert isinstance(entries, list)
    assert sorted(menu(entries)) == [page.relative_to(DOCS).as_posix() for page in PAGES]


def test_links_hold_where_the_pages_lie() -> None:
    """As a repository shows them, pictures too; the building tests those of the site."""
    for page in PAGES:
        for target in LINK.findall(prose(page)):
            assert not target or target.startswith("http") or (page.parent / target).is_file(), (page.name, target)


def test_addresses_are_listed() -> None:
    listed = set(re.findall(r"^\| `(\S+)` \|", (DOCS / "addresses.md").read_text(), flags=re.MULTILINE))
    named = {
        address.rstrip(".,;")
        for page in PAGES
        if page.name != "addresses.md"
        for address in re.findall(r"https?://[^\s)>`\"']+", page.read_text())
    }
    assert listed == named


def test_every_verb_has_a_page() -> None:
    shown = {
        verb
        for page in PAGES
        for block in re.findall(r"^```(?:bash|console)\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for verb in re.findall(r"\bxtrimo ([a-z-]+)", block)
    }
    assert not set(VERBS) - shown


def test_every_page_with_code_is_run_by_a_test() -> None:
    """By its name, at least; blocks of `console` are shown, and not run."""
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for page in PAGES:
        if re.search(r"^```(bash|python)\b", page.read_text(), flags=re.MULTILINE):
            assert f"docs/{page.name}" in tests or f'"{page.name}"' in tests, page.name


def test_extras_are_those_of_pyproject() -> None:
    page = (DOCS / "install.md").read_text()
    rows = dict(re.findall(r"^\| `([\w-]+)` \| ([^|]+) \|", page, flags=re.MULTILINE))
    assert set(rows) == set(EXTRAS)
    for extra, brings in rows.items():
        packages = {re.match(r"[\w-]+", requirement).group() for requirement in EXTRAS[extra]}  # type: ignore[union-attr]
        assert extra == "dev" or set(re.split(r", ", brings.strip())) == packages, extra
    for name, verb in VERBS.items():
        assert not verb.extra or f"`{name}`" in page or f"`{name} --" in page, name


def test_api_pages_name_what_the_packages_offer() -> None:
    for package in ("xtrimo", "generate", "structure"):
        page = (DOCS / f"api/{package}.md").read_text()
        module = importlib.import_module(package)
        for name, home in module._HOME.items():
            assert re.search(rf"^::: {package}\.\w+\.{name}$", page, flags=re.MULTILINE), f"{package}.{name} of {home}"
    for page in DOCS.glob("api/*.md"):
        for path in re.findall(r"^::: (\S+)$", page.read_text(), flags=re.MULTILINE):
            module_name, _, name = path.rpartition(".")
            source = (ROOT / f"{module_name.replace('.', '/')}.py").read_text()
            defined = [node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
            assert name in defined, path


def test_questions_are_answered_by_tests_that_exist() -> None:
    page = (DOCS / "faq.md").read_text()
    numbers = [int(number) for number in re.findall(r"^### (\d+)\. ", page, flags=re.MULTILINE)]
    assert numbers == list(range(1, 23))
    cited = re.findall(r"`(tests/\S+?\.py)(?:::(\w+))?`", page)
    assert len(cited) > 22
    for file, name in cited:
        assert f"def {name}" in (ROOT / file).read_text(), f"{file}::{name}"


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_small_and_show_something(name: str) -> None:
    path = DOCS / f"{name}.png"
    assert path.stat().st_size <= PICTURES[name] * 1024
    assert np.asarray(Image.open(path).convert("L"), dtype=float).std() > 5


class Shown:
    """A page's commands and code, run in order as a reader would."""

    def __init__(self, page: str) -> None:
        self.name = page
        text = (DOCS / page).read_text()
        self.blocks = re.findall(r"^```(bash|python)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)

    def run(self) -> None:
        """In the working directory.

        Raises:
            AssertionError: a command that does not end well.
        """
        for kind, code in self.blocks:
            if kind == "python":
                exec(compile(code, f"docs/{self.name}", "exec"), {"__name__": "docs"})
                continue
            for line in code.splitlines():
                for large, small in SMALLER.items():
                    line = line.replace(large, small)
                program, *args = shlex.split(line, comments=True)
                assert program == "xtrimo" and main(args) == 0, line


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reader's folder: a model, the bundled proteins (fewer of them); near copies are found without mmseqs2."""
    monkeypatch.setattr(mmseqs, "is_installed", lambda: False)
    torch.manual_seed(0)
    save(GLM(toy_config()), tmp_path / "models/first")
    (tmp_path / "examples").mkdir()
    records = [r for r in islice(read_fasta(ROOT / "examples/proteins.fasta.gz"), 400) if len(r.sequence) < 150]
    write_fasta(tmp_path / "examples/proteins.fasta.gz", records[:NUM_PROTEINS])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table(path: Path, label: str = "label") -> None:
    """Proteins, and the share of charged residues as their label."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("seq", label))
        for protein in toy_sequences(60, min_length=20):
            rows.writerow((protein, sum(map(protein.count, "DEKR")) / len(protein)))


@pytest.mark.parametrize("page", ["embed.md", "score.md", "info.md"])
def test_pages_of_understanding(page: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Shown(page).run()
    said = capsys.readouterr().out
    if page == "embed.md":
        assert "(22, 64) (5, 5)" in said and "\nTrue\n" in said and "(2, " in said
    elif page == "score.md":
        assert (
            "likelihood" in said
            and "(22,)" in said
            and len((folder / "pseudo.csv").read_text().splitlines()) == NUM_PROTEINS + 1
        )
    else:
        assert "xtrimopglm-100b" in said and "parameters" in said


@pytest.mark.timeout(600)
def test_the_tour(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Shown("tour.md").run()
    said = capsys.readouterr().out
    assert "(128,)" in said and "s0002 MKT" in said and "nats a residue" in said
    assert len(list(read_fasta("new.fasta"))) == 4 and len(list(read_fasta("filled.fasta"))) == 2


@pytest.mark.timeout(600)
def test_pretraining(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Shown("pretrain.md").run()
    assert "verified" in capsys.readouterr().out
    assert (folder / "scaling/scaling.md").is_file() and (folder / "models/own/MODEL_CARD.md").is_file()


@pytest.mark.timeout(600)
def test_finetuning(folder: Path) -> None:
    (folder / "tasks").mkdir()
    table(folder / "stability.csv")
    table(folder / "tasks/stability.csv")
    write_fasta(folder / "new.fasta", [Record("one", "MKTAYIAKQRQISFVKSHFSRQ")])
    wild = "MKTAYIAKQR"
    with (folder / "assay.csv").open("w") as file:
        file.write("mutant,mutated_sequence,DMS_score,DMS_score_bin\n")
        for place, letter in enumerate("GAVLG", start=2):
            mutated = f"{wild[: place - 1]}{letter}{wild[place:]}"
            file.write(f"{wild[place - 1]}{place}{letter},{mutated},{place}.5,{place % 2}\n")
    Shown("finetune.md").run()
    assert len((folder / "predictions.csv").read_text().splitlines()) == 2
    for left in (
        "stability/report/report.html",
        "stability/again/results.json",
        "bench/bench.md",
        "zeroshot/summary.json",
    ):
        assert (folder / "runs" / left).is_file(), left


def test_extending(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table(folder / "charges.csv")
    Shown("extend.md").run()
    said = capsys.readouterr().out
    assert said.count("True\n") == 3 and "pseudo\n" in said and re.match(r"0\.\d+ \(", said)
