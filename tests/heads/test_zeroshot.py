"""The verb `zeroshot`, through its main."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from heads.proteingym import read_assay
from heads.zeroshot import ZeroshotOptions, drawn, main
from xtrimo.checkpoint import load, save
from xtrimo.embedding_file import fingerprint
from xtrimo.errors import ConfigError, DataError
from xtrimo.model import GLM
from xtrimo.testing import toy_config
from xtrimo.tokens import AMINO_ACIDS

WILD = "MKVLAGSERTIDPKQNFYMHWC"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save(GLM(toy_config(licence="Apache-2.0")), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def assays(tmp_path: Path) -> Path:
    """Two assays of all single mutants of some positions, and their reference table."""
    folder = tmp_path / "assays"
    folder.mkdir()
    rng = np.random.default_rng(0)
    reference = ["DMS_id,DMS_filename,UniProt_ID,target_seq,coarse_selection_type"]
    for name, kind, places in (("A", "Stability", (1, 2)), ("B", "Binding", (5, 9))):
        rows = ["mutant,DMS_score,DMS_score_bin"]
        for place in places:
            for letter in AMINO_ACIDS.replace(WILD[place], ""):
                rows.append(f"{WILD[place]}{place + 1}{letter},{rng.normal():.4f},{rng.integers(2)}")
        (folder / f"{name}.csv").write_text("\n".join(rows) + "\n")
        reference.append(f"{name},{name}.csv,{name}_X,{WILD},{kind}")
    (tmp_path / "reference.csv").write_text("\n".join(reference) + "\n")
    return folder


def run(tmp_path: Path, model: Path, *args: str) -> None:
    main([str(tmp_path / "assays"), "--model", str(model), "--reference", str(tmp_path / "reference.csv"),
          "--out", str(tmp_path / "out"), *args])  # fmt: skip


def test_scores_figures_and_averages(
    tmp_path: Path, model: Path, assays: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, model)
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert lines[0][:3] == ["assay", "num_variants", "spearman"]
    assert [line[:2] for line in lines[1:]] == [["A", "38"], ["B", "38"]]
    facts = json.loads((tmp_path / "out" / "summary.json").read_text())
    values = [facts["assays"][name]["spearman"] for name in "AB"]
    assert facts["average"]["spearman"]["value"] == pytest.approx(np.mean(values))
    assert f"{values[0]:.4f}" == lines[1][2]
    with (tmp_path / "out" / "A.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["mutant", "mutated_sequence", "DMS_score", "DMS_score_bin", "model"]
    assert len(rows) == 38 and len({row["model"] for row in rows}) > 20


def test_a_run_goes_on(tmp_path: Path, model: Path, assays: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, model)
    first = (tmp_path / "out" / "summary.json").read_text()
    before = (tmp_path / "out" / "A.csv").stat().st_mtime_ns
    (tmp_path / "out" / "B.csv").unlink()
    run(tmp_path, model)
    assert (tmp_path / "out" / "A.csv").stat().st_mtime_ns == before
    again = json.loads((tmp_path / "out" / "summary.json").read_text())
    for name, own in json.loads(first)["assays"].items():
        assert again["assays"][name] == pytest.approx(own)
    with pytest.raises(DataError, match="was scored with other method; choose another --out"):
        run(tmp_path, model, "--method", "masked-marginals")


def test_another_model_of_the_same_name(tmp_path: Path, model: Path, assays: Path) -> None:
    run(tmp_path, model)
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["model"] == str(model) and settings["model_hash"] == fingerprint(load(model))
    (tmp_path / "elsewhere").mkdir()
    model.rename(tmp_path / "elsewhere" / "model")
    run(tmp_path, tmp_path / "elsewhere" / "model")  # the same model at another place goes on
    torch.manual_seed(1)
    save(GLM(toy_config(licence="Apache-2.0"), seed=1), model)
    with pytest.raises(DataError, match="was scored with other model_hash; choose another --out"):
        run(tmp_path, model)


def test_other_variants_in_a_file_of_scores(tmp_path: Path, model: Path, assays: Path) -> None:
    run(tmp_path, model)
    lines = (assays / "A.csv").read_text().splitlines()
    (assays / "A.csv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(DataError, match="A.csv holds scores of other variants"):
        run(tmp_path, model)


def test_a_sample(assays: Path, tmp_path: Path) -> None:
    reference = {"A": {"target_seq": WILD}}
    whole = read_assay(assays / "A.csv", reference)
    sample = drawn(whole, 10, 0)
    places = [whole.variants.index(variant) for variant in sample.variants]
    assert places == sorted(places) and len(places) == 10
    assert drawn(whole, 10, 1).variants != sample.variants and drawn(whole, 38, 0) == whole


def test_what_cannot_be(tmp_path: Path, model: Path, assays: Path) -> None:
    facts = dict(model=str(model), assays=(assays,), out=tmp_path / "out")
    with pytest.raises(ConfigError, match="int8 does not keep"):
        ZeroshotOptions(**facts, precision="int8")
    with pytest.raises(ConfigError, match="limit is 1"):
        ZeroshotOptions(**facts, limit=1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no assays in"):
        main([str(tmp_path / "empty"), "--model", str(model), "--out", str(tmp_path / "out")])
