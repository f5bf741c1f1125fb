"""What a study computes from its runs, on records written by hand."""

import csv
import html
import itertools
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from typer.testing import CliRunner
from written_runs import write_run

from vla_rl.cli.main import app
from vla_rl.evaluation.statistics import Interval
from vla_rl.recipe import find_recipe
from vla_rl.studies.figures import panels_of
from vla_rl.studies.metaworld import outputs as metaworld_outputs
from vla_rl.studies.metaworld import plots as metaworld_plots
from vla_rl.studies.metaworld.curves import metric_band, return_band
from vla_rl.studies.metaworld.grid import Grid, StudyRun
from vla_rl.studies.metaworld.missing import MissingRun, missing_part
from vla_rl.studies.metaworld.outputs import write_study
from vla_rl.studies.metaworld.results import RunTable, read_results
from vla_rl.studies.metaworld.runner import open_study
from vla_rl.studies.metaworld.scores import (
    Improvement,
    complete_seeds,
    improvements,
    normalized,
    score_table,
    scores,
)
from vla_rl.studies.metaworld.sign_test import SignTest
from vla_rl.studies.metaworld.study import Study
from vla_rl.studies.metaworld.summary import parts
from vla_rl.studies.metaworld.words import cautions

TASKS = ("door-open-v3", "push-v3")
GRID = Grid(tasks=TASKS, surrogates=("gipo:0.5", "gipo", "ppo"), regimes=("stale",), seeds=2, optimizer_steps=6000)
RANDOM = {"door-open-v3": 0.0, "push-v3": 0.0}


