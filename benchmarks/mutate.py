"""Every substitution of a protein: a scan beside one forward pass for each mutation.

    python -m benchmarks.mutate --models runs/models/glm-1m-long

For each mutation the plain way masks its position in the protein, reads that alone, and takes log p(mutant) - log
p(wild type); 5,700 passes at 300 residues, of which a sample is timed and the rest reckoned. `scan` is what `xtrimo
mutate --scan` calls. Both read by the same model, laid out for this CPU. What they say of the sample is compared.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro

from benchmarks import protocol
from benchmarks.protocol import Machine, Report, Spread, Timings
from xtrimo.attention import within
from xtrimo.backbone import Backbone, load
from xtrimo.config import PRESETS
from xtrimo.model import GLM
from xtrimo.mutation_scan import LETTERS, Scan, scan
from xtrimo.prepacking import prepack
from xtrimo.testing import toy_sequences
from xtrimo.variants import Method

METHODS: tuple[Method, ...] = ("masked-marginals", "wild-type-marginals")
HEADER = (
    "model",
    "method",
    "mutations",
    "scan, CPU-s",
    "one by one, CPU-s",
    "times faster",
    "largest difference, nats",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class MutateConfig:
    """What to time."""

    models: tuple[str, ...] = ("glm-1m",)
    """Whatever `xtrimo.load` takes; or the name of a shape, with random weights."""
    length: int = 300
    """Residues."""
    sample: int = 38
    """Mutations that are read one by one, drawn at random."""
    rounds: int = 3
    """Timed rounds, after one untimed."""
    out: Path = Path("runs/benchmarks")
    """Folder of mutate.{json,md}."""


def one_by_one(model: Backbone, wild: str, places: list[tuple[int, str]], method: Method) -> list[float]:
    """A pass for each mutation."""
    before, _ = model.words_around
    found = []
    for place, letter in places:
        example = model.tokenize(wild)
        tokens = torch.from_numpy(example.tokens.copy()).long()
        if method == "masked-marginals":
            tokens[before + place] = model.mask or 0
        new, old = (int(model.tokenize(own).tokens[before]) for own in (letter, wild[place]))
        with torch.inference_mode():
            row = within(torch.tensor([[0, len(tokens), example.prefix]]))
            states = model.hidden(tokens, torch.from_numpy(example.positions).long(), row)[-1]
            nats = model.logits(states).float().log_softmax(-1)[before + place]
        found.append(float(nats[new] - nats[old]))
    return found


def main() -> None:
    config = tyro.cli(MutateConfig, description=__doc__)
    protocol.one_thread()
    (wild,) = toy_sequences(1, min_length=config.length, max_length=config.length)
    rng = np.random.default_rng(protocol.SEED)
    sites = [(place, letter) for place, own in enumerate(wild) for letter in LETTERS if letter != own]
    sample = [sites[i] for i in rng.choice(len(sites), config.sample, replace=False)]
    scans: dict[str, Scan] = {}
    alone: dict[str, list[float]] = {}
    variants: dict[str, Callable[[], object]] = {}
    warm: dict[str, Callable[[], object]] = {}
    pairs = [(name, method) for name in config.models for method in METHODS]
    models = {name: prepared(name) for name in config.models}
    for name, method in pairs:

        def scanned(model: Backbone = models[name], method: Method = method, key: str = f"{name} {method}") -> None:
            scans[key] = scan(model, wild, method=method)

        def each(model: Backbone = models[name], method: Method = method, key: str = f"{name} {method}") -> None:
            alone[key] = one_by_one(model, wild, sample, method)

        variants |= {f"{name} {method} scan": scanned, f"{name} {method} one by one": each}
        warm[name] = partial(scan, models[name], wild[:20])
    *_, timings = protocol.interleave(variants, config.rounds, warm=warm)
    rows = []
    for name, method in pairs:
        key = f"{name} {method}"
        error = max(
            abs(scans[key].scores[p, LETTERS.index(own)] - a) for (p, own), a in zip(sample, alone[key], strict=True)
        )
        figures = compared(timings, key, len(sites) / len(sample))
        rows.append((Path(name).name, method, f"{len(sites):,}", *figures, f"{error:.1e}"))
    report = Report(
        title=f"Every substitution of {config.length} residues", machine=Machine.here("numpy"),
        setting={"length": config.length, "sample": config.sample, "models": list(config.models)}, timings=timings,
        header=HEADER, rows=rows, notes=(f"one by one: {config.sample} passes timed, the rest reckoned from them",),
    )  # fmt: skip
    report.save(config.out, "mutate")
    print(report.to_markdown())


def prepared(name: str) -> Backbone:
    """The model, laid out for this CPU."""
    if name in PRESETS:
        torch.manual_seed(protocol.SEED)
        return prepack(GLM(PRESETS[name]).eval())
    model = load(name)
    return prepack(model) if isinstance(model, GLM) else model


def compared(timings: Timings, key: str, reckoned: float) -> tuple[str, str, str]:
    """CPU-seconds of the scan, of all passes one by one, and their ratio."""
    ours, theirs = timings.seconds[f"{key} scan"], [reckoned * own for own in timings.seconds[f"{key} one by one"]]
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return str(Spread.of(ours)), str(Spread.of(theirs)), str(Spread.of(ratios))


if __name__ == "__main__":
    main()
