"""Style and output files that the figures of all studies share."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

RC = {
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
}
DPI = 160


def style(salt: str) -> AbstractContextManager[None]:
    """Apply the style inside a `with`.

    Args:
        salt: salt of the ids in an SVG, so that the same study gives the same file.
    """
    return mpl.rc_context(RC | {"svg.hashsalt": salt})


def save(figure: Figure, out: Path, name: str) -> list[Path]:
    """Write `name`.png and `name`.svg."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{name}.png", out / f"{name}.svg"]
    figure.savefig(paths[0], dpi=DPI)
    figure.savefig(paths[1], dpi=DPI, metadata={"Date": None})
    return paths
