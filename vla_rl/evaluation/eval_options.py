"""Options of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vla_rl.envs.kind import EnvOptions
from vla_rl.envs.libero.protocol import EPISODES_PER_TASK, OFT, InitStates, Protocol
from vla_rl.evaluation.control import ControlName
from vla_rl.evaluation.video import Keep


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalOptions:
    """Options of an evaluation; omitted ones have their defaults."""

    suites: tuple[str, ...] = ()  # none: that of the training
    tasks: tuple[int, ...] | None = None  # None: those of the training; in another suite all
    episodes_per_task: int = EPISODES_PER_TASK  # initial states 0 .. n - 1 of each task, with each seed
    protocol: Protocol = OFT
    workers: int | None = None  # simulator processes; None: `suite_plans.usual_workers`
    step_timeout: float | None = None  # seconds that a process may be silent; None: as in the training, or 120
    start_timeout: float | None = None  # the same while it builds; None: as in the training, or 300
    seeds: tuple[int, ...] = (0,)  # seeds of the environments: every episode is played with each
    init_states: InitStates | None = None  # None: `standard`, the benchmark's
    horizon: int | None = None  # control steps, instead of the protocol's
    temperature: float | None = None  # temperature of sampling; None: greedy
    controls: tuple[ControlName, ...] = ()  # all episodes are played once more under each
    perturb: str | None = None  # perturbations under each of which all episodes are played once more
    video: Keep | None = None  # episodes of which videos are written
    assets: str | None = None  # assets of the simulator, instead of those of the training
    allow_unpinned: bool = False  # versions of the simulator other than those of published scores
    profile: str = "auto"  # of a checkpoint directory
    statistics: str | None = None  # key of the data set that scales actions; None: as the policy says
    self_test: bool = True  # a checkpoint directory is tested for faults that fail silently
    serial: bool = False  # one process in a fixed order, one episode at a time: repeats bit by bit
    pictures: bool = True  # draw the success per task; an evaluation while training leaves that to the report
    out: Path | None = None  # where results are written; None: below `eval/` of the run

    @property
    def env(self) -> EnvOptions:
        """Return the options of the environment."""
        return EnvOptions(
            tasks=self.tasks,
            protocol=self.protocol.name,
            init_states=self.init_states,
            horizon=self.horizon,
            assets=self.assets,
        )
