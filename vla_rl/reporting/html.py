"""Building blocks of a self-contained HTML page: text is escaped, images are embedded, nothing is loaded."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from vla_rl.reporting.report_style import STYLE
from vla_rl.reporting.text import ABSENT


def page(title: str, body: Iterable[str]) -> str:
    """Return a whole document made of HTML parts."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{escape(title)}</h1>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """Return parts under a heading; the heading is left out if it is empty."""
    heading = f"<h2>{escape(title)}</h2>" if title else ""
    return f"<section>{heading}{''.join(parts)}</section>"


def bullets(sentences: Iterable[str]) -> str:
    """Return a bullet list, or nothing if there are no sentences."""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f"<ul>{items}</ul>" if items else ""


def warning_box(sentences: Sequence[str]) -> str:
    """Return a box of warnings, or nothing if there are none."""
    return f'<div class="warnings"><h3>Mind</h3>{bullets(sentences)}</div>' if sentences else ""


def note(sentence: str) -> str:
    """Return a sentence in small print."""
    return f'<p class="note">{escape(sentence)}</p>'


def table(header: Sequence[str] | None, rows: Iterable[Sequence[str]]) -> str:
    """Return a table; without a header, of names and prose."""
    head = "" if header is None else f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in header)}</tr>"
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    css = "prose" if header is None else "numbers"
    return f'<div class="scroll"><table class="{css}">{head}{body}</table></div>'


def image(picture: bytes, *, alt: str, css: str = "") -> str:
    """Return a PNG embedded in the page, at most as wide as the page and never enlarged."""
    data = base64.b64encode(picture).decode()
    return f'<img class="{css}" alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def folded(summary: str, content: str) -> str:
    """Return content that is collapsed until the reader opens it."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def preformatted(text: str) -> str:
    """Return text with its whitespace kept."""
    return f"<pre>{escape(text)}</pre>"


def nested(value: object) -> str:
    """Return JSON values as nested definition lists."""
    if isinstance(value, Mapping):
        items = "".join(f"<dt>{escape(str(key))}</dt><dd>{nested(item)}</dd>" for key, item in value.items())
        return f"<dl>{items}</dl>"
    if isinstance(value, list):
        plain = not any(isinstance(item, Mapping) for item in value)
        return escape(", ".join(map(str, value))) or "none" if plain else "".join(map(nested, value))
    return escape(ABSENT if value is None else str(value))
