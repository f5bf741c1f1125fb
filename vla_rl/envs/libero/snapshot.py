"""Exact copies of a simulation's state, to branch from and return to.

`physics_state`, positions and velocities, is not enough: the constraint solver starts from its last solution, the
controller keeps goals over a control step, the gripper opens and closes gradually, and timers decide when a frame is
taken. A branch that is played again after `restore` repeats itself to the last bit, frames included.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_rl.types import UInt8Array

# Arrays of MuJoCo whose sizes follow the contacts of the moment. The next substep makes them anew.
_OF_CONTACTS = ("efc_", "island_", "dof_island", "tendon_efcadr", "wrap_", "D_", "B_", "C_", "map")
_MODEL_ARRAYS = ("site_rgba",)  # what an episode changes: the lamp of the stove
_TIMER = ("_time_since_last_sample", "_current_delay", "_current_observed_value", "_sampled")
_CLOCKS = ("timestep", "cur_time", "done")


@dataclass(frozen=True, slots=True)
class SimulationState:
    """State of a `Simulation` between two control steps. It belongs to the reset that it was taken after."""

    reset_number: int
    integration: NDArray[np.float64]  # MuJoCo's own: time, positions, velocities, warm start, controls
    arrays: dict[str, NDArray[Any]]  # what MuJoCo derived from it, by name
    model_arrays: dict[str, NDArray[Any]]
    controller: dict[str, Any]
    opening: NDArray[np.float64]  # the gripper's current command
    timer: dict[str, Any]
    clocks: dict[str, Any]
    pose: Any  # `Pose`
    frames: UInt8Array


def derived_arrays(data: Any) -> dict[str, NDArray[Any]]:  # noqa: ANN401 - MuJoCo is untyped here
    """Return views of the arrays of fixed size of MuJoCo's data."""
    found = {}
    for name in dir(data):
        if name.startswith(("_", *_OF_CONTACTS)):
            continue
        value = getattr(data, name)
        if isinstance(value, np.ndarray) and value.size:
            found[name] = value
    return found


def numbers_of(controller: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return copies of everything in a controller that is not a reference to the simulation."""
    return {name: copy.deepcopy(value) for name, value in vars(controller).items() if name != "sim"}


def take(
    mujoco: Any,  # noqa: ANN401
    env: Any,  # noqa: ANN401
    *,
    views: dict[str, NDArray[Any]],
    timer: Any,  # noqa: ANN401
    reset_number: int,
    pose: Any,  # noqa: ANN401
    frames: UInt8Array,
) -> SimulationState:
    """Copy the state of robosuite's environment and of MuJoCo under it."""
    model, data = env.sim.model._model, env.sim.data._data
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    integration = np.empty(mujoco.mj_stateSize(model, kind))
    mujoco.mj_getState(model, data, integration, kind)
    robot = env.robots[0]
    return SimulationState(
        reset_number=reset_number,
        integration=integration,
        arrays={name: view.copy() for name, view in views.items()},
        model_arrays={name: getattr(model, name).copy() for name in _MODEL_ARRAYS},
        controller=numbers_of(robot.controller),
        opening=np.array(robot.gripper.current_action),
        timer={name: copy.copy(getattr(timer, name)) for name in _TIMER},
        clocks={name: getattr(env, name) for name in _CLOCKS},
        pose=pose,
        frames=frames.copy(),
    )


def put_back(
    mujoco: Any,  # noqa: ANN401
    env: Any,  # noqa: ANN401
    state: SimulationState,
    *,
    views: dict[str, NDArray[Any]],
    timer: Any,  # noqa: ANN401
) -> None:
    """Set robosuite's environment and MuJoCo under it to a state that `take` copied."""
    model, data = env.sim.model._model, env.sim.data._data
    mujoco.mj_setState(model, data, state.integration, mujoco.mjtState.mjSTATE_INTEGRATION)
    for name, values in state.arrays.items():
        views[name][...] = values
    for name, values in state.model_arrays.items():
        getattr(model, name)[...] = values
    robot = env.robots[0]
    for name, value in state.controller.items():
        setattr(robot.controller, name, copy.deepcopy(value))
    robot.gripper.current_action = state.opening.copy()
    for name, value in state.timer.items():
        setattr(timer, name, copy.copy(value))
    for name, value in state.clocks.items():
        setattr(env, name, value)
