"""The verb `zeroshot`: variants of proteins scored by a model that has learned nothing about them.

Each assay gets a file of scores in ProteinGym's layout, which its own scripts read; figures and their averages are in
summary.json. An assay whose file is there already is not scored again, so a run that was ended goes on.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tyro.conf import Positional

from heads.proteingym import METRICS, Assay, Figures, average, figures, read_assay, read_reference, summary, write_assay
from xtrimo.answer import giving_rows
from xtrimo.backbone import Backbone
from xtrimo.command import ModelOptions, progress_bar
from xtrimo.durable import write_json
from xtrimo.embedding_file import fingerprint
from xtrimo.errors import ConfigError, DataError
from xtrimo.fasta import numbered_lines, open_text
from xtrimo.likelihood import Reading
from xtrimo.model import GLM
from xtrimo.variants import Method, Variant, score_variants, usual_direction, usual_method

logger = logging.getLogger(__name__)

SETTINGS, SUMMARY = "settings.json", "summary.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class ZeroshotOptions(ModelOptions):
    """Score the variants of deep mutational scans in ProteinGym's format. Files of scores go to --out, one row of
    figures for each assay to stdout."""

    assays: Positional[tuple[Path, ...]]
    """CSV files of assays (mutant, mutated_sequence, DMS_score, DMS_score_bin), or folders of them."""
    out: Path
    """Folder of the scores, summary.json and settings.json; continued where it was left."""
    reference: Path | None = None
    """ProteinGym's reference file: wild types, proteins and kinds of selection."""
    method: Method | None = None
    """likelihood: of the whole protein, for a model that generates. masked-marginals: the mutated positions of the wild
    type masked, all of a variant at once. masked-alone: one by one, as ProteinGym's script for ESM does.
    wild-type-marginals: none masked. pseudo: each residue masked in turn. By default likelihood, masked-marginals or
    pseudo: the first that model and assay allow."""
    direction: Reading | None = None
    """Of a likelihood: forward, reverse, or both. By default all that the model was trained in."""
    limit: int | None = None
    """Score so many variants of an assay, drawn at random; by default all."""
    seed: int = 0
    """Of the draw."""

    def __post_init__(self) -> None:
        if self.precision == "int8":
            raise ConfigError("zeroshot ranks by small differences, which int8 does not keep; use fp32 or bf16")
        if self.limit is not None and self.limit < 2:
            raise ConfigError(f"limit is {self.limit}; ranks need at least 2 variants")


def main(args: Sequence[str] | None = None) -> None:
    """`xtrimo zeroshot`."""
    import tyro

    options = tyro.cli(ZeroshotOptions, prog="xtrimo zeroshot", args=args)
    reference = read_reference(options.reference) if options.reference else {}
    files = _files(options.assays)
    model = options.load()
    _settle(options, fingerprint(model))
    if isinstance(model, GLM):
        from xtrimo.prepacking import prepack

        model = prepack(model)
    measured = []
    head = "\t".join(("assay", "num_variants", *METRICS))
    with giving_rows("assays", head) as give_row, progress_bar() as progress:
        for file in progress.track(files, description="scoring"):
            assay = drawn(read_assay(file, reference), options.limit, options.seed)
            own = figures(assay, _scores(options, model, assay))
            measured.append((assay, own))
            said = {name: getattr(own, name) for name in METRICS}
            text = "\t".join((assay.name, str(own.num_variants), *(f"{value:.4f}" for value in said.values())))
            give_row({"assay": assay.name, "num_variants": own.num_variants, **said}, text)
    write_json(options.out / SUMMARY, _without_nan(summary(measured)))
    _report(measured)


def drawn(assay: Assay, limit: int | None, seed: int) -> Assay:
    """The assay with at most `limit` of its variants, drawn at random, in their order."""
    if limit is None or limit >= len(assay.variants):
        return assay
    chosen = np.sort(np.random.default_rng(seed).choice(len(assay.variants), limit, replace=False))
    return replace(assay, variants=tuple(assay.variants[i] for i in chosen))


def _scores(options: ZeroshotOptions, model: Backbone, assay: Assay) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """From the file of an earlier run, or by the model."""
    path, column = options.out / f"{assay.name}.csv", _column(options)
    if path.is_file():
        return _read_scores(path, column, assay)
    variants: list[Variant] = [v.sequence if v.mutations is None else v.mutations for v in assay.variants]
    method = options.method or usual_method(model, variants)
    direction = options.direction or (usual_direction(model) if method == "likelihood" else None)
    logger.info("%s: %s variants by %s%s", assay.name, f"{len(assay.variants):,}", method,
                f", {direction}" if direction else "")  # fmt: skip
    scores = score_variants(model, assay.wild_type, variants, method=method, direction=direction, name=assay.name)
    write_assay(path, assay, {column: scores})
    return scores


def _read_scores(path: Path, column: str, assay: Assay) -> "np.ndarray[Any, np.dtype[np.float64]]":
    import csv

    with open_text(path) as handle:
        rows = list(csv.DictReader(line for _, line in numbered_lines(handle, path)))
    if [row.get("mutated_sequence") for row in rows] != [v.sequence for v in assay.variants] or column not in rows[0]:
        raise DataError(f"{path} holds scores of other variants; remove it, or choose another --out")
    return np.array([float(row[column]) for row in rows])


def _column(options: ZeroshotOptions) -> str:
    return Path(options.model).name


def _files(paths: Sequence[Path]) -> list[Path]:
    found = [
        file
        for path in paths
        for file in (sorted((*path.glob("*.csv"), *path.glob("*.csv.gz"))) if path.is_dir() else [path])
    ]
    if not found:
        raise DataError(f"no assays in {', '.join(map(str, paths)) or 'nothing'}; give CSV files or folders of them")
    return found


def _settle(options: ZeroshotOptions, model_hash: str) -> None:
    """Note how this folder is scored, or refuse to go on in one that was scored otherwise; a model may have moved.

    Raises:
        DataError: other settings there, or another model.
    """
    facts = {name: value for name, value in asdict(options).items() if name not in ("assays", "out", "device")}
    settings = json.loads(json.dumps(facts | {"model_hash": model_hash}, default=str))
    path = options.out / SETTINGS
    if path.is_file():
        before = json.loads(path.read_text("utf-8"))
        if changed := [name for name in settings if name != "model" and before.get(name) != settings[name]]:
            raise DataError(f"{options.out} was scored with other {', '.join(changed)}; choose another --out")
        return
    write_json(path, settings)


def _report(measured: list[tuple[Assay, Figures]]) -> None:
    own = average(measured, "spearman")
    error = "" if np.isnan(own.standard_error) else f", standard error {own.standard_error:.3f}"
    logger.info("Spearman over %d assays: %.3f%s", len(measured), own.value, error)


def _without_nan(value: Any) -> Any:
    """For JSON, which has no NaN."""
    if isinstance(value, dict):
        return {name: _without_nan(own) for name, own in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value
