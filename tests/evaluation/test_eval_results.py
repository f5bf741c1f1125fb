import csv
import dataclasses
import json
import random

import pytest

from vla_rl.evaluation.episode_log import EpisodeResult
from vla_rl.evaluation.eval_results import summarise, write_results
from vla_rl.evaluation.pairs import compare


def episodes(suite, task_id, outcomes, *, env_steps=100, first_state=0):
    return [
        EpisodeResult(
            suite=suite,
            task_id=task_id,
            init_state=first_state + index,
            seed=0,
            success=success,
            env_steps=env_steps,
            episode_return=float(success),
            seconds=2.0,
        )
        for index, success in enumerate(outcomes)
    ]


EIGHT_OF_TEN = [True] * 8 + [False] * 2


def test_a_task_has_its_rate_and_wilsons_interval():
    (task,) = summarise(episodes("libero_goal", 3, EIGHT_OF_TEN)).tasks
    assert (task.suite, task.task_id, task.episodes, task.successes, task.success_rate) == (
        "libero_goal",
        3,
        10,
        8,
        0.8,
    )
    assert (task.wilson.low, task.wilson.high) == pytest.approx((0.4902, 0.9433), abs=5e-5)
    assert (task.mean_return, task.mean_env_steps) == (0.8, 100)


def test_a_suites_rate_is_the_mean_of_its_tasks_and_wilson_counts_all_episodes():
    results = episodes("s", 0, EIGHT_OF_TEN) + episodes("s", 1, [False] * 2, env_steps=300)
    (suite,) = summarise(results).suites
    assert (suite.tasks, suite.episodes, suite.successes) == (2, 12, 8)
    assert suite.success_rate == pytest.approx(0.4)
    assert suite.mean_env_steps == 200
    assert suite.seconds == 24
    assert suite.wilson.low < 8 / 12 < suite.wilson.high
    # The second task never varies: only the first's spread is left, halved.
    assert 0.2 < suite.bootstrap.low < 0.4 < suite.bootstrap.high <= 0.5


def test_suites_are_kept_apart():
    summary = summarise(episodes("b", 0, [True] * 3) + episodes("a", 0, [False] * 3))
    assert [(suite.suite, suite.success_rate) for suite in summary.suites] == [("a", 0.0), ("b", 1.0)]


def test_the_order_of_episodes_does_not_matter():
    results = episodes("s", 0, EIGHT_OF_TEN) + episodes("s", 1, [True, False, True])
    shuffled = results.copy()
    random.Random(1).shuffle(shuffled)
    assert summarise(shuffled) == summarise(results)


def test_few_episodes_and_uneven_tasks_are_remarked_on():
    summary = summarise(episodes("s", 0, EIGHT_OF_TEN) + episodes("s", 1, [True]))
    assert "s: 11 episodes leave an interval 43 points wide" in summary.notes[0]
    assert "s: its tasks have between 1 and 10 episodes" in summary.notes[1]


def test_only_libero_is_measured_against_liberos_protocol():
    for suite, remarked in (("libero_goal", True), ("toy", False)):
        (note,) = summarise(episodes(suite, 0, EIGHT_OF_TEN)).notes
        assert ("50 per task" in note) is remarked


def test_a_full_evaluation_needs_no_remark():
    results = [result for task in range(10) for result in episodes("s", task, [True] * 49 + [False])]
    assert summarise(results).notes == ()


def played_by(seeds, results):
    return [dataclasses.replace(episode, seed=seed) for seed in seeds for episode in results]


def test_a_suite_whose_outcomes_never_vary_has_no_bootstrap_interval():
    summary = summarise(episodes("s", 0, [False] * 16))
    assert summary.suites[0].bootstrap is None
    assert any("within each task all initial states have the same success rate" in note for note in summary.notes)
    assert summary.rows()[-1]["bootstrap_low"] == ""


def test_seeds_that_play_the_same_states_and_never_differ_leave_no_interval_but_that_of_one_seed():
    results = played_by(range(2), episodes("s", 0, [False] * 16))
    _, nothing, same, _ = summarise(results, stored=["s"]).notes
    assert nothing.endswith("so a bootstrap has nothing to redraw; go by Wilson's interval of a single seed.")
    assert same.endswith("Wilson's interval is too narrow.")
    _, varied, _ = summarise(played_by(range(2), episodes("s", 0, EIGHT_OF_TEN)), stored=["s"]).notes
    assert varied.endswith("too narrow; the bootstrap redraws initial states with all their seeds.")


