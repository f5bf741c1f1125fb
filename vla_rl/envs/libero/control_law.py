"""Operational-space control of the arm, compiled: from the state of a substep to the motors' controls.

The only module that imports numba; importing it imports robosuite, so `shim` alone does that.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from robosuite.utils.control_utils import nullspace_torques, opspace_matrices, orientation_error

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

_compiled: Any = numba.njit(cache=True)


@_compiled  # type: ignore[untyped-decorator]
def drive(  # noqa: PLR0913 - compiled code takes plain arrays
    exact: bool,
    jacobian: Array,
    inertia: Array,
    dofs: Indices,
    joints: Indices,
    qpos: Array,
    qvel: Array,
    bias: Array,
    position: Array,
    rotation: Array,
    goal_position: Array,
    goal_rotation: Array,
    kp: Array,
    kd: Array,
    rest: Array,
    low: Array,
    high: Array,
    motors: Indices,
    opening: Array,
    finger_middle: Array,
    finger_half_range: Array,
    finger_motors: Indices,
    controls: Array,
    opening_change: float,
) -> None:
    """Write the controls of one substep, as `OSC_POSE` with decoupled position and orientation computes them.

    Args:
        exact: use robosuite's own pseudo-inverses, equal to the last bit; otherwise plain inverses, equal up to
            rounding.
        jacobian: (2, 3, nv) translation and rotation of the end effector.
        inertia: (nv, nv).
        dofs: (7,) the arm's indices in nv.
        joints: (7,) the arm's indices in nq.
        qpos: (nq,).
        qvel: (nv,).
        bias: (nv,) gravity and Coriolis torques.
        position: (3,) of the end effector.
        rotation: (3, 3) of the end effector.
        goal_position: (3,).
        goal_rotation: (3, 3).
        kp: (6,) stiffness.
        kd: (6,) damping.
        rest: (7,) joint positions to which the redundant degree of freedom is drawn.
        low: (7,) torque limits.
        high: (7,) torque limits.
        motors: (7,) indices in `controls`.
        opening: (2,) of the fingers in [-1, 1]; changed in place.
        finger_middle: (2,) middle of the range of the fingers' controls.
        finger_half_range: (2,).
        finger_motors: (2,) indices in `controls`.
        controls: (nu,) output.
        opening_change: added to the second finger's opening, subtracted from the first's.
    """
    n = len(dofs)
    # robosuite's slices are column-major, and BLAS sums other layouts in another order.
    j_pos, j_ori, j_full, mass = np.empty((n, 3)), np.empty((n, 3)), np.empty((n, 6)), np.empty((n, n))
    joint_pos, joint_vel, compensation = np.empty(n), np.empty(n), np.empty(n)
    for i in range(n):
        joint_pos[i], joint_vel[i], compensation[i] = qpos[joints[i]], qvel[dofs[i]], bias[dofs[i]]
        for k in range(3):
            j_pos[i, k] = j_full[i, k] = jacobian[0, k, dofs[i]]
            j_ori[i, k] = j_full[i, 3 + k] = jacobian[1, k, dofs[i]]
        for k in range(n):
            mass[i, k] = inertia[dofs[k], dofs[i]]
    if exact:
        _, mass_pos, mass_ori, nullspace = opspace_matrices(mass.T, j_full.T, j_pos.T, j_ori.T)
    else:
        mass_pos, mass_ori, nullspace = _plain_matrices(mass, j_full)
    force = (goal_position - position) * kp[:3] + -np.dot(jacobian[0], qvel) * kd[:3]
    torque = orientation_error(goal_rotation, rotation) * kp[3:] + -np.dot(jacobian[1], qvel) * kd[3:]
    wrench = np.concatenate((np.dot(mass_pos, force), np.dot(mass_ori, torque)))
    torques = np.dot(j_full, wrench) + compensation
    torques += nullspace_torques(mass.T, nullspace, rest, joint_pos, joint_vel)
    for i in range(n):
        controls[motors[i]] = min(max(torques[i], low[i]), high[i])
    opening[0] = min(max(opening[0] - opening_change, -1.0), 1.0)
    opening[1] = min(max(opening[1] + opening_change, -1.0), 1.0)
    for i in range(2):
        controls[finger_motors[i]] = finger_middle[i] + finger_half_range[i] * opening[i]


@_compiled  # type: ignore[untyped-decorator]
def _plain_matrices(mass: Array, jacobian_transposed: Array) -> tuple[Array, Array, Array]:
    """Return the effective inertias of the end effector in translation and rotation, and the null-space projector."""
    mobility = np.linalg.solve(mass, jacobian_transposed)  # M^-1 J^T
    core = np.dot(jacobian_transposed.T, mobility)
    mass_pos = np.linalg.inv(np.ascontiguousarray(core[:3, :3]))
    mass_ori = np.linalg.inv(np.ascontiguousarray(core[3:, 3:]))
    n = len(mass)
    projector = np.eye(n) - np.dot(mobility, np.linalg.solve(core, np.ascontiguousarray(jacobian_transposed.T)))
    return mass_pos, mass_ori, projector
