"""Cell in one process: the same runner and server, in a fixed order, for debugging and bit-exact tests."""

from __future__ import annotations

from collections.abc import Callable

from vla_rl.workers.env_runner import EnvRunner
from vla_rl.workers.inference_server import InferenceServer


class SerialCell:
    """Cell that plays all slots in turn: adopt weights, decide for every waiting slot, execute every decision."""

    restarts = 0
    dropped_episodes = 0

    def __init__(
        self, runner: EnvRunner, server: InferenceServer, *, report: Callable[[InferenceServer], None]
    ) -> None:
        """Create the cell.

        Args:
            runner: runner of all slots.
            server: server of their decisions.
            report: called after every batch, to publish the server's counts.
        """
        self._runner = runner
        self._server = server
        self._report = report
        self._waiting: list[int] = []

    @property
    def finished(self) -> bool:
        """Return whether every slot has run out of jobs."""
        return not self._waiting and not self._runner.parked

    def start(self) -> None:
        """Reset every slot."""
        self._waiting = [slot for slot in self._runner.slot_ids if self._runner.start(slot)]

    def collect(self) -> None:
        """Make one decision in every slot."""
        self._server.adopt()
        self._server.serve(self._waiting)
        self._report(self._server)
        self._waiting = [slot for slot in self._waiting if self._runner.advance(slot)]
        self._waiting += [slot for slot in sorted(self._runner.parked) if self._runner.start(slot)]

    def raise_if_failed(self) -> None:
        """Do nothing: in one process failures raise directly."""

    def close(self) -> None:
        """Abandon unfinished episodes and close the simulators."""
        self._runner.close()
