"""The loop CDR-H3 of a heavy chain redesigned in four modes, and how natural AntiBERTy finds what came out; one page.

    python examples/cdr_h3.py --out OUT

    short mask   3 to 6 neighbouring residues of the loop, rewritten by a model that sees all others
    whole mask   the whole loop, likewise, as long as it was
    mutation     3 to 6 residues of the loop, each become another one at random
    retrieval    another loop in its place, out of a FASTA file of loops (--loops)
    random       the control: the whole loop from the 20 amino acids at random, as long as it was

Without --loops those of the retrieval are sampled from AntiBERTy itself, for the same chain and of 8 to 20 residues,
and are written to OUT/loops.fasta, whose headers say so: they come from no antibody. The models of --models rewrite;
one that is trained on smask does so by smask, others by their masks, in random order.

The judge masks one residue of the loop at a time: the mean of their nats is the pseudo-likelihood of the loop, given
the rest of the chain. Where AntiBERTy has written a loop itself, the figure says that it agrees with itself, not that
the antibody binds, folds or is made.

The modes are those of xTrimoPGLM (Chen et al. 2024, arXiv:2401.06199); the chain is that of trastuzumab.
"""

import logging
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, Float64
from torch import Tensor

from generate.infilling import infill
from generate.prompt import Fixed, Gap, Prompt
from xtrimo import figures
from xtrimo.attention import within
from xtrimo.backbone import Backbone, load
from xtrimo.batch import Inputs, run
from xtrimo.errors import ConfigError, DataError
from xtrimo.fasta import Record, read_fasta, write_fasta
from xtrimo.intervals import Estimate, bootstrap_ratio
from xtrimo.likelihood import choose
from xtrimo.log import configure
from xtrimo.pages import Section, to_markdown
from xtrimo.tokens import AMINO_ACIDS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRASTUZUMAB = (
    "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYCSR"
    "WGGDGFYAMDYWGQGTLVTVSS"
)
JUDGE = "antiberty"
CHANGED = (3, 6)  # residues of a short mask or a mutation, at least and at most
SAMPLED = Gap(8, 20)
LONGEST = 35  # residues of a loop

logger = logging.getLogger("xtrimo.examples")


class Chain(NamedTuple):
    """A heavy chain around its loop."""

    before: str
    loop: str
    after: str

    def holding(self, loop: str) -> str:
        """The whole chain with another loop."""
        return self.before + loop + self.after


def find_loop(sequence: str) -> Chain:
    """CDR-H3 as IMGT counts it: between the cysteine of YYC and the tryptophan of WGxG, which stay.

    Raises:
        DataError: the two are not there, or letters other than the 20 amino acids between them.
    """
    found = re.fullmatch(rf"(.*[YF][YFHSC]C)(.{{3,{LONGEST}}}?)(WG.G.*)", sequence)
    if found is None:
        raise DataError(
            f"no CDR-H3 in {sequence[:20]}...: expected the variable domain of a heavy chain, which has Y Y C before it"
            " and W G x G behind"
        )
    chain = Chain(*found.groups())
    refuse_loop(chain.loop, "the chain's CDR-H3")
    return chain


def refuse_loop(loop: str, name: str) -> None:
    """Tell of a loop that cannot be judged.

    Raises:
        DataError: it is too long, or has letters other than the 20 amino acids.
    """
    if odd := "".join(sorted(set(loop) - set(AMINO_ACIDS))):
        raise DataError(f"{name} is {loop[:LONGEST]}, with {odd}; expected the 20 amino acids; leave it out")
    if len(loop) > LONGEST:
        raise DataError(f"{name} has {len(loop)} residues; a loop has at most {LONGEST}; leave it out")


def short_prompt(chain: Chain, rng: np.random.Generator) -> Prompt:
    """A stretch of the loop to be written anew."""
    length = min(int(rng.integers(*CHANGED, endpoint=True)), len(chain.loop))
    start = int(rng.integers(len(chain.loop) - length, endpoint=True))
    before, after = chain.before + chain.loop[:start], chain.loop[start + length :] + chain.after
    return Prompt((Fixed(before), Gap(length, length), Fixed(after)))


def whole_prompt(chain: Chain, gap: Gap) -> Prompt:
    """The loop to be written anew."""
    return Prompt((Fixed(chain.before), gap, Fixed(chain.after)))


def mutated(loop: str, rng: np.random.Generator) -> str:
    """Some residues become others."""
    letters = list(loop)
    num = min(int(rng.integers(*CHANGED, endpoint=True)), len(loop))
    for place in rng.choice(len(loop), num, replace=False):
        letters[place] = str(rng.choice([letter for letter in AMINO_ACIDS if letter != loop[place]]))
    return "".join(letters)