def record(step, *, scaled_return, ess):
    return {
        "optimizer_steps": step, "env_steps": 10 * step, "decisions": 10 * step, "episodes": step,
        "policy_version": step, "seconds": float(step), "rollout/return": scaled_return,
        "policy_lag/mean": 50.0, "policy_lag/p95": 95.0, "policy_lag/old_fraction": 0.9, "policy_lag/old_p95": 95.0,
        "ratio/abs_log_p95": 1.5,
        "utilization/ess_old": ess, "learner/kl": 0.1,
    }  # fmt: skip


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Every run ends with a return of 100 · (1 + seed), ten times that of the surrogate gipo, in both tasks."""
    monkeypatch.setattr(metaworld_outputs, "random_return", lambda _: 0.0)
    open_study(GRID, tmp_path)
    for run in GRID.runs():
        end = 0.01 * 100 * (1 + run.seed) * (10 if run.surrogate == "gipo" else 1)
        records = [record(step, scaled_return=0.0 if step < 80 else end, ess=step / 100) for step in range(10, 101, 10)]
        manifest = {"source": {"commit": "abc"}, "versions": {"torch": "2.13.0"}, "started": run.name}
        write_run(tmp_path / "runs" / run.name, run, grid=GRID, records=records, manifest=manifest)
    return tmp_path


def results_of(study):
    results, broken = read_results(study)
    assert broken == []
    return results


def test_returns_are_those_of_the_benchmark_over_the_last_fifth(study):
    results = results_of(study)
    assert len(results) == 12
    by_name = {result.run.name: result.closing_return for result in results}
    assert by_name["push-v3_gipo_stale_seed1"] == pytest.approx(2000.0)
    assert by_name["push-v3_ppo_stale_seed0"] == pytest.approx(100.0)


def test_the_score_is_zero_for_random_actions_and_one_at_the_largest_return():
    assert normalized(300.0, random_return=300.0) == 0.0
    assert normalized(5000.0, random_return=300.0) == 1.0
    assert normalized(2650.0, random_return=300.0) == 0.5


def test_scores_rank_the_surrogates_with_their_intervals(study):
    ranking = scores(results_of(study), RANDOM)
    best = ranking[0]
    assert best.surrogate == "gipo"
    # 1000 and 2000 of 5000 in each of two tasks; the middle half of 0.2, 0.2, 0.4, 0.4 is 0.2 and 0.4.
    assert best.iqm == pytest.approx(0.3)
    assert (best.seeds, best.tasks) == (2, TASKS)
    # Of two seeds drawn whole, both are the first in a quarter of the draws, and both the second in another.
    assert (best.interval_by_seed.low, best.interval_by_seed.high) == (pytest.approx(0.2), pytest.approx(0.4))
    assert 0.2 <= best.interval.low <= best.iqm <= best.interval.high <= 0.4


def test_the_better_surrogate_improves_with_certainty_and_equal_ones_by_a_coin(study):
    pairs = {(entry.first, entry.second): entry.probability for entry in improvements(results_of(study), RANDOM)}
    assert pairs["gipo", "ppo"] == 1.0
    assert pairs["gipo:0.5", "gipo"] == 0.0
    assert pairs["gipo:0.5", "ppo"] == 0.5


def test_a_seed_that_lacks_a_task_does_not_count(study):
    results = [result for result in results_of(study) if result.run.name != "push-v3_ppo_stale_seed1"]
    ppo = RunTable(results).where(surrogate="ppo")
    table = score_table(ppo, seeds=complete_seeds(ppo, TASKS), tasks=TASKS, random_returns=RANDOM)
    assert table.tolist() == [[0.02, 0.02]]


def test_bands_are_means_over_runs(study):
    chosen = results_of(study).where(task="push-v3", surrogate="ppo")
    band = return_band(chosen)
    assert (band.clock[0], band.clock[-1], band.runs) == (100, 1000, 2)
    assert (band.mean[0], band.mean[-1]) == (0.0, pytest.approx(150.0))
    assert (band.low[-1], band.high[-1]) == (pytest.approx(100.0), pytest.approx(200.0))
    ess = metric_band(chosen, "utilization/ess_old")
    assert ess.mean[0] == pytest.approx(0.1)
    assert ess.mean[-1] == pytest.approx(1.0)
    assert metric_band(chosen, "utilization/dead") is None


def test_a_band_over_single_runs_claims_no_interval(study, monkeypatch):
    monkeypatch.setattr(metaworld_outputs, "write_figures", lambda *_: [])
    one = [result for result in results_of(study) if result.run.seed == 0 and result.run.surrogate == "ppo"]
    band = metric_band(RunTable(one), "utilization/ess_old")
    assert band.mean[-1] == pytest.approx(1.0)
    assert np.isnan([*band.low, *band.high]).all()
    for folder in study.glob("runs/*seed1"):
        shutil.rmtree(folder)
    write_study(study)
    for table in ("curves", "trajectories"):
        with (study / "results" / f"{table}.csv").open(encoding="utf-8") as file:
            assert {(row["low"], row["high"]) for row in csv.DictReader(file)} == {("", "")}


def test_cells_follow_the_results_their_runs_are_sorted_by_seed_and_empty_ones_are_left_out(study):
    left = [result for result in results_of(study) if (result.run.task, result.run.surrogate) != ("push-v3", "ppo")]
    left.sort(key=lambda result: (result.run.seed, result.run.task, result.run.surrogate), reverse=True)
    assert [
        (task, regime, surrogate, [r.run.seed for r in runs])
        for task, regime, surrogate, runs in RunTable(left).cells()
    ] == [
        ("push-v3", "stale", "gipo:0.5", [0, 1]),
        ("push-v3", "stale", "gipo", [0, 1]),
        ("door-open-v3", "stale", "gipo:0.5", [0, 1]),
        ("door-open-v3", "stale", "gipo", [0, 1]),
        ("door-open-v3", "stale", "ppo", [0, 1]),
    ]


def test_axes_are_in_the_order_of_the_grid_and_not_of_the_folders(study, monkeypatch):
    monkeypatch.setattr(metaworld_outputs, "write_figures", lambda *_: [])
    settings = json.loads((study / "study.json").read_text(encoding="utf-8"))
    settings |= {"tasks": ["push-v3", "door-open-v3"], "surrogates": ["ppo", "gipo:0.5", "gipo"]}
    (study / "study.json").write_text(json.dumps(settings), encoding="utf-8")
    write_study(study)
    summary = (study / "results" / "summary.md").read_text(encoding="utf-8")
    assert "12 of 12 runs: ppo, gipo:0.5, gipo on push-v3, door-open-v3" in summary


def test_tables_and_figures_of_an_earlier_call_do_not_outlive_their_data(study, monkeypatch):
    monkeypatch.setattr(metaworld_outputs, "write_figures", lambda *_: [])
    (study / "results").mkdir()
    for name in ("scores.csv", "sigma.png", "sigma.svg", "notes.csv"):
        (study / "results" / name).touch()
    for name in ("push-v3*seed0", "door-open-v3*seed1"):  # no seed has every task of what is there: there is no score
        for folder in study.glob(f"runs/{name}"):
            shutil.rmtree(folder)
    write_study(study)
    names = {path.name for path in (study / "results").iterdir()}
    assert "notes.csv" in names
    assert not names & {"scores.csv", "improvements.csv", "sigma.png", "sigma.svg"}


def test_bands_redraw_seeds_within_each_task(study):
    """Without a spread inside a task there is none in the mean over tasks, however far apart the tasks are."""
    ppo = results_of(study).where(surrogate="ppo")
    third = [replace(r, run=replace(r.run, seed=2)) for r in ppo if r.run.name == "push-v3_ppo_stale_seed1"]
    results = [
        replace(result, records=[each | {"utilization/dead": 0.9 if result.run.task == "push-v3" else 0.1}
                                 for each in result.records])
        for result in [*ppo, *third]
    ]  # fmt: skip
    band = metric_band(RunTable(results), "utilization/dead")
    assert (
        set(band.mean) == set(band.low) == set(band.high) == {0.5}
    )  # tasks weigh the same: three runs here, two there


@pytest.mark.slow
def test_a_study_writes_tables_figures_and_a_page(study):
    written = {path.name for path in write_study(study).files}
    tables = {f"{name}.csv" for name in ("runs", "scores", "improvements", "curves", "trajectories", "points")}
    figures = ("learning_curves", "scores", "staleness", "utilization", "kl_ess", "lag_tails", "sigma")
    assert written == tables | {f"{name}.{kind}" for name in figures for kind in ("png", "svg")} | {
        "summary.md",
        "report.html",
    }
    with (study / "results" / "runs.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert {row["policy_lag/old_fraction"] for row in rows} == {"0.9"}
    summary = (study / "results" / "summary.md").read_text(encoding="utf-8")
    assert "12 of 12 runs: gipo:0.5, gipo, ppo on door-open-v3, push-v3" in summary
    assert "PARTIAL" not in summary
    assert "**stale: 2 seed(s) of some surrogate on every task: intervals over fewer than 5 say nothing." in summary
    assert "| push-v3 | stale | gipo | 1000, 2000 |" in summary
    page = (study / "report.html").read_text(encoding="utf-8")
    assert "<h1>Meta-World: surrogates on old and new experience</h1>" in page
    assert page.count("data:image/png") == len(figures)
    assert "http" not in page.replace("http://www.w3.org", "")


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


def test_the_words_tell_success_on_every_task_and_say_that_there_was_none(study):
    results = [
        replace(result, records=[each | {"rollout/success_rate": 0.25 if result.run.task == "push-v3" else 0.0}
                                 for each in result.records])
        for result in results_of(study)
    ]  # fmt: skip
    assert (
        "stale: training episodes with a success in some control step, on door-open-v3: gipo:0.5 0.0 %, gipo 0.0 %, "
        "ppo 0.0 %; on push-v3: gipo:0.5 25.0 %, gipo 25.0 %, ppo 25.0 %."
    ) in words_of(study, results=results)


def test_a_study_that_is_not_finished_says_so(study, monkeypatch):
    monkeypatch.setattr(metaworld_outputs, "write_figures", lambda *_: [])
    (study / "runs" / "push-v3_ppo_stale_seed1").rename(study / "runs" / "push-v3_ppo_stale_seed1.unfinished")
    for path in (study / "runs" / "push-v3_ppo_stale_seed1.unfinished").glob("study_run.json"):
        path.unlink()
    shutil.rmtree(study / "runs" / "door-open-v3_ppo_stale_seed1")
    write_study(study)
    summary = (study / "results" / "summary.md").read_text(encoding="utf-8")
    assert "PARTIAL: 2 of 12 runs are missing" in summary
    assert "| unfinished | stale | push-v3 | ppo | 1 | 1 |" in summary
    assert "| not begun | stale | door-open-v3 | ppo | 1 | 1 |" in summary


def test_missing_runs_are_told_in_blocks_that_cover_each_once():
    grid = replace(GRID, seeds=4)
    failed = StudyRun("push-v3", "ppo", "stale", 1)
    missing = [
        MissingRun(run, "failed" if run == failed else "not begun")
        for run in grid.runs()
        if run.seed >= 2 or (run.task == "push-v3" and run.seed == 1)
    ]
    assert missing_part(missing).rows == (
        ("not begun", "stale", "push-v3", "gipo:0.5, gipo", "1, 2, 3", "6"),
        ("failed", "stale", "push-v3", "ppo", "1", "1"),
        ("not begun", "stale", "door-open-v3", "gipo:0.5, gipo", "2, 3", "4"),
        ("not begun", "stale", "door-open-v3, push-v3", "ppo", "2, 3", "4"),
    )


def test_a_complete_study_has_no_table_of_missing_runs(study):
    assert "Missing runs" not in {part.title for part in parts_of(study)}


def test_the_paper_s_numbers_stand_beside_those_that_measure_the_same(study):
    results = [
        replace(result, records=[each | {"ratio/abs_log_p95": 0.5} for each in result.records])
        if (result.run.task, result.run.surrogate) == ("push-v3", "ppo") else result
        for result in results_of(study)
    ]  # fmt: skip
    (part,) = (part for part in parts_of(study, results=results) if part.title == "Beside the paper")
    rows = {row[:3]: row[3:] for row in part.rows}
    iqm, drift = "IQM of the normalised score", "P95 of abs(log ρ)"
    assert rows["stale", iqm, "gipo"] == ("0.730", "0.300 (0.200 to 0.400)")
    assert rows["stale", iqm, "ppo"] == ("0.180", "0.030 (0.020 to 0.040)")
    assert rows["stale", "settings above every other surrogate", "GIPO"] == ("6 of 6", "1 of 2")
    assert rows["stale", "old fraction", "gipo"] == ("0.884 ± 0.003", "0.9 ± 0")
    assert rows["stale", drift, "gipo"] == ("1.46 ± 0.75", "1.5 ± 0")
    assert rows["stale", drift, "ppo"] == ("1.46 ± 0.75", "1 ± 0.707")  # 1.5 and 0.5
    assert len(rows) == len(part.rows) == 7
    assert "100,000 updates, these 6,000" in part.sentences[0]


def test_over_one_task_there_is_no_deviation_and_over_other_surrogates_no_paper(study):
    results = results_of(study)
    (part,) = (
        part for part in parts_of(study, results=results.where(task="push-v3")) if part.title == "Beside the paper"
    )
    assert ("stale", "old fraction", "ppo", "0.884 ± 0.003", "0.9") in part.rows
    others = parts_of(study, results=results.where(surrogate="gipo:0.5"))
    assert "Beside the paper" not in {part.title for part in others}


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        (
            "study_run.json",
            "{}",
            "study_run.json: expected task, surrogate, regime, seed and seconds of a run, found n",
        ),
        ("study_run.json", '{"task": ', "study_run.json: expected JSON"),
        ("manifest.json", None, "manifest.json: expected a JSON object, found no such file"),
        ("manifest.json", '{"source": ', "manifest.json: expected JSON"),
        ("metrics.jsonl", None, "metrics.jsonl"),
        ("metrics.jsonl", "", "metrics.jsonl: expected returns up to the end of the run, found none"),
        ("recipe.yaml", None, "recipe.yaml"),
        ("recipe.yaml", "name: [", "recipe.yaml"),
    ],
)
def test_a_run_that_cannot_be_read_is_left_out_and_told(study, monkeypatch, file, content, complaint):
    monkeypatch.setattr(metaworld_outputs, "write_figures", lambda *_: [])
    path = study / "runs" / "push-v3_ppo_stale_seed1" / file
    path.unlink() if content is None else path.write_text(content, encoding="utf-8")
    write_study(study)
    for page in (study / "results" / "summary.md", study / "report.html"):
        text = html.unescape(page.read_text(encoding="utf-8"))
        assert "11 of 12 runs" in text
        assert "PARTIAL" not in text
        told = text.split("LEFT OUT: push-v3_ppo_stale_seed1: ")[1].splitlines()[0]
        assert complaint in told


@pytest.mark.parametrize("field", [{"surrogate": "gipo"}, {"regime": "fresh"}, {"seed": 0}, {"task": "door-open-v3"}])
def test_a_run_whose_recipe_is_of_another_run_is_left_out(study, field):
    path = study / "runs" / "push-v3_ppo_stale_seed1" / "study_run.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | field), encoding="utf-8")
    (sentence,) = read_results(study)[1]
    assert "as study_run.json says, found one of push-v3_ppo_stale_seed1" in sentence


def test_a_run_that_has_another_sigma_than_its_recipe_is_left_out(study):
    path = study / "runs" / "push-v3_gipo-0.5_stale_seed1" / "study_run.json"
    text = path.read_text(encoding="utf-8").replace("gipo:0.5", "gipo:0.2")
    path.write_text(text, encoding="utf-8")
    (sentence,) = read_results(study)[1]
    assert "recipe of push-v3_gipo-0.2_stale_seed1, as study_run.json says, found one of push-v3_gipo-0.5" in sentence


def test_a_study_of_which_no_run_can_be_read_is_refused(study):
    for path in study.glob("runs/*/metrics.jsonl"):
        path.unlink()
    with pytest.raises(ValueError, match=r"no run of the study can be read; door-open-v3_gipo-0\.5_stale_seed0: .*"):
        read_results(study)


@pytest.mark.parametrize("content", ["{}", "[]", '{"tasks": ["push-v3"]', '{"tasks": "push-v3"}'])
@pytest.mark.parametrize("verb", [["report"], ["study", "metaworld", "--out"]])
def test_a_study_that_cannot_be_read_is_the_users_to_fix(study, verb, content):
    (study / "study.json").write_text(content, encoding="utf-8")
    done = CliRunner().invoke(app, [*verb, str(study)])
    assert done.exit_code == 2
    assert f"error: {study / 'study.json'}: expected " in done.output


def test_a_study_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no run of the study has finished"):
        read_results(tmp_path)


def test_report_takes_the_folder_of_a_study(study, monkeypatch):
    monkeypatch.setattr(metaworld_outputs, "write_figures", lambda *_: [])
    done = CliRunner().invoke(app, ["report", str(study)])
    assert done.exit_code == 0, done.output
    assert (study / "report.html").exists()


def test_runs_and_studies_share_a_page(study, tmp_path, monkeypatch):
    monkeypatch.setattr(metaworld_outputs, "write_figures", lambda *_: [])
    run = study / "runs" / "push-v3_ppo_stale_seed1"
    page = tmp_path / "both.html"
    done = CliRunner().invoke(app, ["report", str(study), str(run), "--out", str(page)])
    assert done.exit_code == 0, done.output
    text = page.read_text(encoding="utf-8")
    assert f"<h1>{study.resolve().name}, {run.name}</h1>" in text
    assert text.index("In words") < text.index("What the numbers mean")


def test_studies_of_one_name_are_both_on_the_page(study, tmp_path, monkeypatch):
    monkeypatch.setattr(metaworld_outputs, "write_figures", lambda *_: [])
    for place in ("a", "b"):
        shutil.copytree(study / "runs", tmp_path / place / "same" / "runs")
        shutil.copy(study / "study.json", tmp_path / place / "same")
    settings = (tmp_path / "b" / "same" / "study.json").read_text(encoding="utf-8")
    (tmp_path / "b" / "same" / "study.json").write_text(settings.replace('"seeds": 2', '"seeds": 3'), encoding="utf-8")
    page = tmp_path / "both.html"
    done = CliRunner().invoke(app, ["report", *(str(tmp_path / place / "same") for place in "ab"), "--out", str(page)])
    assert done.exit_code == 0, done.output
    text = page.read_text(encoding="utf-8")
    first, second = text.index("<h2>Study same</h2>"), text.index("<h2>Study same (2)</h2>")
    assert first < text.index("12 of 12 runs") < second < text.index("12 of 18 runs")


def words_of(study, **changes):
    return parts_of(study, **changes)[0].sentences


def parts_of(study, **changes):
    return parts(study_with(study, **changes))


def study_with(study, **changes):
    grid = {
        "planned": 12,
        "missing": [],
        "optimizer_steps": 6000,
        "recipe": "metaworld_stale",
        "random_returns": RANDOM,
        **changes,
    }
    results = changes.pop("results", None) or results_of(study)
    results = RunTable(results)
    computed = {"scores": scores(results, RANDOM), "improvements": improvements(results, RANDOM)}
    return Study(**grid | {"results": results, "broken": []} | computed | changes)


def test_the_words_say_what_the_numbers_carry(study):
    words = "\n".join(words_of(study))
    assert (
        "samples were 50 versions old in the mean (P95 95), 90.0 % of them old, that is 600 versions or more" in words
    )
    assert "stale: IQM of the normalised score: gipo 0.300" in words
    assert "a run of gipo ends above one of ppo with probability 1.00" in words
    assert (
        "too few seeds to tell from chance, 0.5); with equal seeds 2 of 2 on door-open-v3, 2 of 2 on push-v3." in words
    )
    assert "a run of gipo:0.5 ends above one of ppo with probability 0.50" in words
    assert "GIPO by σ (and factor for bad actions): σ 0.5 (1) 0.030, σ 1 (1) 0.300." in words
    assert "fresh" not in words


def test_a_study_without_old_samples_does_not_speak_of_their_effective_number(study):
    results = [
        replace(result, records=[each | {"policy_lag/old_fraction": 0.0} for each in result.records])
        for result in results_of(study)
    ]
    assert "ESS" not in "\n".join(words_of(study, results=results))
    assert "ESS of old samples 0.9" in "\n".join(words_of(study))
    assert metric_band(RunTable(results), "utilization/ess_old") is None


def test_a_regime_without_a_seed_on_every_task_has_no_score_yet(study):
    fresh = [
        replace(each, run=replace(each.run, regime="fresh"))
        for each in results_of(study)
        if (each.run.surrogate, each.run.task, each.run.seed) in {("ppo", "push-v3", 0), ("ppo", "door-open-v3", 1)}
    ]
    found = study_with(study, results=[*results_of(study), *fresh])
    assert "fresh: no score yet of ppo, for no seed has a run on every task of it." in parts(found)[0].sentences
    assert "fresh: 0 seed(s) of some surrogate on every task" in "\n".join(cautions(found))


def test_the_words_tell_a_difference_from_chance_with_enough_seeds(study):
    results = [replace(result, run=replace(result.run, seed=seed)) for result in results_of(study) for seed in range(5)]
    words = "\n".join(words_of(study, results=results))
    # Ten pairs of ten: 2 / 2^10; five seeds of five: 2 / 2^5. Ties say nothing.
    assert (
        "one of ppo with probability 1.00 (no interval; redrawing seeds changes nothing; exact sign test of the pairs "
        "of equal seed and task, 10 higher and 0 lower: p = 0.002, and 0.062 with the pairs of one seed as one, for "
        "they share their first weights); with equal seeds 5 of 5" in words
    )
    assert "one of ppo with probability 0.50 (no interval; redrawing seeds changes nothing; " in words
    assert "0 higher and 0 lower: p = 1)" in words
    assert "1.00 to 1.00" not in words


def test_few_seeds_in_one_regime_do_not_silence_the_other(study):
    stale = [replace(r, run=replace(r.run, seed=seed)) for r in results_of(study) for seed in range(5)]
    fresh = [replace(r, run=replace(r.run, regime="fresh")) for r in results_of(study)]
    told = parts_of(study, results=[*stale, *fresh])[0].sentences
    pairs = {regime: [each for each in told if each.startswith(f"{regime}: a run of gipo ends above one of ppo")]
             for regime in ("stale", "fresh")}  # fmt: skip
    assert "redrawing seeds changes nothing" in pairs["stale"][0]
    assert "too few seeds to tell from chance" in pairs["fresh"][0]


def test_the_words_go_by_the_interval_where_there_is_one(study):
    results = [replace(r, run=replace(r.run, seed=seed)) for r in results_of(study) for seed in range(5)]
    pair = Improvement(
        "stale", "gipo", "ppo", TASKS, (5, 5), 0.8, Interval(0.6, 1.0),
        interval_by_seed=None, test=SignTest(10, higher=8, lower=2, p=0.11, p_by_seed=0.4),
        solving=SignTest(10, higher=0, lower=0, p=1.0, p_by_seed=1.0),
    )  # fmt: skip
    unsure = replace(pair, interval=Interval(0.4, 1.0))
    words = "\n".join(words_of(study, results=results, improvements=[pair, unsure]))
    assert (
        "probability 0.80 (0.60 to 1.00; the interval excludes chance, 0.5, if the runs of one seed are independent; "
        "exact sign test p = 0.11, and 0.4 with the pairs of one seed as one; one of 2 comparisons, for which nothing "
        "is corrected)"
    ) in words
    assert "probability 0.80 (0.40 to 1.00; cannot be told from chance, 0.5)" in words


def test_seeds_that_make_up_for_each_other_have_no_spread_when_drawn_whole(study):
    """GIPO's seeds have 0.2 and 0.4, and 0.4 and 0.2: whole, each has an IQM of 0.3; apart, all four may be equal."""
    chosen = results_of(study).where(surrogate="gipo")
    results = [
        end_with(each, 1000.0 if (each.run.task == "push-v3") == (each.run.seed == 0) else 2000.0) for each in chosen
    ]
    (score,) = scores(RunTable(results), RANDOM)
    assert score.interval_by_seed is None
    assert (score.interval.low, score.interval.high) == (pytest.approx(0.2), pytest.approx(0.4))


