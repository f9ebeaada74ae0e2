"""What attention knows of contacts that nobody has taught it, against how well a model predicts residues; one page.

    python examples/contacts_without_training.py ARCHIVE --models MODEL MODEL ... --out OUT

ARCHIVE holds chains with coordinates whose splits are given. Every attention map is made symmetric and corrected by its
average product (`heads.contacts`), and then two ways make a contact map of many:

    best head    the one map of all layers and heads that has the most long-range contacts right on 20 training chains
    regression   logistic regression on the maps of the same 20 chains, its penalty chosen on 50 validation chains, as
                 ESM has it (Rao et al. 2020)

Both are judged on the test chains by the precision of the L/5 likeliest pairs that are 24 residues apart or more. The
loss of a model is that of the residues it cannot see: 15 % of the test chains' residues, the same for all models, are
masked, and its softmax runs over the 20 amino acids alone, whatever other words it has. So models of different families
stand on one axis, beside twins of random weights (--twins of each), the frequencies of the amino acids, and
P(contact | separation), which reads nothing.

OUT gets contacts.md, contacts.json and contacts.png; and NAME.json of each model, which is not asked again.
"""

import copy
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import nn
from tyro.conf import Positional

from heads import contacts
from heads.answers import Predictions
from heads.local_statistics import separation
from heads.metrics import evaluate, figure
from heads.readers_structure import contacts as contacts_of
from heads.rows import Dataset, Row
from heads.tasks import TASKS
from xtrimo import figures
from xtrimo.attention import within
from xtrimo.backbone import Backbone, load
from xtrimo.batch import run
from xtrimo.chains import read_chains
from xtrimo.durable import write_json
from xtrimo.errors import ConfigError, DataError
from xtrimo.intervals import Estimate, bootstrap_ratio
from xtrimo.log import configure
from xtrimo.model import GLM
from xtrimo.objectives import Example
from xtrimo.pages import Section, to_markdown
from xtrimo.tokens import AMINO_ACIDS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger("xtrimo.examples")

METRIC = "precision@L/5"
MASKED_RATIO = 0.15
INITIAL_STD = 0.02
"""Of the weights of BERT, ESM and their like before training."""
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Contacts from attention, for several models, against their loss."""

    archive: Positional[Path]
    """Chains with coordinates and splits (.npz)."""
    models: tuple[str, ...]
    """Model directories, or names as in `xtrimo embed`."""
    out: Path
    """Folder of the page."""
    shapes: tuple[str, ...] = ()
    """Further models that are not asked themselves, only their twins."""
    twins: int = 1
    """Models of the same shape with random weights, of each; those of one shape are drawn once."""
    test_chains: int = 200
    """Chains that are judged on, at most."""
    seed: int = 0
    """Of the masks, the twins and the regression."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One model."""

    name: str
    is_random: bool
    num_maps: int
    nats: Estimate
    """Of a masked residue."""
    best_head: Estimate
    head: str
    """Which one that was; layers and heads from 1."""
    regression: Estimate
    note: str
    """How the regression was made."""


def read_dataset(options: Options) -> Dataset:
    """The chains as rows whose labels are contacts.

    Raises:
        DataError: a split without a chain.
    """
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for chain in read_chains(options.archive):
        label = contacts_of(chain.xyz)
        rows.setdefault(chain.split or "", []).append(Row(sequence=chain.sequence, label=label, name=chain.name))
    if empty := [split for split in SPLITS if not rows[split]]:
        raise DataError(f"{options.archive} has no chain whose split is {', '.join(empty)}; expected all of {SPLITS}")
    train, valid, test = (tuple(rows[split]) for split in SPLITS)
    return Dataset(
        task=TASKS["contact_map"], train=train, valid=valid, test=test[: options.test_chains], classes=("no", "yes")
    )  # fmt: skip


def twin(model: Backbone, seed: int) -> Backbone:
    """A model of the same shape with random weights."""
    if isinstance(model, GLM):
        return GLM(model.config, seed=seed).eval()
    drawn = copy.deepcopy(model)
    assert isinstance(drawn, nn.Module)
    generator = torch.Generator().manual_seed(seed)
    for module in drawn.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=INITIAL_STD, generator=generator)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
    return drawn


