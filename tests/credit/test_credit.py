"""Credits as objects: by hand, against what they ask for, and without torch at import."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from vla_rl.credit import KINDS, Credit, Experience

VALUED = sorted(name for name, kind in KINDS.items() if "discount" in kind.model_fields)  # made of values


def make(name: str, **fields: Any) -> Credit:
    return KINDS[name].model_validate({"name": name, "discount": 0.5, "time_limit": "end", **fields})


def experience(*, log_ratio: float = 0.0, last_terminated: bool = True) -> Experience:
    """One segment of two decisions, r = [1, 2] and V = [0.5, 1], then 4 for an observation that may bootstrap."""
    return Experience(
        rewards=torch.tensor([[1.0, 2.0]]),
        terminated=torch.tensor([[False, last_terminated]]),
        truncated=torch.zeros(1, 2, dtype=torch.bool),
        values=torch.tensor([[0.5, 1.0, 4.0]]),
        log_ratios=torch.full((1, 2), log_ratio),
        mask=torch.ones(1, 2, dtype=torch.bool),
        episode=torch.tensor([0]),
        group=torch.tensor([0]),
    )


def test_gae_by_hand() -> None:
    """δ = [1 + 0.5 · 1 − 0.5, 2 − 1] = [1, 1]; A_0 = 1 + 0.5 · 0.5 · 1."""
    targets = make("gae", gae_lambda=0.5).assign(experience())
    assert targets.advantages.tolist() == [[1.25, 1.0]]
    assert targets.value_targets.tolist() == [[1.75, 2.0]]


def test_gae_bootstraps_from_the_value_after_a_segment_that_was_cut() -> None:
    """δ_1 = 2 + 0.5 · 4 − 1 = 3; A_0 = 1 + 0.25 · 3."""
    targets = make("gae", gae_lambda=0.5).assign(experience(last_terminated=False))
    assert targets.advantages.tolist() == [[1.75, 3.0]]


@pytest.mark.parametrize(("time_limit", "advantage"), [("end", 1.0), ("bootstrap", 3.0)])
@pytest.mark.parametrize("name", VALUED)
def test_what_the_horizon_is_decides_whether_a_truncation_bootstraps(
    name: str, time_limit: str, advantage: float
) -> None:
    cut = experience(last_terminated=False)
    targets = make(name, time_limit=time_limit).assign(replace(cut, truncated=torch.tensor([[False, True]])))
    assert targets.advantages[0, 1] == advantage


def test_vtrace_by_hand() -> None:
    """ρ = ½ everywhere, below both bounds: d_1 = ½ · 1, d_0 = ½ · 1 + 0.5 · ½ · d_1; A_0 = 1 + 0.5 · d_1."""
    targets = make("vtrace").assign(experience(log_ratio=math.log(0.5)))
    assert targets.advantages.tolist() == [[1.25, 1.0]]
    assert targets.value_targets.flatten().tolist() == pytest.approx([0.5 + 0.625, 1.0 + 0.5])


def test_every_field_of_vtrace_changes_what_it_assigns() -> None:
    """At ρ = 2 both bounds are at work, and λ weighs what comes later."""
    fresh = experience(log_ratio=math.log(2.0), last_terminated=False)
    usual = make("vtrace").assign(fresh).value_targets
    for field in ({"rho_bar": 1.5}, {"c_bar": 1.5}, {"lambda": 0.5}, {"discount": 0.9}):
        assert not make("vtrace", **field).assign(fresh).value_targets.equal(usual)


@pytest.mark.parametrize("name", VALUED)
def test_a_credit_says_what_it_looks_at(name: str) -> None:
    """What it does not ask for may hold anything."""
    credit = make(name)
    given = experience()
    unknown = torch.full_like(given.log_ratios, math.nan)
    assigned = credit.assign(replace(given, log_ratios=unknown))
    assert bool(assigned.value_targets.isnan().any()) is credit.needs_log_ratios
    assert credit.needs_values
    assert credit.needs_current_values
    assert not make(name, values="acting").needs_current_values
    assert credit.groups is None


def test_a_credit_that_is_not_told_what_the_horizon_is_refuses_to_guess() -> None:
    with pytest.raises(ValueError, match=r"targets\.time_limit is not set; allowed are end and bootstrap"):
        make("gae", time_limit=None).assign(experience())


def test_choosing_a_credit_does_not_import_torch() -> None:
    program = "import sys, vla_rl.credit; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
