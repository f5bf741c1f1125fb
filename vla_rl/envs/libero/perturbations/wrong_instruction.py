"""Instruction of another task."""

from __future__ import annotations

from collections.abc import Sequence

from vla_rl.envs.libero.perturbations.kind import LEVELS, Kind, Numbers
from vla_rl.types import TaskInfo


def shared_words(first: str, second: str) -> float:
    """Return the words that two sentences share, as a part of all words of both: 0 for none, 1 for the same words."""
    ours, theirs = set(first.split()), set(second.split())
    return len(ours & theirs) / len(ours | theirs)


class WrongInstruction(Kind):
    """The policy reads the instruction of another task of the suite; success is still that of the task shown.

    A policy that reads its instruction fails; one that succeeds goes by the picture alone.
    """

    name = "wrong-instruction"
    group = "instruction"
    summary = "the instruction is another task's: success means that it is not read"
    source = "ours (LIBERO-plus has none)"
    tells = True

    def numbers(self, level: int) -> Numbers:
        """Return the place among the suite's other instructions, from the most similar one (0) to the least (1)."""
        return {"similarity_rank": (level - 1) / (len(LEVELS) - 1), "similarity": "share of common words"}

    def instruction(self, level: int, task: TaskInfo, suite: Sequence[TaskInfo]) -> str:
        """Return another task's instruction."""
        others = sorted(
            (other for other in suite if other.language != task.language),
            key=lambda other: (-shared_words(other.language, task.language), other.task_id),
        )
        return others[round((level - 1) / (len(LEVELS) - 1) * (len(others) - 1))].language
