"""Blind control: the same policy on the same episodes, without images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vla_rl.evaluation.episodes import EpisodeResult, read_episodes
from vla_rl.evaluation.pairs import Comparison, compare
from vla_rl.types import FrameTransform, UInt8Array

BLIND_EPISODES_FILE = "episodes_blind.jsonl"


@dataclass(frozen=True, slots=True)
class BlankFrames:
    """Frame transform that returns black frames. Satisfies `vla_rl.types.FrameTransform`."""

    transform: FrameTransform  # the transform it replaces

    @property
    def input_size(self) -> int:
        """Return the pixels per side that the camera must render."""
        return self.transform.input_size

    @property
    def output_size(self) -> int:
        """Return the pixels per side after the transform."""
        return self.transform.output_size

    def __call__(self, frames: UInt8Array) -> UInt8Array:
        """Map (N, input_size, input_size, 3) to (N, output_size, output_size, 3) of zeros."""
        return np.zeros((len(frames), self.output_size, self.output_size, 3), dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Control:
    """Comparison of seeing with blind play."""

    name: str
    success_rate: float  # blind, mean over tasks
    comparison: Comparison  # the first is the seeing policy
    meaning: str  # one sentence


def stored_control(folder: Path, seeing: Sequence[EpisodeResult]) -> tuple[Control | None, list[str]]:
    """Return the control recorded in an evaluation's folder, if it is complete, and otherwise a sentence about it.

    Raises:
        ValueError: its log is broken.
    """
    log = folder / BLIND_EPISODES_FILE
    blind = read_episodes(log) if log.exists() else []
    if len(blind) == len(seeing):
        return blind_control(seeing, blind), []
    if not blind:
        return None, []
    return None, [
        f"the blind control has {len(blind)} of {len(seeing)} episodes; --control blind plays the others and compares."
    ]


def blind_control(seeing: Iterable[EpisodeResult], blind: Iterable[EpisodeResult]) -> Control:
    """Compare a policy with its blind self, pair by pair.

    Raises:
        ValueError: the two share no episode.
    """
    comparison = compare(seeing, blind)
    if comparison.first_rate == comparison.second_rate == 0.0:
        meaning = "neither succeeded once, so nothing can be said about its use of images"
    elif comparison.distinguishable and comparison.difference > 0:
        meaning = (
            "the policy depends on its images: without frames it succeeds less often, by more than chance would explain"
        )
    elif comparison.distinguishable:
        meaning = "without frames the policy succeeds more often: look for a fault in its images before trusting it"
    else:
        meaning = (
            "on these episodes images make no measurable difference: such a score may come from the robot's own "
            "state, the task's text and memorised motions"
        )
    return Control(name="blind", success_rate=comparison.second_rate, comparison=comparison, meaning=meaning)
