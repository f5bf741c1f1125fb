"""Curves of the live page: nothing is read twice, memory is bounded, no spike is lost."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_rl.reporting.metrics_file import CLOCK_NAMES
from vla_rl.watch.followed_metrics import LONGEST_LINE, Curves, FollowedMetrics, MetricsFollower

NAME = "learner/entropy"


def point(step: int, value: float | None = 0.0) -> dict:
    return dict.fromkeys(CLOCK_NAMES, step) | {NAME: value}


def line(step: int, value: float | None = 0.0) -> bytes:
    return json.dumps(point(step, value)).encode() + b"\n"


def steps(points: list[dict]) -> list[int]:
    return [each["optimizer_steps"] for each in points]


def test_few_points_are_kept_as_they_are() -> None:
    curves = Curves([NAME], most_points=4)
    for step, value in enumerate([1.0, None, 3.0], start=1):
        curves.add(point(step, value))
    sent = curves.since("", 0)
    assert (sent["stride"], sent["first"]) == (1, 0)
    assert sent["clocks"]["optimizer_steps"] == [1, 2, 3]
    assert sent["metrics"] == {NAME: {"mean": [1.0, None, 3.0]}}


def test_too_many_points_are_joined_with_their_mean_lowest_and_highest_value() -> None:
    curves = Curves([NAME], most_points=4)
    for step, value in enumerate([1.0, 3.0, None, 8.0, 5.0, 6.0, 9.0], start=1):
        curves.add(point(step, value))
    sent = curves.since("", 0)
    assert sent["stride"] == 2
    assert sent["clocks"]["optimizer_steps"] == [2, 4, 6, 7]
    assert sent["metrics"][NAME] == {"mean": [2.0, 8.0, 5.5, 9.0], "low": [1, 8, 5, 9], "high": [3, 8, 6, 9]}


@given(
    st.lists(st.one_of(st.none(), st.floats(-1e3, 1e3)), min_size=1, max_size=100),
    st.integers(1, 5).map(lambda half: 2 * half),
)
def test_joined_points_account_for_every_value(values: list[float | None], most: int) -> None:
    curves = Curves([NAME], most_points=most)
    for step, value in enumerate(values, start=1):
        curves.add(point(step, value))
    assert len(curves) <= most
    curve = curves.curves[NAME]
    known = [value for value in values if value is not None]
    total = sum(mean * count for mean, count in zip(curve.mean, curve.count, strict=True) if count)
    assert sum(curve.count) == len(known)
    assert total == pytest.approx(math.fsum(known), abs=1e-6)
    extremes = [value for value in (*curve.low, *curve.high) if not math.isnan(value)]
    if known:
        assert (min(extremes), max(extremes)) == (min(known), max(known))
    assert curves.clocks["optimizer_steps"][-1] == len(values)


def test_a_page_is_sent_what_it_lacks_and_everything_once_points_were_joined() -> None:
    curves = Curves([NAME], most_points=4)
    for step in (1, 2):
        curves.add(point(step, float(step)))
    begun = curves.since("", 0)
    curves.add(point(3, 3.0))
    more = curves.since(begun["generation"], 2)
    assert more["first"] == 1  # the last point that the page has may have changed
    assert more["metrics"][NAME]["mean"] == [2.0, 3.0]
    for step in (4, 5):
        curves.add(point(step))
    anew = curves.since(begun["generation"], 3)
    assert anew["first"] == 0
    assert anew["generation"] != begun["generation"]


def test_a_follower_returns_each_log_point_once_and_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    follower = MetricsFollower(path)
    assert follower.read() == (False, [])
    path.write_bytes(line(1) + line(2)[:20])
    assert steps(follower.read()[1]) == [1]
    assert steps(follower.read()[1]) == []
    path.write_bytes(line(1) + line(2) + line(3))
    is_anew, points = follower.read()
    assert not is_anew
    assert steps(points) == [2, 3]


def test_a_file_that_was_written_anew_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    follower = MetricsFollower(path)
    path.write_bytes(line(1) + line(2))
    follower.read()
    for content in (line(1), line(7) + line(8) + line(9)):  # shorter, and as long but another
        path.write_bytes(content)
        is_anew, points = follower.read()
        assert is_anew
        assert steps(points) == steps([json.loads(each) for each in content.splitlines()])
    path.unlink()
    assert follower.read() == (True, [])
    assert follower.read() == (False, [])


def test_a_long_file_is_read_in_parts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(map(line, range(1, 10))))
    follower = MetricsFollower(path)
    found: list[int] = []
    shares = []
    while follower.share_read < 1 or not found:
        found += steps(follower.read(num_bytes=3 * len(line(1)))[1])
        shares.append(follower.share_read)
    assert found == list(range(1, 10))
    assert shares == pytest.approx([1 / 3, 2 / 3, 1])


def test_broken_lines_and_endless_ones_are_counted_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(1) + b"\xff\n[]\n\n" + line(2) + b"x" * (2 * LONGEST_LINE) + b"\n" + line(3))
    follower = MetricsFollower(path)
    found: list[int] = []
    for _ in range(5):
        found += steps(follower.read(num_bytes=LONGEST_LINE)[1])
    assert found == [1, 2, 3]
    assert follower.num_broken == 3
    assert follower.share_read == 1


def test_what_is_no_file_is_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="expected a file"):
        MetricsFollower(tmp_path / "metrics.jsonl").read()


def test_followed_metrics_know_the_newest_values_what_was_not_finite_and_the_time_left(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = FollowedMetrics(path, [NAME], scales={NAME: 2.0})
    assert metrics.seconds_left(100) is None
    slow_start = [point(step, float(step)) | {"seconds": 50.0 * step} for step in range(1, 11)]
    records = slow_start + [point(step, float(step)) | {"seconds": 500.0 + 3 * step} for step in range(11, 31)]
    records[-1] |= {NAME: None, "nonfinite": [NAME, 7]}
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    metrics.read()
    assert metrics.latest == {NAME: 58.0}
    assert metrics.nonfinite == {NAME: 1}
    assert metrics.seconds_left(100) == pytest.approx(3.0 * 70)
    path.write_text(json.dumps(point(1, 5.0)) + "\n")
    metrics.read()
    assert (metrics.latest, len(metrics.curves), dict(metrics.nonfinite)) == ({NAME: 10.0}, 1, {})
