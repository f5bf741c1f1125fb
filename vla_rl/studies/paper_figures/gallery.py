"""The figures of the paper, and the one of them that needs no runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from vla_rl.studies.figures import FigureText
from vla_rl.studies.gridworld.enumeration import Record, pareto_front
from vla_rl.studies.gridworld.enumeration import study as gridworld_records
from vla_rl.studies.gridworld.plots import pareto_figure
from vla_rl.studies.metaworld.kl_ess import FIGURE_7
from vla_rl.studies.metaworld.lag_tails import FIGURE_8
from vla_rl.studies.metaworld.learning_curves import FIGURE_2
from vla_rl.studies.metaworld.paper_figure import Drawn, PaperFigure
from vla_rl.studies.metaworld.results import RunTable
from vla_rl.studies.metaworld.sensitivity import FIGURE_9
from vla_rl.studies.metaworld.trajectories import FIGURE_5, FIGURE_6

GRIDWORLD_METHODS = ("no_clip", "ppo", "sapo", "gipo")


def _gridworld(_: RunTable) -> Drawn:
    records = [record for record in gridworld_records() if record.method in GRIDWORLD_METHODS]
    rows = [{**asdict(record), "on_gipo_front": record in _gipo_front(records, record.case)} for record in records]
    figure = pareto_figure(records, front=lambda of_case: _gipo_front(of_case, of_case[0].case), front_of="of GIPO")
    return Drawn(figure, rows, RunTable())


def _gipo_front(records: Sequence[Record], case: str) -> list[Record]:
    return pareto_front([record for record in records if record.case == case and record.method == "gipo"])


FIGURE_4 = PaperFigure(
    4,
    "gridworld",
    FigureText(
        "Bias and variance on GridWorld",
        "Exact bias and variance of one gradient step, by enumeration, without a run. From case A to case C the "
        "policy lag falls. The dashed line joins the settings of GIPO that no other setting of it beats in both; "
        "the lower row enlarges the marked corner. PPO clips every action in cases A and B: no variance and all "
        "of the bias.",
    ),
    "nothing",
    _gridworld,
    lambda _: [],
)
FIGURES = (FIGURE_2, FIGURE_4, FIGURE_5, FIGURE_6, FIGURE_7, FIGURE_8, FIGURE_9)