def random_loop(length: int, rng: np.random.Generator) -> str:
    """The 20 amino acids alike."""
    return "".join(rng.choice(list(AMINO_ACIDS), size=length))


def written(model: Backbone, chain: Chain, prompts: Sequence[Prompt], seed: int) -> list[str]:
    """The loops that a model writes, as it holds them likely: temperature 1, by masks one residue a round."""
    samples = infill(
        model, prompts, temperature=1.0, top_p=1.0, seed=seed, order="random", rounds=LONGEST
    )  # fmt: skip
    return [sample.sequence[len(chain.before) : len(sample.sequence) - len(chain.after)] for sample in samples]


def loop_nats(judge: Backbone, chain: Chain, loops: Sequence[str]) -> Float64[np.ndarray, "loop"]:
    """Nats per residue of each loop in the chain, each residue masked in turn.

    Raises:
        DataError: a loop that cannot be judged.
    """
    for loop in loops:
        refuse_loop(loop, "a loop")
    asking, before = choose(judge, "pseudo", None), judge.words_around[0] + len(chain.before)

    def nats(row: Inputs) -> Float[Tensor, "token"]:
        states = judge.hidden(row.tokens, row.positions, within(row.segments))[-1]
        return asking.nats(judge, judge.logits(states), row.labels)

    distinct = list(dict.fromkeys(loops))
    of_loops = [
        list(asking.questions(judge, Record(loop, chain.holding(loop))))[len(chain.before) :][: len(loop)]
        for loop in distinct
    ]
    answers = run(judge, (question.example for questions in of_loops for question in questions), nats)
    found = {}
    for loop in distinct:
        said = [next(answers)[1][before + i] for i in range(len(loop))]
        found[loop] = float(np.mean(said, dtype=np.float64))
    return np.array([found[loop] for loop in loops])


@dataclass(frozen=True, kw_only=True, slots=True)
class Mode:
    """The loops of one mode, judged."""

    name: str
    loops: Sequence[str]
    nats: Float64[np.ndarray, "loop"]
    """Per residue of each loop; lower is more natural."""

    @property
    def mean(self) -> Estimate:
        """Over the loops."""
        return bootstrap_ratio(self.nats, np.ones(len(self.nats)))

    def row(self, native: str, native_nats: float, control: "Mode") -> list[str]:
        """Of the table."""
        kept = [sum(map(str.__eq__, loop, native)) / len(native) for loop in self.loops if len(loop) == len(native)]
        gain = bootstrap_ratio(control.nats - self.nats, np.ones(len(self.nats)))
        return [
            self.name, str(len(self.loops)), str(len(set(self.loops))), str(self.mean),
            str(gain) if self is not control else "", f"{np.mean(self.nats < native_nats):.0%}",
            f"{np.mean(kept):.0%}" if len(kept) == len(self.loops) else "",
        ]  # fmt: skip


HEAD = ("mode", "loops", "distinct", "nats per residue", "below random by", "likelier than native", "native residues")


