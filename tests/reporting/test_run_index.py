"""The index of runs: every run below a folder is a row, a broken one with its reason."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from vla_rl.reporting.metrics_file import Clocks, MetricsWriter
from vla_rl.reporting.run_index import find_runs, index_run, is_spent, read_tail

BUDGET = {"recipe": {"budget": {"optimizer_steps": 20, "minutes": None}, "env": {"reward_scale": 0.5}}}


def write_run(folder: Path, *, optimizer_steps: int = 20) -> Path:
    """A run of two log points with a reward scale of one half."""
    with MetricsWriter(folder, tensorboard=False, resume_at=None) as writer:
        for steps in (optimizer_steps // 2, optimizer_steps):
            clocks = Clocks(env_steps=10 * steps, episodes=steps, optimizer_steps=steps, seconds=2.0 * steps)
            writer.write(clocks, {"rollout/success_rate": steps / 100, "rollout/return": steps / 10})
    (folder / "recipe.yaml").write_text("name: run\n")
    (folder / "manifest.json").write_text(json.dumps(BUDGET | {"started": "2026-01-02T03:04:05+00:00"}))
    return folder


def test_a_row_tells_the_newest_log_point_in_the_env_s_own_units(tmp_path: Path) -> None:
    row = index_run(write_run(tmp_path / "run"))
    assert (row.state, row.reason) == ("finished", "")
    assert (row.optimizer_steps, row.budget_optimizer_steps) == (20, 20)
    assert (row.env_steps, row.episodes, row.seconds) == (200, 20, 40.0)
    assert (row.success_rate, row.mean_return) == (0.2, 4.0)  # 2.0 as the learner saw it
    assert row.started == "2026-01-02T03:04:05+00:00"


def test_a_run_without_log_points_is_a_row_too(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").touch()
    row = index_run(tmp_path)
    assert (row.state, row.optimizer_steps, row.success_rate) == ("unknown", None, None)


def test_the_last_line_of_a_run_that_writes_just_now_is_left_out(tmp_path: Path) -> None:
    metrics = write_run(tmp_path) / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-5])
    assert index_run(tmp_path).optimizer_steps == 10


@pytest.mark.parametrize(
    ("limits", "spent"),
    [
        ({"optimizer_steps": 20}, True),
        ({"optimizer_steps": 21}, False),
        ({"optimizer_steps": 99, "env_steps": 200}, True),
        ({"optimizer_steps": 99, "env_steps": 201}, False),
        ({"optimizer_steps": 99, "minutes": 0.5}, True),
        ({"optimizer_steps": 99, "minutes": 1}, False),
        ({}, False),
    ],
)
def test_a_budget_is_spent_by_whichever_clock_reaches_it(limits: dict, spent: bool) -> None:
    end = {"optimizer_steps": 20, "env_steps": 200, "seconds": 40.0}
    assert is_spent(end, {"budget": limits}) is spent


def deep() -> bytes:
    return b"[" * 100_000


@pytest.mark.parametrize("name", ["manifest.json", "metrics.jsonl", "state.json"])
@pytest.mark.parametrize("content", [b"\xff\xfe\n\n", b"[1]\nx\n", deep(), deep() + b"\n", b"\x00" * 1000 + b"\n"])
def test_a_broken_file_is_a_row_that_names_it(tmp_path: Path, name: str, content: bytes) -> None:
    (write_run(tmp_path / "run") / name).write_bytes(content)
    row = index_run(tmp_path / "run")
    if name == "metrics.jsonl" and not content.endswith(b"\n"):
        assert row.state == "unknown"  # a line that is not finished may become a log point
        return
    assert row.state == "broken"
    assert str(tmp_path / "run" / name) in row.reason


@pytest.mark.parametrize("name", ["manifest.json", "metrics.jsonl", "state.json"])
@pytest.mark.parametrize(
    "make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path)], ids=["folder", "pipe", "loop"]
)
def test_what_is_no_file_is_a_row_that_names_it_and_is_never_waited_for(tmp_path: Path, name: str, make) -> None:
    path = write_run(tmp_path / "run") / name
    path.unlink(missing_ok=True)
    make(path)
    row = index_run(tmp_path / "run")
    assert row.state == "broken"
    assert str(path) in row.reason


def test_numbers_that_are_none_are_not_shown(tmp_path: Path) -> None:
    line = json.loads((write_run(tmp_path) / "metrics.jsonl").read_text().splitlines()[-1])
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        for value in ("NaN", "1e999", '"high"', "true"):
            changed = json.dumps(line | {"optimizer_steps": 30, "rollout/success_rate": None})
            stream.write(changed.replace("null", value) + "\n")
    row = index_run(tmp_path)
    assert (row.optimizer_steps, row.success_rate) == (30, 0.2)


def test_only_the_end_of_a_long_file_is_read(tmp_path: Path) -> None:
    metrics = write_run(tmp_path) / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(b"broken\n" * 1000 + lines[0] * 50 + lines[1])
    points = read_tail(metrics, num_bytes=3 * len(lines[0]))
    assert [point["optimizer_steps"] for point in points] == [10, 20]


def test_runs_are_found_below_folders_but_not_inside_runs_links_or_hidden_folders(tmp_path: Path) -> None:
    found = [write_run(tmp_path / name) for name in ("a", "group/b", "1/2/3/deepest")]
    for passed_over in ("a/inner", ".trash/c", "1/2/3/4/too_deep"):
        write_run(tmp_path / passed_over)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    assert find_runs(tmp_path) == sorted(found)
    assert find_runs(tmp_path / "a") == [tmp_path / "a"]
