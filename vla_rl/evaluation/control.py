"""Controls of an evaluation: the same policy on the same episodes without something that it should depend on.

`blind` takes away the images, `instruction` gives every task the instruction of another one. If success does not fall,
the score says nothing about the use of images or of language.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from vla_rl.evaluation.episode_log import EpisodeResult, read_episodes
from vla_rl.evaluation.pairs import Comparison, compare
from vla_rl.evaluation.statistics import wilson_interval
from vla_rl.types import FrameTransform, UInt8Array

ControlName = Literal["blind", "instruction"]
LARGE = 0.2  # fall of the success rate; where one as large is not excluded, a control shows nothing


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
    """Comparison of the policy with itself under a control."""

    name: ControlName
    success_rate: float  # under the control, mean over tasks
    comparison: Comparison  # the first is the policy without the control
    meaning: str  # one sentence

    @property
    def subject(self) -> str:
        """Return what the control takes away, in words."""
        return _WORDS[self.name].subject


@dataclass(frozen=True, slots=True)
class _Words:
    """Sentences about the outcomes of a control."""

    subject: str  # with its verb
    falls: str
    rises: str
    same: str
    nothing: str


_WORDS: Mapping[ControlName, _Words] = {
    "blind": _Words(
        subject="images make",
        falls="the policy depends on its images: without frames it succeeds less often, by more than chance would "
        "explain",
        rises="without frames the policy succeeds more often: look for a fault in its images before trusting it",
        same="on these episodes images make no measurable difference: such a score may come from the robot's own "
        "state, the task's text and memorised motions",
        nothing="neither succeeded once, so nothing can be said about its use of images",
    ),
    "instruction": _Words(
        subject="the right instruction makes",
        falls="the policy depends on its instruction: with that of another task it succeeds less often, by more than "
        "chance would explain",
        rises="with the instruction of another task the policy succeeds more often: look for a fault in its prompts "
        "before trusting it",
        same="on these episodes the instruction makes no measurable difference: the policy may identify tasks "
        "by the scene only",
        nothing="neither succeeded once, so nothing can be said about its use of the instruction",
    ),
}
CONTROLS: tuple[ControlName, ...] = tuple(_WORDS)


def episodes_file(name: ControlName) -> str:
    """Return the name of a control's log of episodes."""
    return f"episodes_{name}.jsonl"


def wrong_instructions(instructions: Mapping[int, str], *, among: Collection[int]) -> dict[int, str]:
    """Return for every task the instruction of another one: the next task, in a circle, with another text.

    Args:
        instructions: instructions of a suite by task id.
        among: ids of the tasks that the policy knows. If a task is one of them, so is the other one: an unknown
            instruction might fail only because it is unknown.

    Raises:
        ValueError: a task has no other one.
    """
    return {task_id: _of_another(task_id, instructions, among) for task_id in instructions}


def _of_another(task_id: int, instructions: Mapping[int, str], among: Collection[int]) -> str:
    known = [other for other in _circle(instructions, task_id) if other in among] if task_id in among else []
    for other in (*known, *_circle(instructions, task_id)):
        if instructions[other] != instructions[task_id]:
            return instructions[other]
    raise ValueError("--control instruction: all tasks have the same instruction; leave the option out")


def _circle(ids: Iterable[int], start: int) -> list[int]:
    """Return the other ids in ascending order, from the one after `start` round to the one before it."""
    return sorted((other for other in ids if other != start), key=lambda other: (other < start, other))


def stored_controls(folder: Path, episodes: Sequence[EpisodeResult]) -> tuple[tuple[Control, ...], list[str]]:
    """Return the complete controls recorded in an evaluation's folder, and a sentence about each incomplete one.

    Args:
        folder: folder of the evaluation.
        episodes: its episodes without a control.

    Raises:
        ValueError: a log is broken.
    """
    controls, gaps = [], []
    for name in CONTROLS:
        log = folder / episodes_file(name)
        played = read_episodes(log) if log.exists() else []
        if played and len(played) == len(episodes):
            controls.append(compare_control(name, episodes, played))
        elif played:
            gaps.append(
                f"the {name} control has {len(played)} of {len(episodes)} episodes; --control {name} plays the others "
                "and compares."
            )
    return tuple(controls), gaps


def compare_control(
    name: ControlName, episodes: Iterable[EpisodeResult], controlled: Iterable[EpisodeResult]
) -> Control:
    """Compare a policy with itself under a control, pair by pair.

    Args:
        name: the control.
        episodes: episodes without it.
        controlled: episodes with it.

    Raises:
        ValueError: the two share no episode.
    """
    comparison, words = compare(episodes, controlled), _WORDS[name]
    if comparison.first_rate == comparison.second_rate == 0.0:
        meaning = words.nothing
    elif comparison.distinguishable:
        meaning = words.falls if comparison.difference > 0 else words.rises
    elif _largest_fall(comparison) >= LARGE:
        meaning = (
            f"{comparison.pairs} episodes are too few to tell whether {words.subject} a difference: success changes by "
            f"{0 - 100 * comparison.difference:+.0f} points, which may be chance"
        )
    else:
        meaning = words.same
    return Control(name=name, success_rate=comparison.second_rate, comparison=comparison, meaning=meaning)


def _largest_fall(comparison: Comparison) -> float:
    """Return the largest fall of the success rate that is not excluded.

    A bootstrap redraws only what happened; that nothing fell in a few initial states excludes as much as Wilson does.
    """
    found = comparison.difference if comparison.interval is None else comparison.interval.high
    return max(found, wilson_interval(0, comparison.initial_states).high)
