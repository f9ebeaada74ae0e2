"""The eighteen tasks of xTrimoPGLM (Chen et al. 2024, arXiv:2401.06199), one row a task, in four categories.

A row says what is read, what is predicted, and by which figure the paper judges it. A nineteenth task is one more row,
or `custom_task` from five words. The sets are those that can be had freely: `proxy` marks two where labels of another
stage stand for the paper's, `partial` three that cover a part of the published rows or derive the labels from GO terms.
`EXTRAS` are further sets for the same questions; they are no rows of the table a model is judged by.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from xtrimo.errors import ConfigError

Level = Literal["sequence", "residue", "pair", "two_sequences", "molecule"]
Target = Literal["classes", "regression", "preference"]
Category = Literal["structure", "function", "interaction", "development", "custom"]

CONTACTS_METRIC = "precision@L/5"
DEFAULT_METRICS = {"classes": "accuracy", "regression": "spearman", "preference": "order"}
SHORTEST = {"pair": 25}
"""Residues that a protein needs at a level: the first pair that counts as a contact of long range is 24 apart."""
UNSCORED = "-"
"""The letter of a residue without a label."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Where a table holds what; a name that is missing there is looked for under `readers.ALIASES`."""

    sequence: str = "seq"
    second: str = ""
    """The other protein, or the molecule's name or SMILES; empty where the level has none."""
    label: str = "label"
    """Of a preference, how likely the first protein is better; 1 in all rows where there is no such column."""
    split: str = "split"


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One question asked of proteins."""

    name: str
    category: Category = "custom"
    level: Level
    """What a label belongs to: the protein, each residue, each pair of residues, a protein with another, or with a
    molecule."""
    target: Target
    """One of some classes, a value, or which of two proteins is better."""
    metric: str
    """Key of METRICS, the figure of the paper."""
    hub: str = ""
    """Name of the published data set on the Hugging Face Hub; empty if there is none."""
    max_length: int = 2048
    """Residues; a longer protein is cut to its first ones when it is read, and counted."""
    columns: Columns = Columns()
    classes: tuple[str, ...] = ()
    """The words of the labels in the order of their numbers, where they are fixed; a number then stands for its word.
    Else they are found in the data and sorted."""
    proxy: bool = False
    """Whether the labels stand for others that could not be had."""
    partial: bool = False
    """Whether the set covers a part of the published one, or its labels are derived."""
    summary: str = ""

    def __post_init__(self) -> None:
        for what, value, known in (("level", self.level, get_args(Level)), ("target", self.target, get_args(Target))):
            if value not in known:
                raise ConfigError(f"task {self.name}: no {what} {value!r}; known: {', '.join(known)}")
        if self.target == "regression" and self.level in ("residue", "pair"):
            raise ConfigError(f"task {self.name}: regression per {self.level} has no head; use target classes")
        if self.target == "preference" and (self.level != "sequence" or not self.columns.second):
            raise ConfigError(
                f"task {self.name}: a preference is of level sequence, with a column for the second protein; got level"
                f" {self.level}, column {self.columns.second!r}"
            )
        if self.level == "two_sequences" and not self.columns.second:
            raise ConfigError(f"task {self.name}: level two_sequences needs the column of the second protein")
        if self.level == "molecule" and not self.columns.second:
            raise ConfigError(f"task {self.name}: level molecule needs the column of its name or SMILES")
        if self.level != "molecule" and not self.reads_two and self.columns.second:
            raise ConfigError(f"task {self.name}: level {self.level} has no second input, got {self.columns.second!r}")
        if self.max_length < self.shortest:
            raise ConfigError(
                f"task {self.name}: max_length {self.max_length} is below the {self.shortest} residues that level"
                f" {self.level} needs"
            )

    @property
    def reads_two(self) -> bool:
        """Whether a row has two proteins."""
        return self.level == "two_sequences" or self.target == "preference"

    @property
    def shortest(self) -> int:
        """Residues of the shortest protein that can be used."""
        return SHORTEST.get(self.level, 1)


BINARY = ("0", "1")

_ROWS = (
    Task(
        name="contact_map", category="structure", level="pair", target="classes", metric=CONTACTS_METRIC,
        hub="proteinglm/contact_prediction_binary", max_length=512, classes=BINARY,
        summary="which residues touch: C-beta (virtual) nearer than 8 A; scored at a separation of 24 or more",
    ),
    Task(
        name="fold_prediction", category="structure", level="sequence", target="classes", metric="accuracy",
        hub="proteinglm/fold_prediction", max_length=256, partial=True,
        summary="SCOP fold of a domain; about 40 % of the published rows",
    ),
    Task(
        name="secondary_structure", category="structure", level="residue", target="classes", metric="accuracy",
        hub="proteinglm/ssp_q3", classes=("H", "E", "C"), summary="helix, strand or coil of each resolved residue",
    ),
    Task(
        name="antibiotic_resistance", category="function", level="sequence", target="classes", metric="accuracy",
        hub="proteinglm/antibiotic_resistance", summary="the class of antibiotics that a protein defeats",
    ),
    Task(
        name="fluorescence", category="function", level="sequence", target="regression", metric="spearman",
        hub="proteinglm/fluorescence_prediction", summary="log10 brightness of avGFP variants",
    ),
    Task(
        name="fitness_gb1", category="function", level="sequence", target="regression", metric="spearman",
        hub="proteinglm/fitness_prediction", summary="fitness of GB1 variants at four sites, FLIP three_vs_rest",
    ),
    Task(
        name="localization", category="function", level="sequence", target="classes", metric="accuracy",
        hub="proteinglm/localization_prediction", partial=True,
        summary="the one of ten compartments a protein is in, derived from GO terms",
    ),
    Task(
        name="kcat", category="interaction", level="molecule", target="regression", metric="pearson",
        hub="proteinglm/enzyme_catalytic_efficiency", columns=Columns(second="substrate"),
        summary="log10 turnover number (1/s) of a wild-type enzyme with a substrate, by name",
    ),
    Task(
        name="metal_ion_binding", category="interaction", level="sequence", target="classes", metric="accuracy",
        hub="proteinglm/metal_ion_binding", classes=BINARY, partial=True,
        summary="whether a protein binds a metal ion, derived from GO terms: 0 means not annotated",
    ),
    Task(
        name="peptide_hla", category="interaction", level="two_sequences", target="classes", metric="auroc",
        hub="proteinglm/peptide_HLA_MHC_affinity", max_length=64, columns=Columns(second="seq_b"), classes=BINARY,
        summary="whether an HLA molecule (34-residue pseudo-sequence) presents a peptide",
    ),
    Task(
        name="tcr_pmhc", category="interaction", level="two_sequences", target="classes", metric="auroc",
        hub="proteinglm/tcr_pmhc_affinity", max_length=64, columns=Columns(second="seq_b"), classes=BINARY,
        summary="whether a T-cell receptor (CDR3 beta) binds a peptide",
    ),
    Task(
        name="solubility", category="development", level="sequence", target="classes", metric="accuracy",
        hub="proteinglm/solubility_prediction", classes=BINARY, summary="soluble expression in E. coli",
    ),
    Task(
        name="stability", category="development", level="sequence", target="regression", metric="spearman",
        hub="proteinglm/stability_prediction", summary="stability score of designed mini-proteins",
    ),
    Task(
        name="temperature_stability", category="development", level="sequence", target="classes", metric="mcc",
        hub="proteinglm/temperature_stability", classes=BINARY, summary="whether a protein is from a thermophile",
    ),
    Task(
        name="optimal_temperature", category="development", level="sequence", target="regression", metric="spearman",
        hub="proteinglm/optimal_temperature", summary="temperature (C) at which an enzyme works best",
    ),
    Task(
        name="optimal_ph", category="development", level="sequence", target="regression", metric="spearman",
        hub="proteinglm/optimal_ph", summary="pH at which an enzyme works best",
    ),
    Task(
        name="cloning_clf", category="development", level="sequence", target="classes", metric="auroc",
        hub="proteinglm/cloning_clf", classes=BINARY, proxy=True,
        summary="proxy: whether a protein could be crystallised, for lack of labels of the cloning stage",
    ),
    Task(
        name="material_production", category="development", level="sequence", target="classes", metric="auroc",
        hub="proteinglm/material_production", classes=BINARY, proxy=True,
        summary="proxy: whether work on a target went on to a soluble protein or was stopped",
    ),
)  # fmt: skip
TASKS: dict[str, Task] = {row.name: row for row in _ROWS}
"""The eighteen, in the paper's order."""

