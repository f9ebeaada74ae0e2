"""Alignment measured against cheating: methods side by side, a judge that nothing learns from, what is forgotten.

    python examples/align_families.py DATA --model MODEL --judge JUDGE --before BASE --tasks TASKS --out OUT

DATA is a folder with families.hmm.gz and sample.fasta.gz. MODEL was tuned from BASE by `xtrimo finetune-generator` on
the tag `family`; JUDGE is a model that was trained by itself; TASKS is a folder with the tables of the probe tasks.

Fixed before anything was drawn: the reward, a protein's best bit score under the HMMs of the family that it was asked
for; the judge, nats a residue that JUDGE finds it likely by (naturalness), which must not fall; drawing at temperature
0.8 with nothing left out, cut at 500 residues. The rounds of rest, and its 512 drafts, were added as it gained.

    OUT/METHOD/               a run of `xtrimo align`; rest-16, rest-64 and rest-512 have other numbers of drafts
    OUT/pool.csv              drafts of MODEL, for best-of-n and for reward models
    OUT/rewards/NUM/          a reward model from so many pairs
    OUT/probes/NAME/          `xtrimo bench` of a model on three tasks
    OUT/align_families.md     the page, with align_families.png; OUT/figures.json its figures

Whatever is there is not done again.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from examples.align_figures import POOL, Point, best_of_n, learned_best_of_n, picture, rows
from generate.align import AlignConfig, align_generator
from generate.drafts import Drafts, Standing, draw
from generate.drawing import DrawingConfig
from generate.lessons import METHODS, Method
from generate.rewards import Reward, family_bits, naturalness
from generate.tuning import load_generator
from heads.bench import BenchOptions, bench_tasks
from xtrimo import figures
from xtrimo.backbone import load
from xtrimo.durable import write_json, write_text
from xtrimo.log import configure
from xtrimo.pages import Section, to_markdown
from xtrimo.run_folder import claim

if TYPE_CHECKING:
    from heads.bench import Line

TEMPERATURE, MAX_LENGTH = 0.8, 500
RATES: dict[Method, float] = {"rest": 3e-4, "dpo": 3e-5, "dno": 3e-5}
"""Found in trials with another seed; at 1e-4 dpo learns its drafts by heart, and gains nothing on new ones."""
ROUNDS: dict[Method, int] = {"rest": 10, "dpo": 4, "dno": 4}
"""Until rest gains no more; the other two were left at four."""


@dataclass(frozen=True, slots=True)
class Drafted:
    """A run of rest with another number of drafts than `num`: whether more of them still help."""

    num: int
    """Drafts of a prompt in a round."""
    rounds: int
    times_steps: int
    """Steps of a round, in those of the run beside: twice the drafts are passed over as often by twice the steps."""


OTHERS = (Drafted(16, 4, 1), Drafted(64, 4, 1), Drafted(512, 10, 2))
PROBES = ("secondary_structure", "localization", "stability")
"""On these the pretrained model knows more than random weights, so that it has something to forget."""
JUDGED = "naturalness"

logger = logging.getLogger("xtrimo.examples")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Align a tagged generator with families' bit scores, by each method, and judge what that costs."""

    data: Positional[Path]
    """Folder of families.hmm.gz and sample.fasta.gz."""
    model: str
    """Model directory that was tuned on the tag family."""
    judge: str
    """Model directory of another model, trained by itself."""
    out: Path = Path("align_families")
    """Folder of all files."""
    before: str | None = None
    """Model directory that MODEL was tuned from; its probes stand beside."""
    tasks: Path | None = None
    """Folder with the tables of the probe tasks; without it nothing is said of these."""
    num: int = 256
    """Drafts of each prompt in a round."""
    rounds: int | None = None
    """Of drafts and training; by default as many as each run needed here (`ROUNDS`, `OTHERS`)."""
    steps: int = 64
    """Optimizer steps of a round."""
    pool: int = POOL
    """Drafts of each prompt in the pool."""
    max_rows: int = 1500
    """Rows of each split of a probe task, at most."""

    def configs(self, prompts: Sequence[str]) -> list[AlignConfig]:
        """All runs of `xtrimo align`."""
        runs = [self._config(method, prompts, Drafted(self.num, ROUNDS[method], 1), method) for method in METHODS]
        return runs + [self._config("rest", prompts, other, f"rest-{other.num}") for other in OTHERS]

    def _config(self, method: Method, prompts: Sequence[str], drafted: Drafted, name: str) -> AlignConfig:
        return AlignConfig(
            model=self.model, out=self.out / name, method=method, prompts=tuple(prompts), num=drafted.num,
            rounds=self.rounds or drafted.rounds, steps=self.steps * drafted.times_steps, learning_rate=RATES[method],
            temperature=TEMPERATURE, max_length=MAX_LENGTH, replay=self.data / "sample.fasta.gz",
        )  # fmt: skip


def prompts_of(options: Options) -> dict[str, Reward]:
    """A prompt for each family that the model has a tag of, and its reward."""
    words = [word for word in load_generator(options.model, "cpu").config.control_words if word.startswith("<family=")]
    hmms = options.data / "families.hmm.gz"
    return {word: family_bits(hmms, word.removeprefix("<family=").removesuffix(">")) for word in words}


