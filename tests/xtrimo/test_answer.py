"""Answers as text and as JSON; --quiet and --json of every verb in the table."""

import ast
import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xtrimo import __main__ as cli
from xtrimo import command, log
from xtrimo.answer import as_text, give, giving_rows, keeping
from xtrimo.errors import ConfigError

ROOT = Path(__file__).parents[2]
STREAMING = {"generate", "infill", "redesign", "completion", "plan", "doctor"}
"""Verbs that print by themselves: proteins as they come, a script, and a JSON of their own."""
GENERAL = [verb for verb in cli.VERBS if verb not in cli.OWN_JSON]


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """Of any sort."""

    path: Path
    value: Any


def let_verbs(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    monkeypatch.setattr(cli, "find", lambda name: run)


def test_text_or_facts(capsys: pytest.CaptureFixture[str]) -> None:
    facts = {"a": Facts(path=Path("x/y"), value=(np.float32(0.5), math.nan, None, True)), "b": {"c": np.int64(3)}}
    give(facts, "as text")
    assert capsys.readouterr().out == "as text\n"
    with keeping() as answer:
        give(facts, "as text")
        print("aside")
        with as_text():
            give(1, "of another run")
    assert capsys.readouterr().out == ""
    expected = {"a": {"path": "x/y", "value": [0.5, None, None, True]}, "b": {"c": 3}}
    assert json.loads(answer.in_json(verb="v")) == {"verb": "v", "results": expected}


def test_rows_come_at_once_as_text_and_together_as_facts(capsys: pytest.CaptureFixture[str]) -> None:
    with giving_rows("rows", "head") as add:
        add({"n": 1}, "one")
        assert capsys.readouterr().out == "head\none\n"
    with keeping() as answer, giving_rows("rows", "head") as add:
        add({"n": 1}, "one")
    assert capsys.readouterr().out == "" and answer.facts == {"rows": [{"n": 1}]}


def test_half_the_rows_are_no_answer() -> None:
    with keeping() as answer, pytest.raises(ZeroDivisionError), giving_rows("rows", "head") as add:
        add({"n": 1}, "one")
        1 / 0  # noqa: B018
    assert answer.facts is None


@pytest.mark.parametrize("verb", GENERAL)
def test_every_verb_answers_in_one_shape(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers: dict[Any, Any] = {"facts": [1], "text": ">r1\nMK\n", "none": None}
    for sort, results in answers.items():
        said = {"facts": lambda: give([1], "one"), "text": lambda: print(">r1\nMK"), "none": lambda: None}[sort]
        let_verbs(monkeypatch, lambda args, said=said: said())
        assert cli.main(["--json", verb]) == cli.main([verb, "--json"]) == 0
        first, second = (json.loads(text + "}") for text in capsys.readouterr().out.split("\n}\n")[:2])
        assert first.keys() == second.keys() == {"verb", "seconds", "outputs", "record", "results"}
        assert first["verb"] == verb and first["results"] == results and first["record"] is None


@pytest.mark.parametrize("verb", cli.VERBS)
def test_a_verb_gives_its_answer_and_prints_none(verb: str) -> None:
    path = ROOT / (cli.VERBS[verb].target.partition(":")[0].replace(".", "/") + ".py")
    (main,) = (n for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef) and n.name == "main")
    called = {node.func.id for node in ast.walk(main) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert ("print" in called) <= (verb in STREAMING), "give() the facts and the text instead"


@pytest.mark.parametrize("verb", cli.OWN_JSON)
def test_a_json_of_its_own(verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    let_verbs(monkeypatch, lambda args: print(args))
    assert cli.main(["--json", verb, "x"]) == 0 and capsys.readouterr().out == "['x', '--json']\n"


def test_a_failure_after_the_answer_keeps_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: Any) -> None:
        if args:
            give({"done": 1}, "one")
        print("half a")
        raise ConfigError("one of two failed")

    let_verbs(monkeypatch, run)
    assert cli.main(["bench", "all", "--json"]) == 2
    said = capsys.readouterr()
    assert json.loads(said.out)["results"] == {"done": 1} and said.err == "xtrimo: one of two failed\n"
    assert cli.main(["bench", "--json"]) == 2 and capsys.readouterr().out == ""


def test_one_rank_answers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    let_verbs(monkeypatch, lambda args: None)
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["finetune", "--json"]) == 0 and capsys.readouterr().out == ""


def test_of_a_real_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "glm-1m", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"]["kind"] == "preset"


def test_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    levels: list[Any] = []

    def run(args: Any) -> None:
        levels.append((log.is_quiet(), logging.getLogger("generate.output").getEffectiveLevel()))
        levels.append(command.progress_bar().disable)

    let_verbs(monkeypatch, run)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes any stream for a terminal
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "0")
    assert cli.main(["info", "--quiet"]) == cli.main(["info"]) == 0
    assert levels == [(True, logging.WARNING), True, (False, logging.INFO), False]


def test_help_tells_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["--help"])
    assert "--quiet" in (said := capsys.readouterr().out) and "--json" in said
    with pytest.raises(SystemExit):
        cli.main(["info", "--help", "--json"])
    assert "--quiet" in (said := capsys.readouterr().out) and "--json" in said and "--verify" in said
