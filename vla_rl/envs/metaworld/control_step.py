"""Meta-World's control step with the same numbers in four fifths of the time: physics, and little besides.

Half of the benchmark's own step is Python around the physics: copies, checks of shapes, general functions for single
numbers. Nothing here rounds otherwise, so episodes are the benchmark's to the last bit.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from metaworld.utils import reward_utils
from numpy.typing import NDArray

from vla_rl.types import FloatArray

_HAND_DOWN = (1.0, 0.0, 1.0, 0.0)  # orientation of the hand, as the benchmark sets it in every control step
_general_tolerance = reward_utils.tolerance


class ControlStep:
    """Replacement of a simulator's `step`: as `SawyerXYZEnv.step`, with its arguments and results."""

    def __init__(self, simulator: SawyerXYZEnv) -> None:
        """Prepare the step of a simulator whose observation space will not change."""
        space = simulator.sawyer_observation_space
        self._simulator, self._low, self._high = simulator, space.low, space.high

    def __call__(self, action: FloatArray) -> tuple[NDArray[np.float64], Any, bool, bool, dict[str, Any]]:
        """Execute one action, (4,); return state, reward, False, whether the horizon was reached, and information."""
        simulator = self._simulator
        model, data = simulator.model, simulator.data
        if simulator.curr_path_length >= simulator.max_path_length:
            raise ValueError("the simulator must be reset after its last control step")
        move = np.minimum(np.maximum(action[:3], -1), 1) * simulator.action_scale
        hand = data.mocap_pos + move
        hand[0] = np.minimum(np.maximum(hand[0], simulator.mocap_low), simulator.mocap_high)
        data.mocap_pos = hand
        data.mocap_quat = _HAND_DOWN
        data.ctrl[:] = (action[3], -action[3])
        mujoco.mj_step(model, data, nstep=simulator.frame_skip)
        simulator.curr_path_length += 1
        mujoco.mj_forward(model, data)  # the physics leave positions as they were before their last step
        current = simulator._get_curr_obs_combined_no_goal()
        state = np.concatenate([current, simulator._prev_obs, simulator._get_pos_goal()])
        simulator._prev_obs = current
        state = np.minimum(np.maximum(state, self._low), self._high)
        simulator._last_stable_obs = state
        reward, info = simulator.evaluate_state(state, action)
        return state, reward, False, simulator.curr_path_length == simulator.max_path_length, info


def quicken_rewards() -> None:
    """Make the tasks' rewards call `tolerance` below, in this process."""
    reward_utils.tolerance = tolerance


def tolerance(
    x: Any,  # noqa: ANN401 - a number or an array, as the original's
    bounds: tuple[float, float] = (0.0, 0.0),
    margin: float = 0.0,
    sigmoid: str = "gaussian",
    value_at_margin: float = 0.1,
) -> Any:  # noqa: ANN401
    """Return `metaworld.utils.reward_utils.tolerance`: of a single number without making arrays of it.

    Raises:
        ValueError: as the original, for bounds in the wrong order or a negative margin.
    """
    lower, upper = bounds
    is_general = not (isinstance(x, float) and isinstance(margin, (int, float)))
    if is_general or lower > upper or margin < 0:
        return _general_tolerance(x, bounds=bounds, margin=margin, sigmoid=sigmoid, value_at_margin=value_at_margin)
    if lower <= x <= upper:
        return 1.0
    if margin == 0:
        return 0.0
    distance = np.float64(lower - x if x < lower else x - upper) / margin
    return float(reward_utils._sigmoids(distance, value_at_margin, sigmoid))
