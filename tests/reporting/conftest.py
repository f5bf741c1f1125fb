import json

import pytest

from vla_rl.reporting.metrics_file import Clocks, MetricsWriter

RESULTS = {
    "schema": 1,
    "confidence": 0.95,
    "suites": [
        {
            "suite": "libero_goal",
            "tasks": 2,
            "episodes": 20,
            "successes": 18,
            "success_rate": 0.9,
            "wilson": {"low": 0.699, "high": 0.972},
            "bootstrap": {"low": 0.75, "high": 1.0},
            "mean_return": 0.9,
            "mean_env_steps": 120.0,
            "seconds": 60.0,
        }
    ],
    "tasks": [
        {"suite": "libero_goal", "task_id": 0, "success_rate": 0.8, "wilson": {"low": 0.49, "high": 0.943}},
        {"suite": "libero_goal", "task_id": 3, "success_rate": 1.0, "wilson": {"low": 0.722, "high": 1.0}},
    ],
    "notes": ["libero_goal: 20 episodes leave an interval 27 points wide."],
}
MANIFEST = {
    "schema": 1,
    "started": "2026-01-02T03:04:05+00:00",
    "command": ["vla-rl", "train", "<toy>"],
    "versions": {"python": "3.11.9", "torch": "2.13.0", "deepspeed": None},
    "hardware": {"cpu": "A & B", "cores_usable": 8, "memory_bytes": 64_000_000_000, "accelerators": [{"name": "H200"}]},
    "source": {"commit": "abc123", "dirty": True},
    "seeds": {"run": 3},
    "deviations": ["proxy assets"],
    "recipe": {"name": "toy", "tasks": [0, 1]},
}


def write_metrics(folder):
    """Ten log points of 100 env steps each; success grows by a tenth per point."""
    with MetricsWriter(folder, tensorboard=False, resume_at=None) as writer:
        for point in range(1, 11):
            clocks = Clocks(
                env_steps=100 * point,
                decisions=20 * point,
                episodes=2 * point,
                optimizer_steps=5 * point,
                policy_version=5 * point,
                seconds=30.0 * point,
            )
            metrics = {
                "rollout/success_rate": point / 10,
                "learner/approx_kl": float("nan") if point == 4 else 0.1,
                "policy_lag/mean": float(point),
                "policy_lag/p95": 2.0 * point,
                "policy_lag/old_fraction": 0.25,
                "ratio/abs_log_p95": 0.5,
                "learner/skipped_updates": point // 5,
                "system/env_worker_restarts": 0,
            }
            writer.write(clocks, metrics)


def make_full_run(folder):
    write_metrics(folder)
    (folder / "recipe.yaml").write_text("name: toy  # <b>\n")
    (folder / "manifest.json").write_text(json.dumps(MANIFEST))
    evaluation = folder / "eval" / "final"
    evaluation.mkdir(parents=True)
    (evaluation / "results.json").write_text(json.dumps(RESULTS))
    (evaluation / "manifest.json").write_text(json.dumps({"deviations": ["horizon 100 instead of 300"]}))
    return folder


@pytest.fixture
def bare_run(tmp_path):
    """A run of which only the metrics were written."""
    write_metrics(tmp_path / "bare")
    return tmp_path / "bare"


@pytest.fixture
def full_run(tmp_path):
    """A run with recipe, manifest and an evaluation."""
    return make_full_run(tmp_path / "full")


@pytest.fixture(scope="session")
def full_report(tmp_path_factory):
    """The report of a full run, drawn once: pictures take a while. The file must not be changed."""
    from vla_rl.reporting.report import write_report

    folder = make_full_run(tmp_path_factory.mktemp("report") / "full")
    write_report([folder], folder / "report.html")
    return folder / "report.html"