_EXTRA_ROWS = (
    Task(
        name="fold_prediction_fold_level", category="structure", level="sequence", target="classes", metric="accuracy",
        max_length=256, partial=True, summary="fold_prediction, tested on new superfamilies of known folds",
    ),
    Task(
        name="fold_prediction_family_level", category="structure", level="sequence", target="classes",
        metric="accuracy", max_length=256, partial=True, summary="fold_prediction, tested on known families",
    ),
    Task(
        name="cath_superfamily", category="structure", level="sequence", target="classes", metric="accuracy",
        summary="CATH superfamily of a domain",
    ),
    Task(
        name="localization_psortb", category="function", level="sequence", target="classes", metric="accuracy",
        summary="site of a bacterial protein",
    ),
    Task(
        name="kcat_km", category="interaction", level="molecule", target="regression", metric="pearson",
        columns=Columns(second="smiles"), summary="log10 kcat/KM of an enzyme with a substrate, by SMILES",
    ),
    Task(
        name="metal_ion_residues", category="interaction", level="residue", target="classes", metric="auroc",
        classes=BINARY, summary="which residues bind a metal ion",
    ),
    Task(
        name="peptide_hla_ic50", category="interaction", level="two_sequences", target="regression", metric="spearman",
        max_length=64, columns=Columns(second="seq_b"), summary="affinity of a peptide to an HLA molecule",
    ),
    Task(
        name="melting_temperature", category="development", level="sequence", target="regression", metric="spearman",
        summary="melting temperature (C)",
    ),
)  # fmt: skip
EXTRAS: dict[str, Task] = {row.name: row for row in _EXTRA_ROWS}


