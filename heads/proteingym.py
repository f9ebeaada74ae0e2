"""ProteinGym (Notin et al. 2023, doi:10.1101/2023.12.07.570727): its files, its figures, and how it averages them.

An assay is a CSV file: `mutant` (A123G:K45C, counted from 1, of substitutions alone), `mutated_sequence`, `DMS_score`
(higher is fitter) and `DMS_score_bin` (1 is fit). The reference table tells the wild type (`target_seq`), protein and
kind of selection of each `DMS_id`. A file of scores has the columns of the assay and one named after the model.

Figures of an assay, all of ranks alone: Spearman's correlation; AUROC and, cut at the median of the scores, MCC against
the bin; NDCG of the best tenth, with scores stretched to 0..1 as gains; the share of the true best tenth that is in the
predicted one. Assays of one protein and kind of selection are averaged, then the proteins of a kind, then the kinds, so
that neither a protein nor a kind counts more for having been measured often. The standard error is of the last mean,
with the proteins of each kind drawn again.
"""

import csv
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64

from xtrimo.command import replacing
from xtrimo.errors import DataError
from xtrimo.fasta import numbered_lines, open_text
from xtrimo.mutation import Mutation, mutated, substitutions

COLUMNS = ("mutant", "mutated_sequence", "DMS_score", "DMS_score_bin")
TOP_RATIO = 0.1
DRAWS = 10_000

