"""What a tracker may do to a run: nothing."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

import psutil
import pytest
from fake_trackers import Fake, events

from vla_rl.reporting.metrics_file import Clocks
from vla_rl.run import couriers as module
from vla_rl.run.couriers import RECORDS, Couriers

STEPS = 20


@pytest.fixture
def said() -> list[str]:
    return []


def start(tmp_path: Path, said: list[str], *, resume: bool = False, **settings) -> Couriers:
    fake = Fake(**{"file": str(tmp_path / "service.jsonl"), "timeout_s": 30.0, "finish_s": 30.0, **settings})
    couriers = Couriers({"fake": fake}, tmp_path / "run", say=said.append)
    couriers.start("a-run", {"seed": 3}, resume=resume)
    return couriers


def write(couriers: Couriers, first: int = 1, last: int = STEPS) -> None:
    for step in range(first, last + 1):
        couriers.write(Clocks(env_steps=10 * step, optimizer_steps=step), {"learner/kl": step / 2})


def service(tmp_path: Path, kind: str = "") -> list[dict]:
    return events(tmp_path / "service.jsonl", kind)


def warnings(said: list[str]) -> list[str]:
    return [line for line in said if line.startswith("warning")]


def until(condition, couriers: Couriers) -> None:
    """Write points, as a run does, until something has come of it."""
    step, deadline = STEPS, time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        step += 1
        write(couriers, step, step)
        time.sleep(0.1)  # so that no queue is full before a service that starts slowly answers


def test_points_and_files_arrive_in_order_with_their_clocks(tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "run" / "eval").mkdir(parents=True)
    page, video = tmp_path / "run" / "report.html", tmp_path / "run" / "eval" / "one.mp4"
    page.touch()
    video.touch()
    before = time.time()
    with start(tmp_path, said) as couriers:
        write(couriers)
        couriers.write(Clocks(optimizer_steps=21), {"learner/kl": math.inf})
        couriers.finish("finished", [page, video])
    assert [event["event"] for event in service(tmp_path)] == ["begin", *["log"] * 21, "attach", "attach", "end"]
    begun, logged = service(tmp_path, "begin")[0], service(tmp_path, "log")
    assert (begun["name"], begun["earlier"], begun["recipe"]) == ("a-run", None, {"seed": 3})
    assert [event["optimizer_steps"] for event in logged] == list(range(1, 22))
    assert logged[2]["values"] == {
        "learner/kl": 1.5, "clocks/env_steps": 30.0, "clocks/decisions": 0.0, "clocks/episodes": 0.0,
        "clocks/optimizer_steps": 3.0, "clocks/policy_version": 0.0,
    }  # fmt: skip
    assert logged[-1]["values"]["learner/kl"] == math.inf
    assert all(before <= event["time"] <= time.time() for event in logged)
    assert [(event["name"], event["there"]) for event in service(tmp_path, "attach")] == [
        ("report.html", True), ("eval/one.mp4", True),
    ]  # fmt: skip
    assert service(tmp_path, "end") == [{"event": "end", "ending": "finished"}]
    assert said == [f"fake: see {tmp_path / 'service.jsonl'}"]


def test_a_folder_of_the_run_may_be_a_link_out_of_it(tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "one.mp4").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "eval").symlink_to(tmp_path / "elsewhere")
    with start(tmp_path, said) as couriers:
        couriers.finish("finished", [tmp_path / "run" / "eval" / "one.mp4"])
    assert [(event["name"], event["there"]) for event in service(tmp_path, "attach")] == [("eval/one.mp4", True)]


@pytest.mark.parametrize(
    ("error", "ending"), [(None, "interrupted"), (KeyboardInterrupt(), "interrupted"), (ValueError(), "failed")]
)
def test_a_run_that_stops_or_fails_is_marked_so(
    tmp_path: Path, said: list[str], error: BaseException | None, ending: str
) -> None:
    try:
        with start(tmp_path, said) as couriers:
            write(couriers)
            if error is not None:
                raise error
    except (KeyboardInterrupt, ValueError):
        pass
    assert len(service(tmp_path, "log")) == STEPS
    assert service(tmp_path, "end") == [{"event": "end", "ending": ending}]


def test_a_service_that_cannot_be_reached_is_one_warning(tmp_path: Path, said: list[str]) -> None:
    with start(tmp_path, said, trouble="no_service") as couriers:
        until(lambda: said, couriers)
        write(couriers)
        couriers.finish("finished")
    assert len(said) == 1
    assert said[0].startswith(
        "warning: logging.fake: ConnectionError: the service is closed … on Sundays; nothing more is sent."
    )
    assert "metrics.jsonl" in said[0]
    log = tmp_path / "run" / "logs" / "tracker_fake.log"
    assert str(log) in said[0]
    assert "on Sundays" in log.read_text(encoding="utf-8")


def test_a_point_that_is_refused_is_one_warning_and_the_next_ones_arrive(tmp_path: Path, said: list[str]) -> None:
    with start(tmp_path, said, trouble="fails_now_and_then") as couriers:
        write(couriers)
        couriers.finish("finished")
    assert [event["optimizer_steps"] for event in service(tmp_path, "log")] == list(range(2, STEPS + 1, 2))
    assert len(service(tmp_path, "end")) == 1
    first, last = warnings(said)
    assert "RuntimeError: point 1 is not wanted; it is tried again with the next log point" in first
    assert f"{STEPS // 2} messages were left out" in last


def test_a_service_that_hangs_is_killed_with_all_it_started(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it took to start: the time moves on once it hangs."""
    monotonic, moved = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + moved[0])
    with start(tmp_path, said, trouble="hangs_at_log", timeout_s=60.0) as couriers:
        write(couriers)
        until(lambda: said and service(tmp_path, "hangs"), couriers)  # and its one answer has been heard
        moved[0] = 60.0
        until(lambda: warnings(said), couriers)
        write(couriers)
        couriers.finish("finished")
    assert len(warnings(said)) == 1
    assert "logging.fake: no answer for " in warnings(said)[0]
    assert "(logging.fake.timeout_s); nothing more is sent" in warnings(said)[0]
    (hung,) = service(tmp_path, "hangs")
    assert not [pid for pid in hung["pids"] if is_running(pid)]


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("trouble", ["hangs_at_begin", "hangs_at_end"])
def test_a_service_that_hangs_holds_the_end_of_a_run_up_no_longer_than_it_may(
    tmp_path: Path, said: list[str], trouble: str
) -> None:
    with start(tmp_path, said, trouble=trouble, finish_s=1.0) as couriers:
        write(couriers)
        couriers.finish("finished")
    assert len(warnings(said)) == 1
    assert "it was still sending after 1 s (logging.fake.finish_s)" in warnings(said)[0]


