"""The near side: an environment whose simulator is on another machine."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from vla_rl.envs.kind import EnvBuilder
from vla_rl.errors import UserError
from vla_rl.remote.connection import HostedActor
from vla_rl.remote.host import Opened, Refused
from vla_rl.remote.identity import OwnIdentity
from vla_rl.types import ChunkResult, FloatArray, Observation, TaskInfo

CALLS_OF_A_START = 3  # to connect, to build, to reset
MARGIN_S = 30.0  # in which a call ends by itself

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FarSide:
    """Machine that a worker's simulators are on, and how long to wait for it."""

    address: str  # host:port of a Ray head's client server
    identity: OwnIdentity  # of the environment, evaluated there
    expected: Mapping[str, str]  # identity of this machine
    start_timeout_s: float  # to connect, to build, to reset
    step_timeout_s: float  # to execute a chunk

    @property
    def longest_call_s(self) -> float:
        """Return the longest time that playing a decision can take: a chunk, then a new environment and its reset."""
        return self.step_timeout_s + CALLS_OF_A_START * self.start_timeout_s + MARGIN_S


def build_stand_in(build: EnvBuilder, far: FarSide) -> StandInEnv:
    """Build an environment on another machine; see `StandInEnv`."""
    return StandInEnv(build, far)


class StandInEnv:
    """Environment whose every method is one call to another machine. Satisfies `vla_rl.types.Environment`."""

    def __init__(self, build: EnvBuilder, far: FarSide) -> None:
        """Connect, and build the environment there.

        Args:
            build: builder of the real environment, which is called there.
            far: the other machine.

        Raises:
            UserError: the environment cannot be built there, or would simulate something else than here.
            LostHostError: the machine does not answer.
        """
        self._far = far
        self._actor: HostedActor | None = HostedActor(far.address, seconds=far.start_timeout_s)
        arguments = (build, far.identity, far.expected)
        with ExitStack() as undo:
            undo.callback(self.close)
            opened = self._actor.call("open", arguments, seconds=far.start_timeout_s)
            if isinstance(opened, Refused):
                raise UserError(f"rollout.remote: {far.address} cannot simulate this: {opened.reason}")
            undo.pop_all()
        assert isinstance(opened, Opened)
        self._opened = opened
        log.info("task %d is simulated by process %d of %s", opened.task.task_id, opened.pid, opened.host)

    @property
    def task(self) -> TaskInfo:
        """Return the task that is simulated."""
        return self._opened.task

    @property
    def horizon(self) -> int:
        """Return the control steps after which an episode is truncated."""
        return self._opened.horizon

    def reset(self, init_state: int, *, seed: int = 0) -> Observation:
        """Start an episode.

        Raises:
            LostHostError: the simulator is gone.
        """
        assert self._actor is not None
        result = self._actor.call("reset", (init_state, seed), seconds=self._far.start_timeout_s)
        assert isinstance(result, Observation)
        return result

    def step_chunk(self, actions: FloatArray) -> ChunkResult:
        """Execute a chunk, in one call.

        Raises:
            LostHostError: the simulator is gone.
        """
        assert self._actor is not None
        result = self._actor.call("step_chunk", (actions,), seconds=self._far.step_timeout_s)
        assert isinstance(result, ChunkResult)
        return result

    def close(self) -> None:
        """End the simulator; safe to call twice."""
        if self._actor is not None:
            self._actor.end()
            self._actor = None
