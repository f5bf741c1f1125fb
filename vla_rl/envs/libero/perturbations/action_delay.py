"""Commands that arrive late."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from vla_rl.envs.libero.perturbations.kind import Effect, Kind, Numbers
from vla_rl.types import TaskInfo

REST = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])  # no motion, gripper open, as while the objects settle


class _Delay(Effect):
    def __init__(self, steps: int) -> None:
        self._waiting = deque([REST] * steps)

    def action(self, action: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:  # noqa: ARG002
        self._waiting.append(action)
        return self._waiting.popleft()


class ActionDelay(Kind):
    """Every action is executed some control steps later; before the first one, the arm rests."""

    name = "action-delay"
    group = "action"
    summary = "actions are executed late"
    source = "ours (LIBERO-plus has none)"
    moves = True

    def numbers(self, level: int) -> Numbers:
        """Return the delay; a control step is 50 ms."""
        return {"delay_control_steps": level, "delay_ms": 50 * level}

    def draw(self, level: int, task: TaskInfo, rng: np.random.Generator) -> Effect:  # noqa: ARG002
        """Start with the rest that is executed meanwhile."""
        return _Delay(level)
