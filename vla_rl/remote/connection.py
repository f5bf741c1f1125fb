"""Connection of this process to one Ray head, and the actors it holds there: the only importer of Ray.

A process has at most one connection. It is made for the first actor, shared by all, and closed with the last. Every
wait has a deadline. Ray mends a connection that is interrupted for less than half a minute
(`RAY_CLIENT_RECONNECT_GRACE_PERIOD`, in seconds) by itself, without losing a call. After a longer interruption all
calls raise `ConnectionError`; the far side then ends the actors, because nobody can ask for them again.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vla_rl.errors import UserError
from vla_rl.remote.host import EnvHost

TOKEN_FILE = "~/.ray/auth_token"
TRY_AGAIN_S = 1.0
PROBE_S = 5.0  # for a machine to accept a connection

log = logging.getLogger(__name__)


class LostHostError(ConnectionError):
    """Permanent loss of an actor or of the connection to it."""


def demand_token() -> None:
    """Have Ray use its token on this side: it otherwise would not send one."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def token() -> str:
    """Return the token as Ray finds it; empty if there is none."""
    if named := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return named
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or TOKEN_FILE).expanduser()
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""


def split(address: str) -> tuple[str, int]:
    """Return host and port."""
    host, _, port = address.rpartition(":")
    return host, int(port)


def answers(address: str) -> str:
    """Return why nothing listens at an address; empty if something does."""
    try:
        socket.create_connection(split(address), timeout=PROBE_S).close()
    except OSError as error:
        return error.strerror or str(error) or type(error).__name__
    return ""


def status_of_call(address: str, with_token: str) -> str:
    """Return gRPC's status code of a first call to Ray's client server, for example UNAUTHENTICATED.

    Args:
        address: of the server.
        with_token: sent with the call, unless it is empty.
    """
    import grpc

    sent = [("authorization", f"Bearer {with_token}")] if with_token else []
    direct = [("grpc.enable_http_proxy", 0)]  # as Ray's own client, which heeds no http_proxy
    with grpc.insecure_channel(address, options=direct) as channel:
        call = channel.unary_unary("/ray.rpc.RayletDriver/ClusterInfo")
        try:
            call(b"", metadata=sent, timeout=PROBE_S)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


class _Connection:
    """The connection of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._address = ""
        self._users = 0

    def join(self, address: str, *, seconds: float) -> None:
        """Connect, unless this process is connected.

        Raises:
            LostHostError: the machine did not answer in time.
        """
        with self._lock:
            assert self._address in ("", address), "a process speaks to one machine"
            if not self._users:
                self._connect(address, deadline=time.monotonic() + seconds)
                self._address = address
            self._users += 1

    def leave(self) -> None:
        """Disconnect, if nobody else uses the connection."""
        import ray

        with self._lock:
            self._users -= 1
            if not self._users:
                ray.shutdown()
                self._address = ""

    @staticmethod
    def _connect(address: str, *, deadline: float) -> None:
        demand_token()
        import ray

        while True:
            problem = answers(address)
            if not problem:
                try:
                    ray.init(f"ray://{address}", log_to_driver=False, logging_level=logging.WARNING)
                except (ConnectionError, RuntimeError) as error:
                    problem = str(error)
                    if "ersion mismatch" in problem:  # waiting would not help
                        raise UserError(f"rollout.remote: {address}: {problem}") from error
                else:
                    log.info("connected to Ray at %s", address)
                    return
            if time.monotonic() > deadline:
                raise LostHostError(f"Ray at {address} does not answer: {problem}")
            time.sleep(TRY_AGAIN_S)


_connection = _Connection()


class HostedActor:
    """An `EnvHost` on another machine."""

    def __init__(self, address: str, *, seconds: float) -> None:
        """Start the actor.

        Args:
            address: of a Ray head's client server.
            seconds: for the machine to answer.

        Raises:
            LostHostError: it did not.
        """
        _connection.join(address, seconds=seconds)
        import ray

        self._address = address
        # No restarts: a new actor would have no environment. Ray counts no CPUs here: how many simulators share one is
        # the recipe's business.
        options: dict[str, Any] = {"num_cpus": 0, "max_restarts": 0, "max_task_retries": 0}
        self._actor = ray.remote(EnvHost).options(**options, scheduling_strategy="SPREAD").remote()

    def call(self, method: str, arguments: Sequence[object], *, seconds: float) -> Any:  # noqa: ANN401 - the method's
        """Call a method of the actor and wait for its result.

        Raises:
            LostHostError: the actor, its machine or the way there is gone, or no result came in time.
            Exception: what the method raised, with its traceback.
        """
        import ray
        from ray.exceptions import GetTimeoutError, RayActorError
        from ray.util.client import ray as client

        if not client.is_connected():  # it gave the connection up; a call would raise a bare Exception
            raise LostHostError(f"{self._address}: the connection is lost")
        try:
            return ray.get(getattr(self._actor, method).remote(*arguments), timeout=seconds)
        except GetTimeoutError as error:
            raise LostHostError(f"{self._address}: no result of {method} within {seconds:g} s") from error
        except (RayActorError, ConnectionError) as error:
            raise LostHostError(f"{self._address}: the simulator is gone: {error}") from error

    def end(self) -> None:
        """End the actor's process and with it the simulator, in the middle of a call too."""
        import ray
        from ray.util.client import ray as client

        if client.is_connected():
            ray.kill(self._actor)
        _connection.leave()
