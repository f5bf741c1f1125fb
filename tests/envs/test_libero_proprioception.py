import math

import numpy as np
import pytest

from vla_rl.envs.libero.env import axis_angle, proprioception
from vla_rl.envs.libero.simulation import Pose


def turn(axis, angle):
    return np.array([*(math.sin(angle / 2) * np.array(axis)), math.cos(angle / 2)])


def test_no_turn_is_three_zeros():
    assert np.array_equal(axis_angle(np.array([0.0, 0.0, 0.0, 1.0])), np.zeros(3))
    assert np.array_equal(axis_angle(np.array([0.0, 0.0, 0.0, -1.0])), np.zeros(3))


def test_a_quarter_turn_about_z_is_half_pi_on_z():
    assert axis_angle(turn((0, 0, 1), math.pi / 2)) == pytest.approx([0, 0, math.pi / 2])


def test_a_turn_beyond_pi_is_not_flipped_to_its_shorter_way_round():
    assert axis_angle(turn((1, 0, 0), 1.5 * math.pi)) == pytest.approx([1.5 * math.pi, 0, 0])


def test_a_scalar_part_just_outside_its_range_is_clipped():
    assert np.isfinite(axis_angle(np.array([0.0, 0.0, 0.0, 1.0 + 1e-12]))).all()


def test_the_eight_numbers_are_position_axis_angle_and_fingers():
    pose = Pose(position=np.array([1.0, 2.0, 3.0]), quaternion=turn((0, 1, 0), 0.5), fingers=np.array([0.04, -0.04]))
    state = proprioception(pose)
    assert state.dtype == np.float32
    assert state == pytest.approx([1, 2, 3, 0, 0.5, 0, 0.04, -0.04])
