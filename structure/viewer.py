"""Pages of structures to turn and to point at: one file that holds all that it shows, and asks no network for anything.

A page is `assets/viewer.html` with its script, the items as JSON, and 3Dmol.js 2.5.5 (npm, BSD-3, as it comes from its
authors), which draws in the browser. Structures and numbers of pairs are deflated; numbers of pairs are bytes, in steps
of 1/8 angstrom, up to 31.75: what PAE can be.
"""

import base64
import html
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from xtrimo.durable import write_text
from xtrimo.pages import filled

STEPS = 8
"""Of a number of pairs, in an angstrom."""
UNKNOWN = 255
"""The byte of a pair of which nothing is known."""
MOST_ITEMS = 100
"""Of a page; it has 0.55 MB of its own, and some 60 kB for a protein of 250 residues."""

Cell = str | float | int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A column of the table."""

    title: str
    digits: int | None = None
    """After the point; None for text."""
    is_plddt: bool = False
    """Whether the colour of the confidence stands beside the number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Structure:
    """A structure file as text."""

    label: str
    ending: Literal["cif", "pdb"]
    text: str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Item:
    """A row of the table, and what is shown when it is chosen."""

    name: str
    cells: tuple[Cell, ...]
    """One for each column; the first names the row."""
    sequence: str
    """With ':' between chains."""
    structures: tuple[Structure, ...]
    """The first is drawn; on a page of superpositions all are."""
    pairs_ang: Float[np.ndarray, "length length"] | None = None
    """Of residue i (row) and j; NaN where nothing is known."""
    numbers: tuple[int, ...] | None = None
    """Those of the residues in the structures; by default each chain counts from 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """What a page says besides its items."""

    title: str
    about: str
    columns: tuple[Column, ...]
    order: int
    """The column that rows are sorted by; the largest number comes first."""
    quantity: str
    """What the numbers of pairs are, within a sentence."""
    matrix_text: str
    """What stands below the map of pairs."""
    contacts_text: str
    hint: str
    top_ang: float = 32.0
    """Where the colours of the map of pairs end."""
    is_overlay: bool = False
    """Whether all structures of an item are drawn at once, each in a colour of its own, rather than by confidence."""
    items: Sequence[Item] = field(default=())


def write_page(path: Path, page: Page) -> None:
    """Write a page; of more than `MOST_ITEMS` items the first ones by its order, and it says so."""
    ranked = sorted(page.items, key=lambda item: _rank(item.cells[page.order]))
    about = page.about
    if len(ranked) > MOST_ITEMS:
        about += f" Here are the {MOST_ITEMS} first by {page.columns[page.order].title} of {len(ranked)}."
    facts: dict[str, Any] = {
        "title": page.title, "about": about, "columns": [asdict(column) for column in page.columns],
        "order": {"by": page.order, "down": True}, "quantity": page.quantity, "matrix_text": page.matrix_text,
        "contacts_text": page.contacts_text, "hint": page.hint, "top": page.top_ang, "is_overlay": page.is_overlay,
        "items": [_packed_item(item) for item in ranked[:MOST_ITEMS]],
    }  # fmt: skip
    assets = resources.files("structure").joinpath("assets")
    parts = {
        "licence": html.escape(assets.joinpath("3Dmol-LICENSE.txt").read_text("utf-8")),
        "drawing": assets.joinpath("3Dmol-min.js").read_text("utf-8"),
        "script": assets.joinpath("viewer.js").read_text("utf-8"),
    }
    write_text(path, filled(assets.joinpath("viewer.html").read_text("utf-8"), facts, **parts))


def _rank(cell: Cell) -> tuple[bool, float]:
    return (True, 0.0) if cell is None else (False, -float(cell))


def _packed_item(item: Item) -> dict[str, Any]:
    return {
        "name": item.name, "cells": item.cells, "sequence": item.sequence, "numbers": item.numbers,
        "files": [
            {"label": each.label, "ending": each.ending, "text": _packed(each.text.encode())}
            for each in item.structures
        ],
        "matrix": None if item.pairs_ang is None else _packed(to_bytes(item.pairs_ang).tobytes()),
    }  # fmt: skip


def to_bytes(pairs_ang: Float[np.ndarray, "length length"]) -> np.ndarray:
    """Numbers of pairs as bytes.

    >>> to_bytes(np.array([[0.0, 3.06], [99.0, np.nan]])).tolist()
    [[0, 24], [254, 255]]
    """
    steps = np.rint(np.clip(pairs_ang * STEPS, 0, UNKNOWN - 1))
    return np.where(np.isfinite(pairs_ang), steps, UNKNOWN).astype(np.uint8)


def _packed(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content, 9)).decode()
