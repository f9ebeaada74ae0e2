"""The laws of the house that ruff, mypy and import-linter cannot hold. An offence reads `file:line: what`."""

import ast
import re
import statistics
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("xtrimo", "pretrain", "heads", "structure", "generate")
CODE = (*PACKAGES, "tests", "benchmarks", "examples")
ONLY_IMPORTERS = {
    "megatron": ("pretrain/", "tests/pretrain/", "benchmarks/"),
    "deepspeed": ("xtrimo/deepspeed_engine.py",),
    "transformers": (
        "benchmarks/",
        "structure/openfold.py",
        *(f"xtrimo/{name}.py" for name in ("antiberty", "esm", "transformers_model")),
        "xtrimo/huggingface",
        "tests/xtrimo/test_huggingface",
        *(f"tests/xtrimo/test_{name}.py" for name in ("antiberty", "attentions", "esm", "esm_fair")),
        "tests/structure/test_published.py",
        "tests/structure/test_folding_block.py",
    ),
}
# Written as patterns that do not match themselves.
UGLY = {
    "a path of one machine": r"/(work|root|home|opt/pypi)/",
    "a task without a test that falls due": r"\b(TO[D]O|FIX[M]E)\b",
}
Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def modules() -> dict[Path, ast.Module]:
    """Every Python file of the project, by its path under the root."""
    files = sorted(file for folder in CODE for file in (ROOT / folder).rglob("*.py"))
    return {file.relative_to(ROOT): ast.parse(file.read_text()) for file in files}


def functions() -> Iterator[tuple[str, Function]]:
    """Each function, nested ones too, with the `file:line` where it starts."""
    for file, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, Function):
                yield f"{file}:{node.lineno}", node


def size(function: Function) -> int:
    """Lines from `def` to the last one, docstring included."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def parameters(function: Function) -> list[str]:
    """The named parameters, without self and cls."""
    named = (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
    return [parameter.arg for parameter in named if parameter.arg not in ("self", "cls")]


def imported(node: ast.AST) -> list[str]:
    """The top-level packages that an import statement names."""
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [(node.module or "").partition(".")[0]]
    return []


def percentile_90(values: list[int]) -> float:
    return statistics.quantiles(values, n=10, method="inclusive")[-1]


def report(offences: list[str]) -> None:
    assert not offences, "\n" + "\n".join(offences)


def test_files_are_short() -> None:
    lines = {str(file): len((ROOT / file).read_text().splitlines()) for file in modules()}
    report([f"{file}: {count} lines, at most 400" for file, count in lines.items() if count > 400])
    assert percentile_90(list(lines.values())) <= 300


def test_functions_are_short() -> None:
    report([f"{at}: {f.name} has {size(f)} lines, at most 60" for at, f in functions() if size(f) > 60])
    assert percentile_90([size(f) for _, f in functions()]) <= 35


def test_signatures_are_short() -> None:
    report([f"{at}: {f.name} takes {len(parameters(f))}, at most 8" for at, f in functions() if len(parameters(f)) > 8])


def test_no_mutable_defaults() -> None:
    mutable = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
    report(
        [
            f"{at}: {f.name} has a mutable default"
            for at, f in functions()
            if any(isinstance(default, mutable) for default in (*f.args.defaults, *f.args.kw_defaults))
        ]
    )


def test_only_main_prints() -> None:
    offences = []
    for file, tree in modules().items():
        allowed = {
            id(node)
            for main in ast.walk(tree)
            if isinstance(main, Function) and main.name == "main"
            for node in ast.walk(main)
        }
        for node in ast.walk(tree):
            is_print = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            if is_print and file.parts[0] in PACKAGES and id(node) not in allowed:
                offences.append(f"{file}:{node.lineno}: print outside a verb's main; use the module's logger")
    report(offences)


def test_no_public_function_has_the_name_of_its_module() -> None:
    report(
        [
            f"{file}:{node.lineno}: {node.name} in {file.name}"
            for file, tree in modules().items()
            for node in tree.body
            if isinstance(node, Function) and node.name == file.stem
        ]
    )


@pytest.mark.parametrize("package", ONLY_IMPORTERS)
def test_only_the_importers_named_import(package: str) -> None:
    report(
        [
            f"{file}:{node.lineno}: imports {package}"
            for file, tree in modules().items()
            for node in ast.walk(tree)
            if package in imported(node) and not file.as_posix().startswith(ONLY_IMPORTERS[package])
        ]
    )


def test_a_missing_package_is_an_error() -> None:
    """`except ImportError` may name the extra to install; it may not go on without the package."""
    report(
        [
            f"{file}:{node.lineno}: except ImportError that does not raise"
            for file, tree in modules().items()
            for node in ast.walk(tree)
            if isinstance(node, ast.ExceptHandler) and node.type is not None
            if {"ImportError", "ModuleNotFoundError"} & {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)}
            if not any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
        ]
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


@pytest.mark.parametrize("package", ["xtrimo", "pretrain", "heads", "structure", "generate"])
def test_architecture_lists_every_module(package: str) -> None:
    _, _, section = (ROOT / "ARCHITECTURE.md").read_text().partition(f"## {package}/\n")
    listed = set(re.findall(r"^\| `(\w+)` \|", section.partition("\n## ")[0], flags=re.MULTILINE))
    assert listed == {file.stem for file in (ROOT / package).glob("[!_]*.py")}


@pytest.mark.parametrize("what", UGLY)
def test_no_ugly_text(what: str) -> None:
    patterns = ("*.py", "*.md", "*.sbatch", "*.sh")
    texts = [file for folder in (*CODE, "docs", "slurm") for p in patterns for file in (ROOT / folder).rglob(p)]
    texts += [
        *ROOT.glob("*.md"),
        *(ROOT / name for name in ("pyproject.toml", "constraints.txt", "Makefile", ".ci/run")),
    ]
    report(
        [
            f"{file.relative_to(ROOT)}:{number}: {what}: {line.strip()}"
            for file in texts
            for number, line in enumerate(file.read_text().splitlines(), start=1)
            if re.search(UGLY[what], line)
        ]
    )
