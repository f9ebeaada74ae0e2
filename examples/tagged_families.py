"""Families on request: proteins written after a family's tag, judged beside real members and floors; one page.

    python examples/tagged_families.py DATA --model MODEL --out OUT

DATA is a folder with families.fasta.gz (headers `family=NAME split=train`, or test), families.hmm.gz (HMMs NAME_1,
NAME_2 ..), families_hmm_scores.csv (columns family and threshold_bits) and sample.fasta.gz, which floors of infilling
are counted in. MODEL was tuned by `xtrimo finetune-generator` on the tag `family`. All is written with one setting,
below, chosen before any sample was seen: temperature 0.8, nothing left out, no guidance; a protein is cut at the length
of the longest training member.

    OUT/settings.json          what decides the samples
    OUT/samples/NAME.fasta     of each tag, and untagged.fasta; those that are there are not written again
    OUT/judge/NAME/judge.md    all that `xtrimo judge` measures
    OUT/tagged_families.md     the page, with tagged_families.png and infilling.png
    OUT/results.json           its figures; a run that has it is finished: without it all is judged again

Controls: samples without a tag, and those of each tag taken for members of the next family. The tuned model also fills
spans of 20 residues in held-out members behind their tags (infill_families.py): by smask and by mlm drawn with the same
temperature, likeliest, and the best of 16 by the family's HMMs, which judge it too; from both ends; and by mlm and HMM.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool
from tyro.conf import Positional

from examples import infill_families, tagged_figures
from examples.infill_figures import MODEL_WAYS
from examples.tagged_figures import FIGURES, SETS, TARGETS, Outcome, Verdict, to_dict, verdicts
from generate.judge import JudgeOptions, judge_generated, read_generated
from generate.judge_report import told, write_judgement
from generate.measures import Finding, mean
from generate.members import read_real, read_thresholds
from generate.membership import best_of_families, bit_scores, read_hmms
from generate.output import deliver
from generate.sampler import GenerateOptions, SamplingConfig, brief_of
from xtrimo import figures
from xtrimo.backbone import Backbone, load
from xtrimo.command import ModelOptions
from xtrimo.durable import write_json, write_text
from xtrimo.embedding_file import fingerprint
from xtrimo.errors import ConfigError
from xtrimo.intervals import Estimate
from xtrimo.log import configure
from xtrimo.pages import Section, to_markdown
from xtrimo.run_folder import RESULTS, claim

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPERATURE, TOP_P, SEED = 0.8, 1.0, 0
DRAWS = 16  # fillings of a span, from which the family's HMMs choose
PRECISION: Literal["bf16"] = "bf16"
TAG, UNTAGGED, ALL = "family", "untagged", "all"
FAMILIES = (
    "triosephosphate_isomerase", "peptidyl_trna_hydrolase", "uracil_phosphoribosyltransferase", "ribonuclease_3",
    "orotidine_5_phosphate_decarboxylase", "adenylate_kinase", "phosphoglycerate_kinase", "dutp_diphosphatase",
)  # fmt: skip
"""Those of which the HMMs recognize at least 97 % of the held-out members."""

logger = logging.getLogger("xtrimo.examples")
Hits = Mapping[str, Mapping[str, Bool[np.ndarray, "protein"]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Write proteins of families by their tags, and judge them."""

    data: Positional[Path]
    """Folder of families.fasta.gz, families.hmm.gz, families_hmm_scores.csv and sample.fasta.gz."""
    model: str
    """Model directory that was tuned on the tag family."""
    out: Path = Path("tagged_families")
    """Folder of all files."""
    num: int = 100
    """Proteins of each tag."""
    families: tuple[str, ...] = FAMILIES
    """Values of the tag, two or more."""
    spans: int = 300
    """Held-out members that a span is filled in."""

    def __post_init__(self) -> None:
        if len(set(self.families)) < max(2, len(self.families)):
            raise ConfigError(f"families are {', '.join(self.families)}; expected two or more, each once")

    @property
    def members(self) -> Path:
        """Of the families, by their headers trained on or held out."""
        return self.data / "families.fasta.gz"

    @property
    def hmms(self) -> Path:
        """Of all families."""
        return self.data / "families.hmm.gz"

    @property
    def thresholds(self) -> Path:
        """Bits from which a protein is a member."""
        return self.data / "families_hmm_scores.csv"

    @property
    def infilling(self) -> infill_families.Options:
        """The same model on the same families."""
        return infill_families.Options(
            data=self.data, model=self.model, out=self.out, spans=self.spans, families=self.families, tag=TAG,
            by=MODEL_WAYS, temperature=TEMPERATURE, draws=DRAWS, seed=SEED,
        )  # fmt: skip


def longest_lengths(options: Options) -> dict[str, int]:
    """Of the training members of each family, and of all of them for what is written without a tag.

    Raises:
        DataError: a family without members on both sides.
    """
    members = {name: read_real(options.members, None, name).members for name in options.families}
    found = {name: max(len(member.sequence) for member in own) for name, own in members.items()}
    return {**found, UNTAGGED: max(found.values())}