def picture(modes: Sequence[Mode], native_nats: float) -> "Figure":
    """Each loop a point, with the mean of its mode; the native loop is a line."""
    figure, axes = figures.blank(8.5, 1.2 + 0.5 * len(modes))
    rng = np.random.default_rng(0)
    for number, mode in enumerate(modes):
        colour = figures.GREY if number + 1 == len(modes) else figures.COLOURS[number % len(figures.COLOURS)]
        axes.scatter(mode.nats, number + rng.uniform(-0.25, 0.25, len(mode.nats)), s=10, color=colour, linewidths=0)
        axes.hlines(number, mode.mean.low, mode.mean.high, color="black", linewidth=3)
    axes.axvline(native_nats, color="black", linestyle="--", linewidth=1, label="native loop")
    axes.set_yticks(range(len(modes)), [mode.name for mode in modes])
    axes.invert_yaxis()
    axes.set_xlabel("nats per residue of the loop, by AntiBERTy; lower is more natural")
    axes.legend(frameon=False, fontsize="small")
    axes.grid(axis="x", alpha=0.3)
    return figure


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Redesign a CDR-H3 in four modes and judge what came out."""

    out: Path = Path("cdr_h3")
    """Folder for cdr_h3.md, cdr_h3.png and loops.fasta."""
    models: tuple[str, ...] = (JUDGE,)
    """Those that rewrite the loop: model directories, or antiberty."""
    chain: Path | None = None
    """FASTA file whose first record is a heavy chain's variable domain; by default trastuzumab's."""
    loops: Path | None = None
    """FASTA file of CDR-H3 loops, without the cysteine before and the tryptophan behind; by default sampled."""
    num: int = 40
    """Loops a mode."""
    seed: int = 0
    """Of all that is drawn."""

    def __post_init__(self) -> None:
        if self.num < 2:
            raise ConfigError(f"num is {self.num}; a mode needs at least 2 loops")
        for model, num in Counter(str(Path(name)) for name in self.models).items():
            if num > 1:
                raise ConfigError(f"--models: {model} is there twice; name each model once")


def labels(models: Sequence[str]) -> list[str]:
    """What each model is called: its last name, or all of it where another has the same."""
    last = Counter(Path(name).name for name in models)
    return [Path(name).name if last[Path(name).name] == 1 else str(Path(name)) for name in models]


def read_loops(path: Path) -> list[str]:
    """Loops of the user's.

    Raises:
        FastaError, SequenceError: a file that cannot be read.
        DataError: a loop that cannot be judged.
    """
    records = list(read_fasta(path, force=True))
    for record in records:
        refuse_loop(record.sequence, f"{path.name}: {record.name}")
    return [record.sequence for record in records]


def retrieved(options: Options, judge: Backbone, chain: Chain) -> list[str]:
    """Loops of the user's, drawn with replacement; or AntiBERTy's."""
    if options.loops:
        known = read_loops(options.loops)
        rng = np.random.default_rng((options.seed, 1))
        return [known[i] for i in rng.integers(len(known), size=options.num)]
    loops = written(judge, chain, [whole_prompt(chain, SAMPLED)] * options.num, options.seed + 1)
    records = (Record(f"loop_{i}", loop, "sampled from AntiBERTy; of no antibody") for i, loop in enumerate(loops, 1))
    write_fasta(options.out / "loops.fasta", records)
    return loops


def design(options: Options, judge: Backbone, chain: Chain) -> list[Mode]:
    """All modes, the control last."""
    rng, num, length = np.random.default_rng(options.seed), options.num, len(chain.loop)
    loops: dict[str, list[str]] = {}
    for name, label in zip(options.models, labels(options.models), strict=True):
        model = judge if name == JUDGE else load(name)
        short = [short_prompt(chain, rng) for _ in range(num)]
        loops[f"short mask, {label}"] = written(model, chain, short, options.seed)
        whole = [whole_prompt(chain, Gap(length, length))] * num
        loops[f"whole mask, {label}"] = written(model, chain, whole, options.seed)
    loops["mutation"] = [mutated(chain.loop, rng) for _ in range(num)]
    loops["retrieval"] = retrieved(options, judge, chain)
    loops["random"] = [random_loop(length, rng) for _ in range(num)]
    logger.info("judging")
    return [Mode(name=name, loops=own, nats=loop_nats(judge, chain, own)) for name, own in loops.items()]


def report(options: Options, chain: Chain, modes: Sequence[Mode], native_nats: float) -> str:
    """The page."""
    source = options.loops.name if options.loops else "loops sampled from AntiBERTy, of no antibody"
    text = (
        f"Loop {chain.loop} of {options.chain.name if options.chain else 'trastuzumab'}, {native_nats:.3f} nats per"
        f" residue by AntiBERTy, each residue masked in turn. Retrieval: {source}. In brackets 95 % bootstrap intervals"
        " over loops. Where AntiBERTy wrote a loop it is its own judge: the figure tells sampling that works from"
        " sampling that does not, and nothing of binding, folding or expression."
    )
    rows = [mode.row(chain.loop, native_nats, modes[-1]) for mode in modes]
    shown = [(mode.name, ", ".join(list(dict.fromkeys(mode.loops))[:4])) for mode in modes]
    image = ("nats per residue of each loop", options.out / "cdr_h3.png")
    sections = [
        Section(title="CDR-H3 in four modes", text=text, table=[HEAD, *rows], images=[image]),
        Section(title="The first loops of each mode", table=[("mode", "loops"), *shown]),
    ]
    return to_markdown(sections, options.out)


def main(args: Sequence[str] | None = None) -> int:
    """Write the page; the exit status."""
    import tyro

    options = tyro.cli(Options, args=args)
    configure()
    options.out.mkdir(parents=True, exist_ok=True)
    sequence = next(iter(read_fasta(options.chain))).sequence if options.chain else TRASTUZUMAB
    chain = find_loop(sequence)
    if options.loops:
        read_loops(options.loops)  # what is wrong with them is told now, not after minutes
    judge = load(JUDGE)
    modes = design(options, judge, chain)
    (native_nats,) = loop_nats(judge, chain, [chain.loop]).tolist()
    figures.save(picture(modes, native_nats), options.out / "cdr_h3.png")
    text = report(options, chain, modes, native_nats)
    (options.out / "cdr_h3.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
