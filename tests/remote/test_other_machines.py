"""Simulators behind a real Ray head on this machine: the same episodes, and what happens when something is lost."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from far_envs import name_of_the_side, no_simulator
from ray_head import ROOT, RayHead, ray_head

from vla_rl.envs.kind import EnvPlan
from vla_rl.errors import UserError
from vla_rl.recipe import build_recipe
from vla_rl.remote.connection import HostedActor, LostHostError
from vla_rl.remote.far_side import check_far_side
from vla_rl.remote.identity import identity_here
from vla_rl.remote.stand_in import FarSide, StandInEnv
from vla_rl.types import Environment

# Not imported here: it reads once whether it is to use a token.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("ray") is None, reason="the extra remote is not installed: pip install 'vla-rl[remote]'"
    ),
]


TOY = "{name: t, env: {name: toy}, policy: {name: mlp}, surrogate: {name: gipo}, budget: {optimizer_steps: 1}}"


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with ray_head() as found, pytest.MonkeyPatch.context() as changed:
        changed.setenv("RAY_AUTH_TOKEN_PATH", str(found.token_file))
        changed.setenv("RAY_AUTH_MODE", "token")
        changed.setenv("RAY_CLIENT_RECONNECT_GRACE_PERIOD", "5")
        actor = HostedActor(found.address, seconds=60.0)  # holds the connection that the tests share
        actor.call("describe", (dict,), seconds=60.0)
        yield found
        actor.end()


def plan_of(env: str) -> EnvPlan:
    recipe = build_recipe(
        f"name: t\nenv: {env}\npolicy: {{name: mlp}}\nsurrogate: {{name: gipo}}\nbudget: {{optimizer_steps: 1}}\n"
        "replay: {segment_length: 1}\n"
    )
    return recipe.env.plan(render_size=0)


def far_side(head: RayHead, plan: EnvPlan, **changed: Any) -> FarSide:
    settings = {
        "address": head.address, "identity": plan.identity, "expected": identity_here(plan.identity),
        "start_timeout_s": 120.0, "step_timeout_s": 60.0,
    }  # fmt: skip
    return FarSide(**(settings | changed))


def episode(env: Environment, chunk_size: int, action_dim: int, *, chunks: int) -> list[Any]:
    """Everything that an episode shows, under the same actions every time; a second one follows it."""
    rng = np.random.default_rng(7)
    seen: list[Any] = [env.task, env.horizon]
    for init_state, seed in ((3, 5), (1, 2)):
        seen.append(env.reset(init_state, seed=seed))
        for _ in range(chunks):
            result = env.step_chunk(rng.uniform(-1, 1, (chunk_size, action_dim)).astype(np.float32))
            seen.append(result)
            if result.terminated or result.truncated:
                break
    return seen


def bits(value: Any) -> Any:
    """A record as plain values, arrays as their type, shape and bytes."""
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tobytes())
    if hasattr(value, "__slots__"):
        return [bits(getattr(value, name)) for name in value.__slots__]
    return [bits(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("env", "chunk_size", "action_dim"),
    [
        ("{name: toy, tasks: [1]}", 2, 2),
        pytest.param(
            "{name: metaworld, tasks: [reach-v3], horizon: 20, chunk_size: 4}", 4, 4,
            marks=pytest.mark.skipif(find_spec("metaworld") is None, reason="the extra metaworld is not installed"),
        ),
    ],
    ids=["toy", "metaworld"],
)  # fmt: skip
def test_an_episode_elsewhere_equals_the_one_here_to_the_last_bit(
    head: RayHead, env: str, chunk_size: int, action_dim: int
) -> None:
    plan = plan_of(env)
    played = []
    for build in (plan.builders[0], partial(StandInEnv, plan.builders[0], far_side(head, plan))):
        made = build()
        played.append(bits(episode(made, chunk_size, action_dim, chunks=4)))
        made.close()
    assert played[0] == played[1]
    assert len(played[0]) > 5


def test_a_machine_that_simulates_something_else_is_refused_by_what_differs(head: RayHead) -> None:
    with pytest.raises(
        UserError, match=r"simulates something else: side: far there, near here\. Fix: install the same"
    ):
        check_far_side([head.address], name_of_the_side)
    plan = plan_of("{name: toy}")
    expected = identity_here(name_of_the_side)
    with pytest.raises(UserError, match=r"cannot simulate this: side: far there, near here"):
        StandInEnv(plan.builders[0], far_side(head, plan, identity=name_of_the_side, expected=expected))


def test_what_cannot_be_built_there_is_told_with_its_own_words(head: RayHead) -> None:
    with pytest.raises(UserError, match=r"cannot simulate this: no renderer works\. Fix: install one"):
        StandInEnv(no_simulator, far_side(head, plan_of("{name: toy}")))


def test_who_has_another_token_is_told_so(head: RayHead, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x" * 64)
    with pytest.raises(UserError, match=r"refuses the token that is here\. Fix: copy ~/\.ray/auth_token from there"):
        check_far_side([head.address], dict)


def test_a_ray_that_asks_nobody_for_a_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with ray_head(auth_mode="disabled") as open_to_all:
        monkeypatch.setenv("RAY_AUTH_TOKEN", "x" * 64)
        with pytest.raises(UserError, match=r"runs the commands of everyone who reaches it.*Fix: stop it, and start"):
            check_far_side([open_to_all.address], dict)


def test_a_chunk_that_takes_too_long_is_given_up(head: RayHead) -> None:
    plan = plan_of("{name: toy, step_seconds: 1.0}")
    env = StandInEnv(plan.builders[0], far_side(head, plan, step_timeout_s=0.3))
    env.reset(0)
    with pytest.raises(LostHostError, match=r"no result of step_chunk within 0.3 s"):
        env.step_chunk(np.zeros((2, 2), np.float32))
    env.close()


class Wire:
    """A way to a head that can be cut and mended."""

    def __init__(self, port: int) -> None:
        self._port, self._ends = port, list[socket.socket]()
        self.is_cut = False
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self.is_cut = True
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._ends.clear()

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._server.accept()
                if self.is_cut:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self._port))
                self._ends += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    @staticmethod
    def _carry(one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        with suppress(OSError):
            other.shutdown(socket.SHUT_RDWR)


PLAYS = (
    """
