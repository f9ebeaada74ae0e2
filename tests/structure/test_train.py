"""The verb `train-fold`: through main, from chains to a model that folds; killed, continued, and refused."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from structure import train
from structure.config import PRESETS
from structure.data import CropSampler, read_split
from structure.fold_directory import load_fold, read_facts
from structure.folding import fold
from structure.judging import judge_chain
from structure.model import FoldModel
from structure.train import letters, shorter, train_fold
from structure.train_command import TrainFoldOptions, main
from tests.structure.models import FILES, SMALL, chain
from xtrimo import mmseqs, states_file
from xtrimo.checkpoint import save
from xtrimo.errors import CheckpointError, ConfigError, DataError
from xtrimo.model import GLM
from xtrimo.testing import run_distributed, toy_config
from xtrimo.training_config import TrainingConfig
from xtrimo.training_log import read_metrics

ROOT = Path(__file__).resolve().parents[2]
FEW = ["--steps", "4", "--batch-size", "2", "--crop-length", "20", "--validate-every", "2"]
SPLIT = ["train", "train", "train", "valid", "test"]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A preset of milliseconds, and clusters without mmseqs2, whose start takes seconds."""
    monkeypatch.setitem(PRESETS, "fold-tiny", SMALL)
    monkeypatch.setattr(mmseqs, "is_installed", lambda: False)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Two proteins with all their atoms."""
    folder = tmp_path / "files"
    folder.mkdir()
    for name in ("1A8O.cif", "4CUP.cif"):
        (folder / name).symlink_to(FILES / name)
    return folder


def make_archive(path: Path, split: list[str] = SPLIT, shift_ang: float = 0.0) -> Path:
    """Backbones of 30 to 34 residues, cut from a real one."""
    whole = chain("4CUP.cif")
    cut = [slice(5 + 18 * i, 35 + 19 * i) for i in range(len(split))]
    sequence = letters(whole)
    xyz = np.where(whole.seen[:, :4, None] > 0, whole.atoms[:, :4], np.nan) + shift_ang
    parts = [sequence[part] for part in cut]
    np.savez(
        path, chain_id=[f"c{i}" for i in range(len(cut))], seq=parts, length=[len(part) for part in parts],
        xyz=np.concatenate([xyz[part] for part in cut]), split=split,
    )  # fmt: skip
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return make_archive(tmp_path / "chains.npz")


def make_lm(folder: Path) -> Path:
    torch.manual_seed(3)
    return save(GLM(toy_config(num_layers=2, hidden_size=16, ffn_size=32)), folder)


@pytest.fixture
def lm(tmp_path: Path) -> Path:
    return make_lm(tmp_path / "lm")


def run(data: Path, out: Path, *flags: str, model: Path | str = "none") -> dict[str, Any]:
    main(["--data", str(data), "--out", str(out), "--model", str(model), *FEW, *flags])
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    return results


def options(data: Path, out: Path, **changes: Any) -> TrainFoldOptions:
    few: dict[str, Any] = dict(steps=4, batch_size=2, crop_length=20, validate_every=2)
    return TrainFoldOptions(data=data, out=out, **({"model": "none"} | few | changes))


def metrics(out: Path, split: str) -> list[dict[str, Any]]:
    return [line for line in read_metrics(out / "training/metrics.jsonl") if line["split"] == split]


def test_files_to_a_model_with_side_chains(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And the model in the folder is the one that was judged."""
    results = run(files, tmp_path / "out", "--learning-rate", "1e-2", "--average", "0.5")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("1 chains that chose the best weights") and results["judged_on"] == "valid"
    assert printed[-1] == str(tmp_path / "out/model")
    assert results["num_train"] == 1 and results["best_step"] in (2, 4)
    assert results["valid_lddt"] == max(line["figure"] for line in metrics(tmp_path / "out", "valid"))

    facts, pipeline = read_facts(tmp_path / "out/model"), load_fold(tmp_path / "out/model")
    calibration = results["calibration"]
    assert calibration["temperature"] != 1 and calibration["num_residues"] > 10
    assert facts.config == replace(SMALL, side_chains=True, lddt_temperature=calibration["temperature"])
    assert not facts.lm and not facts.lm_layers
    said = {"data": "files", "steps": results["best_step"], "crop_length": 20, "calibration": calibration["said"]}
    assert facts.training == said
    (held,) = read_split(files).valid
    again = judge_chain(pipeline.model, held, lambda one: replace(pipeline.reader.read(letters(one)), index=one.index))
    assert results["test"]["chains"] == [{"lddt": again.lddt, "tm": again.tm, "precision": again.precision}]
    assert results["test"]["trained"]["lddt"]["value"] == pytest.approx(again.lddt)
    assert results["valid_lddt"] == pytest.approx(again.true_lddt.mean() / 100, abs=1e-5)
    assert results["test"]["untrained"]["lddt"]["value"] != results["test"]["trained"]["lddt"]["value"]
    (prediction,) = fold(tmp_path / "out/model", ["WFKM"])
    assert prediction.exists.sum(1).tolist() == [14, 11, 9, 8]


