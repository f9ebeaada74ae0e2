"""The example's parts by hand, and the whole of it with toys."""

import html
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from examples import design_and_fold as example
from examples import design_page
from examples.design_figures import MEASURES, Folded, Group, less, regular, rejoined, table, tm_score, to_dict
from structure.folding import fold
from structure.inverse import INSTALL, backbone_of
from structure.metrics import compare
from xtrimo.chains import Chain, read_structure
from xtrimo.errors import ConfigError, DataError
from xtrimo.fasta import Record, read_fasta
from xtrimo.intervals import Estimate
from xtrimo.testing import toy_sequences

GROUPS = ["designs", "designs, shuffled", "natives", "natives, shuffled", "native structures", "rejoined structures"]
FOLDED = GROUPS[:4]


def native(name: str = "1A8O.cif") -> Folded:
    chain = next(iter(read_structure(example.TOY_NATIVES / name)))
    return Folded(name=name, sequence=chain.sequence, backbone=backbone_of(chain))


def group(name: str, *proteins: Folded) -> Group:
    return Group(name=name, said="", proteins=proteins)


class Order:
    """Stands in for a random generator: any order."""

    def __init__(self, order: Sequence[int]) -> None:
        self.order = order

    def permutation(self, num: int) -> np.ndarray:
        assert num == len(self.order)
        return np.array(self.order)


def test_rejoined_steps_keep_bonds_and_lose_the_fold() -> None:
    protein = native()
    places, num = protein.backbone.astype(np.float64), len(protein.sequence) - 1
    np.testing.assert_allclose(rejoined(places, Order(range(num))), places, atol=0.1)  # N differs a bit by residue
    lost = rejoined(places, Order(np.random.default_rng(0).permutation(num)))

    def spread(places: np.ndarray) -> list[np.ndarray]:
        here, there = places[:-1], places[1:]
        pairs = [(here[:, 2], there[:, 0]), (here[:, 1], there[:, 1]), (here[:, 3], there[:, 0])]  # C-N, CA-CA, O-N
        pairs += [(places[:, 0], places[:, 1]), (places[:, 1], places[:, 2])]
        return [np.sort(np.linalg.norm(one - other, axis=1)) for one, other in pairs]

    for kept, of in zip(spread(lost), spread(places), strict=True):
        np.testing.assert_allclose(kept, of, atol=0.08)
    assert tm_score(lost, places) < 0.35 < regular(protein)
    volume = np.linalg.det(lost[:, [0, 2, 3]] - lost[:, [1]])
    assert (np.sign(volume) != 0).all() and tm_score(places, places) == pytest.approx(1.0)


def test_tm_score_is_that_of_compare() -> None:
    one = native().backbone
    other = one + np.random.default_rng(0).normal(size=one.shape).astype(np.float32) * 3
    assert tm_score(other, one) == pytest.approx(compare(other, one).tm, abs=1e-6)


def test_measures_by_hand() -> None:
    protein = native()
    pulled = protein.backbone.copy()
    pulled[35:] += 50
    apart = Folded(name="apart", sequence=protein.sequence, backbone=pulled)
    assert MEASURES["broken"].of(protein) == 0 and MEASURES["broken"].of(apart) == pytest.approx(1 / 69)
    ca = protein.backbone[:, 1].astype(float)
    squares = [np.sum((a - b) ** 2) for a in ca for b in ca]
    expected = math.sqrt(sum(squares) / (2 * len(ca) ** 2)) / (2.2 * len(ca) ** 0.38)
    assert MEASURES["size"].of(protein) == pytest.approx(expected) and 0.8 < expected < 1.3
    assert 0 < MEASURES["contacts"].of(apart) < MEASURES["contacts"].of(protein)
    assert 0.4 < MEASURES["regular"].of(protein) <= 1  # four helices
    assert math.isnan(MEASURES["plddt"].of(protein)) and math.isnan(MEASURES["recovery"].of(protein))


