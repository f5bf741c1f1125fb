import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest

from vla_rl.reporting.metrics_file import Clocks, MetricsWriter, read_metrics


def at(optimizer_steps, **more):
    return Clocks(optimizer_steps=optimizer_steps, **more)


def write_points(run_dir, count, *, resume_at=None, first=1):
    with MetricsWriter(run_dir, tensorboard=False, resume_at=resume_at) as writer:
        for step in range(first, first + count):
            writer.write(at(step), {"learner/entropy": step / 2})


def test_a_log_point_is_one_line_with_clocks_and_metrics(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False, resume_at=None) as writer:
        clocks = Clocks(env_steps=640, decisions=80, episodes=6, optimizer_steps=10, policy_version=9, seconds=12.5)
        writer.write(clocks, {"rollout/success_rate": 0.5, "replay/size": 80})
        assert (tmp_path / "metrics.jsonl").read_text() == (
            '{"env_steps": 640, "decisions": 80, "episodes": 6, "optimizer_steps": 10, "policy_version": 9, '
            '"seconds": 12.5, "rollout/success_rate": 0.5, "replay/size": 80}\n'
        )


def test_values_that_are_not_finite_are_null_and_named(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False, resume_at=None) as writer:
        writer.write(at(1), {"learner/kl": math.nan, "learner/entropy": 1.0, "learner/grad_norm": math.inf})
    (record,) = read_metrics(tmp_path / "metrics.jsonl")
    assert (record["learner/kl"], record["learner/grad_norm"], record["learner/entropy"]) == (None, None, 1.0)
    assert record["nonfinite"] == ["learner/kl", "learner/grad_norm"]


def test_numpy_scalars_are_written_as_numbers(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False, resume_at=None) as writer:
        writer.write(at(1), {"learner/entropy": np.float32(0.5), "replay/size": np.int64(3)})
    (record,) = read_metrics(tmp_path / "metrics.jsonl")
    assert (record["learner/entropy"], record["replay/size"]) == (0.5, 3)


def test_an_unknown_metric_is_refused_and_nothing_is_written(tmp_path):
    with (
        MetricsWriter(tmp_path, tensorboard=False, resume_at=None) as writer,
        pytest.raises(ValueError, match="'learner/loss' is not in the catalogue"),
    ):
        writer.write(at(1), {"learner/loss": 1.0})
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_new_run_does_not_write_behind_an_old_one(tmp_path):
    write_points(tmp_path, 1)
    with pytest.raises(ValueError, match="log points of an earlier run"):
        MetricsWriter(tmp_path, tensorboard=False, resume_at=None)


def test_resuming_forgets_what_came_after_the_checkpoint(tmp_path):
    write_points(tmp_path, 5)
    write_points(tmp_path, 2, resume_at=at(3), first=4)
    steps = [record["optimizer_steps"] for record in read_metrics(tmp_path / "metrics.jsonl")]
    assert steps == [1, 2, 3, 4, 5]


def test_resumed_lines_are_the_same_bytes_as_those_of_an_uninterrupted_run(tmp_path):
    write_points(tmp_path / "whole", 5)
    write_points(tmp_path / "parts", 4)
    write_points(tmp_path / "parts", 3, resume_at=at(2), first=3)
    assert (tmp_path / "parts/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


def test_a_torn_last_line_is_ignored_by_readers_and_removed_by_resuming(tmp_path):
    write_points(tmp_path, 3)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert [record["optimizer_steps"] for record in read_metrics(path)] == [1, 2]
    write_points(tmp_path, 1, resume_at=at(2), first=3)
    assert [json.loads(line)["optimizer_steps"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_a_last_line_torn_inside_a_letter_is_ignored(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_points(tmp_path, 1)
    with path.open("ab") as file:
        file.write(b'{"optimizer_steps": 2, "\xc3')
    assert [record["optimizer_steps"] for record in read_metrics(path)] == [1]


def test_a_broken_line_that_is_not_the_last_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_points(tmp_path, 2)
    first, second = path.read_text().splitlines()
    for broken in ("[2]", '{"optimizer_steps": 3}'):  # the second lacks the other clocks
        path.write_text(f"{first}\n{broken}\n{second}\n")
        with pytest.raises(ValueError, match=rf"metrics.jsonl, line 2: .*found b'{re.escape(broken)}'"):
            read_metrics(path)


def test_tensorboard_events_hold_metrics_over_optimizer_steps(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsWriter(tmp_path, tensorboard=True, resume_at=None) as writer:
        for step in (1, 2, 3):
            writer.write(at(step, env_steps=8 * step), {"learner/entropy": step / 4})
    with MetricsWriter(tmp_path, tensorboard=True, resume_at=at(2)) as writer:
        writer.write(at(3, env_steps=24), {"learner/entropy": 9.0})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("learner/entropy")] == [(1, 0.25), (2, 0.5), (3, 9.0)]
    assert [e.value for e in events.Scalars("clocks/env_steps")] == [8.0, 16.0, 24.0]


def test_reading_metrics_imports_neither_torch_nor_tensorboard():
    code = (
        "import sys, vla_rl.reporting.metrics_file, vla_rl.reporting.catalogue;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'tensorboard', 'matplotlib', 'rich')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
