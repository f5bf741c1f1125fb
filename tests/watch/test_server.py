"""The server of the live page: this machine alone, files of a list alone, reading alone."""

from __future__ import annotations

import gzip
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from watched_runs import Served, make_run, write_points

from vla_rl.errors import UserError
from vla_rl.reporting.run_state import RunLife
from vla_rl.watch.run_files import list_logs
from vla_rl.watch.server import WatchServer, is_loopback


def sent(served: Served, text: str) -> bytes:
    """All that is sent upon a request that ends the connection."""
    with socket.create_connection(("127.0.0.1", served.server.port), timeout=20) as connection:
        connection.sendall(text.encode())
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def named(name: str) -> str:
    return os.fsencode(name).hex()


def test_the_state_of_a_run_is_read_from_its_folder_alone(serve: Any, run_dir: Path) -> None:
    with RunLife(run_dir) as life:
        life.begin()
        (state,) = serve(run_dir).json("/api/runs")
        assert state["state"] == "running"
    assert state["name"] == "first"
    assert (state["clocks"]["optimizer_steps"], state["budget"], state["seconds_left"]) == (10, 20, 20.0)
    assert state["latest"].items() >= {"rollout/success_rate": 0.1, "rollout/return": 2.0}.items()  # 1.0 times 1/0.5
    assert [alarm["name"] for alarm in state["alarms"]] == ["success_collapse"]
    assert state["notes"] == ["Deviation from the protocol: proxy <b>assets</b>"]
    assert [log["name"] for log in state["logs"]] == ["logs/env_worker_0.log", "logs/learner.log"]
    assert [video["name"] for video in state["videos"]] == ["eval/step_10/videos/task0.mp4"]


def test_curves_follow_a_run_and_begin_anew_when_it_is_resumed(serve: Any, run_dir: Path) -> None:
    served = serve(run_dir)
    begun = served.json("/api/curves?run=0&generation=&points=0")
    assert begun["metrics"]["rollout/return"]["mean"] == [2 * step / 10 for step in range(1, 11)]  # unscaled
    with (run_dir / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps(json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])) + "\n")
    more = served.json(f"/api/curves?run=0&generation={begun['generation']}&points=10")
    assert (more["first"], len(more["clocks"]["seconds"])) == (9, 2)
    write_points(run_dir, range(6, 8))  # as a run does that resumes from its fifth step
    anew = served.json(f"/api/curves?run=0&generation={begun['generation']}&points=11")
    assert anew["first"] == 0
    assert anew["clocks"]["optimizer_steps"] == [1, 2, 3, 4, 5, 6, 7]


def test_logs_are_shown_from_their_end(serve: Any, run_dir: Path) -> None:
    served = serve(run_dir)
    address = f"/api/log?run=0&file={named('logs/learner.log')}"
    assert served.json(address) == {"text": "first line\nlast line of the learner\n"}
    (run_dir / "logs" / "learner.log").write_bytes(b"old\n" * 50_000 + b"\xff new\n")
    text = served.json(address)["text"]
    assert len(text) <= 64 << 10
    assert text.startswith("old\n")
    assert text.endswith("� new\n")


def test_logs_of_every_rank_are_shown(serve: Any, run_dir: Path) -> None:
    ranks = [run_dir / "logs" / f"rank_{rank}" for rank in range(2)]
    for rank in ranks:
        rank.mkdir()
        (rank / "learner.log").write_text(f"learner of {rank.name}\n")
    served = serve(run_dir)
    assert [log["name"] for log in served.json("/api/runs")[0]["logs"]] == [
        "logs/env_worker_0.log", "logs/learner.log", "logs/rank_0/learner.log", "logs/rank_1/learner.log",
    ]  # fmt: skip
    assert served.json(f"/api/log?run=0&file={named('logs/rank_1/learner.log')}") == {"text": "learner of rank_1\n"}


