import math

import pytest

from vla_rl.reporting.catalogue import CATALOGUE, reduce_over_ranks, require_known


def test_names_are_unique_and_grouped():
    assert all(name == metric.name and name.count("/") == 1 for name, metric in CATALOGUE.items())
    assert all(metric.meaning and metric.unit for metric in CATALOGUE.values())


def test_an_unknown_name_is_refused_with_the_closest_known_one():
    with pytest.raises(ValueError, match=r"'rollout/succes_rate'.*did you mean 'rollout/success_rate'"):
        require_known(["learner/entropy", "rollout/succes_rate"])


def test_every_unknown_name_is_reported_at_once():
    with pytest.raises(ValueError, match=r"'qqq'.*'zzz'"):
        require_known(["qqq", "zzz"])


def test_each_metric_uses_its_own_reduction():
    ranks = [
        {"perf/env_wait_fraction": 0.25, "perf/env_steps_per_s": 30.0, "perf/publish_ms": 7.0},
        {"perf/env_wait_fraction": 0.75, "perf/env_steps_per_s": 50.0, "perf/publish_ms": 3.0},
    ]
    assert reduce_over_ranks(ranks) == {
        "perf/env_steps_per_s": 80.0,
        "perf/env_wait_fraction": 0.5,
        "perf/publish_ms": 7.0,
    }


def test_a_rank_without_a_metric_has_no_say_in_it():
    assert reduce_over_ranks([{"replay/size": 4.0}, {}]) == {"replay/size": 4.0}


def test_a_nan_of_one_rank_is_seen_whatever_the_reduction_and_the_order():
    for name in ("perf/env_wait_fraction", "perf/publish_ms", "replay/size"):
        for values in ([math.nan, 1.0], [1.0, math.nan]):
            assert math.isnan(reduce_over_ranks([{name: value} for value in values])[name])


def test_what_is_computed_over_all_ranks_at_once_is_not_reduced_again():
    with pytest.raises(ValueError, match="policy_lag/p95 is computed over all ranks at once"):
        reduce_over_ranks([{"policy_lag/p95": 1.0}, {"policy_lag/p95": 3.0}])


def test_ranks_with_an_unknown_name_are_refused():
    with pytest.raises(ValueError, match="'learner/los'"):
        reduce_over_ranks([{"learner/los": 1.0}])