def test_an_archive_and_a_language_model(archive: Path, lm: Path, tmp_path: Path) -> None:
    """Backbones make a model of backbones; the split of the archive is kept; states and maps are read."""
    results = run(archive, tmp_path / "out", "--maps", "--layers", "0", "-1", model=lm)
    assert results["num_train"] == 3 and results["test"]["num_chains"] == 1 and results["judged_on"] == "test"
    facts = read_facts(tmp_path / "out/model")
    temperature = results["calibration"]["temperature"]
    assert facts.config == replace(SMALL, lm_width=16, num_lm_layers=2, num_lm_maps=4, lddt_temperature=temperature)
    assert facts.lm_layers == (0, 2)  # the embedding, which has no maps, and the last
    assert facts.lm == str(lm) and len(facts.lm_hash) > 10
    assert sorted(path.suffix for path in (tmp_path / "out/states").glob("[!.]*")) == [".h5", ".h5"]
    pipeline = load_fold(tmp_path / "out/model")
    (held,) = read_split(archive).test
    again = judge_chain(pipeline.model, held, lambda one: pipeline.reader.read(letters(one)))
    assert results["test"]["chains"][0]["lddt"] == pytest.approx(again.lddt, abs=0.02)  # the file has fp16
    (prediction,) = fold(tmp_path / "out/model", ["WFGM"])
    assert prediction.exists.sum(1).tolist() == [5, 5, 4, 5]


