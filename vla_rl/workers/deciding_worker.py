"""Process of an env worker that decides itself: no inference worker, and no message for a decision.

    loop:  wait until the governor allows more ─► adopt newer weights, if any ─► decide for all slots ─► execute

For small policies on CPUs, whose forward pass takes less time than to wake another process. Each such worker has a copy
of what is trained and draws from random numbers of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from vla_rl.errors import RunFailureError
from vla_rl.ipc.counters import CellCounters
from vla_rl.ipc.shared_arrays import SharedArrays
from vla_rl.ipc.slots import ExchangeSlots
from vla_rl.policies.devices import use_device
from vla_rl.replay.ring import ReplayRing
from vla_rl.workers.env_worker import POLL_S, EnvWorker, EnvWorkerLinks, EnvWorkerSettings, set_variables
from vla_rl.workers.inference_server import InferenceServer
from vla_rl.workers.inference_worker import InferenceSettings, WeightLinks, attached_server, report
from vla_rl.workers.messages import StartRefusal, tell_supervisor
from vla_rl.workers.process import enter_child, leave_child
from vla_rl.workers.worker_counters import WorkerCounters


def deciding_worker_main(
    settings: EnvWorkerSettings,
    links: EnvWorkerLinks,
    incarnation: int,
    inference: InferenceSettings,
    weights: WeightLinks,
) -> None:
    """Entry point of the spawned process; returns when the stop flag is set or the jobs are done."""
    worker = settings.worker_index
    log = enter_child(f"env_worker_{worker}", settings.log_path, threads=inference.threads)
    set_variables(settings.variables)
    use_device(inference.device)
    log.info("start %d of this worker, which decides itself, slots %s", incarnation, list(settings.slot_ids))
    own = replace(inference, seed=own_seed(inference.seed, worker, incarnation))
    with SharedArrays.attach(links.slots) as arrays, CellCounters.attach(links.counters) as counters:
        slots, row = ExchangeSlots.view(arrays), WorkerCounters(counters, worker)
        ring = ReplayRing.attach(links.ring) if links.ring is not None else None
        with attached_server(own, weights, slots, counters, worker) as server:
            go_on_counting(server, counters, worker)
            while not server.adopt() and not counters.stop_requested:
                row.beat()
                time.sleep(0.01)
            decider = OwnDecisions(server, report=lambda served: report(served, counters, worker))
            env_worker = EnvWorker(settings, links, incarnation, slots, row, ring, decider)
            try:
                env_worker.run()
            except RunFailureError as error:  # of the policy: another start would fail too
                tell_supervisor(links.supervisor, StartRefusal(str(error)))
                raise
            finally:
                env_worker.close()
                if ring is not None:
                    ring.close()
    log.info("done")
    leave_child()


def own_seed(seed: int | None, worker: int, incarnation: int) -> int | None:
    """Return the seed of a worker's sampling, other than that of any other worker or start; None stays None."""
    return None if seed is None else int(np.random.SeedSequence((seed, worker, incarnation)).generate_state(1)[0])


def go_on_counting(server: InferenceServer, counters: CellCounters, index: int) -> None:
    """Let a restarted worker's counts go on from its predecessor's, because counters never decrease."""
    server.batches = int(counters.get("inference_batches", index))
    server.decisions = int(counters.get("inference_decisions", index))
    server.busy_seconds = float(counters.get("inference_busy_seconds", index))


class OwnDecisions:
    """Decider with a server in this process: what was asked is decided when the answers are wanted."""

    def __init__(self, server: InferenceServer, *, report: Callable[[InferenceServer], None]) -> None:
        """Create the decider.

        Args:
            server: decides.
            report: called after every batch, to publish the server's counts.
        """
        self._server = server
        self._report = report
        self._asked: list[int] = []

    def ask(self, slots: Sequence[int]) -> None:
        """Note slots whose observations are in place."""
        self._asked += slots

    def answered(self, timeout_s: float) -> list[int]:
        """Decide for all slots that asked; wait if there are none, because a slot may be parked."""
        if not self._asked:
            time.sleep(min(timeout_s, POLL_S))
            return []
        self._server.adopt()
        self._server.serve(self._asked)
        self._report(self._server)
        answered, self._asked = self._asked, []
        return answered