def test_seeds_that_play_the_same_states_do_not_narrow_the_bootstrap():
    once = summarise(episodes("s", 0, EIGHT_OF_TEN)).suites[0]
    thrice = summarise(played_by(range(3), episodes("s", 0, EIGHT_OF_TEN))).suites[0]
    assert thrice.bootstrap == once.bootstrap
    assert thrice.wilson.high - thrice.wilson.low < once.wilson.high - once.wilson.low


def test_an_interquartile_mean_has_an_interval_only_where_redrawing_seeds_says_something():
    varied = [
        result for seed in range(5) for result in played_by([seed], episodes("s", 0, [True] * seed + [False] * 5))
    ]
    of_four, of_five = ([it for it in varied if it.seed < seeds] for seeds in (4, 5))
    same = summarise(played_by(range(5), episodes("s", 0, EIGHT_OF_TEN)))
    assert summarise(of_five).suites[0].iqm_interval is not None
    assert summarise(of_four).suites[0].iqm_interval is same.suites[0].iqm_interval is None
    assert "4 seeds are too few to redraw, 5 are the least" in summarise(of_four).notes[-1]
    assert "whatever seeds are redrawn it is the same" in same.notes[-1]


def test_an_interquartile_mean_that_trims_all_differences_does_not_deny_them():
    perfect = [it for task in range(10) for it in played_by(range(1, 5), episodes("s", task, [True] * 10))]
    failing = [it for task in range(5) for it in played_by([0], episodes("s", task, [True] * 9 + [False]))]
    others = [it for task in range(5, 10) for it in played_by([0], episodes("s", task, [True] * 10))]
    summary = summarise(perfect + failing + others)
    assert (summary.suites[0].iqm, summary.suites[0].iqm_interval) == (1.0, None)
    assert "it drops the best and the worst quarter" in summary.notes[-1]


def test_nothing_cannot_be_summed_up():
    with pytest.raises(ValueError, match="without an episode"):
        summarise([])


def test_results_are_written_as_json_and_as_a_table(tmp_path):
    results = episodes("s", 0, EIGHT_OF_TEN) + episodes("s", 4, [True] * 10)
    summary = write_results(tmp_path / "eval", results)
    written = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert written["schema"] == 1
    assert written["suites"][0]["success_rate"] == summary.suites[0].success_rate == 0.9
    assert written["tasks"][1]["wilson"]["high"] == 1.0
    with (tmp_path / "eval" / "results.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["suite"], row["task_id"], row["success_rate"]) for row in rows] == [
        ("s", "0", "0.8"),
        ("s", "4", "1.0"),
        ("s", "all", "0.9"),
    ]
    assert rows[0]["bootstrap_low"] == ""
    assert float(rows[2]["bootstrap_low"]) < 0.9
    assert sorted(path.name for path in (tmp_path / "eval").iterdir()) == ["results.csv", "results.json"]


def test_policies_are_compared_on_the_episodes_they_share():
    first = episodes("s", 0, [True, True, True, False]) + episodes("s", 1, [True, True])
    second = episodes("s", 0, [True, False, False, True, True]) + episodes("s", 1, [False, True])
    result = compare(first, second)
    assert (result.pairs, result.unpaired) == (6, 1)
    assert (result.test.only_first, result.test.only_second) == (3, 1)
    assert result.test.p_exact == 0.625  # n = 4: 2 (1 + 4) / 16
    assert result.difference == pytest.approx((1 / 4 + 1 / 2) / 2)
    assert result.interval.low <= result.difference <= result.interval.high


def test_pairs_of_several_seeds_count_as_one_for_each_initial_state():
    first, second = episodes("s", 0, [True] * 5 + [False]), episodes("s", 0, [False] * 5 + [True])
    once, thrice = compare(first, second), compare(played_by(range(3), first), played_by(range(3), second))
    assert (once.pairs, once.initial_states, thrice.pairs, thrice.initial_states) == (6, 6, 18, 6)
    assert thrice.test.p_mid == once.test.p_mid == 0.125  # one against five
    assert thrice.interval == once.interval


def test_differences_that_never_vary_have_no_interval():
    assert compare(episodes("s", 0, [True] * 6), episodes("s", 0, [False] * 6)).interval is None


def test_evaluations_of_other_states_cannot_be_paired():
    with pytest.raises(ValueError, match="share no episode"):
        compare(episodes("s", 0, [True]), episodes("s", 0, [True], first_state=5))