def test_runs_share_the_states(archive: Path, lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The language model is asked once, also for another folder, and never in between."""
    asked: list[object] = []
    compute = states_file.iter_embeddings

    def counted(*args: Any, **more: Any) -> Any:
        asked.append(args)
        return compute(*args, **more)

    monkeypatch.setattr(states_file, "iter_embeddings", counted)
    run(archive, tmp_path / "one", "--cache", str(tmp_path / "shared"), model=lm)
    assert asked and not (tmp_path / "one/states").exists()
    asked.clear()
    run(archive, tmp_path / "two", "--cache", str(tmp_path / "shared"), "--seed", "1", model=lm)
    assert not asked


def test_a_trained_model_is_better(archive: Path, tmp_path: Path) -> None:
    """On a chain that it has not met, though not by much yet: neighbours come to lie beside each other."""
    flags = [
        "--steps",
        "20",
        "--batch-size",
        "1",
        "--learning-rate",
        "1e-2",
        "--validate-every",
        "0",
        "--average",
        "0.5",
    ]
    test = run(archive, tmp_path / "out", *flags)["test"]
    assert test["trained"]["lddt"]["value"] > 2 * test["untrained"]["lddt"]["value"] > 0


def test_the_other_trunk(archive: Path, tmp_path: Path) -> None:
    run(archive, tmp_path / "out", "--steps", "1", "--trunk", "esmfold", "--crop-length", "12")
    facts = read_facts(tmp_path / "out/model")
    assert replace(facts.config, lddt_temperature=1.0) == replace(SMALL, trunk="esmfold", max_recycles=3)


KILLED = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
from structure import train, train_command
from structure.config import PRESETS
from structure.data import CropSampler
from tests.structure.models import SMALL
from xtrimo import mmseqs

PRESETS["fold-tiny"], mmseqs.is_installed = SMALL, lambda: False
batch, fit = CropSampler.batch, train.fit

def until(sampler, step, size):
    if step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return batch(sampler, step, size)

CropSampler.batch = until
train.fit = lambda a, b, c, config, *rest, **more: fit(a, b, c, replace(config, save_every=2), *rest, **more)
train_command.main(sys.argv[1:])
"""


def test_a_killed_run_goes_on_to_the_same_model(archive: Path, lm: Path, tmp_path: Path) -> None:
    """Killed between two checkpoints, with dropout, moments, averages and the best weights so far."""
    flags = ["--steps", "6", "--batch-size", "1", "--validate-every", "2", "--average", "0.9"]
    expected = run(archive, tmp_path / "whole", *flags, model=lm)
    arguments = ["--data", archive, "--out", tmp_path / "killed", "--model", lm, *FEW, *flags]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, arguments)], cwd=ROOT, capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    state = torch.load(tmp_path / "killed/training/training.pt", weights_only=True)
    assert state["progress"]["step"] == 2 and not (tmp_path / "killed/results.json").exists()
    assert run(archive, tmp_path / "killed", *flags, model=lm) == expected
    for name in ("model/model.safetensors", "model/config.json", "settings.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    lines = [[{**line, "seconds": 0} for line in metrics(tmp_path / name, "train")] for name in ("killed", "whole")]
    assert lines[0] == lines[1]


def test_a_finished_run_is_not_repeated(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From another place, with another cache: it is judged again, and no step is done."""
    first = run(archive, tmp_path / "out")
    monkeypatch.setattr(CropSampler, "batch", lambda *_: pytest.fail("a step"))
    moved = archive.rename(tmp_path / "moved.npz")
    assert run(moved, tmp_path / "out", "--cache", str(tmp_path / "elsewhere")) == first


def test_training_goes_on_from_a_trained_model(archive: Path, lm: Path, tmp_path: Path) -> None:
    """From its weights, not new ones; a rate too small to move them shows them, with the temperature found anew."""
    first = run(archive, tmp_path / "first", "--steps", "8", "--learning-rate", "1e-2", model=lm)
    begin = tmp_path / "first/model"
    found = read_facts(begin).config.lddt_temperature
    content = json.loads((begin / "config.json").read_text())
    content["config"]["lddt_temperature"] = 3.0
    (begin / "config.json").write_text(json.dumps(content))
    still = ["--steps", "2", "--learning-rate", "1e-12", "--average", "0", "--start-from", str(begin)]
    then = run(archive, tmp_path / "then", *still, model=lm)
    weights = [load_file(folder / "model.safetensors") for folder in (begin, tmp_path / "then/model")]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=0, atol=1e-8)
    assert then["test"]["trained"]["lddt"] == pytest.approx(first["test"]["trained"]["lddt"], abs=1e-4)
    assert then["test"]["untrained"] == first["test"]["untrained"]
    facts = read_facts(tmp_path / "then/model")
    assert facts.training["started_from"] == "first" and facts.config.lddt_temperature == pytest.approx(found, rel=1e-4)

    with pytest.raises(ConfigError, match="start_weights .* to "):  # in the folder of a run that began elsewhere
        run(archive, tmp_path / "then", *still[:-1], str(tmp_path / "then/model"), model=lm)
    for flags, words in (
        (["--model", "none"], "is not the model that these options describe .*lm_hash"),
        (["--layers", "0"], "lm_layers"),
        (["--trunk", "esmfold"], "trunk trimul to esmfold"),
    ):
        with pytest.raises(ConfigError, match=words):
            run(archive, tmp_path / "other", *still, *flags, model=lm)
    with pytest.raises(CheckpointError, match="is no folding model"):
        run(archive, tmp_path / "other", *still[:-1], str(tmp_path), model=lm)
    assert not (tmp_path / "other").exists()


def test_another_run_in_the_same_folder_is_refused(archive: Path, tmp_path: Path) -> None:
    run(archive, tmp_path / "out")
    for changes, words in (
        (dict(learning_rate=2e-3), "learning_rate 0.001 to 0.002"),
        (dict(clamp_from_ratio=0.2), "clamp_from_ratio 0.5 to 0.2"),
        (dict(trunk="esmfold"), "trunk None to esmfold"),
        (dict(data=make_archive(tmp_path / "other.npz", shift_ang=0.5)), "chains "),
        (dict(data=make_archive(tmp_path / "split.npz", ["train", "train", "valid", "train", "test"])), "chains "),
    ):
        with pytest.raises(ConfigError, match=f"of a run with other settings .*{words}"):
            train_fold(replace(options(archive, tmp_path / "out"), **changes))


def test_a_run_that_did_not_write_down_its_chains_goes_on(archive: Path, tmp_path: Path) -> None:
    first = run(archive, tmp_path / "out")
    path = tmp_path / "out/settings.json"
    settings = json.loads(path.read_text())
    del settings["chains"]
    path.write_text(json.dumps(settings))
    assert train_fold(options(archive, tmp_path / "out")) == first


def test_side_chains_as_asked(files: Path, archive: Path, tmp_path: Path) -> None:
    run(files, tmp_path / "out", "--side-chains", "False", "--steps", "1")
    assert not read_facts(tmp_path / "out/model").config.side_chains
    with pytest.raises(DataError, match="none of the 3 chains to train on has an atom beyond C-beta"):
        train_fold(options(archive, tmp_path / "other", side_chains=True))
    assert not (tmp_path / "other").exists()


def test_data_that_cannot_be_trained_on(files: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="holds no structures"):
        train_fold(options(empty, tmp_path / "out"))
    (files / "4CUP.cif").unlink()
    (files / "1A8O.pdb").symlink_to(FILES / "1A8O.pdb")
    with pytest.raises(DataError, match="no chain to validate on; expected at least two clusters"):
        train_fold(options(files, tmp_path / "out"))
    with pytest.raises(DataError, match="all of its 2 usable chains are held out"):
        train_fold(options(make_archive(tmp_path / "held.npz", ["valid", "test"]), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_chains_longer_than_the_language_model_reads_are_left_out(archive: Path) -> None:
    split = read_split(archive)
    lengths = [len(one) for part in (split.train, split.valid, split.test) for one in part]
    assert lengths == [30, 31, 32, 33, 34]
    torch.manual_seed(3)
    lm = GLM(toy_config(num_layers=1, max_length=34))  # of which one is a word that ends the protein
    room = 34 - sum(lm.words_around)
    kept = shorter(split, lm)
    found = [len(one) for part in (kept.train, kept.valid, kept.test) for one in part]
    assert found == [length for length in lengths if length <= room] != lengths
    (reason,) = kept.left_out
    assert f"longer than the {room} residues" in reason and kept.left_out[reason] == 5 - len(found)
    assert shorter(split, None) is split


def test_no_more_chains_are_judged_than_asked(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "chains.npz", ["train", "valid", "test", "test", "test"])
    results = run(archive, tmp_path / "out", "--test-chains", "2", "--steps", "1")
    assert results["test"]["num_chains"] == 2 and results["judged_on"] == "test"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(preset="fold-huge"), "no preset 'fold-huge'; known: fold-tiny, fold-8m, fold-150m"),
        (dict(clamp_from_ratio=1.1), "clamp_from_ratio 1.1"), (dict(violations_from_ratio=-0.1), "in 0..1"),
        (dict(batch_size=0), "batch_size 0"), (dict(crop_length=0), "crop_length 0"), (dict(seed=-1), "seed -1"),
        (dict(valid_chains=0), "valid_chains 0"), (dict(test_chains=0), "test_chains 0"),
        (dict(steps=0), "steps is 0"), (dict(average=1.0), "average is 1.0"),
        (dict(maps=True), "model is none"), (dict(layers=(1,)), "model is none"),
    ],
)  # fmt: skip
def test_impossible_options(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        options(Path("data"), Path("out"), **changes)


def test_shapes() -> None:
    plain = options(Path("data"), Path("out"))
    assert plain.shape() == replace(plain, trunk="trimul").shape() == SMALL
    assert replace(plain, trunk="esmfold").shape() == replace(SMALL, trunk="esmfold", max_recycles=3)
    large = replace(plain, preset="fold-150m")
    assert large.shape() == PRESETS["fold-150m"]
    assert replace(large, trunk="trimul").shape() == replace(PRESETS["fold-150m"], trunk="trimul", max_recycles=0)


def test_clamps_and_violations_begin_when_they_should(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, Any] = {}

    def caught(model: FoldModel, loss: Any, batches: Any, config: TrainingConfig, folder: Path, **_: Any) -> None:
        found.update(batches=[batches(step) for step in range(config.steps)], config=config, folder=folder)
        raise InterruptedError

    monkeypatch.setattr(train, "fit", caught)
    with pytest.raises(InterruptedError):
        train_fold(options(archive, tmp_path / "out", steps=40, batch_size=3, clamp_from_ratio=0.25, accumulate=3))
    clamped = [[one.clamp for one, _ in items] for items in found["batches"]]
    assert not any(map(any, clamped[:10])) and np.mean(clamped[10:]) > 0.7
    assert [{costs for _, costs in items} for items in found["batches"]] == [{False}] * 30 + [{True}] * 10
    assert all(len(items) == 3 and all(len(one.example) == 20 for one, _ in items) for items in found["batches"])
    config = found["config"]
    assert (config.steps, config.learning_rate, config.average, config.accumulate) == (40, 1e-3, 0.999, 3)


def ranked(rank: int, data: Path, out: Path) -> dict[str, Any]:
    return train_fold(options(data, out, steps=2, average=0.5))


def test_ranks_write_once(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "fold-tiny", replace(SMALL, structure_dropout=0.0))
    first, second = run_distributed(ranked, 2, archive, tmp_path / "both")
    alone = ranked(0, archive, tmp_path / "alone")
    assert not second and first == json.loads((tmp_path / "both/results.json").read_text())
    losses = [[line["loss"] for line in metrics(tmp_path / name, "train")] for name in ("both", "alone")]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
    figures = [result["test"]["trained"]["tm"]["value"] for result in (first, alone)]
    assert figures[0] == pytest.approx(figures[1], abs=0.02)