def test_a_service_whose_process_dies_is_one_warning(tmp_path: Path, said: list[str]) -> None:
    with start(tmp_path, said, trouble="crashes") as couriers:
        write(couriers)
        until(lambda: warnings(said), couriers)
        couriers.finish("finished")
    assert len(warnings(said)) == 1
    assert "its process ended" in warnings(said)[0]


def test_a_service_slower_than_the_run_loses_the_newest_points_and_says_so(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 5)
    padding = {f"learner/{number}": 0.0 for number in range(20_000)}  # two such points fill the pipe
    with start(tmp_path, said, trouble="hangs_at_begin", finish_s=1.0) as couriers:
        for step in range(STEPS):
            couriers.write(Clocks(optimizer_steps=step), padding)
        assert len(said) == 1
        assert "it is slower than the run: 5 log points wait, and newer ones are left out" in said[0]
        couriers.finish("finished")


def test_ctrl_c_ends_the_waiting_at_the_end(tmp_path: Path, said: list[str]) -> None:
    with start(tmp_path, said, trouble="is_interrupted_at_end", finish_s=3600.0, timeout_s=3600.0) as couriers:
        write(couriers)
        couriers.finish("finished")
    assert "it was still sending when it was interrupted" in warnings(said)[0]


def test_nothing_can_be_asked(tmp_path: Path, said: list[str]) -> None:
    ours, (reads, writes) = os.dup(0), os.pipe()
    os.write(writes, b"yes\n")
    os.dup2(reads, 0)
    try:
        with start(tmp_path, said, trouble="asks") as couriers:
            couriers.finish("finished")
    finally:
        os.dup2(ours, 0)
        for handle in (ours, reads, writes):
            os.close(handle)
    assert [event["answer"] for event in service(tmp_path, "asked")] == [""]
    assert service(tmp_path, "no terminal")
    assert service(tmp_path, "end")


def test_a_resumed_run_goes_on_in_the_same_session(tmp_path: Path, said: list[str]) -> None:
    for resume in (False, True, True):
        with start(tmp_path, said, resume=resume) as couriers:
            couriers.finish("finished")
    first, second, third = service(tmp_path, "begin")
    recorded = json.loads((tmp_path / "run" / RECORDS / "fake.json").read_text(encoding="utf-8"))
    assert first["earlier"] is None
    assert second["earlier"] == third["earlier"] == recorded["identity"]
    assert recorded["identity"].startswith("session-")


def test_a_run_begins_another_session_where_it_is_new_or_goes_elsewhere(tmp_path: Path, said: list[str]) -> None:
    with start(tmp_path, said) as couriers:
        couriers.finish("finished")
    with start(tmp_path, said, resume=False) as couriers:
        couriers.finish("finished")
    with start(tmp_path, said, resume=True, file=str(tmp_path / "other.jsonl")) as couriers:
        couriers.finish("finished")
    assert [event["earlier"] for event in service(tmp_path, "begin")] == [None, None]
    assert [event["earlier"] for event in events(tmp_path / "other.jsonl", "begin")] == [None]


def test_a_deadline_of_another_length_is_no_other_destination(tmp_path: Path, said: list[str]) -> None:
    with start(tmp_path, said) as couriers:
        couriers.finish("finished")
    with start(tmp_path, said, resume=True, timeout_s=20.0, finish_s=20.0) as couriers:
        couriers.finish("finished")
    assert service(tmp_path, "begin")[1]["earlier"] is not None


def test_a_broken_record_is_an_error_before_anything_starts(tmp_path: Path, said: list[str]) -> None:
    record = tmp_path / "run" / RECORDS / "fake.json"
    record.parent.mkdir(parents=True)
    for content in ("{}", '{"identity": 3, "destination": {}}', "nonsense"):
        record.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=str(record)):
            start(tmp_path, said, resume=True)
    assert service(tmp_path) == []
