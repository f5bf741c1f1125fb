"""The paper's figures from finished runs, on records written by hand."""

import csv
import json
import shlex
import shutil
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.backends.backend_agg import FigureCanvasAgg
from typer.testing import CliRunner
from written_runs import write_run

from vla_rl.cli.main import app
from vla_rl.studies.figures import add_legend, looks_of, panels_of
from vla_rl.studies.metaworld.grid import Grid
from vla_rl.studies.metaworld.learning_curves import learning_curves
from vla_rl.studies.metaworld.results import RunTable
from vla_rl.studies.metaworld.runner import open_study
from vla_rl.studies.paper_figures import outputs as figure_outputs
from vla_rl.studies.paper_figures.gallery import FIGURES
from vla_rl.studies.paper_figures.outputs import write_figures
from vla_rl.studies.paper_figures.pool import read_pool

BY_NUMBER = {figure.number: figure for figure in FIGURES}
DOOR, HANDLE = "door-open-v3", "handle-press-v3"
WHOLE = Grid(
    tasks=(DOOR, HANDLE),
    surrogates=("gipo:0.5", "gipo", "ppo"),
    regimes=("fresh", "stale"),
    seeds=2,
    optimizer_steps=6000,
)
STALE = Grid(tasks=(DOOR,), surrogates=("gipo", "ppo"), regimes=("stale",), seeds=2, optimizer_steps=6000)


def record(run, step):
    """Lags of `step` times 1 + seed on stale experience and of 5 on fresh; returns rise to 100 times 1 + seed."""
    stale, clipped = run.regime == "stale", run.surrogate == "ppo"
    lag = float(step * (1 + run.seed)) if stale else 5.0
    return {
        "optimizer_steps": step, "env_steps": 10 * step, "decisions": 10 * step, "episodes": step,
        "policy_version": step, "seconds": float(step),
        "rollout/return": 0.01 * step * (1 + run.seed) * (0.5 if run.surrogate == "gipo:0.5" else 1.0),
        "policy_lag/mean": lag, "policy_lag/p95": 2 * lag, "policy_lag/old_fraction": 0.9 if stale else 0.0,
        "policy_lag/old_p95": 2 * lag if stale else 0.0, "replay/age_mean": 10 * lag,
        "ratio/abs_log_p95": 0.4 if clipped else 0.01 * lag,
        "utilization/dead": 0.25 if clipped else 0.0, "utilization/suppressed": 0.0,
        "utilization/near_zero": 0.3 if clipped else 0.01,
        "utilization/ess_old": (0.6 if clipped else 0.4) if stale else 0.0,
        "learner/kl": 0.02 if clipped else 0.1 * (1 + run.seed),
    }  # fmt: skip


