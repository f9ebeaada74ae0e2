"""The pages of `fold` and `compare`: what they hold, and what a browser makes of them."""

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from structure import compare, viewer, writers
from structure.compare_page import write_compare_page
from structure.fold_page import COLUMNS, write_fold_page
from structure.metrics import best_core, best_scores
from structure.prediction import Prediction
from structure.viewer import Item, Page, Structure, to_bytes, write_page
from tests.structure.browser import CHROMIUM, opened
from tests.structure.models import FILES
from tests.structure.visits import VISIT, VISIT_COMPARE, VISIT_FOLD
from xtrimo.chains import Chain, c_betas, read_structure
from xtrimo.errors import DataError

in_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
NASTY = 'n<b>&"</script>{{script}}'
ASSETS = Path(viewer.__file__).parent / "assets"
PUBLISHED = "f7cc78921ae72e7623e89cdd111434f58c2efddd2ffda1cd212644b406fb8016"
"""SHA-256 of build/3Dmol-min.js of the package 3dmol 2.5.5 on npm."""


@pytest.fixture(scope="module")
def real() -> Chain:
    return next(read_structure(FILES / "1A8O.cif"))


def predicted(chain: Chain, name: str, plddt: Sequence[float], copies: int = 1) -> Prediction:
    """A real chain, as if it had been predicted with this confidence; its copies lie 30 A apart."""
    places = np.concatenate([chain.xyz + 30 * copy for copy in range(copies)]).astype(np.float32)
    length = len(places)
    exists = np.isfinite(places).all(-1)
    values = np.asarray(plddt, dtype=np.float32)
    return Prediction(
        name=name, sequence=":".join([chain.sequence] * copies), atoms=np.nan_to_num(places), exists=exists,
        plddt=values, atom_plddt=np.where(exists, values[:, None], 0).astype(np.float32),
        pae_ang=np.random.default_rng(0).uniform(0, 31.75, (length, length)).astype(np.float32), ptm=0.625,
        chain=np.repeat(np.arange(copies), len(chain.sequence)), num_recycles=0, model="toy <i>",
    )  # fmt: skip


def first(chain: Chain, num: int) -> Chain:
    return Chain(chain.name, chain.sequence[:num], chain.xyz[:num], chain.atoms)


def written(folder: Path, predictions: Sequence[Prediction]) -> Path:
    """What `fold --page --format both` leaves."""
    folder.mkdir(exist_ok=True)
    scores = []
    for number, each in enumerate(predictions):
        writers.write_mmcif(each, folder / f"p{number}.cif", pae=number == 0)
        writers.write_pdb(each, folder / f"p{number}.pdb")
        writers.write_pae(each, folder / f"p{number}.pae.json")
        scores.append(writers.Scores.of(each, file=f"p{number}"))
    writers.write_scores(scores, folder / "scores.json")
    return write_fold_page(folder)


