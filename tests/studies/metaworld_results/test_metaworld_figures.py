"""Figures of a Meta-World study, and the tables of their points."""

import csv
import itertools
from dataclasses import replace

import pytest

pytest.importorskip("matplotlib")


from written_study import RANDOM, end_with, results_of

from vla_rl.studies.figures import panels_of
from vla_rl.studies.metaworld import outputs as metaworld_outputs
from vla_rl.studies.metaworld import plots as metaworld_plots
from vla_rl.studies.metaworld.outputs import write_study
from vla_rl.studies.metaworld.results import RunTable
from vla_rl.studies.metaworld.scores import (
    improvements,
    scores,
)


def test_no_cloud_of_points_hides_another(study, monkeypatch, tmp_path):
    results = [each for each in results_of(study) if each.run.surrogate != "gipo:0.5"]
    axes = draw(results, monkeypatch, tmp_path)["lag_tails"].axes
    assert [each.get_xlabel() for each in axes] == [
        "mean lag (versions)", "old fraction", "P95 lag of the old (versions)",
    ]  # fmt: skip
    colors = [tuple(color) for color in axes[0].collections[0].get_facecolors()]
    # Two surrogates, two tasks, two seeds, ten log points, in a mixed order.
    assert [colors.count(color) for color in dict.fromkeys(colors)] == [2 * 2 * 10] * 2
    assert sum(first != second for first, second in itertools.pairwise(colors)) > 20


def draw(results, monkeypatch, tmp_path):
    """All figures, by name."""
    results = RunTable(results)
    drawn = {}
    monkeypatch.setattr(metaworld_plots, "save", lambda figure, _, name: drawn.setdefault(name, figure) and [])
    metaworld_plots.write_figures(tmp_path, results, scores(results, RANDOM), improvements(results, RANDOM), RANDOM)
    return drawn


def test_every_run_is_a_point_of_its_score_over_kl_and_ess(study, monkeypatch, tmp_path):
    results = results_of(study)
    panel, bar = draw(results, monkeypatch, tmp_path)["kl_ess"].axes
    runs, means = panel.collections[::2], panel.collections[1::2]
    assert [cloud.get_label() for cloud in runs] == ["gipo:0.5", "gipo", "ppo"]
    gipo = runs[1]
    assert sorted(gipo.get_array()) == pytest.approx([0.2, 0.2, 0.4, 0.4])  # 1000 and 2000 of 5000 on two tasks
    assert gipo.get_offsets().tolist() == [pytest.approx([0.1, 0.9])] * 4  # closing means of 0.8, 0.9 and 1.0
    assert bar.get_ylabel() == "normalised score"
    assert (means[1].get_offsets().tolist(), list(means[1].get_array())) == (
        [pytest.approx([0.1, 0.9])], [pytest.approx(0.3)],
    )  # fmt: skip
    estimated = [
        replace(r, records=[{"learner/approx_kl": 0.3} | {k: v for k, v in each.items() if k != "learner/kl"}
                            for each in r.records])
        for r in results
    ]  # fmt: skip
    panel, _ = draw(estimated, monkeypatch, tmp_path)["kl_ess"].axes
    assert "estimated" in panel.get_xlabel()
    assert panel.collections[0].get_offsets()[0][0] == pytest.approx(0.3)


def test_the_sensitivity_to_sigma_shows_score_drift_and_ess(study, monkeypatch, tmp_path):
    axes_of_figure = draw(results_of(study), monkeypatch, tmp_path)["sigma"].axes
    panels = {axes.get_ylabel(): axes for axes in axes_of_figure}
    assert {axes.get_title() for axes in axes_of_figure} == {"stale"}
    assert list(panels) == ["IQM of the normalised score", "P95 of abs(log ρ)", "ESS of old samples"]
    level, line = panels["IQM of the normalised score"].get_lines()
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([0.5, 1.0], pytest.approx([0.03, 0.3]))
    assert (level.get_label(), level.get_ydata()[0]) == ("ppo", pytest.approx(0.03))
    assert list(panels["ESS of old samples"].get_lines()[-1].get_ydata()) == pytest.approx([0.9, 0.9])


def test_drift_over_sigma_is_a_mean_over_tasks_with_seeds_redrawn_within_each(study, monkeypatch, tmp_path):
    """GIPO's seeds have 1 and 3 on door-open, 6 and 6 on push, where there is a third: 4 in the mean, 3.5 to 4.5."""
    gipo = [
        replace(each, run=replace(each.run, seed=seed),
                records=[r | {"ratio/abs_log_p95": (1.0, 3.0)[seed] if task == "door-open-v3" else 6.0}
                         for r in each.records])
        for each in results_of(study).where(surrogate="gipo") if each.run.seed == 0
        for task in [each.run.task]
        for seed in range(2 if task == "door-open-v3" else 3)
    ]  # fmt: skip
    results = [*results_of(study).where(surrogate="gipo:0.5"), *gipo]
    panels = {axes.get_ylabel(): axes for axes in draw(results, monkeypatch, tmp_path)["sigma"].axes}
    axes = panels["P95 of abs(log ρ)"]
    assert list(axes.get_lines()[-1].get_ydata()) == pytest.approx([1.5, 4.0])
    (shade,) = axes.collections
    assert {y for x, y in shade.get_paths()[0].vertices if x == 1.0} == {3.5, 4.5}


