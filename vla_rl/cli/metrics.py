"""`vla-rl metrics`: the metrics of a run, with units and meaning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from vla_rl.errors import UserError

if TYPE_CHECKING:
    from vla_rl.reporting.catalogue import Metric

OVER_RANKS = {
    "mean": "mean of the ranks",
    "sum": "sum of the ranks",
    "max": "largest of the ranks",
    None: "all samples",
}


def metrics(
    prefix: Annotated[
        str,
        typer.Argument(
            help="Only metrics whose name starts with this, like policy_lag or perf/env.", show_default=False
        ),
    ] = "",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables of docs/metrics.md.")] = False,
) -> None:
    """List the metrics of metrics.jsonl and TensorBoard: unit, meaning, how ranks are combined."""
    from vla_rl.reporting.catalogue import CATALOGUE

    shown = [metric for name, metric in CATALOGUE.items() if name.startswith(prefix)]
    if not shown:
        groups = ", ".join(dict.fromkeys(name.split("/")[0] for name in CATALOGUE))
        raise UserError(f"no metric begins with '{prefix}'; allowed are the beginnings of names: {groups}")
    if markdown:
        print(markdown_tables(shown), end="")
        return
    for metric in shown:
        print(f"{metric.name}  [{metric.unit}]\n    {metric.meaning}\n    over ranks: {OVER_RANKS[metric.reduction]}")


def markdown_tables(shown: Sequence[Metric]) -> str:
    """Return one Markdown table for each group of metrics."""
    lines: list[str] = []
    for group in dict.fromkeys(metric.name.split("/")[0] for metric in shown):
        lines += [f"## {group}", "", "| metric | unit | meaning | over ranks |", "|---|---|---|---|"]
        for metric in shown:
            if metric.name.startswith(f"{group}/"):
                meaning = metric.meaning.replace("|", "\\|")
                lines.append(f"| `{metric.name}` | {metric.unit} | {meaning} | {OVER_RANKS[metric.reduction]} |")
        lines.append("")
    return "\n".join(lines)