def test_every_rank_keeps_its_learners_log_where_there_are_too_many(run_dir: Path) -> None:
    for rank, workers in (("rank_0", 300), ("rank_1", 2)):
        folder = run_dir / "logs" / rank
        folder.mkdir()
        for name in ("learner", "inference_worker", *(f"env_worker_{worker}" for worker in range(workers))):
            (folder / f"{name}.log").touch()
    names = [log.name for log in list_logs(run_dir)]
    assert len(names) == 200
    assert {name for name in names if "rank_0" not in name} == {
        "logs/env_worker_0.log", "logs/learner.log", "logs/rank_1/learner.log", "logs/rank_1/inference_worker.log",
        "logs/rank_1/env_worker_0.log", "logs/rank_1/env_worker_1.log",
    }  # fmt: skip
    assert {name for name in names if "rank_0" in name} == {
        "logs/rank_0/learner.log", "logs/rank_0/inference_worker.log",
        *(f"logs/rank_0/env_worker_{worker}.log" for worker in range(192)),
    }  # fmt: skip


def test_a_video_is_sent_whole_or_in_the_part_that_is_asked_for(serve: Any, run_dir: Path) -> None:
    served = serve(run_dir)
    content = (run_dir / "eval/step_10/videos/task0.mp4").read_bytes()
    address = f"/api/video?run=0&file={named('eval/step_10/videos/task0.mp4')}"
    status, headers, body = served.ask(address)
    assert (status, headers["Content-Type"], body) == (200, "video/mp4", content)
    for asked, first, last in (("0-99", 0, 99), ("2500-", 2500, 2559), ("-60", 2500, 2559), ("2500-9999", 2500, 2559)):
        status, headers, body = served.ask(address, headers={"Range": f"bytes={asked}"})
        assert (status, body) == (206, content[first : last + 1])
        assert headers["Content-Range"] == f"bytes {first}-{last}/2560"
    assert served.ask(address, headers={"Range": "bytes=2560-"})[0] == 416
    assert served.ask(address, headers={"Range": "bytes=9-1"})[0] == 416
    for path, length in ((address, len(content)), ("/icon.svg", len(served.ask("/icon.svg")[2]))):
        head = sent(served, f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert f"Content-Length: {length}".encode() in head
        assert head.endswith(b"\r\n\r\n")  # a head and no body


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9000", "127.0.0.1:8420", "127.0.0.2", "[::1]", "[::1]:8420"])
def test_a_request_by_a_name_of_this_machine_is_answered_on_whatever_port_a_tunnel_has(
    serve: Any, run_dir: Path, host: str
) -> None:
    assert serve(run_dir).ask("/api/runs", headers={"Host": host})[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "evil.example:8420",
        "10.0.0.1",
        "0.0.0.0",
        "[fe80::1]",
        "",
        "a b",
        "localhost:x",
        "127.1",
    ],
)
@pytest.mark.parametrize("path", ["/", "/api/runs", "/watch.js"])
def test_a_request_by_another_name_is_refused(serve: Any, run_dir: Path, host: str, path: str) -> None:
    status, _, body = serve(run_dir).ask(path, headers={"Host": host})
    assert status == 403
    assert b"first" not in body
    assert b"localhost" in body


def test_a_request_without_a_host_or_with_two_is_refused(serve: Any, run_dir: Path) -> None:
    served = serve(run_dir)
    assert b" 403 " in sent(served, "GET /api/runs HTTP/1.0\r\n\r\n").split(b"\r\n")[0]
    two = "GET /api/runs HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    assert b" 403 " in sent(served, two).split(b"\r\n")[0]


UNLISTED = [
    "../secret.log",
    "logs/../../secret.log",
    "/etc/passwd",
    "logs/../manifest.json",
    "manifest.json",
    "logs",
    "logs/",
    "logs/link.log",
    "linked/learner.log",
    "logs/pipe.log",
    "logs/none.log",
    "logs/rank_0/link.log",
    "logs/rank_0/../learner.log",
    "logs/rank_1/secret.log",
    "logs/rank_2/learner.log",
    "recipe.yaml",
]


@pytest.mark.parametrize("name", [*UNLISTED, "", "logs/learner.log\0"])
@pytest.mark.parametrize("kind", ["log", "video"])
def test_nothing_but_listed_files_is_ever_opened(serve: Any, run_dir: Path, name: str, kind: str) -> None:
    (run_dir.parent / "secret.log").write_text("secret")
    (run_dir / "logs" / "link.log").symlink_to(run_dir.parent / "secret.log")
    (run_dir / "linked").symlink_to(run_dir / "logs")
    (run_dir / "logs" / "rank_0").mkdir()
    (run_dir / "logs" / "rank_0" / "link.log").symlink_to(run_dir.parent / "secret.log")
    (run_dir / "logs" / "rank_1").symlink_to(run_dir.parent)
    (run_dir / "logs" / "rank_2").symlink_to(run_dir / "logs")
    os.mkfifo(run_dir / "logs" / "pipe.log")
    served = serve(run_dir)
    assert [log["name"] for log in served.json("/api/runs")[0]["logs"]] == ["logs/env_worker_0.log", "logs/learner.log"]
    status, _, body = served.ask(f"/api/{kind}?run=0&file={named(name)}")
    assert status == 404
    assert b"secret" not in body