def test_groups_have_means_over_what_they_have() -> None:
    protein = native()
    have = [
        Folded(name=str(nats), sequence="A", backbone=protein.backbone[:1], found={"nats": nats}) for nats in (1.0, 2.0)
    ]
    one, other = group("one", *have, Folded(name="x", sequence="A", backbone=protein.backbone[:1])), group("other")
    estimate = one.estimate("perplexity")
    assert isinstance(estimate, Estimate) and estimate.value == pytest.approx(math.exp(1.5))
    assert other.estimate("perplexity") is None and one.foldable() is None
    rows = table([one, other])
    assert rows[0][-2:] == ["perplexity", "foldable"] and rows[1][-2].startswith("4.48 (2.72 to 7.39)")
    assert to_dict([one])["one"]["figures"]["perplexity"]["values"] == [1.0, 2.0, None]
    ahead = group(
        "ahead",
        *(
            Folded(name="y", sequence="A", backbone=p.backbone, found={"nats": n})
            for p, n in zip(one.proteins, (0.5, 1.0, 3.0), strict=True)
        ),
    )
    difference = less(one, ahead, "perplexity")
    assert difference is not None and difference.value == pytest.approx(0.75)


def test_the_screen_refuses_what_is_simple() -> None:
    real = native().sequence
    assert example.simple(real) is None
    assert example.simple("A" * 60) == "more than 20% of low complexity"
    assert example.simple(real + "WWWWWW") == "more than 5 of one letter in a row"
    assert example.simple(real[:20] + "MKTAYIAKQR" * 4) == "more than 20% in tandem repeats"
    assert all(example.simple(sequence) is None for sequence in toy_sequences(50, min_length=80, max_length=90))


def test_native_chains_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    read = next(iter(read_structure(example.TOY_NATIVES / "1A8O.cif")))

    def variant(name: str, split: str = "test", **changes: object) -> Chain:
        facts = {"sequence": read.sequence, "xyz": read.xyz} | changes
        return Chain(name, facts["sequence"], facts["xyz"], read.atoms, split)

    gap, far = read.xyz.copy(), read.xyz.copy()
    gap[3, 4], far[30:] = np.nan, far[30:] + 9
    letters = "A" + read.sequence[1:]
    chains = [
        variant("train", "train"), variant("gap", xyz=gap), variant("far", xyz=far), variant("good"), variant("again"),
        variant("x", sequence="X" + read.sequence[1:]), variant("other", sequence=letters),
    ]  # fmt: skip
    monkeypatch.setattr(example, "read_chains", lambda path: iter(chains))
    found = example.native_chains(example.Options(num=9))
    assert {chain.name for chain in found} == {"again", "other"}  # of one sequence once
    with pytest.raises(DataError, match="none is whole and of 60"):
        example.native_chains(example.Options(max_length=60))
    with pytest.raises(ConfigError, match="num 0"):
        example.Options(num=0)


class Oracle:
    """Stands in for inverse folding: it knows the sequence that was asked for last on a backbone."""

    def __init__(self) -> None:
        self.known: dict[bytes, str] = {}

    def nats(self, backbone: np.ndarray, sequence: str) -> np.ndarray:
        is_own = self.known.setdefault(backbone.tobytes(), sequence) == sequence
        return np.full(len(sequence), 1.0 if is_own else 2.0)

    def write(self, backbone: np.ndarray, *, num: int, seed: int) -> list[str]:
        return [self.known[backbone.tobytes()]] * num


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("designs")
    args = ["--out", str(out), "--num", "3", "--prompt", "[20..30]", "--sequences", "2"]
    assert example.main(args, load_judge=Oracle) == 0
    return out


def test_all_groups_have_their_figures(out: Path) -> None:
    facts = json.loads((out / "figures.json").read_text())
    assert list(facts) == GROUPS
    for name, content in facts.items():
        figures = content["figures"]
        assert figures["perplexity"]["value"] == pytest.approx(math.e)
        assert figures["shuffled_perplexity"]["value"] == pytest.approx(math.e**2)
        assert figures["recovery"]["value"] == 1
        assert ("plddt" in figures) == (name in FOLDED)
        assert ("other_tm" in figures) == (name in ("designs", "natives", "native structures"))
        assert ("true_tm" in figures) == (name == "natives")
        if name in FOLDED:  # what was written for a backbone is the sequence that was folded to it
            assert figures["self_tm"]["value"] == pytest.approx(1.0, abs=1e-3)
    assert facts["native structures"]["figures"]["self_tm"]["value"] < 0.5


