"""A scan as a table, as a picture, and as a page that needs no network: all of it stands in the file."""

import csv
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap  # at once: missing, it is no news for after the scan
from matplotlib.figure import Figure

from xtrimo.command import replacing
from xtrimo.durable import write_text
from xtrimo.figures import COLOURS, DPI, GREY
from xtrimo.mutation_scan import LETTERS, Scan, Substitution
from xtrimo.pages import filled

WORSE, SAME, BETTER = COLOURS[5], "#f7f7f7", COLOURS[0]
CLIPPED = 99
"""Percentile of the scores' sizes from which on colours no longer deepen."""
LINE, MOST_LINES = 100, 100
"""Residues side by side; a longer protein than so many lines has longer ones."""


def write_csv(path: Path, scan: Scan) -> None:
    """A row for each substitution: mutation, position, wild, mutant, score (nats)."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Substitution._fields)
        writer.writerows((*facts, f"{score:.6f}") for *facts, score in scan.substitutions())


def write_png(path: Path, scan: Scan) -> None:
    """The map: residues from left to right, letters from top to bottom, a dot at each letter of the wild type."""
    length, limit = len(scan.sequence), largest(scan)
    width = max(LINE, -(-length // MOST_LINES))
    starts = range(0, length, width)
    figure = Figure(figsize=(2 + min(width, length) * 0.13, 0.8 + 3.1 * len(starts)), layout="constrained")
    colours = LinearSegmentedColormap.from_list("likelier", (WORSE, SAME, BETTER)).with_extremes(bad=GREY)
    axes = figure.subplots(len(starts), 1, squeeze=False)[:, 0]
    for ax, start in zip(axes, starts, strict=True):
        part = scan.scores[start : start + width]
        picture = ax.imshow(np.ma.masked_invalid(part.T), cmap=colours, vmin=-limit, vmax=limit, aspect="auto")
        wild = [(i, LETTERS.index(own)) for i, own in enumerate(scan.sequence[start : start + width]) if own in LETTERS]
        ax.scatter(*zip(*wild, strict=True), s=3, color="#333333") if wild else None
        ax.set_yticks(range(len(LETTERS)), list(LETTERS), fontsize=7)
        ticks = [i for i in range(len(part)) if i == 0 or (start + i + 1 + scan.offset) % 10 == 0]
        ax.set_xticks(ticks, [str(start + i + 1 + scan.offset) for i in ticks], fontsize=7)
        ax.set_xlim(-0.5, min(width, length) - 0.5)
        ax.spines[:].set_visible(False)
    axes[0].set_title(f"{scan.name}: every substitution, {scan.method}")
    figure.colorbar(
        picture, ax=list(axes), label="nats above the wild type", shrink=min(1.0, 2 / len(starts)), pad=0.01
    )
    with replacing(path) as partial:
        figure.savefig(partial, dpi=min(DPI, 60_000 / figure.get_figheight()), format="png")


def write_html(path: Path, scan: Scan, *, model: str) -> None:
    """The map to point at, and a table to sort and to save; `model` is what the page calls it."""
    cells = [[None if np.isnan(s) else round(s, 6) for s in own] for own in scan.scores.tolist()]
    facts: dict[str, Any] = {
        "name": scan.name, "model": model, "method": scan.method, "sequence": scan.sequence, "offset": scan.offset,
        "letters": LETTERS, "scores": cells, "limit": largest(scan),
        "colours": {"worse": WORSE, "same": SAME, "better": BETTER, "unknown": GREY},
    }  # fmt: skip
    page = resources.files("xtrimo").joinpath("scan.html").read_text("utf-8")
    write_text(path, filled(page, facts))


def largest(scan: Scan) -> float:
    """Size of a score at which colours are full."""
    sizes = np.abs(scan.scores[np.isfinite(scan.scores) & (scan.scores != 0)])
    return float(np.percentile(sizes, CLIPPED)) if len(sizes) else 1.0
