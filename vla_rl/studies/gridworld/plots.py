"""Figures of the GridWorld study: the Pareto fronts (the paper's Figure 4) and the gradient weights (its Figure 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from torch import Tensor

from vla_rl.rl.surrogates import multiplier
from vla_rl.studies.figures import save, style
from vla_rl.studies.gridworld.enumeration import CASES, SIGMAS, Record, labels, methods, pareto_front

Front = Callable[[list[Record]], list[Record]]


class Style(NamedTuple):
    """Style of one method."""

    color: str
    line: str
    marker: str


STYLES = {
    "no_clip": Style("#4d4d4d", "--", "s"),
    "ppo": Style("#D55E00", "-.", "x"),
    "sapo": Style("#009E73", ":", "D"),
}
OTHERS = (Style("#CC79A7", "--", "^"), Style("#E69F00", "-.", "v"), Style("#8c6d31", ":", "P"))  # by position


def plot_pareto(out: Path, records: Sequence[Record]) -> list[Path]:
    """Write `gridworld.png` and `gridworld.svg`: variance against bias per case, the crowded corner enlarged."""
    with style("gridworld"):
        return save(pareto_figure(records), out, "gridworld")


def pareto_figure(records: Sequence[Record], *, front: Front = pareto_front, front_of: str = "") -> Figure:
    """Plot variance against bias per case, the crowded corner enlarged.

    Args:
        records: of all cases.
        front: returns the records of one case that the dashed line joins.
        front_of: whose front the line is, for the legend; nobody's in particular if empty.
    """
    figure = Figure(figsize=(11.0, 7.2), layout="constrained")
    whole, corner = figure.subplots(2, len(CASES), sharex="row", sharey="row")
    for case, above, below in zip(CASES, whole, corner, strict=True):
        of_case = [record for record in records if record.case == case]
        for axes in (above, below):
            _draw_points(axes, of_case, front(of_case), f"Pareto front {front_of}".strip())
        above.set(title=f"case {case}", xlim=(-0.004, 0.094), ylim=(-0.0006, 0.0176))
        below.set(xlabel="|bias|", xlim=(-0.0008, 0.0165), ylim=(0.0128, 0.0168), xticks=[0.0, 0.005, 0.01, 0.015])
        above.indicate_inset([-0.0008, 0.0128, 0.0173, 0.004], edgecolor="#9a9a9a")
    whole[0].set_ylabel("variance of the one-sample gradient")
    corner[0].set_ylabel("variance, enlarged corner")
    figure.legend(*whole[0].get_legend_handles_labels(), loc="outside lower center", ncols=9, columnspacing=1.4)
    figure.suptitle("GridWorld: exact bias and variance of one gradient step", fontsize=11)
    return figure


def _draw_points(axes: Axes, records: Sequence[Record], front: Sequence[Record], name: str) -> None:
    names = labels()
    bias, variance = [record.bias for record in front], [record.variance for record in front]
    axes.plot(bias, variance, "--", color="#9a9a9a", lw=1.0, zorder=1, label=name)
    for record in records:
        (color, _, marker), solid = _style(record.method, record.sigma), record.method == "gipo"
        axes.plot(
            record.bias, record.variance, marker, label=names[record.method, record.sigma], mec=color,
            mfc=color if solid else "none", ms=6 if solid else 9, mew=0 if solid else 1.6, ls="none",
            zorder=4 if solid else 3,
        )  # fmt: skip


def plot_weights(out: Path) -> list[Path]:
    """Write `weights.png` and `weights.svg`: m against ρ and against log ρ, for good and for bad actions."""
    with style("gridworld"):
        figure = Figure(figsize=(10.5, 7.4), layout="constrained")
        panels = figure.subplots(2, 2)
        log_ratio = torch.linspace(-5.0, 5.0, 4001, dtype=torch.float64)
        for (linear, logarithmic), sign in zip(panels, (1.0, -1.0), strict=True):
            advantages = torch.full_like(log_ratio, sign)
            _weight_curves(linear, log_ratio.exp(), log_ratio, advantages)
            _weight_curves(logarithmic, log_ratio, log_ratio, advantages)
            actions = "good actions (A > 0)" if sign > 0 else "bad actions (A < 0)"
            linear.set(title=actions, xlabel="ρ", ylabel="m", xlim=(0, 4), ylim=(0, 4))
            logarithmic.set(title=actions, xlabel="log ρ", ylabel="m, log scale", xlim=(-4, 4))
            logarithmic.set(yscale="log", ylim=(1e-4, 1e2))
        figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=8)
        figure.suptitle("Weight m on A ∇log π, by importance ratio ρ", fontsize=11)
        return save(figure, out, "weights")


def _weight_curves(axes: Axes, x: Tensor, log_ratio: Tensor, advantages: Tensor) -> None:
    for method in methods():
        weight = multiplier(method.surrogate.log_weight, log_ratio, advantages)
        color, line, _ = _style(method.name, method.sigma)
        axes.plot(x, weight, line, color=color, lw=1.5, label=method.surrogate.label)
    axes.axvline(float(x[log_ratio.abs().argmin()]), color="#bdbdbd", lw=0.8, zorder=0)  # on-policy


def _style(method: str, sigma: float | None) -> Style:
    if sigma is not None:
        shade = 0.4 + 0.55 * SIGMAS.index(sigma) / (len(SIGMAS) - 1)  # darker is wider
        return Style(to_hex(mpl.colormaps["Blues"](shade)), "-", "o")
    others = [each.name for each in methods() if each.sigma is None and each.name not in STYLES]
    return STYLES[method] if method in STYLES else OTHERS[others.index(method) % len(OTHERS)]
