"""The environment of CONTRIBUTING, added by its own words in a copy of the repository, is trained in."""

from __future__ import annotations

import json
from pathlib import Path

from contributed import add_environment, call, changed_files, copy  # noqa: F401 - copy is a fixture


def test_a_new_environment_is_one_file_and_two_lines_and_is_trained_in_and_evaluated(copy: Path) -> None:  # noqa: F811
    add_environment(copy)
    assert changed_files(copy) == {"vla_rl/envs/line.py", "vla_rl/envs/kinds.py"}
    overrides = ["env.name=line", "name=line", "runtime.mode=serial", "budget.optimizer_steps=40"]
    overrides += ["evaluation.episodes_per_task=0", "logging.tensorboard=false"]
    trained = call(copy, "-m", "vla_rl", "train", "toy", *overrides).stdout
    assert "finished after 40 optimizer steps" in trained
    command = ["-m", "vla_rl", "eval", "runs/line", "--episodes-per-task", "5", "--serial", "--json"]
    report = json.loads(call(copy, *command).stdout)
    assert [(suite["suite"], suite["episodes"]) for suite in report["suites"]] == [("line", 5)]
    assert report["trained_on"] == "line (tasks: 0), sampled initial states"
