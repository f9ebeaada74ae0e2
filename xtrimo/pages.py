"""Headings, text, tables and pictures as Markdown or as one HTML page; in both, text between ** is bold.

And pages to point at, which are HTML files of ours with a script in them: `filled` puts in what the script shows.
"""

import base64
import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0;font-size:14px}th,td{border:1px solid #ccc;padding:.3em .6em;"
    "text-align:left}th{background:#f3f3f3}img{max-width:100%;margin:.5em 1em .5em 0;vertical-align:top}"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A heading, text, a table whose first row is its head, and pictures by (what they show, file)."""

    title: str
    text: str = ""
    table: Sequence[Sequence[str]] = ()
    images: Sequence[tuple[str, Path]] = field(default_factory=list)


def to_markdown(sections: Sequence[Section], out: Path) -> str:
    """Markdown, with the pictures by their paths under `out`."""
    lines: list[str] = []
    for number, section in enumerate(sections):
        lines += [f"{'#' if number == 0 else '##'} {section.title}", "", section.text, ""]
        for row, cells in enumerate(section.table):
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
            lines += [f"|{' --- |' * len(cells)}"] if row == 0 else []
        lines += [""] if section.table else []
        lines += [f"![{what}]({path.relative_to(out).as_posix()})\n" for what, path in section.images]
    return "\n".join(lines).rstrip() + "\n"


def to_html(sections: Sequence[Section]) -> str:
    """One page with everything in it, so that it can be sent as a file."""
    parts = [
        f"<!doctype html><meta charset=utf-8><title>{html.escape(sections[0].title)}</title><style>{STYLE}</style>"
    ]
    for number, section in enumerate(sections):
        level = 1 if number == 0 else 2
        parts.append(f"<h{level}>{html.escape(section.title)}</h{level}><p>{html.escape(section.text)}</p>")
        rows = []
        for row, cells in enumerate(section.table):
            tag = "th" if row == 0 else "td"
            rows.append("".join(f"<{tag}>{_bold(html.escape(cell))}</{tag}>" for cell in cells))
        parts += [f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"] if rows else []
        for what, path in section.images:
            data = base64.b64encode(path.read_bytes()).decode()
            parts.append(f'<img alt="{html.escape(what)}" src="data:image/png;base64,{data}">')
    return "\n".join(parts) + "\n"


def _bold(text: str) -> str:
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text)


def filled(page: str, facts: object, **parts: str) -> str:
    """A page in which `{{data}}` is `facts` as JSON, and `{{name}}` the part of that name, as it is."""
    for name, text in parts.items():
        page = page.replace(f"{{{{{name}}}}}", text)
    data = json.dumps(facts, separators=(",", ":")).replace("<", "\\u003c")  # no name ends the script
    return page.replace("{{data}}", data)
