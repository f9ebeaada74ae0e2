"""Reports of made-up runs: what stands in the table, and pictures that show what they are of."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heads import pictures
from heads.answers import UNSCORED, Predictions
from heads.calibration import calibration_bins
from heads.leaks import find_leaks
from heads.metrics import METRICS, evaluate
from heads.report import main, read_results, write_report
from tests.heads.generated import made_dataset
from tests.heads.test_metrics import of_classes, of_contacts, of_residues, of_values
from xtrimo.errors import DataError
from xtrimo.intervals import Estimate


def run_folder(place: Path, predictions: Predictions, task: str, metric: str, **changes: Any) -> Path:
    """A folder as an evaluation leaves it."""
    place.mkdir(parents=True)
    predictions.save(place / "predictions.npz")
    estimate = evaluate(metric, predictions)
    floor = {"value": estimate.value - 0.1, "low": estimate.low - 0.1, "high": estimate.high - 0.1}
    content = dict(
        task=task, metric=metric, value=estimate.value, low=estimate.low, high=estimate.high,
        num_test=len(predictions.length), model="models/glm-8m", model_hash="a", method="probe", seed=0, data_hash="b",
        left_out={"no label": 3}, leaks={"train in test": {"exact": 2}}, baselines={"composition": floor},
        predictions="predictions.npz",
    )  # fmt: skip
    (place / "results.json").write_text(json.dumps(content | changes))
    return place


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run_folder(folder / "a", of_values(noise=0.5), "stability", "spearman")
    run_folder(folder / "b", of_values(noise=3.0), "stability", "spearman", model="models/glm-8m-random")
    run_folder(folder / "c", of_contacts(), "contact_map", "precision@L/5")
    run_folder(folder / "d", of_residues(), "secondary_structure", "accuracy", classes=["H", "E", "C"])
    run_folder(folder / "deep" / "e", of_classes(num_classes=2), "solubility", "accuracy", baselines={"nearest": 0.5})
    run_folder(folder / "f", of_values(), "my_values", "rmse")
    return folder


def test_the_report(runs: Path, tmp_path: Path) -> None:
    results = read_results(runs)
    assert [r.task for r in results] == [  # as the table of tasks has them, a task of one's own last
        "contact_map", "secondary_structure", "solubility", "stability", "stability", "my_values",
    ]  # fmt: skip
    files = write_report(results, tmp_path / "out")
    assert sorted(path.name for path in files) == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert {path.name for path in files[2:]} == {
        "bars.png", "bars1.png", "contact_map-glm-8m-probe-contacts.png", "my_values-glm-8m-probe-scatter.png",
        *(f"{task}-glm-8m-probe-{what}.png" for task in ("secondary_structure", "solubility")
          for what in ("confusion", "calibration")),
        "stability-glm-8m-probe-scatter.png", "stability-glm-8m-random-probe-scatter.png",
    }  # fmt: skip
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files[2:])


def test_the_table(runs: Path, tmp_path: Path) -> None:
    text = write_report(read_results(runs), tmp_path)[0].read_text()
    assert "| task | metric | test rows | glm-8m probe | glm-8m-random probe | floors |" in text
    good, bad = (evaluate("spearman", of_values(noise=noise)) for noise in (0.5, 3.0))
    # two runs of one task make one row; the floor is of the last of them
    row = next(line for line in text.splitlines() if line.startswith("| stability"))
    assert row.startswith(f"| stability | Spearman | 80 | **{good}** | {bad} | composition {bad.value - 0.1:.3f}")
    assert next(line for line in text.splitlines() if line.startswith("| contact_map")).count("\\|i-j\\|") == 1
    rmse = next(line for line in text.splitlines() if line.startswith("| my_values"))
    assert "composition **" in rmse and "| **" not in rmse  # 0.1 less is better there
    solubility = next(line for line in text.splitlines() if line.startswith("| solubility"))
    assert solubility.endswith("| nearest 0.500 |")  # a figure without an interval
    assert "Left out: no label: 3. Leaks: train in test: exact: 2." in text
    for image in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (tmp_path / image).is_file()


def test_the_page_holds_all_it_shows(runs: Path, tmp_path: Path) -> None:
    _, page, *images = write_report(read_results(runs), tmp_path)
    text = page.read_text()
    assert text.count('src="data:image/png;base64,') == len(images)
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert "<b>" in text and "**" not in text and "|i-j| &gt;= 24" in text


def test_leaks_are_told_in_words(tmp_path: Path) -> None:
    rows = made_dataset("sequence", "regression")
    leaks = find_leaks(replace(rows, test=(*rows.test, rows.train[0])), method="5-mer sketch")
    place = tmp_path / "a"
    run_folder(place, of_values(), "stability", "spearman", leaks=leaks.to_dict())
    text = write_report(read_results(tmp_path), tmp_path / "out")[0].read_text()
    assert f"Leaks: {leaks.overlaps[0]}; {leaks.overlaps[1]}, by 5-mer sketch." in text
    assert "1 copies and" in text


def test_seeds_are_told_apart(tmp_path: Path) -> None:
    for seed in (1, 2):
        run_folder(tmp_path / str(seed), of_values(seed=seed), "stability", "spearman", seed=seed)
    assert [result.model for result in read_results(tmp_path)] == ["glm-8m probe, seed 1", "glm-8m probe, seed 2"]


def test_a_run_without_predictions_has_no_pictures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = run_folder(tmp_path / "a", of_values(), "stability", "spearman")
    (place / "predictions.npz").unlink()
    files = write_report(read_results(tmp_path), tmp_path / "out")
    assert [path.name for path in files] == ["report.md", "report.html", "bars.png"]
    assert "no predictions.npz" in caplog.text


def test_a_figure_that_is_not_defined_is_said_to_be_none(tmp_path: Path) -> None:
    run_folder(tmp_path / "a", of_values(), "stability", "spearman", value=None, low=None, high=None)
    text = write_report(read_results(tmp_path), tmp_path / "out")[0].read_text()
    assert "| not defined |" in text


def test_what_is_no_result_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no results.json; give the folder"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text('{"task": "stability"}')
    with pytest.raises(DataError, match=r"results.json is no result of an evaluation \(it lacks high"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(DataError, match="is no result of an evaluation"):
        read_results(tmp_path)


def test_the_verb(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(runs), "--out", str(tmp_path / "out")])
    assert capsys.readouterr().out.startswith(f"6 results; {tmp_path / 'out' / 'report.md'}, ")


def test_bars_are_as_long_as_the_figures() -> None:
    figures = {
        "one": {"model": Estimate(value=0.5, low=0.4, high=0.7), "floor": Estimate(value=0.3, low=0.2, high=0.35)},
        "two": {"model": Estimate(value=-0.1, low=-0.2, high=0.1)},
    }
    (axes,) = pictures.bars(figures, ["floor"], "figure").axes
    assert [bar.get_width() for bar in axes.patches] == [0.5, 0.3, -0.1]
    lines = [line.get_segments()[0][:, 0].tolist() for line in axes.collections]
    assert lines == [[0.4, 0.7], [0.2, 0.35], [-0.2, 0.1]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one", "two"]
    tops = [bar.get_y() for bar in axes.patches]
    assert tops == sorted(tops) and axes.yaxis.get_inverted()


def test_a_confusion_matrix_is_in_percent_of_the_true_class() -> None:
    truth = np.array([0, 0, 0, 0, 1, UNSCORED])
    prediction = np.eye(2)[[0, 0, 0, 1, 0, 1]]
    (axes, _) = pictures.confusion(
        Predictions(truth=truth, prediction=prediction, length=np.array([6])), ("H", "E")
    ).axes
    assert axes.images[0].get_array().tolist() == [[75, 25], [100, 0]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["H (4)", "E (1)"]


def test_of_many_classes_the_rare_are_put_together() -> None:
    truth = np.concatenate((np.repeat(np.arange(20), 3), np.arange(20, 30)))
    predictions = Predictions(truth=truth, prediction=np.eye(30)[truth], length=np.ones(len(truth), dtype=int))
    (axes, _) = pictures.confusion(predictions, [f"c{number}" for number in range(30)]).axes
    assert axes.get_yticklabels()[-1].get_text() == "others (10)"
    np.testing.assert_array_equal(axes.images[0].get_array(), 100 * np.eye(21))


def test_calibration_of_the_calibrated() -> None:
    rng = np.random.default_rng(0)
    belief = rng.random(50_000)
    expected, found, share = calibration_bins(belief, rng.random(50_000) < belief)
    np.testing.assert_allclose(expected, np.linspace(0.05, 0.95, 10), atol=0.01)
    np.testing.assert_allclose(found, expected, atol=0.03)
    np.testing.assert_allclose(share, 0.1)


def test_the_contacts_shown_are_those_that_count() -> None:
    predictions = of_contacts(skill=3.0)
    _, right, *_ = pictures.contact_maps(predictions).axes
    hit, wrong = (len(points.get_offsets()) for points in right.collections)
    title = right.figure.get_suptitle()
    number = int(re.search(r"protein (\d+)", title).group(1))
    one = predictions.take(np.array([number - 1]))
    assert hit / (hit + wrong) == pytest.approx(evaluate("precision@L/5", one).value)
    assert hit + wrong == one.length[0] // 5


def test_every_metric_has_a_title_that_fits_a_table() -> None:
    assert all(len(metric.title) < 40 for metric in METRICS.values())
