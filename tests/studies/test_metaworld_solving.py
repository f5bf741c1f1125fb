"""When a run has solved its task, on success rates written by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from vla_rl.studies.metaworld.grid import StudyRun
from vla_rl.studies.metaworld.outputs import _run_row
from vla_rl.studies.metaworld.results import RunResult, RunTable
from vla_rl.studies.metaworld.solving import (
    env_steps_until_solved,
    is_solved_at_the_end,
    solving_part,
    solving_words,
)


def run(success: Sequence[float | None], *, surrogate: str = "gipo", seed: int = 0, every: int = 5) -> RunResult:
    """A run with a log point every 5 env steps, of 100 in all if there are 20 of them."""
    records = [
        {
            "env_steps": every * (place + 1),
            "optimizer_steps": place + 1,
            "rollout/success_rate": rate,
            "rollout/return": 0.0,
        }
        for place, rate in enumerate(success)
    ]
    return RunResult(
        run=StudyRun("door-open-v3", surrogate, "stale", seed),
        records=records,
        seconds=1.0,
        reward_scale=1.0,
        old_threshold=1,
        recipe="",
        manifest={},
    )


FROM_60 = [0.0] * 10 + [0.5, 0.9, 0.9] + [1.0] * 7  # windows of two points: 0.7 until 60, 0.9 until 65


def test_a_task_is_solved_where_a_tenth_of_the_env_steps_first_succeeds_in_four_of_five():
    assert env_steps_until_solved(run(FROM_60)) == 65


def test_the_table_of_runs_says_when_a_run_was_solved_and_whether_it_stayed_so():
    lost, never = [0.0] * 10 + [1.0] * 5 + [0.0] * 5, [0.0] * 20
    rows = [_run_row(run(success), {"door-open-v3": 0.0}) for success in (FROM_60, lost, never)]
    assert [row["env_steps_until_solved"] for row in rows] == [65, 60, None]
    assert [row["solved_at_end"] for row in rows] == [1, 0, 0]


def test_rounding_does_not_decide_whether_the_level_is_reached():
    # Ten times 0.8 add up to 7.999999999999999 one after another.
    assert env_steps_until_solved(run([0.8] * 100)) == 50
    assert is_solved_at_the_end(run([0.8] * 90))


@pytest.mark.parametrize("success", [[0.79] * 20, [None] * 20, [0.0, 1.0] * 10])
def test_a_run_that_never_gets_there_has_no_such_moment(success):
    assert env_steps_until_solved(run(success)) is None


def test_one_lucky_log_point_solves_nothing_and_neither_does_a_window_that_is_not_whole():
    assert env_steps_until_solved(run([1.0, 0.0] + [0.0] * 18)) is None
    assert env_steps_until_solved(run([1.0, 1.0] + [0.0] * 18)) == 10


def test_log_points_without_episodes_do_not_count():
    assert env_steps_until_solved(run([None] * 10 + [1.0] * 10)) == 55


def test_a_run_may_lose_what_it_had():
    lost = run([0.0] * 10 + [1.0] * 5 + [0.0] * 5)
    assert env_steps_until_solved(lost) is not None
    assert not is_solved_at_the_end(lost)
    assert is_solved_at_the_end(run(FROM_60))


def test_a_run_that_never_solves_its_task_does_not_end_solved():
    """A window has two log points, and no two neighbours reach 0.8 in the mean; the last three would."""
    success = run([0.0] * 16 + [0.5, 1.0, 0.59, 0.85])
    assert env_steps_until_solved(success) is None
    assert not is_solved_at_the_end(success)


def test_the_last_window_ends_with_the_last_episodes_for_both_questions():
    """Episodes end at 90 and 95, none at 100: the last window has the former two, not the latter alone."""
    reached, missed = run([0.0] * 17 + [0.6, 1.0, None]), run([0.0] * 17 + [0.5, 1.0, None])
    assert (env_steps_until_solved(reached), is_solved_at_the_end(reached)) == (95, True)
    assert (env_steps_until_solved(missed), is_solved_at_the_end(missed)) == (None, False)


def test_the_table_has_every_seed_and_the_words_compare_pairs():
    results = RunTable([
        run(FROM_60),
        run([0.0] * 20, seed=1),
        run(FROM_60, seed=2),
        run([0.0] * 20, surrogate="ppo"),
        run([0.0] * 20, surrogate="ppo", seed=1),
        run([0.0] * 15 + [1.0] * 5, surrogate="ppo", seed=2),
    ])  # fmt: skip
    part = solving_part(results)
    assert part is not None
    assert part.rows == (
        ("door-open-v3", "stale", "gipo", "65, never, 65", "2 of 3"),
        ("door-open-v3", "stale", "ppo", "never, never, 85", "1 of 3"),
    )
    (told,) = solving_words(results)
    assert "gipo solves its task earlier than ppo in 2 and later in 0 of 3 pairs" in told
    assert "p 0.5;" in told  # two signs alike: 2 · ¼


def test_nothing_is_told_where_nothing_is_solved():
    results = RunTable([run([0.5] * 20), run([0.5] * 20, surrogate="ppo")])
    assert solving_part(results) is None
    assert list(solving_words(results)) == []
