"""Lay a report out: sections of words, tables and pictures, as markdown and as one self-contained HTML page."""

import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;display:block;overflow-x:auto}td,th{border:1px solid #ccc;padding:.2rem .5rem;"
    "text-align:left;white-space:nowrap}code{font-size:85%}svg{max-width:100%;height:auto}"
)


@dataclass(frozen=True)
class Section:
    """A heading with text, then a table, then a picture; each but the heading may be left out."""

    heading: str
    text: str = ""
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    picture: str | None = None  # SVG
    file_name: str = ""  # of the picture beside the markdown


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    """The report as markdown; pictures are files beside it."""
    parts = [f"# {title}"]
    for section in sections:
        parts.append(f"## {section.heading}")
        if section.text:
            parts.append(section.text)
        if section.header:
            lines = [section.header, ["---"] * len(section.header), *section.rows]
            parts.append(
                "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)
            )
        if section.picture:
            parts.append(f"![{section.heading}]({section.file_name})")
    return "\n\n".join(parts) + "\n"


def to_html(title: str, sections: Sequence[Section]) -> str:
    """The report as one page: style and pictures are inside it."""
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>"
    ]
    for section in sections:
        parts.append(f"<h2>{html.escape(section.heading)}</h2>")
        parts += [f"<p>{html.escape(paragraph)}</p>" for paragraph in section.text.split("\n\n") if paragraph]
        if section.header:
            rows = [_row("th", section.header), *(_row("td", row) for row in section.rows)]
            parts.append(f"<table>{''.join(rows)}</table>")
        if section.picture:
            parts.append(section.picture)
    return "\n".join([*parts, "</body></html>\n"])


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def to_svg(figure: Any) -> str:
    """A matplotlib figure as an svg element; the same figure gives the same text."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "phiserve"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
