"""What a study costs and how long it still takes, in numbers worked out by hand."""

import re
from dataclasses import replace

import pytest

from vla_rl.recipe import find_recipe, load_recipe
from vla_rl.studies.metaworld.duration import expect
from vla_rl.studies.metaworld.grid import PRESETS, Share, StudyRun
from vla_rl.studies.metaworld.runner import work_of
from vla_rl.studies.pace import Expected, Underway, minutes_left
from vla_rl.studies.price import price

LONG, SHORT = Expected(start=10.0, training=590.0), Expected(start=10.0, training=110.0)


def stale(*overrides):
    return load_recipe(find_recipe("metaworld_stale"), list(overrides))


def test_the_price_of_a_run_is_the_sum_of_its_parts():
    # Weights: 39 x 128 + 128 + 256 of the trunk, 128 x 128 + 128 + 256 and 128 x 1,024 + 1,024 of the policy,
    # 128 x 64 + 64 + 128 and 64 + 1 of the critic: 162,689. A sample: 2.3 + 4.881 + 3.686 (1,024 bins) = 10.867 us.
    # An update: 3 ms + 400 x 10.867 us + 400 / 55.17 env steps of 340 us = 9.812 ms, 8,000 times.
    expected = expect(stale())
    assert expected.start == pytest.approx(5 + 2000 * 340e-6)
    assert expected.training == pytest.approx(78.495, abs=0.01)


@pytest.mark.parametrize(
    "more",
    [
        ["policy.hidden_dim=256"],
        ["learner.micro_batch=16"],
        ["learner.accumulation=2"],
        ["replay.min_decisions=4000"],
        ["budget.optimizer_steps=16000"],
        ["regime=null", "replay.replay_ratio=20.0"],
    ],
)
def test_the_price_of_a_run_grows_with_what_it_has_more_of(more):
    assert expect(stale(*more)).seconds > expect(stale()).seconds


def test_fewer_bins_and_gaussians_cost_less():
    prices = [expect(stale(change)).seconds for change in ("seed=0", "policy.num_bins=32")]
    prices.append(expect(stale("policy.distribution=gaussian", "loss.kl_coefficient=0.0")).seconds)
    assert prices == sorted(prices, reverse=True)
    assert len(set(prices)) == 3


def test_a_fresh_run_is_expected_to_take_several_times_as_long_as_a_stale_one():
    grid = replace(PRESETS["paper"], seeds=1)
    old, new = (expect(grid.recipe_of(StudyRun("door-open-v3", "ppo", regime, 0))) for regime in ("stale", "fresh"))
    assert new.seconds > 2 * old.seconds
    assert new.start == old.start


def test_a_dry_run_says_the_price_of_both_regimes_and_of_one_share(tmp_path):
    grid = replace(PRESETS["small"], regimes=("stale", "fresh"))
    old, new = (
        expect(grid.recipe_of(StudyRun("door-open-v3", "ppo", regime, 0))).seconds / 60 for regime in ("stale", "fresh")
    )
    hours = 30 * (old + new) / 60
    assert price(work_of(grid, tmp_path), at_once=4).splitlines()[:-1] == [
        "door-open-v3, button-press-topdown-v3 × gipo, ppo, sapo × stale, fresh × seeds 0 to 4",
        f"stale         30 runs  about {30 * old:.1f} core minutes, the longest {old:.1f} minutes",
        f"fresh         30 runs  about {30 * new:.1f} core minutes, the longest {new:.1f} minutes",
        f"60 runs, 4 at once: about {60 * hours / 4:.1f} minutes ({hours:.1f} core hours)",
    ]
    own = price(work_of(grid, tmp_path, share=Share(2, 2)), at_once=4).splitlines()
    assert own[0].startswith("share 2/2 of door-open-v3, button-press-topdown-v3 × gipo")
    assert own[1] == f"stale         15 runs  about {15 * old:.1f} core minutes, the longest {old:.1f} minutes"


def test_a_dry_run_says_how_much_memory_runs_need_at_once(tmp_path):
    # A row: 39 floats of state, 4 components with bin, log-probability and 256 logits, and 35 bytes more: 4.3 kB.
    last = price(work_of(PRESETS["paper"], tmp_path), at_once=2).splitlines()[-1]
    each, both, _ = (float(number) for number in re.findall(r"([0-9.]+) GiB", last))
    assert each == pytest.approx(3_200_000 * 4.3e3 / 2**30 + 0.55, abs=0.2)  # and the process itself
    assert both == pytest.approx(2 * each, abs=0.11)


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