def masked_nats(model: Backbone, rows: Sequence[Row], seed: int) -> Estimate:
    """Nats of masked residues under the softmax over the 20 amino acids, over proteins.

    Raises:
        ConfigError: a model without a mask.
    """
    if model.mask is None:
        raise ConfigError("a model that never predicted a <mask> has no loss of masked residues; leave it out")
    before, after = model.words_around
    letters = torch.from_numpy(model.tokenize(AMINO_ACIDS).tokens[before : len(AMINO_ACIDS) + before].astype(np.int64))
    chosen = list(_masks(rows, seed))

    def questions() -> Iterator[Example]:
        for row, mask in zip(rows, chosen, strict=True):
            asked = model.tokenize(row.sequence, name=row.name)
            asked.tokens[before : before + len(mask)][mask] = model.mask
            yield asked

    def scores(row: Any) -> torch.Tensor:
        states = model.hidden(row.tokens, row.positions, within(row.segments))[-1]
        return model.logits(states)[:, letters].float().log_softmax(-1)

    sums = []
    for (_, answer), row, mask in zip(run(model, questions(), scores), rows, chosen, strict=True):
        said = np.asarray(answer)[before : before + len(mask)][mask]
        truth = [AMINO_ACIDS.index(letter) for letter, hidden in zip(row.sequence, mask, strict=True) if hidden]
        sums.append((-said[np.arange(len(truth)), truth].sum(dtype=np.float64), len(truth)))
    nats, sizes = np.array(sums).T
    return bootstrap_ratio(nats, sizes)


def letter_nats(dataset: Dataset) -> float:
    """The same of a model that knows how often each amino acid is in the training chains, and nothing else."""
    known, asked = (
        np.array([sum(row.sequence.count(letter) for row in rows) for letter in AMINO_ACIDS], dtype=np.float64)
        for rows in (dataset.train, dataset.test)
    )
    return float(-(asked * np.log((known + 1) / (known + 1).sum())).sum() / asked.sum())


def _masks(rows: Sequence[Row], seed: int) -> Iterator[Bool[np.ndarray, "length"]]:
    """Which residues of each protein are masked: at least one, and all of the 20 amino acids."""
    for number, row in enumerate(rows):
        rng = np.random.default_rng((seed, number))
        known = np.array([letter in AMINO_ACIDS for letter in row.sequence])
        mask = known & (rng.random(len(known)) < MASKED_RATIO)
        mask[rng.choice(np.flatnonzero(known))] = True
        yield mask


def best_head(model: Backbone, dataset: Dataset) -> tuple[Predictions, str]:
    """The map that is best on the training chains, on the test chains; and which it is."""
    chosen = dataset.train[: contacts.NUM_PROTEINS]
    maps = [contacts.corrected_attentions(model, row.sequence) for row in chosen]
    said = [_predictions(chosen, [own[number] for own in maps]) for number in range(len(maps[0]))]
    values = np.nan_to_num([figure(METRIC, each) for each in said])
    best = int(values.argmax())
    test = [contacts.corrected_attentions(model, row.sequence)[best] for row in dataset.test]
    return _predictions(dataset.test, test), f"layer {best // model.num_heads + 1}, head {best % model.num_heads + 1}"


def _predictions(rows: Sequence[Row], maps: Sequence[np.ndarray]) -> Predictions:
    """Of each row a number for each pair."""
    return Predictions(
        truth=np.concatenate([np.asarray(row.label).ravel() for row in rows]),
        prediction=np.concatenate([own.ravel() for own in maps]),
        length=np.array([len(row.sequence) for row in rows]),
    )  # fmt: skip


def point(model: Backbone, name: str, dataset: Dataset, options: Options, *, is_random: bool) -> Point:
    """One model, or what a file says of it."""
    path = options.out / f"{name.replace('/', '_')}.json"
    if path.exists():
        told = json.loads(path.read_text("utf-8"))
        return Point(**told | {key: Estimate(**told[key]) for key in ("nats", "best_head", "regression")})
    logger.info("%s", name)
    regressed, note = contacts.regress(model, dataset, lambda said: figure(METRIC, said), seed=options.seed)
    of_best, head = best_head(model, dataset)
    found = Point(
        name=name, is_random=is_random, num_maps=model.num_layers * model.num_heads,
        nats=masked_nats(model, dataset.test, options.seed), best_head=evaluate(METRIC, of_best), head=head,
        regression=evaluate(METRIC, regressed), note=note,
    )  # fmt: skip
    write_json(path, asdict(found))
    return found