def write_samples(options: Options, model: Backbone, lengths: Mapping[str, int]) -> dict[str, Path]:
    """A FASTA file for each tag, and one without; what an earlier run wrote stays.

    Raises:
        ConfigError: a tag that the model does not know.
    """
    paths = {name: options.out / "samples" / f"{name}.fasta" for name in lengths}
    paths[UNTAGGED].parent.mkdir(parents=True, exist_ok=True)
    work = []
    for name, length in lengths.items():
        sampling = SamplingConfig(
            prompt="" if name == UNTAGGED else f"<{TAG}={name}>", num=options.num, temperature=TEMPERATURE,
            top_p=TOP_P, seed=SEED, max_length=length,
        )  # fmt: skip
        asked = GenerateOptions(model=options.model, precision=PRECISION, out=paths[name], sampling=sampling)
        work.append((asked, brief_of(model, sampling)))  # what cannot be written is told before anything is
    for asked, brief in work:
        if asked.out and not asked.out.exists():
            logger.info("writing %s", asked.out)
            list(deliver(asked, model, brief, asked.out.stem))
    return paths


def judge_family(options: Options, name: str, samples: Path) -> Outcome:
    """The samples of one tag as members of its family; leaves the judge's own page."""
    logger.info("judging %s", name)
    judgement = judge_generated(
        JudgeOptions(
            fasta=samples, reference=options.members, family=name, hmm=options.hmms, thresholds=options.thresholds,
            seed=SEED,
        )
    )  # fmt: skip
    write_judgement(judgement, options.out / "judge" / name)
    return Outcome.of(judgement)


def find_hits(options: Options, paths: Mapping[str, Path]) -> Hits:
    """By the tag asked for and by family, which of the samples reach the threshold of the family."""
    hmms, thresholds = read_hmms(options.hmms), read_thresholds(options.thresholds)
    found = {}
    for asked, path in paths.items():
        bits = bit_scores(hmms, [record.sequence for record in read_generated(path)[0]])
        best = best_of_families(bits, hmms, thresholds)
        found[asked] = {name: scores >= thresholds[name] for name, scores in best.items()}
    return found


def controls(hits: Hits, families: Sequence[str]) -> dict[str, Estimate]:
    """The share of samples that hit, by whether and what the tag says."""
    pairs = zip(families, (*families[1:], families[0]), strict=True)
    untagged = hits[UNTAGGED]
    rows = {
        "right tag: of the family asked for": [hits[name][name] for name in families],
        "wrong tag: of the next family": [hits[asked][name] for asked, name in pairs],
        "no tag: of any of the families": [np.any([untagged[name] for name in families], axis=0)],
    }
    return {what: mean("member", what, np.concatenate(row).astype(np.float64)).estimate for what, row in rows.items()}


def picture(of: Mapping[str, Sequence[Outcome]]) -> "Figure":
    """A panel for each of FIGURES, a row for each family, a point for each set."""
    figure, panels = figures.blank(15, 1.2 + 0.55 * len(of), columns=len(FIGURES))
    for axes, (what, estimate) in zip(panels, FIGURES.items(), strict=True):
        for number, name in enumerate(SETS):
            found = [estimate(outcomes, name) for outcomes in of.values()]
            ends = [(one.low, one.high) for one in found]
            at, colour = np.arange(len(of)) + 0.14 * (number - 2), (*figures.COLOURS[:4], figures.GREY)[number]
            axes.hlines(at, *np.transpose(ends), color=colour, linewidth=1.5)
            axes.scatter([one.value for one in found], at, s=16, color=colour, label=name)
        axes.set_yticks(range(len(of)), list(of) if axes is panels[0] else [])
        axes.invert_yaxis()
        axes.set_xlabel(what)
        axes.grid(axis="x", alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(SETS), frameon=False)
    return figure


def text(estimate: Estimate) -> str:
    """A figure and its interval, in words."""
    return told(Finding("", "", estimate, 0))


def judged(verdict: Verdict) -> str:
    """The same and whether it is enough."""
    return f"{text(verdict.estimate)}, **{'met' if verdict.is_met else 'short'}**"