def test_both_intervals_of_a_score_are_told_and_in_its_row(study, monkeypatch):
    """GIPO's seeds have 0.2 and 0.4 on both tasks: drawn whole, each is alone in a quarter of the draws."""
    monkeypatch.setattr(metaworld_outputs, "write_figures", lambda *_: [])
    write_study(study)
    with (study / "results" / "scores.csv").open(encoding="utf-8") as file:
        row = next(csv.DictReader(file))
    assert (row["surrogate"], row["low_by_seed"], row["high_by_seed"]) == ("gipo", "0.2", "0.4")
    assert (row["tasks"], row["task_names"]) == ("2", "door-open-v3 push-v3")
    told = next(each for each in words_of(study) if " IQM of the normalised score" in each)
    assert "gipo 0.300 (0.200 to 0.400; by seed 0.200 to 0.400)" in told


def test_a_pair_without_an_interval_has_the_sign_test_in_its_row(study, monkeypatch):
    monkeypatch.setattr(metaworld_outputs, "write_figures", lambda *_: [])
    write_study(study)
    with (study / "results" / "improvements.csv").open(encoding="utf-8") as file:
        rows = {(row["first"], row["second"]): row for row in csv.DictReader(file)}
    better = rows["gipo", "ppo"]
    assert (better["probability"], better["low"], better["high"]) == ("1.0", "", "")
    assert (better["pairs"], better["pairs_higher"], better["pairs_lower"]) == ("4", "4", "0")
    tied = rows["gipo:0.5", "ppo"]
    assert (tied["pairs"], tied["pairs_higher"], tied["pairs_lower"]) == ("4", "0", "0")
    assert (better["seeds_first"], better["seeds_second"]) == ("2", "2")
    assert better["sign_test_p"] == "0.125"  # 2 / 2^4
    assert better["sign_test_p_by_seed"] == "0.5"  # 2 / 2^2