def test_the_page_holds_all_and_asks_for_nothing(out: Path) -> None:
    page, _, frame = (out / "report.html").read_text().partition("<iframe")
    said = html.unescape(page)
    assert all(name in said for name in GROUPS) and all(measure.said in said for measure in MEASURES.values())
    assert design_page.TOY in said and "Foldable" in said
    assert not re.search(r"(src|href)=(?![\"']?data:)", page) and "data:image/png" in page
    found = re.search(r'srcdoc="([^"]*)"', frame)
    assert found and html.unescape(found[1]) == (out / "structures.html").read_text()
    data = re.search(r'id="data">(.*?)</script>', html.unescape(found[1]), re.DOTALL)
    assert data
    items = json.loads(data[1])["items"]
    assert [item["cells"][1] for item in items].count("designs") == 3 and len(items) == 5
    assert [item["cells"][3] for item in items] == sorted((item["cells"][3] for item in items), reverse=True)


def test_files_are_of_the_designs(out: Path) -> None:
    designs = {record.name: record.sequence for record in read_fasta(out / "designs.fasta")}
    assert len(designs) == 3 and all(20 <= len(sequence) <= 30 for sequence in designs.values())
    scores = json.loads((out / "structures/designs/scores.json").read_text())
    assert {each["name"]: each["sequence"] for each in scores} == designs
    for each in scores:
        (chain,) = read_structure(out / "structures/designs" / f"{each['file']}.cif")
        assert chain.sequence == each["sequence"]


def test_the_verdict_says_how_far_the_folding_model_is_right() -> None:
    def natives(right: bool, num: int = 8) -> Group:
        return group("natives", *(predicted(20 + i, true_tm=(i if right else -i) / 10 + 0.1) for i in range(num)))

    def predicted(plddt: float, **found: float) -> Folded:
        (made,) = fold(toy, ["MKTAY"])
        made = replace(made, plddt=np.full(5, plddt, np.float32))
        return Folded(name=f"{plddt}", sequence="MKTAY", backbone=backbone_of(made), prediction=made, found=found)

    toy = example.toy_folder()
    good, bad = predicted(70.0, self_tm=0.5), predicted(69.9, self_tm=0.9)
    designs = group("designs", good, bad, predicted(90.0, self_tm=0.49), predicted(90.0))
    lost = group("designs, shuffled", *(predicted(60.0) for _ in range(4)))
    said = design_page.verdict([designs, lost, natives(right=True)], is_toy=False)
    assert (
        "by 1.00" in said and "between 20 and 27" in said and "1 of 4 designs" in said and design_page.TOY not in said
    )
    assert "pLDDT: 19.975" in said
    assert "by -1.00" in design_page.verdict([designs, lost, natives(right=False)], is_toy=True)
    assert "correlates" not in design_page.verdict([designs, lost, natives(right=True, num=7)], is_toy=False)


def test_a_protein_that_bursts_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = example.toy_folder()
    whole = example.folded(pipeline, [Record("a", "MKTAYIAK"), Record("b", "MKTAYIAKQRQISF")])
    monkeypatch.setattr(example, "iter_folded", lambda *args: iter([[(1, whole[1])], [(0, DataError("burst"))]]))
    found = example.group_of("designs", "", [Record("a", "MKTAYIAK"), Record("b", "MKTAYIAKQRQISF")], pipeline)
    assert [each.name for each in found.proteins] == ["b"]
    found = example.beside(found, "other_tm", group("other", native()))
    assert math.isnan(found.proteins[0].found["other_tm"])


def test_without_inverse_folding_the_page_says_how_to_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "is_installed", lambda: False)
    (tmp_path / "mine.py").write_text("def check(sequence):\n    return 'too long' if len(sequence) > 22 else None\n")
    monkeypatch.chdir(tmp_path)
    args = ["--out", "out", "--num", "8", "--prompt", "[20..24]", "--screen", "mine:check"]
    assert example.main(args) == 0
    page = (tmp_path / "out/report.html").read_text()
    assert INSTALL in page.partition("<iframe")[0] and "<th>self-consistent TM</th>" not in page
    kept = len(list(read_fasta(tmp_path / "out/designs.fasta")))
    assert 0 < kept < 8 and f"{kept} passed the screen; {8 - kept} refused: too long" in page
