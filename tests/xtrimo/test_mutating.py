"""The verb `mutate` through its main, and its page in a browser."""

import csv
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from xtrimo.checkpoint import load, save
from xtrimo.errors import ConfigError, DataError
from xtrimo.fasta import Record, write_fasta
from xtrimo.model import GLM
from xtrimo.mutating import MutateOptions, main
from xtrimo.mutation_scan import LETTERS, Scan
from xtrimo.scan_files import write_html
from xtrimo.scoring import score
from xtrimo.testing import toy_config

WILD, OTHER = "MKVLAGSERT", "ACDEFGHIKLMN"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save(GLM(toy_config(licence="Apache-2.0")), tmp_path / "model")
    write_fasta(tmp_path / "one.fasta", [Record("one", WILD)])
    write_fasta(tmp_path / "two.fasta", [Record("one", WILD), Record("two/2", OTHER)])
    return tmp_path / "model"


def run(model: Path, fasta: str, *args: str) -> Path:
    out = model.parent / "out"
    main([str(model.parent / fasta), "--model", str(model), "--out", str(out), *args])
    return out


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_named_mutations(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(model, "one.fasta", "--offset", "20", "--mutations", "K22G", "K22G:A25W", "M21M")
    found = rows(out / "mutations.csv")
    assert [(row["name"], row["mutations"], row["sequence"]) for row in found] == [
        ("one", "K22G", "MGVLAGSERT"), ("one", "K22G:A25W", "MGVLWGSERT"), ("one", "M21M", WILD)
    ]  # fmt: skip
    said = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert said == [["name", "mutations", "score"], *([row[c] for c in said[0]] for row in found)]
    assert float(found[0]["score"]) != 0 == float(found[2]["score"])


def test_deletions_make_all_of_a_protein_likelihoods(model: Path) -> None:
    (model.parent / "list.csv").write_text("name,mutations\none,K2G\none,K2_V3del\ntwo/2,C2_D3insWW\n")
    found = rows(run(model, "two.fasta", "--file", str(model.parent / "list.csv")) / "mutations.csv")
    proteins = ["MGVLAGSERT", "MLAGSERT", "ACWWDEFGHIKLMN"]
    assert [row["sequence"] for row in found] == proteins
    totals = [
        own.total_nll for own in score(load(model), [WILD, OTHER, *proteins], method="likelihood", direction="both")
    ]
    expected = [totals[0] - totals[2], totals[0] - totals[3], totals[1] - totals[4]]
    assert [float(row["score"]) for row in found] == pytest.approx(expected, abs=1e-4)


def test_a_list_of_proteingym(model: Path) -> None:
    (model.parent / "list.csv").write_text("mutant,DMS_score\nK2G,0.5\nK2G:A5W,0.1\n")
    found = rows(run(model, "one.fasta", "--file", str(model.parent / "list.csv")) / "mutations.csv")
    assert [row["mutations"] for row in found] == ["K2G", "K2G:A5W"]


def test_scans(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(model, "two.fasta", "--scan")
    assert {file.name for file in out.iterdir()} == {
        f"{n}.{e}" for n in ("one", "two_2") for e in ("csv", "png", "html")
    }
    found = rows(out / "one.csv")
    assert len(found) == 19 * len(WILD)
    best = max(found, key=lambda row: float(row["score"]))
    said = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert said[1][:5] == ["one", "10", "masked-marginals", best["mutation"], best["score"]]
    by_name = rows(run(model, "one.fasta", "--mutations", best["mutation"], "A5C") / "mutations.csv")
    assert float(by_name[0]["score"]) == pytest.approx(float(best["score"]), abs=1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mutations\nA2G\n", r"line 2: one: A2G: expected A at position 2 of 10 residues, there is K"),
        ("name,mutations\nthree,K2G\n", "line 2: no protein 'three' in .*one.fasta, which has one"),
        ("variant\nK2G\n", "columns variant; expected mutations or mutant"),
        ("mutations\n", "holds no variant"),
    ],
)
def test_what_is_wrong_with_a_list(model: Path, text: str, message: str) -> None:
    (model.parent / "list.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        run(model, "one.fasta", "--file", str(model.parent / "list.csv"))
    assert not (model.parent / "out").exists()


def test_what_cannot_be(model: Path) -> None:
    facts = dict(model=str(model), fasta=model.parent / "one.fasta", out=model.parent / "out")
    for own in ({}, dict(scan=True, mutations=("K2G",)), dict(scan=True, file=Path("list.csv"))):
        with pytest.raises(ConfigError, match="expected one of --mutations, --file and --scan"):
            MutateOptions(**facts, **own)
    with pytest.raises(ConfigError, match="int8 does not keep"):
        MutateOptions(**facts, scan=True, precision="int8")
    with pytest.raises(DataError, match="of which of the 2 proteins"):
        run(model, "two.fasta", "--mutations", "K2G")
    with pytest.raises(ConfigError, match="has insertions or deletions, which have no masked-alone"):
        run(model, "one.fasta", "--mutations", "K2del", "--method", "masked-alone")


def page(folder: Path) -> tuple[Path, Scan]:
    """A page whose protein has a name that would end a script, were it let."""
    rng = np.random.default_rng(0)
    sequence = "".join(rng.choice(list(LETTERS), 70)) + "X"
    scores = rng.normal(size=(71, 20)).round(6)
    scores[range(70), [LETTERS.index(own) for own in sequence[:-1]]] = 0
    scores[70] = np.nan
    scan = Scan(name="</script><b>P1", sequence=sequence, scores=scores, method="masked-alone", offset=9)
    write_html(folder / "page.html", scan, model="toy")
    return folder / "page.html", scan


def test_the_page_asks_nobody(tmp_path: Path) -> None:
    text = page(tmp_path)[0].read_text()
    assert "default-src 'none'" in text and not re.search(r"https?:|//\w+\.|src=|@import|fetch\(|<link", text)
    assert text.count("</script>") == 2 and "{{" not in text


# What a reader would do, and what is then seen.
VISIT = """
<script>
const seen = {}, blobs = [];
const texts = () => [...document.querySelectorAll("#rows tr")].map(
  row => [...row.children].map(cell => cell.textContent));
const canvases = [...document.querySelectorAll("canvas")];
function at(canvas, column, row, kind) {
  const box = canvas.getBoundingClientRect();
  const where = { clientX: box.left + 22 + 14 * column + 7, clientY: box.top + 30 + 14 * row + 7, bubbles: true };
  canvas.dispatchEvent(new MouseEvent(kind, where));
  return document.getElementById("tip").textContent;
}
function pixel(canvas, column, row) {
  return [...canvas.getContext("2d").getImageData(22 + 14 * column + 1, 30 + 14 * row + 1, 1, 1).data].slice(0, 3);
}
addEventListener("error", event => { seen.error = event.message; });
seen.title = document.title;
seen.lines = canvases.length;
seen.tips = [at(canvases[0], 0, 0, "mousemove"), at(canvases[1], 3, 12, "mousemove")];
seen.display = document.getElementById("tip").style.display;
seen.pixels = [0, 1, 2, 3].map(row => pixel(canvases[0], 0, row));
seen.first = texts();
document.querySelectorAll("th button")[1].click();
seen.sorted = texts().slice(0, 40);
document.querySelectorAll("th button")[4].click();
document.querySelectorAll("th button")[4].click();
seen.worst = texts()[0];
at(canvases[0], 4, 2, "click");
at(canvases[0], 4, 3, "click");
at(canvases[0], 4, 3, "click");
at(canvases[1], 3, 12, "click");
document.getElementById("only").click();
seen.picked = texts();
seen.count = document.getElementById("count").textContent;
URL.createObjectURL = blob => { blobs.push(blob.text()); return "#"; };
document.getElementById("export").click();
document.getElementById("only").click();
document.getElementById("export").click();
Promise.all(blobs).then(all => {
  seen.saved = all;
  const answer = document.createElement("pre");
  answer.id = "seen";
  answer.textContent = JSON.stringify(seen);
  document.body.append(answer);
});
</script>
</body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    path, scan = page(tmp_path)
    path.write_text(path.read_text().replace("</body>", VISIT))
    flags = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --window-size=900,900 --dump-dom"
    command = [CHROMIUM, *flags.split(), "--virtual-time-budget=5000", f"--user-data-dir={tmp_path}/profile"]
    done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=120)
    answer = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert answer, done.stderr
    seen = json.loads(html.unescape(answer[1]))
    cells = {(own.position, own.mutant): own for own in scan.substitutions()}
    width = (900 - 2 * 16 - 34) // 140 * 10  # residues of a line, at most

    def shown(position: int, letter: str) -> str:
        own = cells[position, letter]
        return f"{own.mutation} {'+' if own.score >= 0 else '−'}{abs(own.score):.3f}"

    assert "error" not in seen and seen["title"] == scan.name and seen["lines"] == -(-71 // width)
    assert seen["tips"] == [shown(10, "A"), shown(10 + width + 3, LETTERS[12])] and seen["display"] == "block"
    for value, (red, _, blue) in zip(scan.scores[0], seen["pixels"], strict=False):
        assert (blue > red) == (value > 0) or value == 0 or abs(value) < 0.05
    ranked = sorted(cells.values(), key=lambda own: -own.score)
    assert [row[0] for row in seen["first"]] == [own.mutation for own in ranked[:200]]
    assert [int(row[1]) for row in seen["sorted"]] == [10] * 19 + [11] * 19 + [12] * 2
    assert seen["worst"][0] == ranked[-1].mutation
    picked = sorted((cells[14, LETTERS[2]], cells[10 + width + 3, LETTERS[12]]), key=lambda own: own.score)
    assert [row[0] for row in seen["picked"]] == [own.mutation for own in picked]
    assert seen["count"] == "2 substitutions, 2 picked"
    few, everything = (list(csv.reader(text.splitlines())) for text in seen["saved"])
    assert few[0] == ["mutation", "position", "wild", "mutant", "score"] and len(few) == 3
    assert len(everything) == 1 + 19 * 70 and [row[0] for row in everything[1:4]] == [
        own.mutation for own in ranked[:-4:-1]
    ]
    assert all(float(row[4]) == cells[int(row[1]), row[3]].score for row in everything[1:])