def pool_of(options: Options, rewards: Mapping[str, Reward], judges: Mapping[str, Reward]) -> Drafts:
    """Many drafts of the tuned model, of another seed than any round's."""
    path = options.out / "pool.csv"
    if not path.exists():
        logger.info("drawing the pool")
        model = load_generator(options.model, "cpu")
        drawing = DrawingConfig(num=options.pool, seed=999, temperature=TEMPERATURE, top_p=1.0)
        draw(model, model, tuple(rewards), drawing, max_length=MAX_LENGTH, rewards=rewards, judges=judges).save(path)
    return Drafts.load(path)


def probes(options: Options, models: Mapping[str, str]) -> dict[str, "list[Line]"]:
    """The probe tasks on the states of each model."""
    found: dict[str, list[Line]] = {}
    if options.tasks is None:
        return found
    for name, model in models.items():
        asked = BenchOptions(
            model=model, out=options.out / "probes" / name, tasks=PROBES, data=options.tasks, max_rows=options.max_rows,
            precision="bf16", twin=False, baselines=False, leaks=False,
        )  # fmt: skip
        found[name], _ = bench_tasks(asked)
    return found


def standings_table(runs: Mapping[str, Sequence[Standing]]) -> list[list[str]]:
    """The first policy, and the last round of each run."""
    first = next(iter(runs.values()))[0]
    lines = [("tuned, not aligned", first), *((name, standings[-1]) for name, standings in runs.items())]
    table = [["", *first.row()]]
    return table + [[name, *standing.row().values()] for name, standing in lines]


def verdicts(runs: Mapping[str, Sequence[Standing]]) -> list[list[str]]:
    """Of each run the first round that gains a deviation, and whether the judge holds with it."""
    table = [["", "first round with a gain of 1", "its KL", f"{JUDGED} by then, change", "distinct by then, change"]]
    for name, standings in runs.items():
        first, found = standings[0], next((each for each in standings if each.gain.value >= 1), None)
        if found is None:
            table.append([name, "none", "", "", ""])
            continue
        change = found.judges[JUDGED].value - first.judges[JUDGED].value
        cells = [f"round {found.round}: {found.gain}", str(found.kl), f"{change:+.3f}"]
        table.append([name, *cells, f"{found.distinct - first.distinct:+.2f}"])
    return table


def sections(
    options: Options, runs: Mapping[str, Sequence[Standing]], points: Sequence[Point], found: "Mapping[str, list[Line]]"
) -> list[Section]:
    """The page."""
    image = figures.save(picture(runs, points, JUDGED), options.out / "align_families.png")
    text = (
        f"Model {Path(options.model).name}, judge {Path(options.judge).name}; rounds of"
        f" {options.steps} steps; {options.num} drafts of each family's tag in a round. reward: best bit score under"
        " the family's HMMs. gain: of it, in deviations of the tuned model's drafts to the same tag. KL: nats a protein"
        f" from the tuned model. {JUDGED}: nats a residue. distinct: clusters of 90 % identity a draft. replay: nats of"
        " held-out proteins like those of pretraining. In brackets 95 % bootstrap intervals over drafts."
    )
    probed = [["", *(f"{line.task.name}, {line.task.metric}" for line in next(iter(found.values()), []))]]
    probed += [[name, *(str(line.model) for line in lines)] for name, lines in found.items()]
    return [
        Section(title="Alignment with family bit scores", text=text, table=standings_table(runs),
                images=[("gain, judge and diversity against KL", image)]),
        Section(title="One deviation more", table=verdicts(runs)),
        Section(title="Every round", table=[["", *next(iter(runs.values()))[0].row()]] + [
            [name, *each.row().values()] for name, standings in runs.items() for each in standings]),
        Section(title="Best of n", text="Gold is the reward itself; each reward model has seen so many pairs of drafts"
                " of the same families, and chooses among other drafts. What it believes is in its own deviations.",
                table=rows(points)),
        Section(title="Probe tasks", text="The last rounds beside the models that they came from.", table=probed),
    ]  # fmt: skip


def main(args: Sequence[str] | None = None) -> int:
    """Write the page; the exit status."""
    import tyro

    options = tyro.cli(Options, args=args)
    configure()
    asked = {name: value for name, value in asdict(options).items() if name not in ("data", "out", "tasks", "rounds")}
    claim(options.out, asked)
    rewards, judges = prompts_of(options), {JUDGED: naturalness(load(options.judge))}
    runs: dict[str, list[Standing]] = {}
    for config in options.configs(tuple(rewards)):
        logger.info("aligning: %s", config.out.name)
        runs[config.out.name] = align_generator(config, rewards, judges=judges)
    pool = pool_of(options, rewards, judges)
    points = [*best_of_n(pool, JUDGED), *learned_best_of_n(pool, JUDGED, options.model, options.out / "rewards")]
    models = {"pretrained": options.before or "", "tuned": options.model}
    models |= {name: str(options.out / name / "model") for name in runs}
    found = probes(options, {name: model for name, model in models.items() if model})
    write_text(options.out / "align_families.md", to_markdown(sections(options, runs, points, found), options.out))
    facts = {name: [asdict(each) for each in standings] for name, standings in runs.items()}
    write_json(options.out / "figures.json", {"runs": facts, "points": [asdict(point) for point in points]})
    print(options.out / "align_families.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
