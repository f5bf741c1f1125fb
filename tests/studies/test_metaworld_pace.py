"""How long a study still takes, in numbers worked out by hand."""

from dataclasses import replace

import pytest

from vla_rl.studies.metaworld.duration import expect
from vla_rl.studies.metaworld.grid import PRESETS, StudyRun
from vla_rl.studies.pace import Expected, Underway, minutes_left

LONG, SHORT = Expected(start=10.0, training=590.0), Expected(start=10.0, training=110.0)


def test_a_fresh_run_is_expected_to_take_several_times_as_long_as_a_stale_one():
    grid = replace(PRESETS["small"], regimes=("stale", "fresh"))
    stale, fresh = (expect(grid, StudyRun("door-open-v3", "ppo", regime, 0)) for regime in ("stale", "fresh"))
    assert fresh.seconds > 2 * stale.seconds
    assert fresh.start == stale.start


def test_before_anything_is_known_the_estimate_holds():
    assert minutes_left([], [], [LONG, LONG, SHORT], jobs=2) == pytest.approx((600 + 600 + 120) / 2 / 60)


def test_finished_runs_correct_the_estimate_of_those_that_wait():
    slow = Underway(SHORT, seconds=240.0, share=1.0)  # twice what was expected
    assert minutes_left([slow], [], [LONG, LONG], jobs=2) == pytest.approx(2 * 1200 / 2 / 60)


def test_what_running_runs_have_done_counts():
    half = Underway(LONG, seconds=305.0, share=0.5)  # 10 + 295 s: as expected
    assert minutes_left([], [half], [], jobs=1) == pytest.approx(295 / 60)
    assert minutes_left([], [half], [LONG], jobs=1) == pytest.approx((295 + 600) / 60)


def test_a_run_before_its_first_update_says_nothing_about_the_pace():
    starting = Underway(LONG, seconds=300.0, share=0.0)
    assert minutes_left([], [starting], [], jobs=1) == pytest.approx(600 / 60)


def test_the_last_run_cannot_be_shared_among_cores():
    half = Underway(LONG, seconds=305.0, share=0.5)
    assert minutes_left([], [half], [], jobs=8) == pytest.approx(295 / 60)