def test_the_interval_of_an_improvement_by_seed_redraws_both_sides_of_a_seed(study, monkeypatch):
    """On both tasks seed 0 ends with 1100 and 1000, seed 1 with 2100 and 2000: each alone has the first above always,
    both once in 3 of 4 pairs. Seeds redrawn apart, a task may have seed 0 of GIPO against seed 1 of PPO alone."""
    monkeypatch.setattr(metaworld_outputs, "write_figures", lambda *_: [])
    results = RunTable(
        end_with(each, 1000.0 * (1 + each.run.seed) + (100.0 if each.run.surrogate == "gipo" else 0.0))
        for each in results_of(study)
        if each.run.surrogate != "gipo:0.5"
    )
    (pair,) = improvements(results, RANDOM)
    assert (pair.interval_by_seed.low, pair.interval_by_seed.high) == (0.75, 1.0)
    assert pair.interval.low < 0.5
    table = next(part for part in parts_of(study, results=results) if part.title == "Probability of improvement")
    assert dict(zip(table.header, table.rows[0], strict=True))["by seed"] == "0.75 to 1.00"
    row = metaworld_outputs._improvement_row(pair)
    assert (row["low_by_seed"], row["high_by_seed"]) == (0.75, 1.0)
    ppo = [end_with(each, 5.0, seed=2) for each in results.where(surrogate="ppo") if each.run.seed == 0]
    assert improvements(RunTable([*results, *ppo]), RANDOM)[0].interval_by_seed is None  # GIPO has no seed 2