import sys
import numpy as np
from vla_rl.recipe import build_recipe
from vla_rl.remote.identity import identity_here
from vla_rl.remote.stand_in import FarSide, StandInEnv
recipe = """
    + repr(TOY)
    + """
plan = build_recipe(recipe).env.plan(render_size=0)
env = StandInEnv(plan.builders[0], FarSide(sys.argv[1], plan.identity, identity_here(plan.identity), 60.0, 60.0))
env.reset(0)
for line in sys.stdin:
    print(env.step_chunk(np.zeros((2, 2), np.float32)).executed, flush=True)
"""
)


def test_a_short_interruption_of_the_connection_costs_no_episode(head) -> None:
    environment = {**os.environ, **head.variables, "RAY_CLIENT_RECONNECT_GRACE_PERIOD": "30"}
    wire = Wire(head.port)
    player = subprocess.Popen(
        [sys.executable, "-c", PLAYS, wire.address], cwd=ROOT, env=environment, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True, bufsize=1,
    )  # fmt: skip
    with player:
        assert player.stdin is not None
        assert player.stdout is not None
        player.stdin.write("\n")
        assert player.stdout.readline() == "2\n"  # control steps of the chunk
        wire.cut()
        player.stdin.write("\n")  # a chunk that is asked for without a connection
        time.sleep(1.0)
        wire.is_cut = False
        assert player.stdout.readline() == "2\n"
        player.stdin.write("\n")
        assert player.stdout.readline() == "2\n"
        player.kill()
    wire.close()


# --- whole runs ------------------------------------------------------------------------------------------------------


class Run:
    """`vla-rl train toy` with simulators on a head."""

    def __init__(self, head: RayHead, run_dir: Path, overrides: Sequence[str]) -> None:
        self.run_dir, self._log = run_dir, run_dir.with_suffix(".log")
        environment = {
            **os.environ, **head.variables, "OMP_NUM_THREADS": "1", "RAY_CLIENT_RECONNECT_GRACE_PERIOD": "5",
        }  # fmt: skip
        command = [
            sys.executable, "-m", "vla_rl", "train", "toy", "--run-dir", str(run_dir),
            f"rollout.remote=[{head.address}]", "rollout.envs_per_worker=2", *overrides,
        ]  # fmt: skip
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def said(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def log_of(self, name: str) -> str:
        file = self.run_dir / "logs" / f"{name}.log"
        return file.read_text(encoding="utf-8") if file.is_file() else ""

    def simulators(self) -> list[int]:
        """The processes that held one of its environments so far."""
        return [int(pid) for pid in re.findall(r"is simulated by process (\d+)", self.log_of("env_worker_0"))]

    def wait_until(self, condition: Callable[[], object], *, seconds: float = 90.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.said() + self.log_of("env_worker_0")
            assert time.monotonic() < deadline, self.said() + self.log_of("env_worker_0")
            time.sleep(0.05)

    def optimizer_steps(self) -> int:
        file = self.run_dir / "metrics.jsonl"
        return len(file.read_text(encoding="utf-8").splitlines()) if file.is_file() else 0


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    with ExitStack() as stack:

        def begin(head: RayHead, *overrides: str) -> Run:
            run = Run(head, tmp_path / "run", overrides)
            stack.callback(run.process.wait)
            stack.callback(run.process.kill)
            return run

        yield begin


def gone(head: RayHead, *, seconds: float) -> bool:
    """Whether no simulators are left on the far side in time."""
    deadline = time.monotonic() + seconds
    while head.actors():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_lost_simulators_and_machines_are_restarted_and_counted_and_the_end_of_the_run_leaves_nothing(start) -> None:
    with ray_head() as head:
        run = start(
            head, "budget.optimizer_steps=1000000", "budget.minutes=10", "evaluation.episodes_per_task=0",
            "rollout.max_restarts=2", "replay.min_decisions=64",
        )  # fmt: skip
        run.wait_until(lambda: len(run.simulators()) == 2)
        os.kill(run.simulators()[0], signal.SIGKILL)
        run.wait_until(lambda: "restart 1 of at most 2" in run.log_of("learner"))
        assert "the simulator is gone" in run.log_of("env_worker_0")
        run.wait_until(lambda: len(run.simulators()) == 4)

        head.kill()  # the whole machine, which comes back
        head.start()
        run.wait_until(lambda: "restart 2 of at most 2" in run.log_of("learner"))
        run.wait_until(lambda: run.optimizer_steps() > 0)  # it goes on, with episodes from there

        run.process.send_signal(signal.SIGINT)
        assert run.process.wait(60) == 130, run.said()
        assert gone(head, seconds=20.0)


DIES = """
import os, sys
from vla_rl.remote.connection import HostedActor
actor = HostedActor(sys.argv[1], seconds=60.0)
actor.call("describe", (dict,), seconds=60.0)
print("there", flush=True)
sys.stdin.read()
"""


def test_what_a_process_that_is_killed_leaves_there_ends_too(head) -> None:
    before = set(head.actors())  # of earlier tests; they may end meanwhile
    environment = {**os.environ, **head.variables, "RAY_CLIENT_RECONNECT_GRACE_PERIOD": "5"}
    client = subprocess.Popen(
        [sys.executable, "-c", DIES, head.address], cwd=ROOT, env=environment, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    with client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"there\n"
        (own,) = set(head.actors()) - before
        client.kill()
    own.wait(60)  # raises TimeoutExpired
