"""Demonstrations: data sets in several formats, read as one kind of episode, without TensorFlow."""

from vla_rl.demos.data_errors import DemosError
from vla_rl.demos.episode import CAMERAS, Episode
from vla_rl.demos.opening import Demos, open_demos
from vla_rl.demos.scaling_statistics import action_statistics

__all__ = ["CAMERAS", "Demos", "DemosError", "Episode", "action_statistics", "open_demos"]
