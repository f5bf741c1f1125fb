"""Regimes: what fresh and stale stand for, and that a recipe keeps to it."""

from __future__ import annotations

import pytest

from vla_rl.recipe import RecipeError, build_recipe

RECIPE = """
name: t
env: {name: toy}
policy: {name: mlp}
surrogate: {name: gipo, sigma: 0.5}
replay: {capacity: 800, min_decisions: 80, segment_length: 8}
learner: {micro_batch: 2, accumulation: 2}
budget: {optimizer_steps: 1000}
"""


def refused(*overrides: str) -> tuple[str, str]:
    """Path and allowed values of the one problem."""
    with pytest.raises(RecipeError) as raised:
        build_recipe(RECIPE, overrides)
    (problem,) = raised.value.problems
    return problem.path, problem.allowed


def test_a_regime_stands_for_numbers_that_follow_from_the_budget() -> None:
    # 1,000 versions of 4 x 8 decisions: the paper's old from 10 %, its fresh ring spans 8.55 %, its stale one 86.2 %.
    fresh, stale = (build_recipe(RECIPE, [f"regime={name}"]).replay for name in ("fresh", "stale"))
    assert (fresh.old_threshold, stale.old_threshold) == (100, 100)
    assert fresh.replay_ratio == pytest.approx(0.0855 * 1000 * 32 / 800, rel=1e-3)
    assert stale.replay_ratio == pytest.approx(0.862 * 1000 * 32 / 800, rel=1e-3)
    span = stale.replay_ratio * 800 / 32  # versions, and lags are spread evenly over it
    assert 1 - stale.old_threshold / span == pytest.approx(0.884, abs=1e-3)


def test_versions_are_counted_not_optimizer_steps() -> None:
    replay = build_recipe(RECIPE, ["regime=stale", "learner.publish_every=2"]).replay
    assert (replay.old_threshold, replay.replay_ratio) == (50, pytest.approx(0.862 * 40, rel=1e-3))


def test_without_a_regime_nothing_is_set() -> None:
    assert build_recipe(RECIPE).replay.replay_ratio == 1.0


def test_a_recipe_with_a_regime_dumps_its_numbers_and_loads_again() -> None:
    first = build_recipe(RECIPE, ["regime=fresh"])
    assert build_recipe(first.dump_yaml()) == first
    assert "replay_ratio: 3.42\n" in first.dump_yaml()


def test_numbers_that_contradict_the_regime_are_refused_with_those_it_means() -> None:
    assert refused("regime=stale", "replay.replay_ratio=1.0") == (
        "replay.replay_ratio",
        "34.48, or any with regime=null",
    )
    assert refused("regime=fresh", "replay.old_threshold=10") == (
        "replay.old_threshold",
        "100, or any with regime=null",
    )


def test_a_recorded_run_with_a_regime_is_extended_by_either_fix_that_it_is_told() -> None:
    recorded, longer = build_recipe(RECIPE, ["regime=stale"]).dump_yaml(), "budget.optimizer_steps=2000"
    with pytest.raises(RecipeError) as raised:
        build_recipe(recorded, [longer])
    told = [(problem.path, problem.allowed) for problem in raised.value.problems]
    assert [path for path, _ in told] == ["replay.replay_ratio", "replay.old_threshold"]
    meant = [f"{path}={allowed.partition(', or ')[0]}" for path, allowed in told]
    assert build_recipe(recorded, [longer, *meant]) == build_recipe(RECIPE, ["regime=stale", longer])
    kept = build_recipe(recorded, [longer, "regime=null"]).replay
    assert (kept.replay_ratio, kept.old_threshold) == (34.48, 100)


def test_a_run_too_short_to_use_data_tens_of_times_is_not_stale() -> None:
    path, allowed = refused("regime=stale", "budget.optimizer_steps=500")
    assert path == "regime"
    assert "smaller replay.capacity" in allowed


@pytest.mark.parametrize("regime", ["[fresh]", "{a: 1}", "1", "frsh"])
def test_what_is_no_regime_is_one_problem(regime: str) -> None:
    assert refused(f"regime={regime}")[0] == "regime"


def test_other_faults_are_told_beside_a_regime() -> None:
    assert refused("regime=fresh", "replay.capacity=many")[0] == "replay.capacity"
    assert refused("regime=fresh", "replay=3")[0] == "replay"
