"""What disturbs the expert's motions: offsets by chunk and by step, and nothing else."""

import numpy as np
import pytest

from vla_rl.collection.options import Noise
from vla_rl.collection.playing import Disturbance

WANTED = np.array([0.1, -0.2, 0.3, 0.4, 0.5, 0.6, -1.0], np.float32)


def executed(steps=24, **noise):
    disturbance = Disturbance(Noise(**noise), np.random.default_rng(0))
    return np.stack([disturbance.disturb(WANTED) for _ in range(steps)])


def test_without_noise_the_expert_s_actions_are_executed():
    assert np.array_equal(executed(chunk_share=0.0, step_scale=0.0), np.tile(WANTED, (24, 1)))


def test_an_offset_lasts_for_a_chunk():
    offsets = executed(chunk_share=1.0, chunk_scale=0.1, step_scale=0.0, chunk=8)[:, :3] - WANTED[:3]
    assert np.ptp(offsets.reshape(3, 8, 3), axis=1) == pytest.approx(np.zeros((3, 3)), abs=1e-6)
    assert np.abs(np.diff(offsets[[0, 8, 16]], axis=0)).min() > 1e-3


def test_the_share_of_disturbed_chunks_and_the_size_of_the_offset_are_as_asked():
    changed = executed(8 * 2000, chunk_share=0.25, chunk_scale=0.1, step_scale=0.0)[::8, :3] - WANTED[:3]
    is_disturbed = np.abs(changed).max(axis=1) > 1e-6
    assert is_disturbed.mean() == pytest.approx(0.25, abs=0.04)
    assert changed[is_disturbed].std() == pytest.approx(0.1, rel=0.1)


def test_the_noise_of_steps_has_the_asked_size_and_differs_from_step_to_step():
    changed = executed(2000, chunk_share=0.0, step_scale=0.05)[:, :3] - WANTED[:3]
    assert changed.std() == pytest.approx(0.05, rel=0.1)
    assert abs(np.corrcoef(changed[:-1, 0], changed[1:, 0])[0, 1]) < 0.1


def test_rotation_and_gripper_are_not_disturbed_and_motions_stay_within_their_limits():
    actions = executed(400, chunk_share=1.0, chunk_scale=2.0, step_scale=1.0)
    assert np.array_equal(actions[:, 3:], np.tile(WANTED[3:], (400, 1)))
    assert np.abs(actions[:, :3]).max() == 1.0
