"""Runs to watch, and a server of their page in a thread of the test."""

from __future__ import annotations

import http.client
import json
import threading
from pathlib import Path
from typing import Any

from vla_rl.reporting.metrics_file import Clocks, MetricsWriter
from vla_rl.watch.run_feed import RunFeed
from vla_rl.watch.server import WatchServer


def write_points(folder: Path, points: range, **metrics: float) -> None:
    """Append log points; the success rate is a hundredth of the optimizer step."""
    resume_at = Clocks(optimizer_steps=points.start - 1) if points.start > 1 else None
    with MetricsWriter(folder, tensorboard=False, resume_at=resume_at) as writer:
        for step in points:
            clocks = Clocks(
                env_steps=100 * step, decisions=20 * step, episodes=step, optimizer_steps=step, seconds=2.0 * step
            )
            own = {"rollout/success_rate": step / 100, "rollout/return": step / 10, "policy_lag/mean": float(step)}
            waits = {f"perf/{name}_fraction": 0.1 for name in ("learner_wait", "env_wait", "env_held_back")}
            writer.write(clocks, own | waits | metrics)


def make_run(folder: Path, *, points: int = 10) -> Path:
    """A run with log points, a manifest, two logs, an evaluation's video and an alarm."""
    write_points(folder, range(1, points + 1))
    (folder / "recipe.yaml").write_text("name: run\n")
    recipe = {"budget": {"optimizer_steps": 20}, "env": {"reward_scale": 0.5}}
    (folder / "manifest.json").write_text(json.dumps({"recipe": recipe, "deviations": ["proxy <b>assets</b>"]}))
    (folder / "logs").mkdir()
    (folder / "logs" / "learner.log").write_text("first line\nlast line of the learner\n")
    (folder / "logs" / "env_worker_0.log").write_text("a worker's line\n")
    videos = folder / "eval" / "step_10" / "videos"
    videos.mkdir(parents=True)
    (videos / "task0.mp4").write_bytes(bytes(range(256)) * 10)
    alarm = {"optimizer_step": 7, "name": "success_collapse", "sentence": "Success fell: <i>lower</i> the rate."}
    (folder / "alarms.jsonl").write_text(json.dumps(alarm) + "\n{broken\n")
    return folder


class Served:
    """A server in a thread, and requests to it."""

    def __init__(self, *folders: Path) -> None:
        feeds = [RunFeed(folder, folder.name) for folder in folders]
        self.server = WatchServer(feeds, host="localhost", port=0)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def address(self) -> str:
        return self.server.address

    def ask(
        self, path: str, *, method: str = "GET", headers: dict[str, str] | None = None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Status, headers and body of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=20)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in ({"Host": f"localhost:{self.server.port}"} | (headers or {})).items():
                connection.putheader(name, value)
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def json(self, path: str) -> Any:
        status, _, body = self.ask(path)
        assert status == 200, body
        return json.loads(body)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