def test_a_pair_has_the_sign_test_of_solving_the_task_in_its_row(study):
    """GIPO solves both tasks with both seeds, PPO none."""
    results = RunTable(
        replace(each, records=[r | {"rollout/success_rate": float(each.run.surrogate == "gipo")} for r in each.records])
        for each in results_of(study)
        if each.run.surrogate != "gipo:0.5"
    )
    row = metaworld_outputs._improvement_row(*improvements(results, RANDOM))
    assert (row["pairs_solved_earlier"], row["pairs_solved_later"]) == (4, 0)
    assert (row["solving_sign_test_p"], row["solving_sign_test_p_by_seed"]) == (0.125, 0.5)


def test_the_words_say_at_which_learning_rate_closing_values_are_measured(study):
    """Ten log points, the last three in the closing window: rates of 1 and then 0.1, dead shares of 0.5 and then 0."""
    results = [
        replace(
            result,
            records=[
                each | {"learner/policy_lr": 0.1 if late else 1.0, "utilization/dead": 0.0 if late else 0.5}
                for each in result.records
                for late in [each["env_steps"] >= 800]
            ],
        )
        for result in results_of(study)
    ]
    words = "\n".join(words_of(study, results=results))
    assert "stale: closing values are measured at 10.0 % of the largest learning rate, where a policy hardly" in words
    assert "; ppo 35.0 % (0.0 %) dead, - (-) near zero, P95 of |log ρ| 1.5 (1.5)." in words
    whole = next(part for part in parts_of(study, results=results) if part.title == "While the policy moved")
    cells = dict(zip(whole.header, whole.rows[0], strict=True))
    assert (cells["dead share, whole run"], cells["dead share, closing"]) == ("0.35", "0")
    assert "learning rate" not in "\n".join(words_of(study))  # its log points have none


