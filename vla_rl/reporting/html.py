"""The pieces of a page that opens from disk: text is escaped, pictures are inside, nothing is loaded."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from vla_rl.reporting.report_style import STYLE
from vla_rl.reporting.text import ABSENT


def page(title: str, body: Iterable[str]) -> str:
    """A whole document of HTML parts."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{escape(title)}</h1>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """Parts under a heading; the heading is left out if it is empty."""
    heading = f"<h2>{escape(title)}</h2>" if title else ""
    return f"<section>{heading}{''.join(parts)}</section>"


def bullets(sentences: Iterable[str]) -> str:
    """A list, or nothing."""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f"<ul>{items}</ul>" if items else ""


def warning_box(sentences: Sequence[str]) -> str:
    """What a reader must mind, or nothing."""
    return f'<div class="warnings"><h3>Mind</h3>{bullets(sentences)}</div>' if sentences else ""


def note(sentence: str) -> str:
    """A sentence in small print."""
    return f'<p class="note">{escape(sentence)}</p>'


def table(header: Sequence[str] | None, rows: Iterable[Sequence[str]]) -> str:
    """Numbers under their headings; without a header, names and prose."""
    head = "" if header is None else f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in header)}</tr>"
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    css = "prose" if header is None else "numbers"
    return f'<div class="scroll"><table class="{css}">{head}{body}</table></div>'


def image(picture: bytes, *, alt: str, css: str = "") -> str:
    """A PNG inside the page, never wider than the page nor than it is."""
    data = base64.b64encode(picture).decode()
    return f'<img class="{css}" alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def folded(summary: str, content: str) -> str:
    """Content that is shown when asked for."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def preformatted(text: str) -> str:
    """Text as it is."""
    return f"<pre>{escape(text)}</pre>"


def nested(value: object) -> str:
    """JSON values as nested definition lists."""
    if isinstance(value, Mapping):
        items = "".join(f"<dt>{escape(str(key))}</dt><dd>{nested(item)}</dd>" for key, item in value.items())
        return f"<dl>{items}</dl>"
    if isinstance(value, list):
        plain = not any(isinstance(item, Mapping) for item in value)
        return escape(", ".join(map(str, value))) or "none" if plain else "".join(map(nested, value))
    return escape(ABSENT if value is None else str(value))
