"""Best of n by the reward and by rewards learned from pairs, and the picture of what alignment costs."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64

from examples.reward_curves import paired
from generate.drafts import Drafts, Standing
from generate.preferences import best_of, kl_of_best
from heads.finetune import FinetuneOptions, finetune_on, load_plain
from heads.prediction import reward_of
from heads.rows import Dataset, Row
from heads.tasks import Columns, custom_task
from xtrimo import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POOL = 256
"""Drafts of each prompt: the first half makes pairs, the second is chosen from."""
BEST_OF = (1, 2, 4, 8, 16, 32, 64)
NUM_PAIRS = (32, 128, 512)
"""Of a reward model, over all prompts; at most what the pool has."""

logger = logging.getLogger("xtrimo.examples")
Values = Float64[np.ndarray, "draft"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """The best of n drafts, mean over the prompts."""

    by: str
    """What chooses: gold, the reward; or a reward model, by its number of pairs."""
    n: int
    kl: float
    """Nats a protein, of a choice without ties."""
    gain: float
    """Of the reward, in deviations of the drafts to the same prompt."""
    believed: float
    """What chooses believes of it, likewise."""
    judged: float
    """What the judge says of it."""


def _chosen_from(pool: Drafts) -> list[np.ndarray]:
    """Of each prompt the places of its second half."""
    groups = (np.array(pool.places(prompt)) for prompt in dict.fromkeys(pool.prompts))
    return [group[len(group) // 2 :] for group in groups]


def _points(pool: Drafts, by: str, beliefs: Values, judge: str) -> list[Point]:
    groups, found = _chosen_from(pool), []
    for n in (n for n in BEST_OF if n <= min(map(len, groups))):
        parts = []
        for group in groups:
            gold, belief = _standard(pool.rewards[group]), _standard(beliefs[group])
            parts.append([best_of(values, n, belief) for values in (gold, belief, pool.judges[judge][group])])
        gain, believed, judged = np.mean(parts, axis=0).tolist()
        found.append(Point(by=by, n=n, kl=kl_of_best(n), gain=gain, believed=believed, judged=judged))
    return found


def _standard(values: Values) -> Values:
    return (values - values.mean()) / (values.std() or 1.0)


def best_of_n(pool: Drafts, judge: str) -> list[Point]:
    """Chosen by the reward itself."""
    return _points(pool, "gold", pool.rewards, judge)


def learned_best_of_n(pool: Drafts, judge: str, model: str, out: Path) -> list[Point]:
    """Chosen by rewards that were learned from more and more pairs of drafts."""
    rows = [
        Row(sequence=pool.proteins[place], label=float(pool.rewards[place]), name=f"draft {place + 1}")
        for place in range(len(pool.proteins))
    ]
    halves = [(places := pool.places(prompt))[: len(places) // 2] for prompt in dict.fromkeys(pool.prompts)]
    train, valid = [], []
    for half in halves:  # a quarter of each half validates
        train.append(paired([rows[i] for i in half[: 3 * len(half) // 4]], len(half), 0, again=True))
        valid.append(paired([rows[i] for i in half[3 * len(half) // 4 :]], len(half), 0))
    mixed = [pair for group in zip(*train, strict=False) for pair in group]  # prompts in turn
    task = custom_task(
        "drafts", level="sequence", target="preference", columns=Columns(sequence="better", second="worse")
    )  # fmt: skip
    whole = Dataset(
        task=task, train=tuple(mixed), valid=tuple(p for group in valid for p in group), test=(), classes=()
    )  # fmt: skip
    found = []
    for num in (num for num in NUM_PAIRS if num <= len(mixed)):
        logger.info("a reward from %d pairs", num)
        asked = FinetuneOptions(task="drafts", model=model, out=out / str(num), leaks=False, baselines=False)
        finetune_on(replace(whole, train=whole.train[:num], test=whole.valid), load_plain(model, "cpu"), asked)
        beliefs = reward_of(out / str(num), model=model)(pool.proteins)
        found += _points(pool, f"{num} pairs", beliefs, judge)
    return found


def rows(points: Sequence[Point]) -> list[list[str]]:
    """As a table."""
    table = [["chosen by", "n", "KL", "gain", "believed", "judge"]]
    for p in points:
        table.append([p.by, str(p.n), f"{p.kl:.2f}", f"{p.gain:.2f}", f"{p.believed:.2f}", f"{p.judged:.3f}"])
    return table


def picture(runs: Mapping[str, Sequence[Standing]], points: Sequence[Point], judge: str) -> "Figure":
    """Gain, judge and diversity of each round against its KL; gold and believed gain of best-of-n."""
    figure, panels = figures.blank(16, 4.0, columns=4)
    for (name, standings), colour in zip(runs.items(), figures.COLOURS, strict=False):
        kl = [each.kl.value for each in standings]
        for axes, heights in zip(
            panels,
            ([s.gain.value for s in standings], [s.judges[judge].value for s in standings],
             [s.distinct for s in standings]),
            strict=False,
        ):  # fmt: skip
            axes.plot(kl, heights, marker="o", color=colour, label=name)
    gold = [point for point in points if point.by == "gold"]
    panels[0].plot([p.kl for p in gold], [p.gain for p in gold], color="black", linestyle="--", label="best of n")
    panels[1].plot([p.kl for p in gold], [p.judged for p in gold], color="black", linestyle="--")
    for by, colour in zip(dict.fromkeys(point.by for point in points), ("black", *figures.COLOURS), strict=False):
        own = [point for point in points if point.by == by]
        panels[3].plot([p.kl for p in own], [p.gain for p in own], marker="o", color=colour, label=by)
        if by != "gold":
            panels[3].plot([p.kl for p in own], [p.believed for p in own], linestyle=":", color=colour)
    titles = ("gain, deviations", judge, "distinct, share", "gain of best of n; dotted: believed")
    for axes, title in zip(panels, titles, strict=True):
        axes.set(xlabel="KL from the tuned model, nats a protein", ylabel=title)
        axes.grid(alpha=0.3)
    for axes in (panels[0], panels[3]):
        axes.legend(frameon=False, fontsize="small")
    return figure