def test_fresh_and_stale_are_compared_where_both_were_run(study):
    results = results_of(study)
    fresh = [
        replace(result, run=replace(result.run, regime="fresh")) for result in results if result.run.surrogate == "ppo"
    ]
    words = words_of(study, results=[*results, *fresh])
    assert words[-1].startswith("ppo: IQM 0.030 on fresh and 0.030 on stale experience, 2 seed(s) of both, after")


def end_with(result, value, **place):
    """The run at another place, with another closing return."""
    scaled = value * result.reward_scale
    return replace(
        result, run=replace(result.run, **place), records=[r | {"rollout/return": scaled} for r in result.records]
    )


@pytest.fixture
def merged(study):
    """Stale on two tasks: GIPO 1000 and 3000 with both seeds, PPO 500 and 500. Fresh on door-open alone, by seed:
    GIPO 1500 and 2500, PPO 2000 and 2000, and seed 2 of PPO."""
    one = results_of(study)[0]
    stale = [
        end_with(one, value, task=task, surrogate=surrogate, seed=seed)
        for surrogate, of_tasks in (("gipo", (1000.0, 3000.0)), ("ppo", (500.0, 500.0)))
        for task, value in zip(TASKS, of_tasks, strict=True)
        for seed in (0, 1)
    ]
    fresh = [
        end_with(one, value, task="door-open-v3", surrogate=surrogate, regime="fresh", seed=seed)
        for surrogate, by_seed in (("gipo", (1500.0, 2500.0)), ("ppo", (2000.0, 2000.0, 4500.0)))
        for seed, value in enumerate(by_seed)
    ]
    return [*stale, *fresh]


