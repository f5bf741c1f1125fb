"""The policy of CONTRIBUTING, added by its own words in a copy of the repository: learner and ring do not change."""

from __future__ import annotations

import json
from pathlib import Path

from contributed import POLICY_FILES, add_policy, call, changed_files, copy  # noqa: F401 - copy is a fixture


def test_a_policy_without_logits_is_two_files_and_two_lines_and_learns_and_is_evaluated(copy: Path) -> None:  # noqa: F811
    add_policy(copy)
    assert changed_files(copy) == POLICY_FILES
    call(copy, "-m", "ruff", "check", *sorted(POLICY_FILES))
    call(copy, "-m", "ruff", "format", "--check", *sorted(POLICY_FILES))
    overrides = ["policy.name=chain", "name=chain", "runtime.mode=serial", "runtime.device=cpu"]
    overrides += ["budget.optimizer_steps=120", "loss.kl_coefficient=0.01", "evaluation.episodes_per_task=0"]
    overrides += ["optimizer.policy_warmup=0", "optimizer.value_warmup=0", "logging.tensorboard=false"]
    trained = call(copy, "-m", "vla_rl", "train", "toy", *overrides).stdout
    assert "finished after 120 optimizer steps" in trained
    records = (copy / "runs" / "chain" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    metrics = [json.loads(line) for line in records]
    # Whoever draws and whoever learns agree on the density; the stored means give a KL, which grows with the lag.
    lag_zero = [row["ratio/lag0_abs_log_max"] for row in metrics if "ratio/lag0_abs_log_max" in row]
    assert lag_zero and max(lag_zero) < 1e-4
    assert all(row["learner/kl"] >= 0.0 for row in metrics) and metrics[-1]["learner/kl"] > 1e-4
    returns = [row["rollout/return"] for row in metrics if "rollout/return" in row]
    assert returns[-1] > returns[0] + 0.1
    command = ["-m", "vla_rl", "eval", "runs/chain", "--episodes-per-task", "5", "--serial", "--json"]
    report = json.loads(call(copy, *command).stdout)
    assert [(suite["suite"], suite["episodes"]) for suite in report["suites"]] == [("toy", 5)]
