"""LIBERO's suites in numbers, usable without the simulator, above all by the recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CAMERAS: tuple[Literal["agentview", "wrist"], ...] = ("agentview", "wrist")  # all that policies were trained with


@dataclass(frozen=True, slots=True)
class Suite:
    """One suite of the benchmark."""

    num_tasks: int
    horizon: int  # control steps per episode, without settling: run_libero_eval.py of moojink/openvla-oft
    has_spare_states: bool  # whether the wheel holds initial states beyond the benchmark's 50


SUITES = {
    "libero_spatial": Suite(num_tasks=10, horizon=220, has_spare_states=True),
    "libero_object": Suite(num_tasks=10, horizon=280, has_spare_states=False),
    "libero_goal": Suite(num_tasks=10, horizon=300, has_spare_states=False),
    "libero_10": Suite(num_tasks=10, horizon=520, has_spare_states=True),
    "libero_90": Suite(num_tasks=90, horizon=400, has_spare_states=True),
}
MAIN_SUITES = tuple(name for name in SUITES if name != "libero_90")  # the suites that papers report