def test_a_level_has_one_line_style_in_all_panels_however_they_rank(study, monkeypatch, tmp_path):
    """SAPO scores above PPO and has the smaller ESS."""
    sapo = [
        replace(r, run=replace(r.run, surrogate="sapo"),
                records=[each | {"rollout/return": 5 * each["rollout/return"], "utilization/ess_old": 0.1}
                         for each in r.records])
        for r in results_of(study).where(surrogate="ppo")
    ]  # fmt: skip
    styles = {
        (line.get_label(), line.get_linestyle())
        for axes in draw([*results_of(study), *sapo], monkeypatch, tmp_path)["sigma"].axes
        for line in axes.get_lines()
        if line.get_label() in ("ppo", "sapo")
    }
    assert styles == {("ppo", "--"), ("sapo", ":")}


def test_the_curves_of_nine_surrogates_can_be_told_apart(study, monkeypatch, tmp_path):
    one = results_of(study).where(surrogate="ppo")
    results = [replace(r, run=replace(r.run, surrogate=f"gipo:0.{n}")) for r in one for n in range(1, 10)]
    lines = draw(results, monkeypatch, tmp_path)["staleness"].axes[0].get_lines()
    assert len({(line.get_color(), str(line._unscaled_dash_pattern)) for line in lines}) == 9


def test_curves_differ_by_dashes_and_later_ones_are_thinner(study, monkeypatch, tmp_path):
    drawn = {}
    monkeypatch.setattr(metaworld_plots, "save", lambda figure, _, name: drawn.setdefault(name, figure) and [])
    results = results_of(study)
    metaworld_plots.write_figures(tmp_path, results, scores(results, RANDOM), improvements(results, RANDOM), RANDOM)
    lag = drawn["staleness"].axes[0].get_lines()
    assert len({str(line._unscaled_dash_pattern) for line in lag}) == 3
    widths = [line.get_linewidth() for line in lag]
    assert widths == sorted(set(widths), reverse=True)


def test_a_figure_has_three_panels_in_a_row_at_most():
    figure, panels = panels_of([("stale", str(metric)) for metric in range(4)] + [("fresh", "0")])
    rows = {place: axes.get_subplotspec().rowspan.start for place, axes in panels.items()}
    assert [rows["stale", str(metric)] for metric in range(4)] == [0, 0, 1, 1]
    assert rows["fresh", "0"] == 2
    assert len(figure.axes) == 5


def test_the_points_of_the_scatter_plots_are_a_table(study, monkeypatch):
    monkeypatch.setattr(metaworld_outputs, "write_figures", lambda *_: [])
    write_study(study)
    with (study / "results" / "points.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 * 10
    assert [row["optimizer_steps"] for row in rows[5:10]] == ["60", "70", "80", "90", "100"]
    assert rows[5]["utilization/ess_old"] == "0.6"
    assert (rows[0]["policy_lag/p95"], rows[0]["ratio/abs_log_p95"], rows[0]["learner/kl"]) == ("95.0", "1.5", "0.1")


def test_the_figure_over_sigma_has_the_tasks_that_all_settings_have(merged, monkeypatch, tmp_path):
    """Drift is 1.5 on door-open and 9 on push, which GIPO with sigma 0.5 has no run on."""
    sweep = [end_with(merged[0], 1500.0, surrogate="gipo:0.5", seed=seed) for seed in (0, 1)]
    figures = draw([*(each for each in merged if each.run.regime == "stale"), *sweep], monkeypatch, tmp_path)
    rows = [label.get_text() for label in figures["scores"].axes[0].get_yticklabels()]
    assert rows[:3] == ["gipo, stale, 2 tasks", "ppo, stale, 2 tasks", "gipo:0.5, stale, 1 tasks"]
    stale = [
        replace(each, records=[
            r | {"ratio/abs_log_p95": 9.0 if each.run.task == "push-v3" else 1.5} for r in each.records
        ])
        for each in merged
        if each.run.regime == "stale"
    ]  # fmt: skip
    panels = {axes.get_ylabel(): axes for axes in draw([*stale, *sweep], monkeypatch, tmp_path)["sigma"].axes}
    lines = {name: axes.get_lines()[-1] for name, axes in panels.items()}
    assert list(lines["IQM of the normalised score"].get_ydata()) == pytest.approx([0.3, 0.2])
    assert list(lines["P95 of abs(log ρ)"].get_ydata()) == pytest.approx([1.5, 1.5])


def test_settings_with_one_sigma_have_intervals_beside_each_other_and_plain_gipo_the_first_colour(
    study, monkeypatch, tmp_path
):
    results = [
        replace(r, run=replace(r.run, surrogate={"gipo:0.5": "gipo:1:0.5"}.get(r.run.surrogate, r.run.surrogate)))
        for r in results_of(study)
    ]
    panel = draw(results, monkeypatch, tmp_path)["sigma"].axes[0]
    plain, narrow = (line for line in panel.get_lines() if line.get_label() != "ppo")
    assert (plain.get_label(), plain.get_color(), list(plain.get_xdata())) == ("gipo", "#0072B2", [1.0])
    assert narrow.get_xdata()[0] > 1.0
    bars = [segment for bar in panel.collections for segment in bar.get_segments()]
    # Two seeds in each of two tasks: all four draws of a task's pair are the lower, or the upper, in a sixteenth.
    assert [(bar[0][1], bar[1][1]) for bar in bars] == [pytest.approx((0.2, 0.4)), pytest.approx((0.02, 0.04))]
