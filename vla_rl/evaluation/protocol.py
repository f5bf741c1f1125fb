"""How LIBERO is evaluated, and in what a given evaluation departs from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from vla_rl.libero_suites import SUITES
from vla_rl.recipe import LiberoSection
from vla_rl.run.env_plan import simulator_deviations
from vla_rl.run.plan import Plan

ProtocolName = Literal["oft", "long"]
InitStates = Literal["standard", "spare", "sampled"]

EPISODES_PER_TASK = 50
RENDER_SIZE = 256  # pixels a side that the cameras draw, before the policy's own transform

# Control steps of an episode in the papers of SimpleVLA-RL and RLinf, settling not counted.
_LONG_HORIZON = 512
_LONG_HORIZONS = {"libero_10": 520}

_DESCRIPTIONS: Mapping[ProtocolName, str] = {
    "oft": "OpenVLA-OFT: 220, 280, 300, 520 control steps (Spatial, Object, Goal, 10)",
    "long": "as RL papers: 512 control steps in every suite, 520 in libero_10",
}


@dataclass(frozen=True, slots=True)
class Protocol:
    """One way of evaluating a suite."""

    name: ProtocolName

    def __post_init__(self) -> None:
        if self.name not in get_args(ProtocolName):
            raise ValueError(f"--protocol: found {self.name!r}; allowed are {', '.join(get_args(ProtocolName))}")

    def horizon(self, suite: str) -> int:
        """Control steps of an episode, settling not counted."""
        if self.name == "oft":
            return SUITES[suite].horizon
        return _LONG_HORIZONS.get(suite, _LONG_HORIZON)

    def describe(self) -> dict[str, str | int]:
        """The protocol for a manifest."""
        return {
            "name": self.name,
            "horizons": _DESCRIPTIONS[self.name],
            "settle_steps": 10,
            "actions": "greedy, chunks executed open loop",
            "init_states": "standard",
            "episodes_per_task": EPISODES_PER_TASK,
            "placement": "fixtures from (seed, task, initial state); OFT's script seeds once per task, so that its "
            "placement depends on the order of episodes",
        }

    def deviations(self, plan: Plan, *, temperature: float | None, episodes_per_task: int) -> tuple[str, ...]:
        """One sentence for everything in which the evaluation of one suite departs from the protocol.

        Args:
            plan: of the evaluation.
            temperature: of the sampling; None for greedy actions.
            episodes_per_task: with each seed.
        """
        section = plan.recipe.env
        if not isinstance(section, LiberoSection) or plan.env.simulator is None:
            return plan.env.deviations  # the protocol is LIBERO's
        found = simulator_deviations(plan.env.simulator)
        expected = self.horizon(section.suite)
        if plan.env.horizon != expected:
            found.append(f"{section.suite}: horizon {plan.env.horizon} control steps instead of {expected}")
        if section.init_states != "standard":
            found.append(f"initial states: {section.init_states} instead of the benchmark's standard ones")
        if temperature is not None:
            found.append(f"actions sampled at temperature {temperature:g} instead of greedy ones")
        if len(plan.env.tasks) < SUITES[section.suite].num_tasks:
            ids = ", ".join(str(task.task_id) for task in plan.env.tasks)
            found.append(f"{section.suite}: only task {ids} of {SUITES[section.suite].num_tasks}")
        if episodes_per_task != EPISODES_PER_TASK:
            found.append(f"{episodes_per_task} episodes per task instead of {EPISODES_PER_TASK}")
        if plan.transform is not None and plan.transform.input_size != RENDER_SIZE:
            found.append(f"cameras draw {plan.transform.input_size} pixels a side instead of {RENDER_SIZE}")
        return tuple(found)


OFT = Protocol("oft")
