"""The judge: generated proteins measured beside real ones that were held out, and beside controls nobody would want.

No score tells by itself whether a model has learned a family. A profile HMM writes proteins that it takes for members
itself, wherever the threshold is low; a model that copies its training proteins looks perfect but for the nearest of
them; a 3-gram sampler has the right composition. So every measure (measures.py) is taken of all of them alike, as many
proteins of each control as were generated, with a 95 % interval over proteins.
"""

import importlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tyro.conf import Positional

from generate import membership, novelty, perplexity
from generate.controls import CONTROLS
from generate.hooks import Hooks, find_function
from generate.judge_report import Judgement, told, write_judgement
from generate.measures import GENERATED, GROUPS, HELD_OUT, MEASURES, Case, Finding
from generate.members import Real, read_real, read_thresholds
from xtrimo.answer import give
from xtrimo.backbone import Backbone
from xtrimo.errors import ConfigError, DataError, FastaError, XtrimoError
from xtrimo.fasta import Record, parse_fasta
from xtrimo.tokens import RESIDUES

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeOptions:
    """Generated proteins beside real ones that were held out, copies, composition-random proteins, a 3-gram sampler,
    and a family's own HMMs: validity, length, composition, repeats, perplexity, novelty, diversity, and for a family
    membership and two-site correlation. Writes judge.md, judge.html, pictures, judge.json and judge.csv."""

    fasta: Positional[Path]
    """The generated proteins."""
    reference: Path
    """FASTA file of the proteins trained on. Headers may say family=NAME and split=train, valid or test; those of test
    (else valid) are then the held-out members."""
    family: str | None = None
    """Name of the family that the proteins should belong to, if there is one; it needs the next two."""
    hmm: Path | None = None
    """HMMER3 profiles, plain or gzipped, named FAMILY_1, FAMILY_2 and so on."""
    thresholds: Path | None = None
    """CSV file with the columns family and threshold_bits, the bit score from which a protein counts as a member."""
    held_out: Path | None = None
    """FASTA file of held-out members; by default those of the reference, as its headers say."""
    model: str | None = None
    """The model that wrote the proteins: its perplexity, and a map of its embeddings."""
    independent: str | None = None
    """Another model, for a perplexity that does not praise its own work."""
    confidence: str | None = None
    """module:function that takes a sequence and returns a number, such as the mean pLDDT of its predicted structure."""
    out: Path | None = None
    """Folder to write to; by default the name of the FASTA file with .judge at its end."""
    seed: int = 0
    """Of the controls, and of what is drawn at random."""
    device: str = "cpu"
    """Where the models run, such as cuda."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; it must be at least 0")
        given = [name for name in ("family", "hmm", "thresholds") if getattr(self, name) is not None]
        if len(given) in (1, 2):
            raise ConfigError(
                f"{' and '.join(given)} given alone; a family needs all of --family, --hmm and --thresholds; they"
                " are left out without one"
            )


def read_generated(path: Path) -> tuple[list[Record], list[str]]:
    """The records that can be measured, and the names of those that cannot: empty, several chains, unknown letters.

    Raises:
        FastaError: a file that cannot be read, or without a record that can be measured.
    """
    readable: list[Record] = []
    unreadable: list[str] = []
    for _, record in parse_fasta(path, force=True):  # a sampler may well write nothing but A, C and G
        if record.sequence and not record.sequence.strip(RESIDUES):
            readable.append(record)
        else:
            unreadable.append(record.name)
    if not readable:
        raise FastaError(
            f"{path}: none of its {len(unreadable)} records is a protein, one chain of {RESIDUES}; there is nothing to"
            " judge"
        )
    return readable, unreadable


def judge_generated(options: JudgeOptions) -> Judgement:
    """All measures of all sets.

    Raises:
        FastaError, SequenceError, DataError: a file that cannot be read, or lacks the family.
        ConfigError, CheckpointError: a model or function that cannot be used.
    """
    generated, unreadable = read_generated(options.fasta)
    real = read_real(options.reference, options.held_out, options.family)
    family = _family(options, generated, real)
    score = find_function(options.confidence, "--confidence") if options.confidence else None
    models = {
        measure: perplexity.load(name, options.device)
        for measure, name in (("model_perplexity", options.model), ("independent_perplexity", options.independent))
        if name is not None
    }
    controls = _controls(real, family, len(generated), options.seed)
    sets = {GENERATED: generated, HELD_OUT: list(real.held_out), **controls}
    case = Case(
        sets=sets, num_unreadable=len(unreadable), training=[record.sequence for record in real.training],
        family=family, method=novelty.best_method(), confidence=Hooks(score=score), seed=options.seed,
    )  # fmt: skip
    groups = GROUPS | {name: partial(perplexity.of_perplexity, model=m, measure=name) for name, m in models.items()}
    findings: list[Finding] = []
    for name, group in groups.items():
        began = time.monotonic()
        findings += group(case)
        logger.info("%s: %.1f s", name.replace("_", " "), time.monotonic() - began)
    writer = models.get("model_perplexity")
    return Judgement(
        family=options.family, threshold=family.threshold if family else None, source=options.fasta.name, sets=sets,
        unreadable=tuple(unreadable), findings=tuple(findings), methods=_methods(options, case, models),
        places=perplexity.embedding_map(writer, sets) if writer is not None else None,
    )  # fmt: skip


def _family(options: JudgeOptions, generated: Sequence[Record], real: Real) -> membership.Family | None:
    """The family that is asked for, with its HMMs.

    Raises:
        DataError: a file that cannot be read, or lacks the family; a protein too long for HMMER.
    """
    if options.family is None or options.hmm is None or options.thresholds is None:
        return None
    thresholds = read_thresholds(options.thresholds)
    if options.family not in thresholds:
        raise DataError(
            f"{options.thresholds} has no row of {options.family}; its families are {', '.join(thresholds)}"
        )
    membership.refuse_long([*generated, *real.held_out, *real.members])
    hmms = membership.read_hmms(options.hmm)
    own = membership.of_family(hmms, options.family, thresholds)
    main = membership.main_hmm([hmms[number] for number in own], [record.sequence for record in real.held_out])
    return membership.Family(name=options.family, hmms=hmms, own=own, main=own[main], thresholds=thresholds)


def _controls(real: Real, family: membership.Family | None, num: int, seed: int) -> dict[str, list[Record]]:
    """As many proteins of each control as were generated."""
    members = [record.sequence for record in real.members]
    written = {of: make(members, num, np.random.default_rng((seed, number))) for number, (of, make) in
               enumerate(CONTROLS.items())}  # fmt: skip
    if family is not None:
        written["HMM"] = membership.emitted([family.hmms[number] for number in family.own], num, seed)
    return {of: [Record(f"{of}_{i}", s) for i, s in enumerate(own, start=1)] for of, own in written.items()}


def _methods(options: JudgeOptions, case: Case, models: Mapping[str, Backbone]) -> dict[str, str]:
    """What the figures rest on, in words."""
    found = {
        "trained on": f"{len(case.training):,} proteins of {options.reference.name}",
        "held out": (options.held_out or options.reference).name,
        "nearest training identity and clusters": case.method,
        "seed": str(options.seed),
    }
    if (family := case.family) is not None:
        assert options.hmm
        hmm = family.hmms[family.main]
        found["family members"] = (
            f"HMMs of {options.hmm.name}, best bit score of {family.name} at least {family.threshold:g}"
        )
        found["two-site correlation"] = f"the {hmm.M} match columns of {hmm.name}"
    names = {"model_perplexity": options.model, "independent_perplexity": options.independent}
    found |= {MEASURES[m].title: f"{names[m]}: {perplexity.method_of(model)}" for m, model in models.items()}
    return found | ({"structure confidence": options.confidence} if options.confidence else {})


def main(args: Sequence[str] | None = None) -> None:
    """`xtrimo judge`."""
    for package in ("matplotlib", "pyhmmer", "scipy"):  # what is missing is told now, not after minutes
        importlib.import_module(package)
    import tyro

    options = tyro.cli(JudgeOptions, prog="xtrimo judge", args=args)
    out = options.out or options.fasta.with_name(f"{options.fasta.name}.judge")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is no folder; choose another --out")  # now, not after minutes
    judgement = judge_generated(options)
    try:
        files = write_judgement(judgement, out)
    except OSError as error:
        raise XtrimoError(f"{out} cannot be written: {error.strerror or error}; choose another --out") from error
    member = judgement.finding("member")
    members = f", members of {judgement.family}: {told(member)}" if member else ""
    give(judgement.to_dict(), f"{len(judgement.sets[GENERATED])} proteins{members}; {files[0]}")