def task(name: str) -> Task:
    """The row of a task, one of TASKS or EXTRAS.

    Raises:
        ConfigError: for an unknown name, listing the known ones.
    """
    found = TASKS.get(name) or EXTRAS.get(name)
    if found is None:
        raise ConfigError(
            f"no task {name!r}; known: {', '.join(TASKS)}; also {', '.join(EXTRAS)}; a new one is described by"
            " --level and --target"
        )
    return found


def custom_task(
    name: str,
    *,
    level: Level,
    target: Target,
    metric: str | None = None,
    columns: Columns | None = None,
    max_length: int = 2048,
) -> Task:
    """A task of your own: what a label belongs to, what it is, how it is judged, and the columns it is read from.

    Args:
        name: what tables call it.
        metric: key of METRICS; by default accuracy for classes, spearman for numbers, order for preferences,
            precision@L/5 for contacts.

    Raises:
        ConfigError: a level or target that is not known, or values that do not go together.
    """
    usual = CONTACTS_METRIC if level == "pair" else DEFAULT_METRICS.get(target, "")
    return Task(
        name=name, level=level, target=target, metric=metric or usual, columns=columns or Columns(),
        max_length=max_length, classes=BINARY if level == "pair" else (),
    )  # fmt: skip


def to_dict(task: Task) -> dict[str, Any]:
    """A JSON-ready row; `from_dict` turns it back."""
    facts = {field.name: getattr(task, field.name) for field in fields(task)}
    columns = {field.name: getattr(task.columns, field.name) for field in fields(task.columns)}
    return facts | {"columns": columns, "classes": list(task.classes)}


def from_dict(facts: dict[str, Any]) -> Task:
    """The task that `to_dict` wrote.

    Raises:
        ConfigError: facts that are missing, unknown or do not go together.
    """
    try:
        return Task(**(facts | {"columns": Columns(**facts["columns"]), "classes": tuple(facts["classes"])}))
    except (KeyError, TypeError) as error:
        raise ConfigError(f"not the facts of a task ({error}); expected those that to_dict writes") from error
