"""The verb `align`: a generator learns to write what a reward, or a preference, asks for, and stays near what it was.

    OUT/settings.json            what decides the outcome
    OUT/round-0/drafts.csv       proteins of the model as it came, what they are worth, how likely it writes them
    OUT/round-1/training/        learning from them, by the method (see preferences.py); a kill does not end it
    OUT/round-1/model/           the policy of round 1
    OUT/round-1/drafts.csv       its proteins: they judge it, and round 2 learns from them
    OUT/model/                   the policy of the last round within the leash
    OUT/results.json             how each round stands: reward, KL, diversity, judges, nats of replayed proteins

Two leashes hold it: the KL from the first policy, paid for by dpo (beta) and a bound for all (max_kl), and replayed
proteins of pretraining. Nothing is learned from judges: they tell whether a reward is followed or cheated.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro

from generate.drafts import Drafts, Standing, draw, standing
from generate.drawing import DrawingConfig
from generate.hooks import digest, find_function
from generate.lessons import Method, Plan, lessons_from
from generate.preferences import Loss, Preference, check_prompt
from generate.prompt import parse
from generate.rewards import Reward, Shaping
from generate.tuning import Mix, fingerprint_of, judged, load_generator, read_replay, room
from generate.ways import choose_way
from xtrimo import checkpoint
from xtrimo.adaptation import adapt, merge
from xtrimo.answer import give
from xtrimo.durable import write_json
from xtrimo.embedding_file import fingerprint
from xtrimo.errors import ConfigError
from xtrimo.model import GLM
from xtrimo.run_folder import RESULTS, TRAINING, claim
from xtrimo.training import fit, ranks
from xtrimo.training_config import TrainingConfig

logger = logging.getLogger(__name__)

BETAS: dict[Method, float] = {"rest": 1.0, "dpo": 0.1, "dno": 0.02}
"""Shares of wins differ five times less than rewards in deviations."""
RATES = {"lora": 1e-3, "full": 1e-4}
FREE = ("out", "device", "batch_size", "rounds", "replay", "reward", "preference", "judge")
"""Fields that change how a result is reached, or how far, or are told by what they hold."""
_SLOTS = 64  # proteins written at a time
_NUM_VALID = 200  # replayed proteins to judge by


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignConfig:
    """Align a generator with a reward or a preference, in rounds of drafts and training."""

    model: str
    """Model directory of a GLM that generates, or a name on the Hugging Face Hub."""
    out: Path
    """Folder of the run; an existing one is gone on with."""
    method: Method = "dpo"
    """rest learns the best drafts; dpo pairs of them, against the first policy; dno pairs by how often each wins
    against its own round, against that round's policy."""
    prompts: tuple[str, ...] = ("",)
    """What is written to: tags, residues to begin with, or both; by default any protein."""
    num: int = 64
    """Drafts of each prompt in a round."""
    rounds: int = 4
    """Of drafts and training. A finished run is gone on with by asking for more."""
    steps: int = 40
    """Optimizer steps of a round."""
    lessons: int = 16
    """Pairs, or chosen proteins, of a step."""
    beta: float | None = None
    """dpo, dno: what a nat of KL is worth, in deviations of the reward; in shares of wins for dno. By default 0.1, dno
    0.02."""
    keep: float = 0.25
    """rest: share of the drafts that is learned from, the best of each prompt."""
    debias: bool = True
    """Take what length and composition say of the reward out of it."""
    clip: float = 3.0
    """Deviations at which a draft's reward is cut; 0 cuts none."""
    max_kl: float = 0.0
    """Nats a protein from the first policy beyond which no round counts; 0 sets no bound."""
    replay: Path | None = None
    """FASTA file of proteins like those of pretraining, to be trained on beside, and judged by."""
    replay_num: int = 4
    """Of these, a step."""
    leash: float = 1.0
    """Weight of a replayed protein beside that of a pair or a chosen protein."""
    train: Literal["lora", "full"] = "full"
    """lora trains adapters, merged after each round; full trains all."""
    learning_rate: float | None = None
    """By default 1e-3 for lora, 1e-4 for full."""
    temperature: float = 1.0
    """That drafts are drawn at, and the policy is meant at."""
    max_length: int = 1000
    """Residues at which a draft is cut."""
    batch_size: int = _SLOTS
    """Drafts written at a time."""
    accumulate: int = 1
    """Pieces that a step's lessons are computed in, to save memory."""
    seed: int = 0
    """Of drafts, order and adapters."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the matrix products in training."""
    device: str = "cpu"
    """Where to run, such as cuda."""

    def __post_init__(self) -> None:
        for name in ("num", "rounds", "lessons", "max_length", "batch_size"):
            if getattr(self, name) < 1 + (name == "num"):
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least {1 + (name == 'num')}")
        if not self.prompts or len(set(self.prompts)) < len(self.prompts):
            raise ConfigError(f"prompts are {list(self.prompts)}; give one at least, and each once")
        if not 0 < self.keep < 1 or self.max_kl < 0 or self.replay_num < 0:
            raise ConfigError(
                f"keep {self.keep} must lie between 0 and 1; max_kl {self.max_kl} and replay_num {self.replay_num} must"
                " not be negative"
            )
        for prompt in self.prompts:
            check_prompt(parse(prompt))
        _ = self.loss, self.shaping, self.training, self.drawing(0)  # what they refuse

    @property
    def loss(self) -> Loss:
        """What is made small."""
        beta = BETAS[self.method] if self.beta is None else self.beta
        return Loss(beta=beta, temperature=self.temperature, leash=self.leash)

    @property
    def shaping(self) -> Shaping:
        """Of the rewards."""
        return Shaping(debias=self.debias, clip=self.clip)

    @property
    def training(self) -> TrainingConfig:
        """Of a round."""
        return TrainingConfig(
            steps=self.steps, learning_rate=self.learning_rate or RATES[self.train], precision=self.precision,
            accumulate=self.accumulate, seed=self.seed,
        )  # fmt: skip

    def drawing(self, number: int) -> DrawingConfig:
        """Of a round's drafts: other proteins in each round."""
        return DrawingConfig(
            num=self.num, seed=self.seed * 1000 + number, temperature=self.temperature, top_p=1.0,
            batch_size=self.batch_size,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignOptions(AlignConfig):
    """Align a generator with a reward or a preference, in rounds of drafts and training."""

    reward: str
    """module:function from a list of proteins to what each is worth, higher is better."""
    preference: str | None = None
    """dno: module:function from two lists of proteins to the chance that each of the first is preferred to the one
    beside it; by default what the reward says."""
    judge: tuple[str, ...] = ()
    """module:function like a reward, reported and never learned from."""


def main(args: Sequence[str] | None = None) -> None:
    """The verb `xtrimo align`."""
    from rich.console import Console
    from rich.table import Table

    options = tyro.cli(AlignOptions, args=args, prog="xtrimo align")
    standings = align_generator(
        options, find_function(options.reward, "--reward"),
        preference=find_function(options.preference, "--preference") if options.preference else None,
        judges={name.rpartition(":")[2]: find_function(name, "--judge") for name in options.judge},
asked={
            "reward": [options.reward, digest(options.reward)],
            "preference": [options.preference, digest(options.preference)] if options.preference else None,
            "judge": [[name, digest(name)] for name in options.judge],
        },
    )  # fmt: skip
    table = Table(*standings[0].row(), box=None)
    for each in standings:
        table.add_row(*each.row().values())
    console = Console()
    with console.capture() as text:
        console.print(table)
    give({"standings": [each.row() for each in standings]}, text.get().rstrip("\n"))


def align_generator(
    config: AlignConfig, rewards: Reward | Mapping[str, Reward], *, preference: Preference | None = None,
    judges: Mapping[str, Reward] | None = None, asked: Mapping[str, Any] | None = None,
) -> list[Standing]:  # fmt: skip
    """Run all rounds, or go on where a run of this folder ended; how each stands, the first policy's first.

    Args:
        rewards: what is learned from; one for all prompts, or one for each.
        preference: of dno; by default that of the reward.
        judges: what is reported beside, by name.
        asked: what the folder remembers of these functions, so that no other ones go on with it.

    Raises:
        ConfigError: a model that does not generate or has not the prompts' tags, a preference without dno, several
            ranks, or a folder with a run of other settings.
        DataError: a reward that is none, or drafts that are all worth the same.
        StoppedError: asked to stop in a round's training; the same call goes on.
    """
    with ranks(config.device) as (_, world):
        if world > 1:
            raise ConfigError(f"{world} ranks: drafts are written by one process; start it without torchrun")
    run = _Run(config, _of_prompts(config, rewards), preference, judges or {})
    kept = {name: value for name, value in asdict(config).items() if name not in FREE}
    facts = {"functions": dict(asked or {}), "model_hash": fingerprint(run.start), "replay": fingerprint_of(run.replay)}
    if finished := claim(config.out, kept | facts):
        told, leashed = finished["rounds"], finished["counts"] < len(finished["rounds"]) - 1
        if leashed or len(told) > config.rounds:
            return [Standing.read(each) for each in told]
    standings: list[Standing] = []
    counts = 0
    for number in range(config.rounds + 1):
        standings.append(run.standing(number))
        logger.info("%s", standings[-1].row())
        if config.max_kl and standings[-1].kl.value > config.max_kl:
            logger.warning("round %d went beyond max_kl %g; the round before counts", number, config.max_kl)
            break
        counts = number
    notes = f"Aligned by {config.method}, {counts} rounds of {config.steps} steps, from {Path(config.model).name}."
    checkpoint.save(run.policy(counts), config.out / "model", notes=notes)
    write_json(config.out / RESULTS, {"rounds": [asdict(each) for each in standings], "counts": counts})
    return standings


def _of_prompts(config: AlignConfig, rewards: Reward | Mapping[str, Reward]) -> dict[str, Reward]:
    """The reward of each prompt.

    Raises:
        ConfigError: a prompt has none.
    """
    if callable(rewards):
        return dict.fromkeys(config.prompts, rewards)
    if lacking := [prompt for prompt in config.prompts if prompt not in rewards]:
        raise ConfigError(f"prompt '{lacking[0]}' has no reward; those given are for {list(rewards)}")
    return {prompt: rewards[prompt] for prompt in config.prompts}


class _Run:
    """The rounds of a folder. Whatever a round has on the disk already is read from there."""

    def __init__(
        self, config: AlignConfig, rewards: Mapping[str, Reward], preference: Preference | None,
        judges: Mapping[str, Reward],
    ) -> None:  # fmt: skip
        if preference and config.method != "dno":
            raise ConfigError(f"a preference is what dno learns from; {config.method} needs a reward alone")
        self.config, self.rewards, self.preference, self.judges = config, rewards, preference, judges
        self.start = load_generator(config.model, config.device)
        for prompt in config.prompts:
            choose_way(self.start, parse(prompt), ("forward",))
        most = room(self.start.config, 0)
        self.replay, self.replay_valid = read_replay(config.replay, most, _NUM_VALID)

    def folder(self, number: int) -> Path:
        """Of a round."""
        return self.config.out / f"round-{number}"

    def policy(self, number: int) -> GLM:
        """The model of a round; it is trained, if it was not."""
        if number == 0:
            return self.start
        path = self.folder(number) / "model"
        if path.exists():
            return load_generator(str(path), self.config.device)
        before = self.drafts(number - 1)
        model = load_generator(
            str(self.folder(number - 1) / "model") if number > 1 else self.config.model, self.config.device
        )
        plan = self._plan(number, before, model)
        adapt(model, self.config.train, seed=self.config.seed)
        fit(model, self.config.loss, plan, self.config.training, self.folder(number) / TRAINING)
        merge(model)
        checkpoint.save(model, path)
        return model

    def _plan(self, number: int, drafts: Drafts, model: GLM) -> Plan:
        c = self.config
        items = lessons_from(
            c.method, drafts, model, shaping=c.shaping, keep=c.keep, preference=self.preference
        )  # fmt: skip
        replay = None
        if self.replay and c.replay_num:
            replay = Mix(
                subjects=self.replay, replay=(), config=model.config, batch_size=c.replay_num, replay_ratio=0.0,
                drop_ratio=0.0, seed=c.seed * 1000 + number,
            )  # fmt: skip
        return Plan(items=items, num=c.lessons, replay=replay, seed=c.seed * 1000 + number)

    def drafts(self, number: int) -> Drafts:
        """Of a round; they are written, if they were not."""
        path = self.folder(number) / "drafts.csv"
        if not path.exists():
            drafts = draw(
                self.policy(number), self.start, self.config.prompts, self.config.drawing(number),
                max_length=self.config.max_length, rewards=self.rewards, judges=self.judges,
            )  # fmt: skip
            path.parent.mkdir(parents=True, exist_ok=True)
            drafts.save(path)
        return Drafts.load(path)

    def standing(self, number: int) -> Standing:
        """How the policy of a round stands."""
        found = standing(number, self.drafts(number), self.drafts(0))
        return replace(found, replay=judged(self.policy(number), self.replay_valid))
