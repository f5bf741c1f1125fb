"""Numbers formatted for people. A missing value is a dash."""

from __future__ import annotations

from collections.abc import Sequence

ABSENT = "-"
_BARS = "▁▂▃▄▅▆▇█"


def percent(share: float | None, *, digits: int = 0) -> str:
    """Format 0.456 as "46 %"."""
    return ABSENT if share is None else f"{100 * share:.{digits}f} %"


def number(value: float | None) -> str:
    """Format to three significant digits, with thousands separators, whole above 100: 0.0312, 4.53, 120, 12,345."""
    if value is None:
        return ABSENT
    if value == 0:
        return "0"
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1e}" if abs(value) < 1e-3 else f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """Format 3725 as "1:02:05", two days and more as "2 d 3 h"."""
    if seconds is None:
        return ABSENT
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


def size(num_bytes: int) -> str:
    """Format 1,500,000 as "1.5 MB" (powers of 1000)."""
    value = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def sparkline(values: Sequence[float], *, low: float, high: float) -> str:
    """Return one bar per value, the lowest at `low`, the full one at `high`; all lowest if the range is empty."""
    span = high - low
    shares = [(min(max(value, low), high) - low) / span if span > 0 else 0.0 for value in values]
    return "".join(_BARS[round(share * (len(_BARS) - 1))] for share in shares)


def age(seconds: float) -> str:
    """Format a time that has passed, in its largest unit: "45 s ago", "3 min ago", "5 h ago", "2 d ago"."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return f"{max(0, int(seconds))} s ago"


def printable(text: str) -> str:
    """Return text with characters that would move a terminal's cursor, or that it cannot show, spelled out."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def distinct(names: Sequence[str]) -> list[str]:
    """Make names distinct: the second "a" becomes "a (2)"."""
    found: list[str] = []
    for name in names:
        candidate, again = name, 2
        while candidate in found:
            candidate, again = f"{name} ({again})", again + 1
        found.append(candidate)
    return found
