"""The far side: one environment in a process of its own, a Ray actor."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from vla_rl.container import usable_cores
from vla_rl.envs.kind import EnvBuilder
from vla_rl.errors import UserError
from vla_rl.remote.identity import OwnIdentity, differences, identity_here
from vla_rl.types import ChunkResult, Environment, FloatArray, Observation, TaskInfo


@dataclass(frozen=True, slots=True)
class Place:
    """A machine of the far side, as it describes itself."""

    host: str
    cpus: int  # usable ones
    needs_token: bool  # its Ray answers nobody without the token
    identity: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Opened:
    """An environment that was built."""

    task: TaskInfo
    horizon: int
    host: str
    pid: int


@dataclass(frozen=True, slots=True)
class Refused:
    """An environment that cannot be built there, and another attempt would fail too."""

    reason: str


class EnvHost:
    """Owner of one environment, whose methods are called from the other machine. One call does a whole chunk."""

    def __init__(self) -> None:
        self._env: Environment | None = None

    def describe(self, own: OwnIdentity) -> Place:
        """Describe this machine."""
        return Place(
            host=socket.gethostname(),
            cpus=usable_cores(),
            needs_token=os.environ.get("RAY_AUTH_MODE", "") == "token",
            identity=identity_here(own),
        )

    def open(self, build: EnvBuilder, own: OwnIdentity, expected: Mapping[str, str]) -> Opened | Refused:
        """Build the environment, if this machine simulates the same as the one that asks.

        Args:
            build: builder of the environment.
            own: what the environment adds to the identity of this machine.
            expected: identity of the machine that asks.
        """
        different = differences(expected, identity_here(own))
        if different:
            return Refused("; ".join(different))
        try:
            self._env = build()
        except UserError as error:
            return Refused(str(error))
        return Opened(self._env.task, self._env.horizon, socket.gethostname(), os.getpid())

    def reset(self, init_state: int, seed: int) -> Observation:
        """Start an episode."""
        assert self._env is not None
        return self._env.reset(init_state, seed=seed)

    def step_chunk(self, actions: FloatArray) -> ChunkResult:
        """Execute a chunk."""
        assert self._env is not None
        return self._env.step_chunk(actions)