@pytest.fixture(scope="module")
def predictions(real: Chain) -> list[Prediction]:
    """A chain that is sure of its first half alone, a protein of one residue, and a complex with a name to fear."""
    length = len(real.sequence)
    return [
        predicted(real, "half", [95.0] * (length // 2) + [30.0] * (length - length // 2)),
        predicted(first(real, 1), "one", [80.0]),
        predicted(real, NASTY, [65.0] * (2 * length), copies=2),
    ]


def held(page: Path) -> dict[str, Any]:
    """The data of a page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


def unpacked(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text))


def test_the_page_holds_the_run(tmp_path: Path, predictions: list[Prediction]) -> None:
    data = held(written(tmp_path, predictions))
    assert [item["name"] for item in data["items"]] == ["one", NASTY, "half"]  # by confidence
    assert data["items"][1]["cells"][1:3] == [len(predictions[2].residues), 2]
    item = data["items"][2]
    assert [file["ending"] for file in item["files"]] == ["cif", "pdb"]
    cif, pdb = (unpacked(file["text"]).decode() for file in item["files"])
    assert pdb == (tmp_path / "p0.pdb").read_text()
    whole, length = (tmp_path / "p0.cif").read_text(), len(predictions[0].residues)
    assert "local_pairwise." in whole and "local_pairwise." not in cif  # errors are told once
    assert length**2 < len(whole.splitlines()) - len(cif.splitlines()) < length**2 + 20
    (tmp_path / "again.cif").write_text(cif)
    np.testing.assert_array_equal(*(next(read_structure(tmp_path / name)).xyz for name in ("again.cif", "p0.cif")))
    pae = np.frombuffer(unpacked(item["matrix"]), np.uint8).reshape(predictions[0].pae_ang.shape) / 8
    np.testing.assert_allclose(pae, predictions[0].pae_ang, atol=1 / 16 + 0.005)


def test_errors_as_alphafolds_database_has_them(tmp_path: Path, predictions: list[Prediction]) -> None:
    writers.write_pae(predictions[0], tmp_path / "x.pae.json")
    (content,) = json.loads((tmp_path / "x.pae.json").read_text())
    assert set(content) == {"predicted_aligned_error", "max_predicted_aligned_error"}
    np.testing.assert_allclose(content["predicted_aligned_error"], predictions[0].pae_ang, atol=0.0051)
    np.testing.assert_array_equal(writers.read_pae(tmp_path / "x.pae.json"), content["predicted_aligned_error"])
    (tmp_path / "x.pae.json").write_text("[]")
    with pytest.raises(DataError, match="fold again"):
        writers.read_pae(tmp_path / "x.pae.json")


def test_no_name_ends_the_script_and_nothing_is_loaded(tmp_path: Path, predictions: list[Prediction]) -> None:
    text = written(tmp_path, predictions).read_text()
    assert text.count("</script") == 3
    own = text.replace((ASSETS / "3Dmol-min.js").read_text(), "")
    assert len(own) < len(text) and "default-src 'none'" in own
    assert not re.search(r"\b(src|href)\s*=\s*[\"']|url\(|@import|\bfetch\(|XMLHttp", own)
    assert "University of Pittsburgh" in own  # the licence goes where the code goes


def test_what_is_bundled_is_what_was_published() -> None:
    assert hashlib.sha256((ASSETS / "3Dmol-min.js").read_bytes()).hexdigest() == PUBLISHED


def test_without_errors_and_without_files(tmp_path: Path, predictions: list[Prediction]) -> None:
    written(tmp_path, predictions[:2])
    (tmp_path / "p0.pae.json").unlink()
    (tmp_path / "p0.cif").unlink()
    assert [item["matrix"] is None for item in held(write_fold_page(tmp_path))["items"]] == [False, True]
    assert [item["name"] for item in held(write_fold_page(tmp_path, ["p1"]))["items"]] == ["one"]
    (tmp_path / "p0.pdb").unlink()
    with pytest.raises(DataError, match="fold it again"):
        write_fold_page(tmp_path)


def test_a_page_stays_usable(tmp_path: Path) -> None:
    """The surest of many proteins, and how large fifty of 250 residues are."""
    rng = np.random.default_rng(0)
    lines = "".join(
        f"ATOM  {n:5d}  CA  ALA A{n % 250:4d}    " + "".join(f"{v:8.3f}" for v in rng.uniform(-40, 40, 3)) + "\n"
        for n in range(1250)  # the backbone and C-beta of each; digits without a pattern
    )
    pairs = 16 + 8 * np.sin(np.add.outer(np.arange(250), np.arange(250)) / 40) + rng.normal(size=(250, 250)) / 4
    item = Item(
        name="x", cells=("x", 250, 1, 50.0, 0.5), sequence="A" * 250, pairs_ang=pairs,
        structures=(Structure(label="pdb", ending="pdb", text=lines),),
    )  # fmt: skip
    page = Page(
        title="t", about="About.", columns=COLUMNS, order=3, quantity="q", matrix_text="", contacts_text="", hint="",
        items=[item] * 50,
    )  # fmt: skip
    write_page(tmp_path / "page.html", page)
    assert (tmp_path / "page.html").stat().st_size < 6e6
    many = [
        replace(item, cells=("x", 1, 1, float(number), None), structures=(), pairs_ang=None) for number in range(120)
    ]
    write_page(tmp_path / "page.html", replace(page, items=many))
    data = held(tmp_path / "page.html")
    assert [each["cells"][3] for each in data["items"]] == list(range(119, 19, -1))
    assert data["about"] == "About. Here are the 100 first by pLDDT of 120."


def test_bytes() -> None:
    assert to_bytes(np.array([[0.0, 31.75], [np.nan, 500.0]])).tolist() == [[0, 254], [255, 254]]


def test_superposed_by_tm_score(real: Chain, tmp_path: Path) -> None:
    """A model of which half is right lies on that half, though moved away; what it lacks is unknown."""
    rng = np.random.default_rng(0)
    half = len(real.sequence) // 2
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    turn *= np.sign(np.linalg.det(turn))
    xyz = real.xyz.copy()
    xyz[half:] += rng.normal(size=xyz[half:].shape) * 12
    xyz = (xyz @ turn + 50).astype(np.float32)
    kept = [*range(5), *range(7, len(xyz))]
    model = Chain("m", "".join(real.sequence[row] for row in kept), xyz[kept], real.atoms)
    pairs: list[compare.Pair] = []
    compare.compare_structures([model], [real], see=pairs.append)
    write_compare_page(tmp_path / "page.html", pairs)
    data = held(tmp_path / "page.html")
    (item,) = data["items"]
    assert data["is_overlay"] and item["cells"][1] == pytest.approx(pairs[0].row.figures.tm)
    texts = [unpacked(file["text"]).decode() for file in item["files"]]
    places = [
        {line[12:27]: np.array(line[30:54].split(), dtype=float) for line in text.splitlines() if line[:4] == "ATOM"}
        for text in texts
    ]
    numbers = item["numbers"]
    assert len(numbers) == len(real.sequence) == len(item["sequence"])
    for name in places[0]:
        away = np.linalg.norm(places[0][name] - places[1][name])
        assert away < 0.3 or int(name[10:]) >= numbers[half]
    matrix = np.frombuffer(unpacked(item["matrix"]), np.uint8).reshape(len(numbers), -1)
    assert (
        (matrix[5:7] == 255).all() and (matrix[:, 5:7] == 255).all() and (matrix == 255).sum() == 4 * len(numbers) - 4
    )
    assert matrix[:5, :5].max() <= 1
    ca = [each.astype(np.float64)[kept][:, 1] for each in (xyz, real.xyz)]
    core = best_core(ca[0], ca[1], len(real.sequence))
    fitted = _laid(ca[0], ca[1], core)
    d0 = 1.24 * (len(real.sequence) - 15) ** (1 / 3) - 1.8
    tm = (1 / (1 + ((fitted - ca[1]) ** 2).sum(1) / d0**2)).sum() / len(real.sequence)
    assert tm == pytest.approx(best_scores(ca[0], ca[1], len(real.sequence))[0], abs=1e-6)


def _laid(points: np.ndarray, goal: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """All points, moved as lays those of `rows` on the goal."""
    middle, target = points[rows].mean(0), goal[rows].mean(0)
    left, _, right = np.linalg.svd((points[rows] - middle).T @ (goal[rows] - target))
    left[:, -1] *= np.sign(np.linalg.det(left @ right))
    return (points - middle) @ (left @ right) + target


def visited(page: Path, steps: str, *, dark: bool = False) -> dict[str, Any]:
    """What a browser has seen of a page, which has asked for nothing but itself."""
    with opened(page.parent / "profile") as browser:
        seen: dict[str, Any] = browser.visit(page, f"{VISIT}{steps}return seen;", dark=dark)
        assert browser.asked == [page.as_uri()]
    return seen


def said(ang: float) -> str:
    """A number of pairs as a page writes it: in steps of 1/8, halves up."""
    return f"{np.floor(round(ang * 8) / 8 * 10 + 0.5) / 10:.1f}"


def touching(xyz: np.ndarray) -> list[list[int]]:
    """Pairs three or more apart whose C-betas are nearer than 8 A."""
    points = c_betas(xyz)
    near = np.linalg.norm(points[:, None] - points[None], axis=-1) < 8
    apart = np.abs(np.subtract.outer(np.arange(len(near)), np.arange(len(near)))) >= 3
    return np.argwhere(near & apart).tolist()


@in_browser
def test_folded_in_a_browser(tmp_path: Path, predictions: list[Prediction], real: Chain) -> None:
    seen = visited(written(tmp_path, predictions), VISIT_FOLD)
    half = predictions[0]
    length, pae = len(half.residues), half.pae_ang
    assert seen["title"] == "3 structures" and seen["name"] == "one" and seen["next"] == NASTY == seen["focus"]
    assert seen["current"] == "true" and seen["rows"] == [
        ["one", "1", "1", "80.0", "0.63"], [NASTY, str(2 * length), "2", "65.0", "0.63"],
        ["half", str(length), "1", f"{half.mean_plddt:.1f}", "0.63"],
    ]  # fmt: skip
    assert seen["one"]["all"] > 100 and seen["complex"]["all"] > 1000 and seen["complex"]["blue"] == 0
    assert seen["chains"][0]["blue"] > 300 and seen["chains"][1] == "chain 1chain 2"
    assert min(seen["half"]["blue"], seen["half"]["orange"]) > 0.2 * seen["half"]["all"] > 200
    assert seen["legend"].count("pLDDT") == 1 and "very low" in seen["legend"]
    np.testing.assert_array_equal(seen["contacts"], touching(half.atoms))
    shades = [(pae[3, 40], seen["shades"][0]), (pae[40, 3], seen["shades"][1]), (pae[10, 60], seen["shades"][2])]
    assert sorted(shades, key=lambda pair: pair[0]) == sorted(shades, key=lambda pair: pair[1][0])
    told = (
        f"{half.residues[3]}4 and {half.residues[40]}41; expected error {said(pae[3, 40])} Å "
        f"({said(pae[40, 3])} Å the other way round); C-betas "
    )
    assert seen["hovered"][0].startswith(told) and seen["hovered"][0].endswith("Å apart; pLDDT 95 and 30.")
    assert seen["hovered"][1] > 30 and seen["left"][1] == 0 and seen["left"][0].startswith("Point at")
    assert seen["clicked"][0].startswith(told) and seen["clicked"][0].endswith("Escape drops the pair.")
    assert seen["clicked"][1] > 30 and seen["moved"] == [2, 50] and seen["dropped"] is None
    assert seen["touched"] == [7, 20] and seen["turned"]
    (cif, pdb, errors) = seen["saved"]
    assert cif[0] == "half.cif" and cif[1].startswith("data_") and "local_pairwise." not in cif[1]
    assert pdb == ["half.pdb", (tmp_path / "p0.pdb").read_text()] and errors[0] == "half.pae.json"
    np.testing.assert_allclose(json.loads(errors[1])[0]["predicted_aligned_error"], pae, atol=1 / 16 + 0.005)
    assert seen["sorted"] == sorted(["half", "one", NASTY]) and seen["reachable"] >= 5 + 3 + 3 + 3 + 3


@in_browser
def test_compared_in_a_dark_browser(tmp_path: Path, real: Chain) -> None:
    xyz = real.xyz + np.random.default_rng(1).normal(size=real.xyz.shape).astype(np.float32)
    pairs: list[compare.Pair] = []
    compare.compare_structures([Chain("m", real.sequence, xyz, real.atoms)], [real], see=pairs.append)
    write_compare_page(tmp_path / "page.html", pairs)
    seen = visited(tmp_path / "page.html", VISIT_COMPARE, dark=True)
    assert seen["ground"] == "rgb(22, 24, 28)" and seen["legend"] == "modelreference"
    assert min(seen["drawn"]["blue"], seen["drawn"]["orange"]) > 300
    upper = [pair for pair in touching(xyz.round(3)) if pair[0] < pair[1]]
    lower = [pair for pair in touching(real.xyz) if pair[0] > pair[1]]
    assert sorted(seen["contacts"]) == sorted(upper + lower)
    ca = [each[:, 1].astype(np.float64) for each in (xyz, real.xyz)]
    apart = [np.linalg.norm(points[2] - points[30]) for points in ca]
    assert f"distance of C-alphas differs by {said(abs(apart[0] - apart[1]))} Å; C-betas" in seen["pair"]
    assert "apart in the model; C-betas" in seen["pair"] and "apart in the reference" in seen["pair"]
