"""ProteinGym's files and figures, against pandas-free references written out here."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from heads.proteingym import (
    METRICS,
    Assay,
    Figures,
    Variant,
    average,
    figures,
    read_assay,
    read_reference,
    write_assay,
)
from xtrimo.errors import DataError
from xtrimo.mutation import Mutation

WILD = "MKVLA"
HEADER = "mutant,mutated_sequence,DMS_score,DMS_score_bin"


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def made(num: int = 101, seed: int = 0) -> Assay:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=num)
    variants = tuple(
        Variant(sequence=f"M{'A' * i}", score=float(s), is_fit=bool(s > 0.3)) for i, s in enumerate(scores)
    )
    return Assay(name="made", variants=variants)


def test_substitutions_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "A.csv", HEADER, "K2G,MGVLA,0.5,1", "M1A:L4W,AKVWA,-1.25,0")
    assay = read_assay(path)
    assert (assay.name, assay.protein, assay.wild_type, assay.is_substitution) == ("A", "A", WILD, True)
    assert assay.variants[1].mutations == (Mutation("M", 1, "A"), Mutation("L", 4, "W"))
    assert assay.variants[1] == Variant(
        sequence="AKVWA", score=-1.25, is_fit=False, mutations=assay.variants[1].mutations
    )


def test_the_reference_tells_the_wild_type(tmp_path: Path) -> None:
    path = write(tmp_path / "file_of_a.csv", "mutant,DMS_score", "K2G,0.5", "K2G:V3A,0.1")
    table = write(
        tmp_path / "reference.csv", "DMS_id,DMS_filename,UniProt_ID,target_seq,coarse_selection_type",
        f"A_2020,file_of_a.csv,A_HUMAN,{WILD},Stability",
    )  # fmt: skip
    assay = read_assay(path, read_reference(table))
    assert (assay.name, assay.protein, assay.selection) == ("A_2020", "A_HUMAN", "Stability")
    assert [variant.sequence for variant in assay.variants] == ["MGVLA", "MGALA"]
    assert assay.variants[0].is_fit is None


def test_indels_are_read(tmp_path: Path) -> None:
    assay = read_assay(write(tmp_path / "a.csv", "mutated_sequence,DMS_score,DMS_score_bin", "MKVLAA,1,1", "MVLA,0,0"))
    assert not assay.is_substitution and [v.mutant for v in assay.variants] == ["MKVLAA", "MVLA"]
    assay = read_assay(write(tmp_path / "b.csv", "mutant,DMS_score", "MKVLAA,1"))
    assert assay.variants[0].sequence == "MKVLAA"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((HEADER, "K2G,MGVLA,1,1", "V2G,MGVLA,1,1"), r"line 3: expected V at position 2 of 5 residues, there is K"),
        ((HEADER, "K2G,MGVLA,1,1", "A6G,MGVLA,1,1"), r"line 3: expected A at position 6 of 5 residues, there is none"),
        ((HEADER, "K2G,MGVLA,1,1", "K2W,MGVLA,1,1"), r"line 3: K2W of the wild type is not the mutated_sequence"),
        ((HEADER, "K2G,MGVLA,high,1"), r"line 2: could not convert string to float: 'high'; DMS_score is a number"),
        ((HEADER, "K2G,MGVLA,nan,1"), r"line 2: DMS_score nan is not a number that can be ranked"),
        ((HEADER, "K2G,MGVLA,1"), r"line 2: 4 cells were expected"),
        (("mutant,score", "K2G,1"), r"line 2: columns mutant, score; expected mutant, mutated_sequence, DMS_score"),
        (("mutant,DMS_score", "K2G,1"), r"line 2: K2G of which protein\? Give the reference table"),
        ((HEADER,), r"holds no variant"),
    ],
)
def test_what_is_wrong_is_named(lines: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_assay(write(tmp_path / "a.csv", *lines))


def test_a_reference_needs_its_columns(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no DMS_id and target_seq among name, seq"):
        read_reference(write(tmp_path / "r.csv", "name,seq", "a,MKV"))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    first = read_assay(write(tmp_path / "A.csv", HEADER, "K2G,MGVLA,0.5,1", "M1A:L4W,AKVWA,-1.25,0"))
    (tmp_path / "out").mkdir()
    write_assay(tmp_path / "out" / "A.csv", first, {"glm": np.array([0.25, -3.0])})
    assert read_assay(tmp_path / "out" / "A.csv") == first
    with (tmp_path / "out" / "A.csv").open() as file:
        assert [row["glm"] for row in csv.DictReader(file)] == ["0.250000", "-3.000000"]


def test_figures() -> None:
    """NDCG and recall by sorting lists, the rest by scipy and scikit-learn as they are."""
    assay = made()
    truth = np.array([v.score for v in assay.variants])
    fit = [v.is_fit for v in assay.variants]
    scores = truth + np.random.default_rng(1).normal(size=len(truth))
    own = figures(assay, scores)
    order = sorted(range(len(truth)), key=lambda i: -scores[i])[:10]
    gains = (truth - min(truth)) / (max(truth) - min(truth))
    ideal = sum(g / math.log2(i + 2) for i, g in enumerate(sorted(gains, reverse=True)[:10]))
    assert own.ndcg == pytest.approx(sum(gains[i] / math.log2(rank + 2) for rank, i in enumerate(order)) / ideal)
    best = set(sorted(range(len(truth)), key=lambda i: -truth[i])[:10])
    assert own.top_recall == pytest.approx(len(best & set(order)) / 10)
    assert own.spearman == pytest.approx(stats.spearmanr(truth, scores)[0])
    assert own.auc == pytest.approx(metrics.roc_auc_score(fit, scores))
    above = [score >= sorted(scores)[50] for score in scores]
    assert own.mcc == pytest.approx(metrics.matthews_corrcoef(fit, above))
    assert own.num_variants == 101


def test_figures_of_the_truth_and_of_its_reverse() -> None:
    assay = made()
    truth = np.array([v.score for v in assay.variants])
    best, worst = figures(assay, truth), figures(assay, -truth)
    assert (best.spearman, best.auc, best.ndcg, best.top_recall) == pytest.approx((1, 1, 1, 1))
    assert (worst.spearman, worst.auc, worst.top_recall) == pytest.approx((-1, 0, 0))


def test_figures_that_cannot_be_had_are_nan() -> None:
    alike = Assay(name="a", variants=tuple(Variant(sequence="M", score=float(i)) for i in range(20)))
    own = figures(alike, np.zeros(20))
    assert math.isnan(own.spearman) and math.isnan(own.auc) and math.isnan(own.mcc)
    with pytest.raises(DataError, match="3 scores for 20 variants"):
        figures(alike, np.zeros(3))


def measured(protein: str, selection: str, spearman: float) -> tuple[Assay, Figures]:
    assay = Assay(name=f"{protein}{spearman}", variants=(), protein=protein, selection=selection)
    return assay, Figures(num_variants=1, spearman=spearman, auc=math.nan, mcc=0, ndcg=0, top_recall=0)


def test_neither_protein_nor_kind_counts_twice() -> None:
    own = [
        measured("P1", "Stability", 0.1), measured("P1", "Stability", 0.3), measured("P2", "Stability", 0.6),
        measured("P1", "Binding", 1.0),
    ]  # fmt: skip
    overall = average(own, "spearman")
    assert overall.by_selection == pytest.approx({"Binding": 1.0, "Stability": 0.4})
    assert overall.value == pytest.approx(0.7)
    # of Stability's two proteins 0.2 and 0.6 the mean is 0.2, 0.4, 0.6 in 1, 2, 1 of 4 draws; it counts half
    assert overall.standard_error == pytest.approx(math.sqrt(0.02) / 2, rel=0.05)
    assert math.isnan(average(own, "auc").value) and "auc" in METRICS
    assert math.isnan(average(own[:2], "spearman").standard_error), "one protein tells nothing of others"
