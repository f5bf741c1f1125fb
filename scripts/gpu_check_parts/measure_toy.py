"""`vla-rl train toy`, as a user types it, on the device that it takes by itself."""

from __future__ import annotations

import json
import sys

from gpu_check_parts.record import Record, Setting
from vla_rl.cli.start import run

SHORT = 60  # updates of the tiny size, which shows that it runs and no more
SOLVED = 0.9  # of the last 100 training episodes; on a CPU it ends at 0.95 and more
LEAVE_S = 15.0  # for the end of the run


def measure(record: Record, setting: Setting) -> None:
    """Train, and look at the last row of metrics."""
    folder = setting.scratch / "toy"
    minutes = max(0.2, (setting.limit_s - LEAVE_S) / 60)
    sys.argv = [
        "vla-rl", "train", "toy", f"--run-dir={folder}", "logging.tensorboard=false",
        "evaluation.episodes_per_task=0", f"budget.minutes={minutes:.2f}",
    ]  # fmt: skip
    if setting.size == "tiny":
        sys.argv.append(f"budget.optimizer_steps={SHORT}")
    try:
        run()
    except SystemExit as end:
        record.put("exit_code", end.code or 0)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    last = rows[-1]
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    record.put("hardware", manifest.get("hardware"))
    names = ("optimizer_steps", "seconds", "rollout/success_rate", "perf/decisions_per_s", "perf/learner_samples_per_s")
    for name in names:
        record.put(name, last.get(name))
    rate = last.get("rollout/success_rate", 0.0)
    record.check("vla-rl ends with 0", record.figures.get("exit_code", 0) == 0, f"{record.figures.get('exit_code')}")
    if setting.size != "tiny":
        record.check("the toy task is solved", rate >= SOLVED, f"success rate {rate:.2f} of {SOLVED}")