def test_a_regime_on_fewer_tasks_than_another_has_its_scores_and_comparisons(merged):
    ranking = {(score.regime, score.surrogate): score for score in scores(RunTable(merged), RANDOM)}
    assert len(ranking) == 4
    assert ranking["stale", "gipo"].tasks == TASKS
    assert ranking["stale", "gipo"].iqm == pytest.approx(0.4)  # the middle half of 0.2, 0.2, 0.6, 0.6
    fresh = ranking["fresh", "gipo"]
    assert (fresh.seeds, fresh.tasks, fresh.iqm) == (2, ("door-open-v3",), pytest.approx(0.4))  # of 0.3 and 0.5
    (pair,) = [entry for entry in improvements(RunTable(merged), RANDOM) if entry.regime == "fresh"]
    assert (pair.tasks, pair.seeds) == (("door-open-v3",), (2, 3))
    assert pair.probability == pytest.approx(2 / 6)  # 2500 is above 2000 twice
    assert (pair.test.pairs, pair.test.higher, pair.test.lower, pair.test.p) == (2, 1, 1, 1.0)


def test_fresh_and_stale_are_compared_on_common_tasks_and_seeds(study, merged):
    """Stale GIPO has 0.4 on both tasks, and 0.2 on the one that fresh has; fresh PPO's seed 2 has no stale run."""
    told = words_of(study, results=merged)
    assert [each for each in told if " on fresh and " in each] == [
        f"{surrogate}: IQM {fresh} on fresh and {stale} on stale experience on door-open-v3, 2 seed(s) of both, after "
        "as many updates; a fresh run has simulated many times the env steps."
        for surrogate, fresh, stale in (("gipo", "0.400", "0.200"), ("ppo", "0.400", "0.100"))
    ]
    fresh = next(each for each in told if each.startswith("fresh: a run of gipo"))
    assert fresh.endswith("with equal seeds 1 of 2 on door-open-v3.")