Scores = Float64[np.ndarray, "variant"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One measured protein."""

    sequence: str
    score: float
    """Higher is fitter."""
    is_fit: bool | None = None
    mutations: tuple[Mutation, ...] | None = None
    """What tells it from the wild type; None for insertions and deletions."""

    @property
    def mutant(self) -> str:
        """As the files write it; the whole sequence where it is no substitution."""
        if self.mutations is None:
            return self.sequence
        return ":".join(f"{m.wild}{m.position}{m.mutant}" for m in self.mutations)


@dataclass(frozen=True, kw_only=True, slots=True)
class Assay:
    """One deep mutational scan."""

    name: str
    """DMS_id."""
    variants: tuple[Variant, ...]
    wild_type: str = ""
    """Empty where it is not known, which only insertions and deletions allow."""
    protein: str = ""
    """UniProt_ID."""
    selection: str = ""
    """Kind of selection, such as Stability."""

    @property
    def is_substitution(self) -> bool:
        """Whether every variant is as long as the wild type and written as mutations."""
        return all(variant.mutations is not None for variant in self.variants)


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """How scores of a model go with an assay; NaN where it does not say."""

    num_variants: int
    spearman: float
    auc: float
    mcc: float
    ndcg: float
    top_recall: float


METRICS = tuple(field.name for field in fields(Figures) if field.name != "num_variants")


@dataclass(frozen=True, kw_only=True, slots=True)
class Average:
    """A figure over many assays."""

    value: float
    standard_error: float
    """NaN where no kind of selection has two proteins."""
    by_selection: dict[str, float]


def read_reference(path: str | Path) -> dict[str, dict[str, str]]:
    """The reference table: DMS_id -> its row.

    Raises:
        DataError: without the columns DMS_id and target_seq.
    """
    rows = {}
    for where, row in _table(Path(path)):
        if not {"DMS_id", "target_seq"} <= row.keys():
            raise DataError(
                f"{where}: no DMS_id and target_seq among {', '.join(row)}; give ProteinGym's reference file"
            )
        rows[row["DMS_id"]] = row
    return rows


def read_assay(path: str | Path, reference: Mapping[str, Mapping[str, str]] | None = None) -> Assay:
    """An assay; its DMS_id is the file's name, or that of the row of the reference table which names the file.

    Raises:
        DataError: a column that is missing, a mutation that does not fit the wild type or its own sequence, or a score
            that is no number; names the line.
    """
    path, reference = Path(path), reference or {}
    stem = path.name.removesuffix(".gz").removesuffix(".csv")
    named = (name for name, row in reference.items() if row.get("DMS_filename") == path.name)
    name = next(named, stem)
    row = reference.get(name, {})
    wild_type = row.get("target_seq", "").upper()
    variants = []
    for where, cells in _table(path):
        variant, wild_type = _variant(where, cells, wild_type)
        variants.append(variant)
    if not variants:
        raise DataError(f"{path}: holds no variant; expected the columns {', '.join(COLUMNS)} and a row for each")
    return Assay(
        name=name, variants=tuple(variants), wild_type=wild_type, protein=row.get("UniProt_ID", name),
        selection=row.get("coarse_selection_type", ""),
    )  # fmt: skip


def write_assay(path: str | Path, assay: Assay, scores: Mapping[str, Scores] | None = None) -> None:
    """The assay as a file of ProteinGym, with a column for the scores of each model."""
    scores = scores or {}
    with replacing(Path(path)) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*COLUMNS, *scores))
        for i, v in enumerate(assay.variants):
            bin_ = "" if v.is_fit is None else int(v.is_fit)
            writer.writerow((v.mutant, v.sequence, repr(v.score), bin_, *(f"{own[i]:.6f}" for own in scores.values())))


def figures(assay: Assay, scores: Scores) -> Figures:
    """How `scores` go with the assay.

    Raises:
        DataError: not one score for each variant.
    """
    from scipy.stats import spearmanr
    from sklearn.metrics import matthews_corrcoef, roc_auc_score

    truth = np.array([variant.score for variant in assay.variants])
    if scores.shape != truth.shape:
        raise DataError(f"{assay.name}: {len(scores)} scores for {len(truth)} variants; give one for each")
    varies = len(truth) > 1 and np.ptp(truth) > 0 and np.ptp(scores) > 0
    fit = [variant.is_fit for variant in assay.variants]
    has_bins = None not in fit and len(set(fit)) == 2
    return Figures(
        num_variants=len(truth),
        spearman=float(spearmanr(truth, scores).statistic) if varies else math.nan,
        auc=float(roc_auc_score(fit, scores)) if has_bins else math.nan,
        mcc=float(matthews_corrcoef(fit, scores >= np.median(scores))) if has_bins else math.nan,
        ndcg=_ndcg(truth, scores),
        top_recall=float((_top(truth) & _top(scores)).sum() / max(1, _top(truth).sum())),
    )


def average(measured: Sequence[tuple[Assay, Figures]], metric: str, *, seed: int = 0) -> Average:
    """One figure over assays, as the module says; assays without it are left out.

    Args:
        metric: one of METRICS.
    """
    groups: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for assay, own in measured:
        value = getattr(own, metric)
        if not math.isnan(value):
            groups[assay.selection][assay.protein].append(value)
    by_protein = {kind: np.array([np.mean(own) for own in proteins.values()]) for kind, proteins in groups.items()}
    by_kind = {kind: float(values.mean()) for kind, values in sorted(by_protein.items())}
    if not by_kind:
        return Average(value=math.nan, standard_error=math.nan, by_selection={})
    rng = np.random.default_rng(seed)
    drawn = [v[rng.integers(len(v), size=(DRAWS, len(v)))].mean(1) for v in by_protein.values()]
    # where each kind has one protein there is nothing to draw from
    is_known = any(len(values) > 1 for values in by_protein.values())
    error = float(np.mean(drawn, axis=0).std(ddof=1)) if is_known else math.nan
    return Average(
        value=float(np.mean(list(by_kind.values()))), standard_error=error,
        by_selection=by_kind,
    )  # fmt: skip


def summary(measured: Sequence[tuple[Assay, Figures]]) -> dict[str, object]:
    """JSON-ready: each assay's figures, and their averages."""
    return {
        "assays": {assay.name: asdict(own) for assay, own in measured},
        "average": {metric: asdict(average(measured, metric)) for metric in METRICS},
    }


def _ndcg(truth: Scores, scores: Scores) -> float:
    """Discounted gains of the variants ranked best, over those of the best ones."""
    num_top = math.floor(len(truth) * TOP_RATIO)
    gains = (truth - truth.min()) / max(np.ptp(truth), np.finfo(float).tiny)
    discounts = 1 / np.log2(np.arange(num_top) + 2)
    ideal = (np.sort(gains)[::-1][:num_top] * discounts).sum()
    return float((gains[np.argsort(-scores)[:num_top]] * discounts).sum() / ideal) if ideal else math.nan


def _top(values: Scores) -> Bool[np.ndarray, "variant"]:
    return values > np.percentile(values, 100 * (1 - TOP_RATIO))


def _variant(where: str, cells: Mapping[str, str], wild_type: str) -> tuple[Variant, str]:
    """The variant of a row, and the wild type, which the first row tells where the reference table does not."""
    missing = [name for name in ("DMS_score",) if name not in cells]
    if missing or not {"mutant", "mutated_sequence"} & cells.keys():
        raise DataError(f"{where}: columns {', '.join(cells)}; expected {', '.join(COLUMNS)}")
    mutant, sequence = cells.get("mutant", "").strip(), cells.get("mutated_sequence", "").strip().upper()
    mutations = substitutions(mutant)
    if mutations is None:
        sequence = sequence or mutant.upper()
    elif sequence and not wild_type:
        wild_type = mutated(sequence, [Mutation(m.mutant, m.position, m.wild) for m in mutations], name=where)
    if mutations is not None:
        if not wild_type:
            raise DataError(f"{where}: {mutant} of which protein? Give the reference table, or mutated_sequence")
        made = mutated(wild_type, mutations, name=where)
        if sequence and made != sequence:
            raise DataError(f"{where}: {mutant} of the wild type is not the mutated_sequence; correct one of them")
        sequence = made
    try:
        score = float(cells["DMS_score"])
        bin_ = cells.get("DMS_score_bin", "").strip()
        is_fit = bool(int(float(bin_))) if bin_ else None
    except ValueError as error:
        raise DataError(f"{where}: {error}; DMS_score is a number, DMS_score_bin 0 or 1") from error
    if not math.isfinite(score):
        raise DataError(f"{where}: DMS_score {score} is not a number that can be ranked; leave such rows out")
    return Variant(sequence=sequence, score=score, is_fit=is_fit, mutations=mutations), wild_type


def _table(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    with open_text(path) as handle:
        rows = csv.DictReader(line for _, line in numbered_lines(handle, path))
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            if None in row or None in row.values():
                raise DataError(f"{where}: {len(rows.fieldnames or ())} cells were expected; correct the row")
            yield where, {str(name): value for name, value in row.items()}
