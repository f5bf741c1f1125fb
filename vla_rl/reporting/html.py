"""Building blocks of a self-contained HTML page: text is escaped, images are embedded, nothing is loaded."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from vla_rl.reporting.text import ABSENT

STYLE = """\
:root { --ink: #1f2933; --faint: #d5dbe1; --soft: #f5f7f9; --accent: #0072b2; --warm: #fff6e5; --warm-edge: #e69f00; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 2rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-bottom: .3rem; border-bottom: 1px solid var(--faint); }
h3 { font-size: 1rem; margin: 1.2rem 0 .5rem; }
ul { margin: .3rem 0; padding-left: 1.3rem; }
li { margin: .2rem 0; }
img { display: block; height: auto; max-width: 100%; margin: .4rem 0; }
img.narrow { width: 780px; }
.warnings { background: var(--warm); border-left: 4px solid var(--warm-edge); padding: .6rem 1rem; margin: 1rem 0; }
.warnings h3 { margin: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .35rem .65rem .35rem 0; }
th, td { border-bottom: 1px solid var(--faint); }
.numbers td { white-space: nowrap; }
th { font-weight: 600; vertical-align: bottom; }
.note { font-size: .85rem; color: #52606d; }
details { margin: .8rem 0; }
summary { cursor: pointer; color: var(--accent); }
pre { background: var(--soft); padding: 1rem; overflow-x: auto; font-size: .82rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .3rem 0; font-size: .88rem; }
dt { color: #52606d; }
dd { margin: 0; overflow-wrap: anywhere; }
"""


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