def make(folder, grid, without=()):
    """Write a finished study whose records lack some metrics."""
    open_study(grid, folder)
    for run in grid.runs():
        records = [record(run, step) for step in range(10, 101, 10)]
        left = [{name: value for name, value in each.items() if name not in without} for each in records]
        write_run(folder / "runs" / run.name, run, grid=grid, records=left, manifest={})
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Read a study that carries every figure."""
    return read_pool([make(tmp_path_factory.mktemp("whole"), WHOLE)])


@pytest.fixture
def unsaved(monkeypatch):
    """Write tables and pages, but no pictures, which take long."""
    monkeypatch.setattr(figure_outputs, "save", lambda _, out, name: [out / f"{name}.png"])


def rows_of(pool, number, **chosen):
    """Return the table behind a figure, or its rows with these values."""
    rows = BY_NUMBER[number].draw(pool.results).rows
    return [row for row in rows if all(row[name] == value for name, value in chosen.items())]


def test_figure_2_has_the_return_of_every_task_regime_and_surrogate_over_env_steps(whole):
    last = rows_of(whole, 2, task=HANDLE, regime="stale", surrogate="gipo")[-1]
    # Seeds end at 100 and 200; a bootstrap of two values reaches from one to the other.
    assert last == {
        "task": HANDLE, "regime": "stale", "surrogate": "gipo", "env_steps": 1000, "mean": 150.0, "low": 100.0,
        "high": 200.0, "seeds": 2,
    }  # fmt: skip
    assert rows_of(whole, 2, task=DOOR, regime="fresh", surrogate="gipo:0.5")[0]["mean"] == 7.5  # of 5 and 10
    assert len({(row["task"], row["regime"], row["surrogate"]) for row in rows_of(whole, 2)}) == 12


def test_figure_2_has_the_stale_regime_above_the_fresh_one_whatever_the_grid_says(whole):
    axes = BY_NUMBER[2].draw(whole.results).figure.axes
    assert [each.get_title() for each in axes] == [
        f"{DOOR}, stale", f"{HANDLE}, stale", f"{DOOR}, fresh", f"{HANDLE}, fresh",
    ]  # fmt: skip


def test_figure_4_has_the_papers_methods_and_gipos_front(whole):
    rows = rows_of(whole, 4)
    assert {row["method"] for row in rows} == {"no_clip", "ppo", "sapo", "gipo"}
    assert len(rows) == 3 * (3 + 5)
    # With σ the bias falls and the variance rises, so every setting is on the front; nothing else is in it.
    assert all(row["on_gipo_front"] == (row["method"] == "gipo") for row in rows)
    ppo = next(row for row in rows if (row["case"], row["method"]) == ("C", "ppo"))
    assert (ppo["bias"], ppo["variance"]) == pytest.approx((0.063094606874, 0.012340165532), abs=1e-9)


def test_figure_5_has_both_regimes_of_one_surrogate_on_door_open(whole):
    drawn = BY_NUMBER[5].draw(whole.results)
    assert {(result.run.task, result.run.surrogate) for result in drawn.results} == {(DOOR, "gipo")}
    stale = rows_of(whole, 5, regime="stale", metric="policy_lag/mean")
    assert (stale[0]["optimizer_steps"], stale[0]["mean"]) == (10, 15.0)  # lags of 10 and 20
    assert (stale[-1]["mean"], stale[-1]["low"], stale[-1]["high"], stale[-1]["runs"]) == (150.0, 100.0, 200.0, 2)
    assert {row["mean"] for row in rows_of(whole, 5, regime="fresh", metric="policy_lag/mean")} == {5.0}
    assert {row["mean"] for row in rows_of(whole, 5, regime="fresh", metric="policy_lag/old_p95")} == {0.0}
    assert {row["mean"] for row in rows_of(whole, 5, regime="fresh", metric="replay/age_mean")} == {50.0}
    assert [len(axes.get_lines()) for axes in drawn.figure.axes] == [2, 2, 2, 2]
    assert drawn.figure.get_suptitle() == "door-open-v3, gipo"


def test_figure_6_has_the_shares_of_every_surrogate_in_the_stale_regime_on_door_open(whole):
    drawn = BY_NUMBER[6].draw(whole.results)
    assert {(result.run.task, result.run.regime) for result in drawn.results} == {(DOOR, "stale")}
    shares = {(row["surrogate"], row["metric"].split("/")[1]): row["mean"] for row in drawn.rows}
    assert shares == {
        ("gipo:0.5", "dead"): 0.0, ("gipo", "dead"): 0.0, ("ppo", "dead"): 0.25,
        ("gipo:0.5", "suppressed"): 0.0, ("gipo", "suppressed"): 0.0, ("ppo", "suppressed"): 0.0,
        ("gipo:0.5", "near_zero"): 0.01, ("gipo", "near_zero"): 0.01, ("ppo", "near_zero"): 0.3,
    }  # fmt: skip


def test_figure_7_has_a_point_per_run_and_the_mean_of_every_surrogate(whole):
    drawn = BY_NUMBER[7].draw(whole.results)
    assert rows_of(whole, 7, surrogate="gipo") == [
        # The last fifth of the env steps begins at 800 of 1000: returns of 80, 90 and 100, or twice as much.
        {"task": DOOR, "surrogate": "gipo", "seed": seed, "learner/kl": 0.1 * (1 + seed),
         "utilization/ess_old": 0.4, "closing_return": 90.0 * (1 + seed)}
        for seed in (0, 1)
    ]  # fmt: skip
    assert {row["utilization/ess_old"] for row in rows_of(whole, 7, surrogate="ppo")} == {0.6}
    panel = drawn.figure.axes[0]
    runs, mean = [cloud for cloud in panel.collections if cloud.get_offsets()[0][0] >= 0.1][-2:]
    assert runs.get_offsets().tolist() == [pytest.approx([0.1, 0.4]), pytest.approx([0.2, 0.4])]
    assert mean.get_offsets().tolist() == [pytest.approx([0.15, 0.4])]
    assert mean.get_array().tolist() == [pytest.approx(135.0)]


def test_figure_8_has_all_log_points_and_the_correlation_of_lag_and_tail(whole):
    drawn = BY_NUMBER[8].draw(whole.results)
    assert len(drawn.rows) == 3 * 2 * 2 * 10  # surrogates, regimes, seeds, log points
    point = rows_of(whole, 8, regime="stale", surrogate="gipo", seed=1, optimizer_steps=50)
    assert point == [
        {"task": DOOR, "regime": "stale", "surrogate": "gipo", "seed": 1, "optimizer_steps": 50,
         "policy_lag/mean": 100.0, "policy_lag/old_fraction": 0.9, "policy_lag/old_p95": 200.0,
         "ratio/abs_log_p95": 1.0}
    ]  # fmt: skip
    # GIPO's tail is proportional to the lag, PPO's is constant.
    assert drawn.remarks[-1].endswith("all points: gipo:0.5 1.00, gipo 1.00.")
    assert [np.shape(axes.collections[0].get_offsets()) for axes in drawn.figure.axes] == [(60, 2)] * 3


@pytest.mark.parametrize(("end", "falls"), [(1.0, False), (0.1, True)])
def test_figure_8_says_that_the_learning_rate_falls_where_it_does(tmp_path, end, falls):
    study = make(tmp_path / "study", replace(STALE, seeds=1))
    for metrics in study.glob("runs/*/metrics.jsonl"):
        records = [json.loads(line) for line in metrics.read_text().splitlines()]
        rates = {"learner/policy_lr": 3e-4}, {"learner/policy_lr": 3e-4 * end}
        lines = [json.dumps(each | rates[place >= 5]) for place, each in enumerate(records)]
        metrics.write_text("\n".join(lines) + "\n")
    drawn = BY_NUMBER[8].draw(read_pool([study]).results)
    assert any("learning rate falls" in text for text in (*drawn.remarks, BY_NUMBER[8].text.caption)) == falls


def test_figure_9_has_return_tail_and_ess_of_every_setting_on_handle_press(whole):
    rows = rows_of(whole, 9, regime="stale", quantity="closing return")
    assert {row["task"] for row in rows} == {HANDLE}
    assert [(row["surrogate"], row["sigma"], row["mean"], row["low"], row["high"]) for row in rows] == [
        ("gipo:0.5", 0.5, 67.5, 45.0, 90.0), ("gipo", 1.0, 135.0, 90.0, 180.0), ("ppo", None, 135.0, 90.0, 180.0),
    ]  # fmt: skip
    tails = rows_of(whole, 9, regime="stale", quantity="ratio/abs_log_p95", surrogate="gipo")
    assert [row["mean"] for row in tails] == [1.35]  # a lag of 90 or 180
    assert {row["regime"] for row in rows_of(whole, 9, quantity="utilization/ess_old")} == {"stale"}
    titles = [(axes.get_title(), axes.get_ylabel()) for axes in BY_NUMBER[9].draw(whole.results).figure.axes]
    assert titles == [
        ("stale", "closing return"), ("stale", "P95 of abs(log ρ)"), ("stale", "ESS of old samples"),
        ("fresh", "closing return"), ("fresh", "P95 of abs(log ρ)"),
    ]  # fmt: skip


def test_a_figure_whose_runs_are_missing_has_a_sentence_a_command_that_makes_them_and_no_file(tmp_path, unsaved):
    out = tmp_path / "out"
    out.mkdir()
    for old in ("figure_5_staleness.png", "figure_5_staleness.csv", "notes.csv"):  # the first two of an earlier call
        (out / old).touch()
    written = write_figures(read_pool([make(tmp_path / "stale", STALE)]), out)
    assert written.not_drawn == (
        "Figure 5 is not drawn. It needs runs of one surrogate on one task in both regimes. Missing are fresh runs of "
        "gipo on door-open-v3.",
        "Figure 9 is not drawn. It needs runs of two values of σ with the same factor for bad actions, on one task in "
        "one regime. Missing are stale and fresh runs of gipo:0.5, gipo, gipo:2 on handle-press-v3.",
    )
    assert {path.name.split("_")[1] for path in out.glob("figure_*")} == {"2", "4", "6", "7", "8"}
    assert (out / "notes.csv").exists()
    page = (out / "figures.md").read_text(encoding="utf-8")
    section = page.split("## Figure 5")[1].split("## ")[0]
    assert "* **Not drawn.** It needs runs of one surrogate" in section
    assert "png" not in section
    make_runs, draw = (shlex.split(line) for line in section.splitlines() if line.startswith("  vla-rl "))
    done = CliRunner().invoke(app, [*make_runs[1:], "--dry-run"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("door-open-v3 × gipo × fresh × seeds 0 to 1\n")
    assert "\n2 runs, " in done.output
    more = str(tmp_path / "stale_figure_5")
    assert make_runs[-2:] == ["--out", more]
    assert draw == ["vla-rl", "study", "figures", str(tmp_path / "stale"), more, "--out", str(out)]


def test_the_commands_of_a_figure_make_exactly_the_missing_runs(tmp_path, unsaved):
    """Figure 2 lacks SAPO on the task that is there, all of two more tasks, and the fresh regime."""
    write_figures(read_pool([make(tmp_path / "stale", STALE)]), tmp_path / "out")
    section = (tmp_path / "out" / "figures.md").read_text(encoding="utf-8").split("## Figure 4")[0]
    found = []
    for line in section.splitlines():
        if line.startswith("  vla-rl study metaworld "):
            words = shlex.split(line)
            tasks, names, regimes = (
                words[words.index(option) + 1].split(",") for option in ("--tasks", "--surrogates", "--regimes")
            )
            found += [(regime, task, name) for regime in regimes for task in tasks for name in names]
    every = {
        (regime, task, name)
        for regime in ("stale", "fresh")
        for task in (DOOR, HANDLE, "button-press-topdown-v3")
        for name in ("gipo", "ppo", "sapo")
    }
    assert len(found) == len(set(found))
    assert set(found) == every - {("stale", DOOR, "gipo"), ("stale", DOOR, "ppo")}


def test_seeds_that_a_regime_lacks_are_told_and_made_in_its_own_study(tmp_path, unsaved):
    """Stale GIPO and PPO have two seeds, fresh ones one, and stale PPO has lost its second."""
    stale = make(tmp_path / "stale", STALE)
    fresh = make(tmp_path / "fresh", replace(STALE, regimes=("fresh",), seeds=1))
    shutil.rmtree(stale / "runs" / f"{DOOR}_ppo_stale_seed1")
    pool = read_pool([stale, fresh])
    assert [run.name for run in pool.missing(BY_NUMBER[5])] == [f"{DOOR}_gipo_fresh_seed1"]
    assert [run.name for run in pool.missing(BY_NUMBER[6]) if run.surrogate != "sapo"] == [f"{DOOR}_ppo_stale_seed1"]
    write_figures(pool, tmp_path / "out")
    section = (tmp_path / "out" / "figures.md").read_text(encoding="utf-8").split("## Figure 7")[0]
    five, six = section.split("## Figure 5")[1].split("## Figure 6")
    assert "* **Incomplete.** Missing are fresh runs of gipo on door-open-v3 with seed 1." in five
    assert "Missing are stale runs of ppo on door-open-v3 with seed 1; stale runs of sapo on door-open-v3." in six
    for part, home, made in ((five, fresh, ["gipo_fresh_seed0", "gipo_fresh_seed1"]),
                             (six, stale, ["ppo_stale_seed0", "ppo_stale_seed1"])):  # fmt: skip
        words = shlex.split(next(line for line in part.splitlines() if line.startswith("  vla-rl study metaworld")))
        assert words[-2:] == ["--out", str(home)]
        done = CliRunner().invoke(app, [*words[1:], "--dry-run"])
        assert done.exit_code == 0, done.output
        chosen = dict(zip(words[3::2], words[4::2], strict=True))
        tasks, names, regimes = (tuple(chosen[f"--{axis}"].split(",")) for axis in ("tasks", "surrogates", "regimes"))
        grid = Grid(tasks, names, regimes, int(chosen["--seeds"]), int(chosen["--budget"]), chosen["--recipe"])
        open_study(grid, home)  # takes them
        assert [run.name for run in grid.runs()] == [f"{DOOR}_{name}" for name in made]


def test_factors_for_bad_actions_are_no_values_of_sigma(tmp_path):
    grid = replace(STALE, tasks=(HANDLE,), surrogates=("gipo", "gipo:1:0.5", "ppo"))
    pool = read_pool([make(tmp_path, grid)])
    assert BY_NUMBER[9].draw(pool.results) is None
    missing = {(run.surrogate, run.regime) for run in pool.missing(BY_NUMBER[9])}
    assert missing == {("gipo:0.5", "stale"), ("gipo:2", "stale")} | {
        (name, "fresh") for name in ("gipo:0.5", "gipo", "gipo:2")
    }


def test_a_figure_is_drawn_for_another_task_where_the_papers_has_no_runs_and_says_so(tmp_path):
    grid = Grid(tasks=("push-v3",), surrogates=("gipo", "ppo"), regimes=("stale",), seeds=1, optimizer_steps=6000)
    pool = read_pool([make(tmp_path, grid)])
    drawn = BY_NUMBER[6].draw(pool.results)
    assert {row["task"] for row in drawn.rows} == {"push-v3"}
    assert drawn.remarks == ("The paper shows door-open-v3; the runs on it that are here do not carry the figure.",)
    assert len(pool.missing(BY_NUMBER[6])) == 3


def test_runs_that_have_not_logged_what_a_figure_shows_are_not_asked_for_again(tmp_path, unsaved):
    grid = Grid(tasks=(DOOR,), surrogates=("gipo", "ppo", "sapo", "no_clip"), regimes=("stale",), seeds=1,
                optimizer_steps=6000)  # fmt: skip
    pool = read_pool([make(tmp_path / "study", grid, without=("utilization/ess_old",))])
    told = next(line for line in write_figures(pool, tmp_path / "out").not_drawn if "Figure 7" in line)
    assert told == (
        "Figure 7 is not drawn. It needs stale runs of two surrogates on one task. Those that are here have not logged "
        "what it shows."
    )


def test_runs_of_several_studies_are_drawn_together_and_those_of_two_once(tmp_path, unsaved):
    fresh = Grid(tasks=(DOOR,), surrogates=("gipo",), regimes=("stale", "fresh"), seeds=2, optimizer_steps=6000)
    pool = read_pool([make(tmp_path / "stale", STALE), make(tmp_path / "both", fresh)])
    assert (len(pool.results), pool.planned) == (6, 6)  # two of the eight are in both
    assert BY_NUMBER[5].draw(pool.results) is not None
    write_figures(pool, tmp_path / "out")
    page = (tmp_path / "out" / "figures.md").read_text(encoding="utf-8")
    assert f"2 runs of {tmp_path / 'both'} are also in a study before it, and only those are shown." in page
    assert "* fresh: 2 runs of gipo on door-open-v3; seeds: 2; intervals over fewer than 5 seeds say little." in page
    twice = read_pool([tmp_path / "stale", tmp_path / "both" / ".." / "stale"])
    assert (len(twice.results), twice.repeated) == (4, [])


def test_runs_that_are_missing_or_broken_are_told(tmp_path, unsaved):
    study = make(tmp_path / "study", STALE)
    shutil.rmtree(study / "runs" / f"{DOOR}_ppo_stale_seed1")
    (study / "runs" / f"{DOOR}_gipo_stale_seed1" / "metrics.jsonl").unlink()
    write_figures(read_pool([study]), tmp_path / "out")
    page = (tmp_path / "out" / "figures.md").read_text(encoding="utf-8")
    assert "* PARTIAL: 1 of 4 planned runs are missing." in page
    assert f"* LEFT OUT: {study}: {DOOR}_gipo_stale_seed1: " in page


def refused(*arguments):
    done = CliRunner().invoke(app, ["study", "figures", *map(str, arguments)])
    assert done.exit_code == 2, done.output
    return done.output


def test_folders_that_are_no_finished_studies_are_refused_all_at_once(tmp_path):
    nothing, groups, unfinished = tmp_path / "nothing", tmp_path / "groups", tmp_path / "unfinished"
    nothing.mkdir()
    groups.mkdir()
    (groups / "study.json").write_text('{"study": "groups", "plan": {}, "base": ""}', encoding="utf-8")
    open_study(STALE, unfinished)
    told = refused(nothing, groups, unfinished, "--out", tmp_path / "out")
    assert f"{nothing}: expected the folder of a study of metaworld, found no study.json in it" in told
    assert f"{groups / 'study.json'}: expected a study of metaworld, found one of groups" in told
    assert f"{unfinished}: no run of the study has finished yet; continue the study with the command" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["[]", '{"tasks": ["push-v3"]}', '{"tasks": '])
def test_a_broken_study_file_is_the_users_to_fix(tmp_path, content):
    (tmp_path / "study.json").write_text(content, encoding="utf-8")
    told = refused(tmp_path / "nothing", tmp_path, "--out", tmp_path / "out")
    assert f"error: {tmp_path / 'nothing'}: expected " in told
    assert f"\n{tmp_path / 'study.json'}: expected " in told


def test_studies_that_differ_in_budget_or_recipe_are_not_drawn_together(tmp_path):
    first = make(tmp_path / "first", STALE)
    longer = Grid(tasks=(DOOR,), surrogates=("gipo",), regimes=("stale",), seeds=1, optimizer_steps=8000)
    second, third = make(tmp_path / "longer", longer), tmp_path / "other"
    shutil.copytree(first, third)
    settings = json.loads((third / "study.json").read_text(encoding="utf-8"))
    settings["base"] = settings["base"].replace("kl_coefficient: 0.1", "kl_coefficient: 0.0")
    (third / "study.json").write_text(json.dumps(settings), encoding="utf-8")
    fourth = make(tmp_path / "both", longer)
    (fourth / "study.json").write_text(json.dumps(settings | {"optimizer_steps": 8000}), encoding="utf-8")
    told = refused(first, second, third, fourth, "--out", tmp_path / "out")
    assert f"{second}: its runs have 8000 optimizer steps instead of 6000, unlike those of {first}" in told
    assert f"{third}: its runs have other values of loss.kl_coefficient, unlike those of {first}" in told
    assert f"{fourth}: its runs have 8000 optimizer steps instead of 6000 and other values of loss.kl_" in told


def test_only_a_figure_with_intervals_explains_its_shades(whole):
    def explained(results):
        figure = learning_curves(results, looks_of(["gipo", "ppo"]))
        return [text.get_text() for text in figure.legends[0].get_texts()]

    gipo = whole.results.where(surrogate="gipo")
    assert explained(gipo) == ["gipo", "95 % interval, seeds redrawn"]
    assert explained(RunTable(result for result in gipo if result.run.seed == 0)) == ["gipo"]


def test_learning_curves_have_no_panel_without_a_run(whole):
    results = [result for result in whole.results if (result.run.task, result.run.regime) != (HANDLE, "fresh")]
    axes = learning_curves(RunTable(results), looks_of(["gipo"])).axes
    assert [each.get_title() for each in axes] == [f"{DOOR}, stale", f"{HANDLE}, stale", f"{DOOR}, fresh"]


def test_a_legend_of_many_names_stays_inside_a_narrow_figure():
    figure, panels = panels_of([("", "")])
    names = [f"gipo:0.{number}:0.5" for number in range(1, 10)]
    for name in names:
        panels["", ""].plot([0, 1], [0, 1], label=name)
    add_legend(figure, shade=True)
    FigureCanvasAgg(figure).draw()
    legend = figure.legends[0].get_window_extent()
    assert len(figure.legends[0].get_texts()) == 10
    assert figure.bbox.x0 <= legend.x0 < legend.x1 <= figure.bbox.x1


@pytest.mark.slow
def test_the_command_writes_every_figure_its_numbers_and_a_page(tmp_path):
    study, out = make(tmp_path / "study", WHOLE), tmp_path / "out"
    done = CliRunner().invoke(app, ["study", "figures", str(study), "--out", str(out)])
    assert done.exit_code == 0, done.output
    stems = [figure.stem for figure in FIGURES]
    assert [figure.number for figure in FIGURES] == [2, 4, 5, 6, 7, 8, 9]
    files = {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg", "csv")} | {"figures.md"}
    assert {path.name for path in out.iterdir()} == files
    assert set(done.output.splitlines()) == {f"wrote {out / name}" for name in files}
    page = (out / "figures.md").read_text(encoding="utf-8")
    assert all(f"]({stem}.png)" in page and f"]({stem}.csv)" in page for stem in stems)
    with (out / "figure_9_sigma.csv").open(encoding="utf-8") as file:
        assert next(csv.DictReader(file))["mean"] == "67.5"
