"""Evaluation protocols of LIBERO, and the deviations of a given evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from vla_rl.envs.kind import EnvPlan, EvaluationTerms, ProtocolName
from vla_rl.envs.libero.plan import simulator_deviations
from vla_rl.libero_suites import SUITES

if TYPE_CHECKING:
    from vla_rl.envs.libero.section import LiberoSection

InitStates = Literal["standard", "spare", "sampled", "widened"]

EPISODES_PER_TASK = 50
RENDER_SIZE = 256  # pixels per side that the cameras render, before the policy's own transform

# Control steps of an episode in the papers of SimpleVLA-RL and RLinf, not counting settling.
_LONG_HORIZON = 512
_LONG_HORIZONS = {"libero_10": 520}

_DESCRIPTIONS: Mapping[ProtocolName, str] = {
    "oft": "OpenVLA-OFT: 220, 280, 300, 520 control steps (Spatial, Object, Goal, 10)",
    "long": "as RL papers: 512 control steps in every suite, 520 in libero_10",
}


@dataclass(frozen=True, slots=True)
class Protocol:
    """Protocol for evaluating a suite."""

    name: ProtocolName

    def __post_init__(self) -> None:
        if self.name not in get_args(ProtocolName):
            raise ValueError(f"--protocol: found {self.name!r}; allowed are {', '.join(get_args(ProtocolName))}")

    def horizon(self, suite: str) -> int:
        """Return the control steps of an episode, not counting settling."""
        if self.name == "oft":
            return SUITES[suite].horizon
        return _LONG_HORIZONS.get(suite, _LONG_HORIZON)

    def describe(self) -> dict[str, str | int]:
        """Describe the protocol for a manifest."""
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

    def deviations(self, section: LiberoSection, plan: EnvPlan, terms: EvaluationTerms) -> tuple[str, ...]:
        """Return a sentence for everything in which the evaluation of one suite departs from the protocol.

        Args:
            section: environment of the evaluation.
            plan: plan of the section.
            terms: how its episodes are played.
        """
        assert plan.simulator is not None, "LIBERO has one"
        found = simulator_deviations(plan.simulator)
        expected = self.horizon(section.suite)
        if plan.horizon != expected:
            found.append(f"{section.suite}: horizon {plan.horizon} control steps instead of {expected}")
        if section.init_states != "standard":
            found.append(f"initial states: {section.init_states} instead of the benchmark's standard ones")
        if terms.temperature is not None:
            found.append(f"actions sampled at temperature {terms.temperature:g} instead of greedy ones")
        usual_episodes = EPISODES_PER_TASK if plan.folder is None else plan.folder.episodes_per_task
        if plan.folder is not None:
            found += plan.folder.sentences
        elif len(plan.tasks) < SUITES[section.suite].num_tasks:
            ids = ", ".join(str(task.task_id) for task in plan.tasks)
            found.append(f"{section.suite}: only task {ids} of {SUITES[section.suite].num_tasks}")
        if terms.episodes_per_task != usual_episodes:
            found.append(f"{terms.episodes_per_task} episodes per task instead of {usual_episodes}")
        if terms.render_size not in (None, RENDER_SIZE):
            found.append(f"cameras draw {terms.render_size} pixels a side instead of {RENDER_SIZE}")
        return tuple(found)


OFT = Protocol("oft")
