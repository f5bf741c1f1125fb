"""Control of the arm at 500 Hz: robosuite's own, without the lookups that it repeats in every substep.

A control step is 25 substeps. In each of them robosuite resolves names to indices, computes the same Jacobian four
times and asks for limits that never change, which takes longer than all of the physics.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Arm:
    """Arm with a gripper. Made after each reset, which makes a new simulation and a new controller."""

    def __init__(
        self,
        mujoco: Any,  # noqa: ANN401
        env: Any,  # noqa: ANN401
        *,
        drive: Any,  # noqa: ANN401
        exact: bool,
        propagate: Callable[[], None],
    ) -> None:
        """Look up names, limits and array views once.

        Args:
            mujoco: the `mujoco` module.
            env: robosuite's environment with one robot, just reset.
            drive: `control_law.drive`.
            exact: torques equal robosuite's to the last bit.
            propagate: function that updates everything derived from positions and velocities.
        """
        self._mujoco = mujoco
        self._propagate = propagate
        self._drive = drive
        self._model, self._data = env.sim.model._model, env.sim.data._data
        robot = self._robot = env.robots[0]
        self._controller, self._gripper = robot.controller, robot.gripper
        self._site = self._model.site(self._controller.eef_name).id
        fingers = np.array([self._model.actuator(name).id for name in self._gripper.actuators])
        finger_low, finger_high = self._model.actuator_ctrlrange[fingers].T
        data = self._data  # views of MuJoCo's memory, which is never moved
        jacobian = np.zeros((2, 3, self._model.nv))
        self._jacobians = (jacobian[0], jacobian[1])  # translation, rotation
        self._inertia, self._packed_inertia = np.zeros((self._model.nv, self._model.nv)), data.qM
        self._position, self._rotation = data.site_xpos[self._site], data.site_xmat[self._site].reshape(3, 3)
        # The arguments of `drive`, in its order, around those that an action changes.
        self._matter = (
            *(exact, jacobian, self._inertia),
            *(np.array(self._controller.qvel_index), np.array(self._controller.qpos_index)),
            *(data.qpos, data.qvel, data.qfrc_bias, self._position, self._rotation),
        )
        self._limits = (
            *(np.array(limit) for limit in robot.torque_limits),
            np.array(robot._ref_joint_actuator_indexes),
        )
        self._fingers = (0.5 * (finger_high + finger_low), 0.5 * (finger_high - finger_low), fingers, data.ctrl)
        self._arguments: tuple[Any, ...] = ()
        self._opening_change = 0.0

    def begin(self, action: NDArray[np.float64]) -> None:
        """Start a new action, (7,), and set the motors' controls for the first substep."""
        controller = self._controller
        self._opening_change = float(self._gripper.speed * np.sign(action[-1]))
        if not controller.new_update:
            # In the first step after a reset robosuite uses the arm's pose from before a state was set.
            self._robot.control(action, policy_step=True)
            self._gather_arguments()
            return
        self._propagate()
        # Everything that the goal starts from, so that the controller need not update anything else.
        controller.ee_pos, controller.ee_ori_mat = self._position.copy(), self._rotation.copy()
        controller.new_update = False
        controller.set_goal(action[:-1])
        self._gripper.format_action(action[-1:])
        self._gather_arguments()
        self._set_controls(0.0)

    def proceed(self) -> None:
        """Set the motors' controls for another substep of the same action."""
        self._propagate()
        self._set_controls(self._opening_change)

    def _gather_arguments(self) -> None:
        """Collect all arrays of an action; `drive` reads the simulation's state and changes the fingers' opening."""
        controller = self._controller
        controller.new_update = True  # the next action's goal starts from the arm's pose then
        goal = (controller.goal_pos, controller.goal_ori, controller.kp, controller.kd, controller.initial_joint)
        self._arguments = (*self._matter, *goal, *self._limits, self._gripper.current_action, *self._fingers)

    def _set_controls(self, opening_change: float) -> None:
        self._mujoco.mj_jacSite(self._model, self._data, *self._jacobians, self._site)
        self._mujoco.mj_fullM(self._model, self._inertia, self._packed_inertia)
        self._drive(*self._arguments, opening_change)
