"""The policy of CONTRIBUTING, added by its own words in a copy of the repository: learner and ring do not change."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from test_contributing_environment import blocks_of, call, changed_files, copy  # noqa: F401 - copy is a fixture

FILES = {"vla_rl/policies/chain.py", "vla_rl/policies/chain_network.py", "vla_rl/policies/kinds.py"}


@pytest.fixture
def with_a_chain(copy: Path) -> Path:  # noqa: F811
    """The policy of CONTRIBUTING: two files, and two lines."""
    section, network, lines = blocks_of("How to add a policy")
    (copy / "vla_rl" / "policies" / "chain.py").write_text(section, encoding="utf-8")
    (copy / "vla_rl" / "policies" / "chain_network.py").write_text(network, encoding="utf-8")
    imported, union = filter(None, lines.splitlines())
    kinds = copy / "vla_rl" / "policies" / "kinds.py"
    before = kinds.read_text(encoding="utf-8")
    after = re.sub(r"^AnyPolicy = .*$", union, before, flags=re.MULTILINE)
    after = after.replace(
        "from vla_rl.policies.kind ", f"{imported}\nfrom vla_rl.policies.kind "
    )  # sorted, as ruff asks
    kinds.write_text(after, encoding="utf-8")
    assert set(after.splitlines()) - set(before.splitlines()) == {imported, union}
    return copy


def test_a_policy_without_logits_is_two_files_and_two_lines_and_learns_and_is_evaluated(with_a_chain: Path) -> None:
    assert changed_files(with_a_chain) == FILES
    overrides = ["policy.name=chain", "name=chain", "runtime.mode=serial", "runtime.device=cpu"]
    overrides += ["budget.optimizer_steps=120", "loss.kl_coefficient=0.01", "evaluation.episodes_per_task=0"]
    overrides += ["optimizer.policy_warmup=0", "optimizer.value_warmup=0", "logging.tensorboard=false"]
    trained = call(with_a_chain, "-m", "vla_rl", "train", "toy", *overrides)
    assert "finished after 120 optimizer steps" in trained
    records = (with_a_chain / "runs" / "chain" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    metrics = [json.loads(line) for line in records]
    # Whoever draws and whoever learns agree on the density; the stored means give a KL, which grows with the lag.
    lag_zero = [row["ratio/lag0_abs_log_max"] for row in metrics if "ratio/lag0_abs_log_max" in row]
    assert lag_zero and max(lag_zero) < 1e-4
    assert all(row["learner/kl"] >= 0.0 for row in metrics) and metrics[-1]["learner/kl"] > 1e-4
    returns = [row["rollout/return"] for row in metrics if "rollout/return" in row]
    assert returns[-1] > returns[0] + 0.1
    command = ["-m", "vla_rl", "eval", "runs/chain", "--episodes-per-task", "5", "--serial", "--json"]
    report = json.loads(call(with_a_chain, *command))
    assert [(suite["suite"], suite["episodes"]) for suite in report["suites"]] == [("toy", 5)]


@pytest.mark.slow
def test_the_checks_of_recipes_layers_and_policies_stay_green_beside_a_new_policy(with_a_chain: Path) -> None:
    call(with_a_chain, "-m", "ruff", "check", *sorted(FILES))
    call(with_a_chain, "-m", "ruff", "format", "--check", *sorted(FILES))
    tests = ["tests/test_recipes.py", "tests/test_layers.py", "tests/policies/test_mlp_policy.py"]
    call(with_a_chain, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests)
