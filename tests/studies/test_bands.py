"""Bands over runs: what belongs to a point of the common clock."""

import numpy as np
import pytest

from vla_rl.studies.bands import binned

CLOCK = np.array([1000.0, 1100.0, 1200.0])


def test_values_belong_to_the_nearest_point_and_the_others_are_interpolated():
    assert binned(CLOCK, [960.0, 1040.0, 1200.0], [1.0, 3.0, 8.0]).tolist() == pytest.approx([2.0, 4.875, 8.0])


def test_values_outside_the_common_clock_are_left_out():
    early, late = np.arange(100.0, 1000.0, 100.0), [1300.0, 1400.0]
    times = [*early, 1000.0, 1100.0, 1200.0, *late]
    values = [1.0] * len(early) + [0.0, 0.25, 0.5] + [1.0] * len(late)
    assert binned(CLOCK, times, values).tolist() == [0.0, 0.25, 0.5]
