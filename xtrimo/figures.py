"""What all pictures share: colours, an empty figure, how it becomes a PNG.

Colours are those of Okabe and Ito, which the colour-blind tell apart; floors are grey.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
GREY = "#b5b5b5"
DPI = 120


def blank(width: float, height: float, columns: int = 1) -> tuple["Figure", Any]:
    """A figure of so many inches, and its axes: several side by side as an array."""
    from matplotlib.figure import Figure  # without pyplot: no window system, no state to leave behind

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns)


def save(figure: "Figure", path: Path) -> Path:
    """Write a PNG; returns its path."""
    figure.savefig(path, dpi=DPI)
    return path