def test_a_sweep_over_fewer_tasks_is_compared_on_these_with_all_that_have_them(study, merged):
    """GIPO with sigma 0.5 ends with 1500 on door-open alone; GIPO with sigma 1 has 1000 there and more on push."""
    sweep = [end_with(merged[0], 1500.0, surrogate="gipo:0.5", seed=seed) for seed in (0, 1)]
    results = RunTable([*(each for each in merged if each.run.regime == "stale"), *sweep])
    found = [(score.surrogate, len(score.tasks), round(score.iqm, 6)) for score in scores(results, RANDOM)]
    assert found == [
        ("gipo", 2, 0.4), ("ppo", 2, 0.1),
        ("gipo:0.5", 1, 0.3), ("gipo", 1, 0.2), ("ppo", 1, 0.1),
    ]  # fmt: skip
    told = words_of(study, results=results)
    assert "stale: IQM of the normalised score on door-open-v3: gipo:0.5 0.300 (no interval), gipo 0.200 (no" in told[3]
    assert "stale: GIPO by σ (and factor for bad actions) on door-open-v3: σ 0.5 (1) 0.300, σ 1 (1) 0.200." in told
    pairs = {(entry.first, entry.second): entry for entry in improvements(results, RANDOM)}
    assert (pairs["gipo", "gipo:0.5"].probability, pairs["gipo", "gipo:0.5"].test.pairs) == (0.0, 2)
    study_parts = parts_of(study, results=results)
    table = next(part for part in study_parts if part.title == "Scores")
    assert (
        "stale: only scores of the same tasks can be compared. 2 tasks: door-open-v3, push-v3; 1 tasks: door-open-v3."
    ) in table.sentences
    assert [row[-1] for row in table.rows] == ["2 × 2"] * 2 + ["2 × 1"] * 3
    beside = next(part for part in study_parts if part.title == "Beside the paper")
    assert ("stale", "settings above every other surrogate", "GIPO", "6 of 6", "2 of 2 (1 tasks)") in beside.rows


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


def test_a_reader_is_warned_where_means_are_over_different_tasks(study, merged):
    warning = (
        "Not all have the same tasks. door-open-v3, push-v3: gipo stale, ppo stale; door-open-v3: gipo fresh, "
        "ppo fresh. Scores are compared on common tasks; means over runs are over the tasks that each has."
    )
    assert warning in cautions(study_with(study, results=merged))
    alike = [each for each in merged if each.run.regime == "stale"]
    assert "same tasks" not in "\n".join(cautions(study_with(study, results=alike)))


def test_an_unfinished_pair_says_which_seeds_its_numbers_are_of(study, merged):
    """PPO's seed 1 lacks push: the probability is of the seeds 0 and 1 against 0, the sign test of three pairs."""
    left = [
        each
        for each in merged
        if each.run.regime == "stale" and (each.run.surrogate, each.run.task, each.run.seed) != ("ppo", "push-v3", 1)
    ]
    (pair,) = improvements(RunTable(left), RANDOM)
    assert (pair.seeds, pair.test.pairs, pair.test.higher) == ((2, 1), 3, 3)
    told = next(each for each in words_of(study, results=left) if each.startswith("stale: a run of gipo"))
    assert ", of the 2 and 1 seeds that have all common tasks; " in told
    table = next(part for part in parts_of(study, results=left) if part.title == "Probability of improvement")
    assert table.rows[0][5:8] == ("no interval", "2, 1 × 2", "3, 0 of 3")


def test_surrogates_without_a_common_task_are_named_as_not_compared(study, merged):
    apart = [
        each for each in merged
        if each.run.regime == "stale" and (each.run.surrogate == "ppo") == (each.run.task == "push-v3")
    ]  # fmt: skip
    assert improvements(RunTable(apart), RANDOM) == []
    told = words_of(study, results=apart)
    assert (
        "stale: not compared yet, for they have no task in common or no seed on all common tasks: gipo and ppo." in told
    )


def test_the_page_tells_what_runs_were_made_with(study, monkeypatch):
    monkeypatch.setattr(metaworld_outputs, "write_figures", lambda *_: [])
    page = "".join(write_study(study).sections)
    assert "All runs were made with the same sources and versions" in page
    assert page.count("<summary>manifest of ") == 12
    assert "recipe of door-open-v3_gipo-0.5_stale_seed0" in page
    manifest = study / "runs" / "push-v3_ppo_stale_seed1" / "manifest.json"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace("abc", "def"), encoding="utf-8")
    assert "All runs were made with 2 different sets of sources" in "".join(write_study(study).sections)


def test_a_study_may_have_a_recipe_of_its_own(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(
        find_recipe("metaworld_stale").read_text(encoding="utf-8").replace("micro_batch: 8", "micro_batch: 32")
    )
    arguments = ["study", "metaworld", "--out", str(tmp_path / "study"), "--dry-run", "--jobs", "2"]
    minutes = [
        float(CliRunner().invoke(app, [*arguments, "--recipe", str(recipe)]).output.split("about ")[1].split()[0])
        for recipe in ("metaworld_stale", own)
    ]
    assert minutes[1] > 1.5 * minutes[0]  # four times the samples, the same env steps
    assert CliRunner().invoke(app, [*arguments, "--recipe", "nonsense"]).exit_code == 2


def test_a_dry_run_says_how_long_a_grid_takes_and_starts_nothing(tmp_path):
    arguments = ["study", "metaworld", "--preset", "full", "--out", str(tmp_path / "study"), "--dry-run"]
    done = CliRunner().invoke(app, [*arguments, "--jobs", "4", "--tasks", "push-v3,door-open-v3", "--seeds", "2"])
    assert done.exit_code == 0, done.output
    assert "32 runs, 4 at once: about 11.2 minutes (44.9 core minutes)" in done.output  # 84.2 s each
    assert not (tmp_path / "study").exists()