def sections(options: Options, of: Mapping[str, Sequence[Outcome]], hits: Hits, image: Path) -> list[Section]:
    """The page but for infilling."""
    cut = ", ".join(f"{name} {of[name][0].is_cut.mean():.0%}" for name in options.families)
    about = (
        f"{options.num} proteins of each of {len(options.families)} tags by {options.model}: temperature"
        f" {TEMPERATURE:g}, top_p {TOP_P:g}, no guidance, seed {SEED}, {PRECISION}; cut at the length of the longest"
        f" training member were {cut}. In brackets 95 % intervals over proteins; of correlations in the row {ALL}, over"
        " families. A target is met by the figure itself, whatever its interval, but that of correlations by the"
        " whole interval. Clusters are those among all samples of a tag; a set without any covariance counts as"
        " correlation 0. Noise is new and diverse: the last three targets say something only where the first is met, or"
        " near it."
    )
    targets = [["family", *(f"{what}: {target.wanted}" for what, target in TARGETS.items())]]
    targets += [[name, *map(judged, verdicts(outcomes))] for name, outcomes in of.items()]
    rows = [["family", "set", *FIGURES]]
    rows += [
        [name, one, *(text(figure(outcomes, one)) for figure in FIGURES.values())]
        for name, outcomes in of.items() for one in SETS
    ]  # fmt: skip
    named = [["samples", "share"], *([what, text(x)] for what, x in controls(hits, options.families).items())]
    return [
        Section(title="Families on request", text=about, table=targets, images=[("figures of all sets", image)]),
        Section(
            title="Samples beside held-out members and floors",
            text="HMM: emitted by the family's HMMs; 3-gram and composition: counted in its training members. Nearest"
            " training identity: share of a protein's residues identical in its alignment with the nearest one.",
            table=rows,
        ),
        Section(
            title="What the tag does",
            text="The same samples, taken for members of the family asked for, and of the next one in the list.",
            table=named,
        ),
        Section(
            title="Asked for and hit",
            text="Percent of the samples that reach a family's threshold, by the tag in front.",
            table=_asked_and_hit(options, hits),
        ),
    ]  # fmt: skip


def _asked_and_hit(options: Options, hits: Hits) -> list[list[str]]:
    rows = [["asked for", *options.families, "any other"]]
    for asked, own in hits.items():
        others = [own[name] for name in own if name not in options.families]
        shares = [*(own[name].mean() for name in options.families), np.any(others, axis=0).mean()]
        rows.append([asked, *(f"{100 * share:.3g}" for share in shares)])
    return rows


def infilling_sections(options: Options, model: Backbone) -> tuple[list[Section], list[Verdict]]:
    """What infill_families finds, after the targets."""
    spans, fillings = infill_families.judged_fills(model, options.infilling)
    found = tagged_figures.infilling_verdicts(fillings)
    table = [["target", "wanted", "found"], *([verdict.what, verdict.wanted, judged(verdict)] for verdict in found)]
    pages = infill_families.page_of(spans, fillings, options.infilling)
    about = (
        f"drawn: temperature {TEMPERATURE:g}; likeliest: temperature 0; chosen: of {DRAWS} drawn the one that the HMMs"
        " score best, so that of these its identity alone is news. The composition is drawn, and not chosen."
    )
    return [Section(title="Targets of infilling", text=about, table=table), *pages], found


def results(of: Mapping[str, Sequence[Outcome]], hits: Hits, options: Options) -> dict[str, Any]:
    """As JSON has them."""
    return {
        "targets": {name: {v.what: v.to_dict() for v in verdicts(outcomes)} for name, outcomes in of.items()},
        "figures": {
            name: {one: {what: to_dict(x(outcomes, one)) for what, x in FIGURES.items()} for one in SETS}
            for name, outcomes in of.items()
        },
        "cut": {name: float(np.mean(np.concatenate([o.is_cut for o in outcomes]))) for name, outcomes in of.items()},
        "controls": {what: to_dict(estimate) for what, estimate in controls(hits, options.families).items()},
        "hits": {asked: {name: float(x.mean()) for name, x in own.items()} for asked, own in hits.items()},
    }


def settings(options: Options, model: Backbone, lengths: Mapping[str, int]) -> dict[str, Any]:
    """What decides the samples and the spans."""
    return {
        "model_hash": fingerprint(model), "num": options.num, "families": options.families, "spans": options.spans,
        "temperature": TEMPERATURE, "top_p": TOP_P, "seed": SEED, "draws": DRAWS, "precision": PRECISION,
        "max_length": dict(lengths),
    }  # fmt: skip


def main(args: Sequence[str] | None = None) -> int:
    """Write the page; the exit status."""
    import tyro

    options = tyro.cli(Options, args=args)
    configure()
    page = options.out / "tagged_families.md"
    model, lengths = ModelOptions(model=options.model, precision=PRECISION).load(), longest_lengths(options)
    if claim(options.out, settings(options, model, lengths)) is None:
        paths = write_samples(options, model, lengths)
        by_family = {name: [judge_family(options, name, paths[name])] for name in options.families}
        of = {**by_family, ALL: [outcome for outcomes in by_family.values() for outcome in outcomes]}
        hits = find_hits(options, paths)
        image = figures.save(picture(of), options.out / "tagged_families.png")
        filled, found = infilling_sections(options, load(options.model))
        write_text(page, to_markdown([*sections(options, of, hits, image), *filled], options.out))
        infilling = {verdict.what: verdict.to_dict() for verdict in found}
        write_json(options.out / RESULTS, results(of, hits, options) | {"infilling": infilling})
    print(page.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