def test_folders_that_lead_out_of_the_run_are_not_listed(serve: Any, run_dir: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other")
    for name in ("logs", "eval"):
        (run_dir / name).rename(tmp_path / f"former_{name}")
        (run_dir / name).symlink_to(other / name)
    (state,) = serve(run_dir).json("/api/runs")
    assert (state["logs"], state["videos"]) == ([], [])


ADDRESSES = {
    200: "/ /index.html /watch.js /report.css /icon.svg",
    400: "/api/curves /api/curves?run=0 /api/curves?run=-1&points=0 /api/curves?run=0&points=99999999999999 "
    "/api/log?run=0&file=zz http://[",
    404: "/watch.py /../server.py /%2e%2e/server.py //etc/passwd /page/watch.js /api /api/ /api/curves?run=1&points=0 "
    "/api/log?run=0",
}


def test_every_address_but_those_of_the_page_is_refused(serve: Any, run_dir: Path) -> None:
    served = serve(run_dir)
    for status, paths in ADDRESSES.items():
        for path in paths.split():
            assert served.ask(path)[0] == status, path


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_the_server_only_reads(serve: Any, run_dir: Path, method: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    served = serve(run_dir)
    assert served.ask("/api/runs", method=method)[0] == 501
    for path in ("/", "/api/runs", "/api/curves?run=0&generation=&points=0"):
        served.ask(path)
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before


def test_answers_forbid_foreign_scripts_and_foreign_readers(serve: Any, run_dir: Path) -> None:
    for path in ("/", "/api/runs", "/nothing"):
        headers = serve(run_dir).ask(path)[1]
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Access-Control-Allow-Origin" not in headers


def test_long_answers_are_packed_for_those_who_can_unpack_them(serve: Any, run_dir: Path) -> None:
    served = serve(run_dir)
    _, headers, packed = served.ask("/api/page", headers={"Accept-Encoding": "gzip, br"})
    assert headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed) == served.ask("/api/page")[2]


def test_broken_and_empty_runs_are_shown_with_the_reason(serve: Any, tmp_path: Path) -> None:
    broken, empty, evaluated = (make_run(tmp_path / name) for name in ("broken", "empty", "evaluated"))
    (broken / "manifest.json").write_text("{")
    with (broken / "metrics.jsonl").open("ab") as stream:
        stream.write(b"\x00\nx\n")
    (empty / "metrics.jsonl").unlink()
    for name, text in (("a", "{"), ("b", '{"confidence": 1, "suites": [{}], "tasks": [], "notes": []}')):
        (evaluated / "eval" / name).mkdir()
        (evaluated / "eval" / name / "results.json").write_text(text)
    states = serve(broken, empty, evaluated).json("/api/runs")
    assert states[0]["state"] == "broken"
    assert "manifest.json" in states[0]["reason"]
    assert states[0]["clocks"]["optimizer_steps"] == 10
    assert "metrics.jsonl: lines that are no log points, and were left out: 2." in states[0]["notes"]
    assert (states[1]["clocks"]["optimizer_steps"], states[1]["latest"]) == (0, {})
    assert sum("results.json" in note for note in states[2]["notes"]) == 2


def test_only_this_machine_is_served() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org", ""):
        with pytest.raises(UserError, match="--host: the page is served to this machine alone"):
            WatchServer([], host=host, port=0)
    for host in ("localhost", "127.0.0.1", "::1"):
        assert is_loopback(host)


def test_a_port_that_is_in_use_is_one_error_with_a_fix() -> None:
    with (
        WatchServer([], host="localhost", port=0) as first,
        pytest.raises(UserError, match=f"--port: port {first.port} is in use.*--port 0"),
    ):
        WatchServer([], host="localhost", port=first.port)
    with WatchServer([], host="localhost", port=first.port) as again:  # it is free at once
        assert again.port == first.port
