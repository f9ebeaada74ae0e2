"""The table of tasks: eighteen rows that say what the published ones do, and tasks of one's own."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest

from heads.tasks import EXTRAS, TASKS, Columns, custom_task, from_dict, task, to_dict
from xtrimo.errors import ConfigError

EIGHTEEN = [
    "contact_map", "fold_prediction", "secondary_structure",
    "antibiotic_resistance", "fluorescence", "fitness_gb1", "localization",
    "kcat", "metal_ion_binding", "peptide_hla", "tcr_pmhc",
    "solubility", "stability", "temperature_stability", "optimal_temperature", "optimal_ph", "cloning_clf",
    "material_production",
]  # fmt: skip


def test_the_eighteen() -> None:
    assert list(TASKS) == EIGHTEEN
    by_category = Counter(row.category for row in TASKS.values())
    assert by_category == {"structure": 3, "function": 4, "interaction": 4, "development": 7}
    assert [name for name, row in TASKS.items() if row.proxy] == ["cloning_clf", "material_production"]
    assert {name for name, row in TASKS.items() if row.partial} == {
        "fold_prediction", "localization", "metal_ion_binding",
    }  # fmt: skip
    assert all(row.summary and row.hub for row in TASKS.values())
    assert len({row.hub for row in TASKS.values()}) == 18


def test_every_metric_is_known() -> None:
    metrics = pytest.importorskip("heads.metrics")
    assert {row.metric for row in (*TASKS.values(), *EXTRAS.values())} <= set(metrics.METRICS)


def test_an_unknown_task_lists_the_known() -> None:
    with pytest.raises(
        ConfigError, match=r"no task 'folds'; known: contact_map, fold_prediction.*--level and --target"
    ):
        task("folds")


@pytest.mark.parametrize("name", [*TASKS, *EXTRAS])
def test_facts_turn_back_into_the_task(name: str) -> None:
    assert from_dict(to_dict(task(name))) == task(name)


def test_a_task_of_ones_own() -> None:
    mine = custom_task("toxicity", level="sequence", target="regression", columns=Columns(label="LD50"))
    assert (mine.metric, mine.columns.label, mine.classes) == ("spearman", "LD50", ())
    assert custom_task("sites", level="residue", target="classes").metric == "accuracy"
    assert custom_task("maps", level="pair", target="classes").metric == "precision@L/5"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(level="residue", target="regression"), "no head"),
        (dict(level="two_sequences"), "needs the column of the second protein"),
        (dict(level="molecule"), "needs the column of its name or SMILES"),
        (dict(columns=Columns(second="other")), "has no second input, got 'other'"),
        (dict(level="pair", max_length=24), "max_length 24 is below the 25 residues"),
    ],
)
def test_impossible_tasks(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(custom_task("mine", level="sequence", target="classes"), **changes)


@pytest.mark.parametrize(
    ("level", "target", "message"),
    [("chain", "classes", "no level 'chain'; known: sequence, resi"), ("pair", "rank", "no target 'rank'; known: cla")],
)
def test_unknown_words(level: str, target: str, message: str) -> None:
    """In a process of its own, where no check of types is quicker."""
    code = f"from heads.tasks import custom_task; custom_task('mine', level={level!r}, target={target!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"ConfigError: task mine: {message}" in done.stderr


def test_damaged_facts() -> None:
    facts = to_dict(TASKS["kcat"])
    with pytest.raises(ConfigError, match="unexpected keyword"):
        from_dict(facts | {"colour": "red"})
    with pytest.raises(ConfigError, match="columns"):
        from_dict({name: value for name, value in facts.items() if name != "columns"})