def points_of(dataset: Dataset, options: Options) -> list[Point]:
    """The models, then the twins of each shape."""
    found: list[Point] = []
    shapes: dict[object, tuple[Backbone, str]] = {}
    for which in (*options.models, *options.shapes):
        model, name = load(which), Path(which).name
        if which in options.models:
            found.append(point(model, name, dataset, options, is_random=False))
        assert isinstance(model, nn.Module)
        shapes.setdefault(tuple((key, tuple(value.shape)) for key, value in model.state_dict().items()), (model, name))
    for model, name in shapes.values():
        for seed in range(options.seed, options.seed + options.twins):
            label = f"{name}, random {seed}"
            found.append(point(twin(model, seed), label, dataset, options, is_random=True))
    return found


def picture(points: Sequence[Point], floor: Estimate, letters: float) -> "Figure":
    """Precision against loss, by either way."""
    figure_, panels = figures.blank(9.5, 4.0, columns=2)
    for axes, way in zip(panels, ("regression", "best_head"), strict=True):
        axes.axhline(floor.value, color=figures.GREY, linestyle="--", label="P(contact | separation)")
        axes.axvline(letters, color=figures.GREY, linestyle=":", label="frequencies of the amino acids")
        axes.axhspan(floor.low, floor.high, color=figures.GREY, alpha=0.3, linewidth=0)
        for is_random, colour, marker in ((False, figures.COLOURS[0], "o"), (True, figures.COLOURS[1], "x")):
            own = [each for each in points if each.is_random == is_random]
            heights = [getattr(each, way) for each in own]
            ends = np.array([[e.value - e.low for e in heights], [e.high - e.value for e in heights]])
            places = [each.nats.value for each in own]
            axes.errorbar(places, [e.value for e in heights], np.maximum(ends, 0), color=colour, marker=marker,
                          linestyle="none", capsize=2, label="random" if is_random else "trained")  # fmt: skip
        for each in points:
            if not each.is_random:
                axes.annotate(each.name, (each.nats.value, getattr(each, way).value), fontsize="x-small",
                              textcoords="offset points", xytext=(5, 4))  # fmt: skip
        axes.set(xlabel="nats of a masked residue", ylabel="precision, L/5, long range", title=way.replace("_", " "))
        axes.grid(alpha=0.3)
    panels[0].legend(frameon=False, fontsize="small")
    return figure_


def main(args: Sequence[str] | None = None) -> int:
    """Write the page; the exit status."""
    import tyro

    options = tyro.cli(Options, args=args)
    configure()
    with torch.no_grad():
        print(written(options))
    return 0


def written(options: Options) -> Path:
    """Where the page is, after all has been measured."""
    dataset = read_dataset(options)
    options.out.mkdir(parents=True, exist_ok=True)
    odds, _ = separation(dataset)
    starts = np.cumsum([0, *(len(row.sequence) ** 2 for row in dataset.test)])
    by_separation = [odds[starts[i] : starts[i + 1]].astype(np.float32) for i in range(len(dataset.test))]
    floor = evaluate(METRIC, _predictions(dataset.test, by_separation))
    letters = letter_nats(dataset)
    points = sorted(points_of(dataset, options), key=lambda each: -each.nats.value)
    image = figures.save(picture(points, floor, letters), options.out / "contacts.png")
    rows = [["model", "nats of a masked residue", "regression", "best head", "which"]]
    rows += [[p.name, str(p.nats), str(p.regression), str(p.best_head), f"{p.head} of {p.num_maps}"] for p in points]
    rows.append(["P(contact of separation)", "-", str(floor), "-", "-"])
    text = (
        f"Precision of the L/5 likeliest contacts, 24 residues apart or more, on {len(dataset.test)} chains; 95 %"
        f" intervals over chains. Nats under the softmax over the 20 amino acids, {MASKED_RATIO:.0%} of the residues"
        f" masked; a blind guess has {np.log(20):.3f}, the frequencies of the amino acids have {letters:.3f}."
    )
    page = options.out / "contacts.md"
    sections = [
        Section(title="Contacts without training", text=text, table=rows, images=[("precision against loss", image)])
    ]
    page.write_text(to_markdown(sections, options.out))
    facts = {"points": [asdict(each) for each in points], "separation": asdict(floor), "nats_of_frequencies": letters}
    write_json(options.out / "contacts.json", facts)
    return page


if __name__ == "__main__":
    sys.exit(main())
