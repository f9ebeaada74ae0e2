"""A picture of a run: nats per objective against optimizer steps, from its `metrics.jsonl`.

These are the losses as trained, closing words and visible mlm labels included: they compare a run with itself and with
other runs, not with residue n-grams. held_out.py does that.
"""

from collections import defaultdict
from pathlib import Path

from xtrimo.errors import CheckpointError, MissingExtraError
from xtrimo.objectives import OBJECTIVES
from xtrimo.training_log import read_metrics

Curve = list[tuple[int, float]]


def read_curves(metrics: Path) -> dict[tuple[str, str], Curve]:
    """(step, nats) by (split, objective), such as ("valid", "mlm").

    Raises:
        CheckpointError: if there is no such file, or nothing in it yet.
    """
    curves: dict[tuple[str, str], Curve] = defaultdict(list)
    for entry in read_metrics(metrics):
        for name in OBJECTIVES:
            if f"nats_{name}" in entry:
                curves[entry["split"], name].append((entry["step"], entry[f"nats_{name}"]))
    if not curves:
        raise CheckpointError(
            f"{metrics} holds no losses; give the run folder of `xtrimo pretrain`, once it has logged"
        )
    return dict(curves)


def plot_curves(metrics: Path, png: Path) -> None:
    """Draw training (faint) and held-out nats of each objective.

    Raises:
        CheckpointError: see `read_curves`.
    """
    try:
        from matplotlib.figure import Figure  # without pyplot: no window system, no state to leave behind
    except ModuleNotFoundError as error:
        raise MissingExtraError("a plot needs matplotlib; run: pip install 'xtrimo[pretrain]'") from error
    curves = read_curves(metrics)
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(OBJECTIVES):
        if curve := curves.get(("train", name)):
            axes.plot(*zip(*curve, strict=True), color=f"C{number}", alpha=0.3, linewidth=0.8)
        if curve := curves.get(("valid", name)):
            axes.plot(
                *zip(*curve, strict=True), color=f"C{number}", marker="o", markersize=3, label=f"{name}, held out"
            )
    lowest = min(nats for curve in curves.values() for _, nats in curve)
    axes.set(xlabel="optimizer steps", ylabel="nats per label", ylim=(lowest - 0.05, max(3.1, lowest + 0.5)))
    axes.legend(frameon=False, fontsize="small")
    axes.grid(alpha=0.2)
    figure.savefig(png, dpi=120)
