"""Scores, bands and intervals of a Meta-World study."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("matplotlib")


from written_study import RANDOM, TASKS, end_with, parts_of, results_of, study_with, words_of

from vla_rl.studies.metaworld import outputs as metaworld_outputs
from vla_rl.studies.metaworld.curves import metric_band, return_band
from vla_rl.studies.metaworld.outputs import write_study
from vla_rl.studies.metaworld.results import RunTable
from vla_rl.studies.metaworld.scores import (
    complete_seeds,
    improvements,
    normalized,
    score_table,
    scores,
)
from vla_rl.studies.metaworld.summary import parts
from vla_rl.studies.metaworld.words import cautions


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


def test_a_regime_without_a_seed_on_every_task_has_no_score_yet(study):
    fresh = [
        replace(each, run=replace(each.run, regime="fresh"))
        for each in results_of(study)
        if (each.run.surrogate, each.run.task, each.run.seed) in {("ppo", "push-v3", 0), ("ppo", "door-open-v3", 1)}
    ]
    found = study_with(study, results=[*results_of(study), *fresh])
    assert "fresh: no score yet of ppo, for no seed has a run on every task of it." in parts(found)[0].sentences
    assert "fresh: 0 seed(s) of some surrogate on every task" in "\n".join(cautions(found))


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


def test_fresh_and_stale_are_compared_where_both_were_run(study):
    results = results_of(study)
    fresh = [
        replace(result, run=replace(result.run, regime="fresh")) for result in results if result.run.surrogate == "ppo"
    ]
    words = words_of(study, results=[*results, *fresh])
    assert words[-1].startswith("ppo: IQM 0.030 on fresh and 0.030 on stale experience, 2 seed(s) of both, after")
