"""Pictures of results, by matplotlib: bars, confusion matrix, calibration, scatter, contact map."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from heads.answers import UNSCORED, Predictions
from heads.calibration import NUM_BINS, calibration_bins, calibration_error
from heads.contacts import MIN_SEPARATION
from heads.metrics import contact_precision
from heads.preferences import verdicts
from xtrimo.figures import COLOURS, GREY, blank
from xtrimo.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_CLASSES = 20
MAX_WRITTEN = 10  # classes up to which each cell of a confusion matrix is written out
SEPARATION = 24  # from which the pairs of a contact map count in its headline


def bars(figures: Mapping[str, Mapping[str, Estimate]], floors: Sequence[str], label: str) -> "Figure":
    """A group of bars for each task, a bar for each model; the line on a bar is its interval.

    Args:
        figures: task -> model or floor -> how good.
        floors: those that are drawn in grey, with their names beside them.
        label: of the axis of figures.
    """
    from matplotlib.patches import Patch

    models = list(dict.fromkeys(name for row in figures.values() for name in row if name not in floors))
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(models)}
    num_bars = sum(map(len, figures.values()))
    figure, axes = blank(8.5, 1.4 + 0.21 * (num_bars + len(figures)))
    ticks, place = [], 0.0
    for row in figures.values():
        ordered = sorted(row, key=lambda name: name in floors)  # models first
        for number, name in enumerate(ordered):
            estimate, at = row[name], place + number
            axes.barh(at, estimate.value, 0.9, color=colours.get(name, GREY))
            axes.hlines(at, estimate.low, estimate.high, color="black", linewidth=1)
            if name in floors:
                right = max(0.0, estimate.value, estimate.high)
                axes.annotate(name, (right, at), (4, 0), textcoords="offset points", va="center", fontsize="x-small")
        ticks.append(place + (len(ordered) - 1) / 2)
        place += len(ordered) + 1
    axes.set_yticks(ticks, list(figures), fontsize="small")
    axes.set(ylim=(place - 1.2, -0.8), xlabel=label)
    axes.margins(x=0.12)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    legend = colours | ({"floor, from the letters alone": GREY} if floors else {})
    patches = [Patch(color=colour, label=name) for name, colour in legend.items()]
    figure.legend(handles=patches, loc="outside upper left", ncols=3, frameon=False, fontsize="small")
    return figure


def confusion(predictions: Predictions, classes: Sequence[str]) -> "Figure":
    """What each true class was taken for, in percent of it; of many classes the most frequent and the rest."""
    scored = predictions.truth != UNSCORED
    truth, said = predictions.truth[scored], predictions.prediction[scored].argmax(1)
    frequency = np.bincount(truth, minlength=len(classes))
    shown = np.argsort(-frequency, kind="stable")[:MAX_CLASSES]
    shown = np.sort(shown[frequency[shown] > 0]) if len(classes) > MAX_CLASSES else np.arange(len(classes))
    place = np.full(len(classes), len(shown))
    place[shown] = np.arange(len(shown))
    num = len(shown) + int(len(shown) < len(classes))
    names = [classes[number] for number in shown] + ["others"] * (num - len(shown))
    counts = np.zeros((num, num))
    np.add.at(counts, (place[truth], place[said]), 1)
    percent = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure, axes = blank(2.6 + 0.42 * num, 2.1 + 0.38 * num)
    image = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    slope = dict(rotation=45, ha="right", rotation_mode="anchor") if max(map(len, names)) > 3 else {}
    axes.set_xticks(range(num), names, **slope)
    axes.set_yticks(range(num), [f"{name} ({count:,.0f})" for name, count in zip(names, counts.sum(1), strict=True)])
    axes.set(xlabel="predicted", ylabel="true (number)")
    if num <= MAX_WRITTEN:
        for (row, column), value in np.ndenumerate(percent):
            colour = "white" if value > 60 else "black"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize="small")
    figure.colorbar(image, ax=axes, label="% of the true class")
    return figure


def calibration(predictions: Predictions, classes: Sequence[str]) -> "Figure":
    """How often what is held likely is so: of two classes the second, of more whichever is held most likely; of two
    proteins that which is held better."""
    belief, is_so, what = _believed(predictions, classes)
    expected, found, _ = calibration_bins(belief, is_so)
    figure, axes = blank(4.8, 4.6)
    axes.plot([0, 1], [0, 1], color="#7f7f7f", linewidth=1, linestyle="--", label="calibrated")
    axes.plot(expected, found, color=COLOURS[0], marker="o", label=f"{NUM_BINS} bins of equal size")
    axes.set(
        xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel=f"predicted probability of {what}",
        ylabel=f"share of {what}" if predictions.of == "two classes" else "share that is right",
        title=f"expected calibration error {calibration_error(belief, is_so):.3f}",
    )  # fmt: skip
    axes.legend(frameon=False, loc="upper left", fontsize="small")
    axes.grid(alpha=0.3)
    return figure


def _believed(predictions: Predictions, classes: Sequence[str]) -> tuple[Any, Any, str]:
    """How likely something is held, whether it is so, and what it is called."""
    truth, said = predictions.truth, predictions.prediction
    if predictions.of == "preferences":
        return *verdicts(truth[truth != 0.5], said[truth != 0.5]), "the better protein"
    truth, said = truth[truth != UNSCORED], said[truth != UNSCORED]
    if predictions.of == "two classes":
        return said[:, 1], truth == 1, f"class {classes[1]}"
    return said.max(1), said.argmax(1) == truth, "the predicted class"


def scatter(predictions: Predictions, title: str) -> "Figure":
    """Each prediction against what was measured; where there are many, how many fall where."""
    figure, axes = blank(5.2, 4.6)
    x, y = predictions.truth, predictions.prediction
    low, high = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
    margin = 0.04 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    axes.plot(limits, limits, color="#7f7f7f", linewidth=1, linestyle="--")
    if len(x) > 1000:
        grid = axes.hexbin(x, y, gridsize=45, mincnt=1, bins="log", cmap="viridis", extent=(*limits, *limits))
        figure.colorbar(grid, ax=axes, label="proteins", shrink=0.8)
    else:
        axes.scatter(x, y, s=12, alpha=0.6, color=COLOURS[0], linewidths=0)
    axes.set(xlim=limits, ylim=limits, aspect="equal", xlabel="measured", ylabel="predicted", title=title)
    return figure


def contact_maps(predictions: Predictions) -> "Figure":
    """The protein of middling precision: probabilities beside the truth; of it the L/5 pairs chosen, right or wrong."""
    precision = contact_precision(predictions, 5, SEPARATION)
    defined = np.flatnonzero(np.isfinite(precision))
    middle = defined[np.argsort(precision[defined], kind="stable")[len(defined) // 2]] if len(defined) else 0
    one = predictions.take(np.array([middle]))
    length = int(one.length[0])
    truth, said = (values.reshape(length, length) for values in (one.truth, one.prediction))
    figure, (left, right) = blank(9.4, 4.7, columns=2)
    apart = np.abs(np.subtract.outer(np.arange(length), np.arange(length)))
    brightest = max(0.02, float(np.quantile(said[apart >= min(MIN_SEPARATION, length - 1)], 0.995)))
    frame = (0.5, length + 0.5, length + 0.5, 0.5)  # residues are counted from 1
    image = left.imshow(said, cmap="viridis", vmin=0, vmax=brightest, extent=frame)
    figure.colorbar(image, ax=left, label="P(contact)", shrink=0.8, extend="max")
    left.set_title("predicted", fontsize="medium")
    right.imshow(truth == 1, cmap="Greys", vmin=0, vmax=1.6, extent=frame)
    first, second = _chosen(truth, said, length)
    hit = truth[first, second] == 1
    for which, colour, name in ((hit, COLOURS[2], "right"), (~hit, COLOURS[5], "wrong")):
        right.scatter(second[which] + 1, first[which] + 1, s=16, color=colour, label=f"{name}: {which.sum()}")
    right.set_title(f"true contacts, and the L/5 = {len(first)} chosen, |i-j| >= {SEPARATION}", fontsize="medium")
    right.legend(loc="lower left", fontsize="small")
    for axes in (left, right):
        axes.set(xlabel="residue", ylabel="residue")
    of = f"protein {middle + 1} of {len(precision)}, of middling precision ({precision[middle]:.2f})"
    figure.suptitle(of, fontsize="medium")
    return figure


def _chosen(truth: Any, said: Any, length: int) -> tuple[Int[np.ndarray, "pair"], Int[np.ndarray, "pair"]]:
    """The pairs that `contact_precision` takes at L/5."""
    first, second = np.triu_indices(length, k=SEPARATION)
    known = truth[first, second] != UNSCORED
    first, second = first[known], second[known]
    top = np.argsort(-said[first, second], kind="stable")[: max(1, length // 5)]
    return first[top], second[top]
