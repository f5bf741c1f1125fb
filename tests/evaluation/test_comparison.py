import dataclasses
import json

import pytest
from test_conditions import OTHER, USUAL

from vla_rl.evaluation.comparison import (
    compare_evaluations,
    find_evaluation,
    interval_in_words,
    mcnemar_in_words,
    verdict,
    weights_in_words,
)
from vla_rl.evaluation.conditions import evaluation_folder
from vla_rl.evaluation.episode_log import EPISODES_FILE, EpisodeLog, EpisodeResult
from vla_rl.evaluation.pairs import compare


def episode(state, success, *, init_states="standard", task_id=0):
    return EpisodeResult(
        suite="s", task_id=task_id, init_state=state, init_states=init_states, seed=0, success=success, env_steps=9,
        episode_return=0.0, seconds=1.0,
    )  # fmt: skip


def evaluation(folder, outcomes, conditions):
    with (
        evaluation_folder(conditions, set(), out=folder, default=folder),
        EpisodeLog(folder / EPISODES_FILE) as log,
    ):
        for state, success in enumerate(outcomes):
            log.append(episode(state, success))
    return folder


def test_a_run_means_its_newest_evaluation(tmp_path):
    folder = evaluation(tmp_path / "run" / "eval" / "step_3", [True], USUAL)
    assert find_evaluation(tmp_path / "run") == folder
    assert find_evaluation(folder) == folder
    assert find_evaluation(folder / "episodes.jsonl") == folder
    with pytest.raises(ValueError, match=r"holds no evaluation"):
        find_evaluation(tmp_path / "run" / "eval" / "nothing")


def test_what_differs_besides_the_policy_is_told(tmp_path):
    first = evaluation(tmp_path / "a", [True, False], USUAL)
    other = dataclasses.replace(OTHER, seeds=(0,), fingerprint="def", checkpoint="y")
    second = evaluation(tmp_path / "b", [False, False], other)
    report = compare_evaluations(first, second)
    assert report.caveats == ("protocol: oft and long",)
    assert "mind: they differ in protocol: oft and long" in str(report)
    printed = json.loads(report.to_json())
    assert (printed["caveats"], printed["verdict"]) == (["protocol: oft and long"], verdict(report.comparison))


def test_states_of_another_set_are_no_pair():
    with pytest.raises(ValueError, match="share no episode"):
        compare([episode(0, True)], [episode(0, True, init_states="spare")])


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ([True] * 9 + [False], [False] * 9 + [False], "is distinguishable: A is better"),
        ([False] * 10, [True] * 10, "is distinguishable: B is better"),
        ([True] * 2 + [False] * 8, [False] * 10, "not distinguishable from noise"),  # 2 * 1/4 = 50 %, mid-p 25 %
        ([True, False], [False, True], "differ this much in 100 % of such comparisons"),
        ([True, False], [True, False], "There is no difference"),
    ],
)
def test_the_verdict_is_a_sentence(first, second, words):
    pairs = ([episode(state, won) for state, won in enumerate(won_by)] for won_by in (first, second))
    result = compare(*pairs)
    assert words in verdict(result)


def unequal_tasks(*counts):
    """Per task, the pairs that only A won, that only B won and that both lost."""
    first, second = [], []
    for task_id, (only_first, only_second, neither) in enumerate(counts):
        outcomes = [(True, False)] * only_first + [(False, True)] * only_second + [(False, False)] * neither
        first += [episode(state, a, task_id=task_id) for state, (a, _) in enumerate(outcomes)]
        second += [episode(state, b, task_id=task_id) for state, (_, b) in enumerate(outcomes)]
    return compare(first, second)


def test_nothing_is_claimed_where_the_mean_over_tasks_and_mcnemar_contradict_each_other():
    result = unequal_tasks((22, 0, 28), (0, 5, 0))  # +44 points on 50 pairs, -100 points on 5
    assert result.difference == pytest.approx(-0.28)
    assert result.test.p_mid < 0.01  # 22 against 5
    assert not result.distinguishable
    assert verdict(result).startswith("Nothing can be said")
    (warning,) = weights_in_words(result)
    assert "between 5 and 50 pairs" in warning


def test_a_mean_of_nothing_is_no_victory():
    result = unequal_tasks((10, 0, 20), (0, 1, 2))  # +1/3 and -1/3; 10 against 1
    assert result.difference == pytest.approx(0.0)
    assert result.surprising
    assert verdict(result).startswith("Nothing can be said")


def test_the_better_one_is_the_one_with_the_higher_mean_over_tasks():
    result = unequal_tasks((20, 0, 30), (0, 1, 4))  # +40 and -20 points: +10 in the mean
    assert result.difference == pytest.approx(0.1)
    assert "A is better" in verdict(result)
    assert weights_in_words(unequal_tasks((3, 0, 2), (0, 1, 4))) == []


def test_a_difference_is_told_with_its_interval_and_test_or_without_where_there_is_none():
    def played(wins, *, seeds=1):
        return [
            dataclasses.replace(episode(state, won), seed=seed)
            for seed in range(seeds)
            for state, won in enumerate(wins)
        ]

    varied = compare(played([True] * 5 + [False]), played([False] * 5 + [True]))
    assert interval_in_words(varied).startswith("95 % interval ")
    assert mcnemar_in_words(varied) == "McNemar mid-p 0.12"
    seeded = compare(played([True] * 3, seeds=2), played([False] * 3, seeds=2))
    assert interval_in_words(seeded) == "no interval: the differences vary in no task"
    assert mcnemar_in_words(seeded) == "McNemar over 3 initial states mid-p 0.12"  # 2 of 8 signs, halved
