"""Process that plays episodes of the expert and writes them."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from vla_rl.collection.options import CollectOptions
from vla_rl.collection.playing import play
from vla_rl.collection.store import TaskStore
from vla_rl.workers.process import enter_child, leave_child


@dataclass(frozen=True, slots=True)
class Order:
    """Episode to play."""

    task: int  # position among the stores
    attempt: int


@dataclass(frozen=True, slots=True)
class Done:
    """Episode that was played and written."""

    order: Order
    success: bool
    rows: int
    seconds: float  # of this process's CPU


@dataclass(frozen=True, slots=True)
class Failed:
    """End of a process that met an error."""

    order: Order
    traceback: str


def worker_main(
    name: str, log_path: Path, options: CollectOptions, stores: tuple[TaskStore, ...], link: Connection
) -> None:
    """Play orders until None comes."""
    enter_child(name, log_path, threads=1)
    _work(options, stores, link)
    leave_child()


def _work(options: CollectOptions, stores: tuple[TaskStore, ...], link: Connection) -> None:
    from vla_rl.envs.libero.env import LiberoEnv

    env: LiberoEnv | None = None
    while True:
        try:
            order = link.recv()
        except EOFError:
            return
        if order is None:
            return
        store = stores[order.task]
        began = time.process_time()
        try:
            if env is None or env.task != store.task:
                if env is not None:
                    env.close()
                env = LiberoEnv(
                    options.suite,
                    store.task.task_id,
                    assets=options.assets,
                    image_size=options.image_size,
                    init_states=options.init_states,
                    physics=options.physics,
                    gl=options.gl,
                )
            played = play(env, options, order.attempt)
            rows = len(played.arrays["actions"])
            if played.success:
                reset = {"init_states": options.init_states, "init_state": order.attempt, "seed": options.seed}
                store.add(order.attempt, played.arrays, reset=reset | {"physics": options.physics})
            else:
                store.add_failure(order.attempt, rows=rows)
        except Exception:  # noqa: BLE001 - the parent reports it, whatever it is
            link.send(Failed(order, traceback.format_exc()))
            return
        link.send(Done(order, played.success, rows, time.process_time() - began))
