"""Replay of demonstrations in the simulator: whether their actions still lead to success."""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

from vla_rl.collection.options import InitStates, Physics
from vla_rl.demos.data_errors import DemosError
from vla_rl.demos.episode import Episode
from vla_rl.demos.h5_files import read_attribute
from vla_rl.demos.hdf5 import EXECUTED, RESET, Hdf5Reader
from vla_rl.demos.opening import Demos
from vla_rl.envs.libero.check import check_simulator
from vla_rl.envs.libero.env import LiberoEnv
from vla_rl.envs.libero.suites import libero_tasks
from vla_rl.libero_suites import SUITES
from vla_rl.types import TaskInfo

NO_HORIZON = 100_000


class Replayer:
    """Filter of episodes: True for those that succeed when LIBERO plays their actions again, without pictures.

    An episode that `vla-rl demos collect` wrote names its reset, and repeats itself exactly. Any other one begins as in
    OpenVLA-OFT's `regenerate_libero_dataset.py`: from its first stored state, after 10 control steps of settling.
    """

    def __init__(self) -> None:
        self._env: LiberoEnv | None = None
        self._key: tuple[str, ...] = ()

    def check(self, demos: Demos) -> None:
        """Check what is needed to replay a data set.

        Raises:
            UserError: the simulator is not in order, the data are in no HDF5 files, or a task is not LIBERO's.
        """
        if not isinstance(demos.reader, Hdf5Reader):
            raise DemosError(
                demos.path,
                "",
                "only HDF5 files hold the simulator's states, which a replay begins from",
                found=demos.format,
                fix="leave --replay out",
            )
        for file in demos.reader.files:
            task_named(file.path.name.split(".")[0].removesuffix("_demo"), str(file.path))
        check_simulator()

    def __call__(self, episode: Episode) -> bool:
        """Return whether an episode succeeds when it is played again.

        Raises:
            DemosError: it holds no states.
        """
        task = task_named(episode.task, episode.stored.place[0])
        extras = episode.stored.read_extras()
        actions = extras[EXECUTED][episode.rows] if EXECUTED in extras else episode.actions
        reset = json.loads(read_attribute(*episode.stored.place, RESET) or "{}")
        env = self._env_of(task, reset)
        if reset:
            env.reset(int(reset["init_state"]), seed=int(reset["seed"]))
        elif "states" in extras:
            env.start_from(np.asarray(extras["states"][0], np.float64))
        else:
            raise DemosError(
                *episode.stored.place, "a replay begins from its states, which are missing", fix="leave --replay out"
            )
        return _succeeds(env, np.asarray(actions, np.float32))

    def close(self) -> None:
        """Free the simulator; safe to call twice."""
        if self._env is not None:
            self._env.close()
            self._env = None

    def _env_of(self, task: TaskInfo, reset: dict[str, str]) -> LiberoEnv:
        physics: Physics = "fast" if reset.get("physics") == "fast" else "exact"
        states: InitStates = "widened" if reset.get("init_states") == "widened" else "sampled"
        key = (task.suite, task.name, physics, states)
        if self._env is None or key != self._key:
            self.close()
            self._key = key
            self._env = LiberoEnv(
                task.suite, task.task_id, cameras=(), physics=physics, init_states=states, horizon=NO_HORIZON
            )
        return self._env


def _succeeds(env: LiberoEnv, actions: NDArray[np.float32]) -> bool:
    return any(env.step_chunk(action[None]).terminated for action in actions)


def task_named(name: str, file: str) -> TaskInfo:
    """Return LIBERO's task of a name.

    Raises:
        DemosError: there is none.
    """
    for suite in SUITES:
        for task in libero_tasks(suite):
            if task.name == name:
                return task
    raise DemosError(
        file, "", "its name is no task of LIBERO, so it cannot be replayed", found=name, fix="leave --replay out"
    )
