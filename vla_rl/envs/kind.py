"""Interface of a kind of environment: its section of a recipe, and the plan made from it.

A kind is a module or a folder beside this one, which `vla_rl.envs.kinds` lists. Its section is a subclass of
`EnvironmentSection` and needs no simulator; modules that do are imported inside its methods. No other module asks for
the kind: differences between kinds are properties or methods here.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from vla_rl.section import Section, TimeLimit
from vla_rl.types import Environment, StateSpace, TaskInfo

if TYPE_CHECKING:
    from vla_rl.envs.libero.check import SimulatorReport

ProtocolName = Literal["oft", "long"]
SAMPLED = "sampled"  # initial states drawn from a seed; the only ones of most environments
DRAWN = (SAMPLED, "widened")  # LIBERO's sets without stored states: two episodes share one only by chance

EnvBuilder = Callable[[], Environment]
"""Picklable, and free of a simulator until it is called in the process that simulates."""


def no_variables(device: str) -> dict[str, str]:  # noqa: ARG001 - a place in EnvPlan
    """Return nothing: nothing is drawn, or the renderer chooses for itself."""
    return {}


def no_identity() -> dict[str, str]:
    """Return nothing: the program and numpy decide alone about episodes."""
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderSuite:
    """Suite that a folder of the user holds, as far as an evaluation's protocol and results need it."""

    path: str
    base: str  # suite whose horizon and statistics hold for it
    num_tasks: int  # in its own list
    episodes_per_task: int  # by its own protocol
    sentences: tuple[str, ...]  # in what it departs from the benchmark it comes from
    categories: Mapping[int, str]  # of its tasks by id; empty if it has none
    bases: Mapping[int, int]  # ids of the tasks of `base` that its own were made from, where that is known


@dataclass(frozen=True, slots=True)
class EnvPlan:
    """The environments of a run or an evaluation, one entry per task in every sequence."""

    tasks: tuple[TaskInfo, ...]
    builders: tuple[EnvBuilder, ...]
    num_init_states: tuple[int | None, ...]  # None: any number from 0 is one
    horizon: int  # control steps of the longest episode
    deviations: tuple[str, ...] = ()  # from the benchmark's protocol, in words
    simulator: SimulatorReport | None = None
    filming_builders: tuple[EnvBuilder, ...] = ()  # render every control step from all cameras; none: no cameras
    worker_variables: Callable[[str], Mapping[str, str]] = no_variables  # of env workers, by the rank's torch device
    folder: FolderSuite | None = None  # where the tasks are from; None: the environment's own
    identity: Callable[[], Mapping[str, str]] = no_identity  # picklable: what of a machine decides about episodes

    @property
    def tasks_with_stored_states(self) -> list[tuple[str, int]]:
        """Return suite and id of the tasks with a fixed set of initial states: of training, too, and of every seed."""
        counted = zip(self.tasks, self.num_init_states, strict=True)
        return [(task.suite, task.task_id) for task, count in counted if count is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PerturbedTasks:
    """The tasks of a plan under one perturbation, one entry per task in every sequence."""

    kind: str
    level: int
    definition: Mapping[str, Any]  # everything that defines it, for a manifest: JSON values
    tasks: tuple[TaskInfo, ...]  # with the instructions that the policy reads
    builders: tuple[EnvBuilder, ...]
    filming_builders: tuple[EnvBuilder, ...] = ()  # as in `EnvPlan`


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvOptions:
    """Options of an evaluation that change the environment; None is the default."""

    tasks: tuple[int, ...] | None = None
    protocol: ProtocolName = "oft"
    init_states: str | None = None
    horizon: int | None = None  # control steps
    assets: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationTerms:
    """Manner in which the episodes of an evaluation are played."""

    protocol: ProtocolName
    temperature: float | None  # of sampling; None for greedy actions
    episodes_per_task: int  # with each seed
    render_size: int | None  # pixels per side that cameras render, if the policy uses them


class EnvironmentSection(Section):
    """Base of every environment's section. Defaults suit an environment that shows only states."""

    name: str

    suites: ClassVar[tuple[str, ...]] = ()  # by which a policy from elsewhere may name this kind; none: it cannot
    usual_time_limit: ClassVar[TimeLimit] = "end"  # targets.time_limit, where a recipe says nothing
    observes: ClassVar[Literal["frames", "state"]] = "state"
    state_lacks: ClassVar[str] = ""  # why states alone are not sufficient for a policy, if they are not

    @property
    @abstractmethod
    def task_ids(self) -> list[int]:
        """Return the task ids, in order."""

    @property
    @abstractmethod
    def episode_horizon(self) -> int:
        """Return the control steps of the longest episode."""

    @property
    def states(self) -> StateSpace | None:
        """Return sizes for a policy that sees only states; None if states are not sufficient."""
        return None

    @property
    def num_images(self) -> int:
        """Return the camera frames in an observation."""
        return 0

    @property
    def reward_factor(self) -> float:
        """Return what the benchmark's own rewards are multiplied by."""
        return 1.0

    @property
    def suite_name(self) -> str:
        """Return the suite of the tasks; the environment's name if it has no suites."""
        return self.name

    @property
    def init_state_set(self) -> str:
        """Return the set of initial states that episodes start from."""
        return SAMPLED

    @property
    def perturbed_by(self) -> str:
        """Return what perturbs the episodes, in words; empty: nothing does."""
        return ""

    @abstractmethod
    def task_infos(self) -> tuple[TaskInfo, ...]:
        """Describe the tasks, in order; asks for no simulator."""

    def instructions(self) -> dict[int, str]:
        """Return the instructions of all tasks of the suite, by task id; asks for no simulator."""
        return {task.task_id: task.language for task in self.task_infos()}

    @abstractmethod
    def plan(self, *, render_size: int) -> EnvPlan:
        """Turn the section into plain values; `render_size` is what its cameras draw, if it has any.

        Raises:
            ValueError: it cannot be simulated here.
        """

    def decisions_per_episode(self, chunk_size: int) -> int:
        """Return the most decisions that fit in one episode, each of `chunk_size` control steps."""
        return math.ceil(self.episode_horizon / chunk_size)

    @classmethod
    def of_suite(cls, suite: str, *, tasks: Sequence[int] | None, num_images: int) -> Self:
        """Return the section of one of the `suites`.

        Args:
            suite: one of `suites`.
            tasks: task ids; None for all.
            num_images: camera frames that the policy sees.
        """
        raise NotImplementedError(f"{cls.__name__} has no suites, so nothing can ask for {suite}")

    # --- evaluation --------------------------------------------------------------------------------------------------

    def suites_to_play(self, asked: Sequence[str]) -> Sequence[str]:
        """Return the suites of an evaluation; those that were asked for, or the section's own.

        Raises:
            ValueError: one does not exist, or stands twice.
        """
        if tuple(asked) not in ((), (self.name,)):
            raise ValueError(
                f"--suite: the policy was trained on {self.name}, found {', '.join(asked)}; leave the option out"
            )
        return [self.name]

    def evaluation_changes(self, suite: str, options: EnvOptions) -> dict[str, Any]:  # noqa: ARG002 - for kinds with suites
        """Return the fields that an evaluation of a suite sets, with their values.

        Raises:
            ValueError: this environment does not have an option.
        """
        if options.init_states not in (None, SAMPLED):
            raise ValueError(f"--init-states: {self.name} samples its initial states; leave the option out")
        if options.assets is not None:
            raise ValueError(f"--assets: {self.name} has none; leave the option out")
        if options.protocol != "oft":
            raise ValueError(f"--protocol: a protocol is LIBERO's, and the policy was trained on {self.name}")
        changes: dict[str, Any] = {}
        if options.horizon is not None:
            changes["horizon"] = options.horizon
        if options.tasks is not None:
            changes["tasks"] = self.task_entries(options.tasks)
        return changes

    def task_entries(self, ids: Sequence[int]) -> list[int] | list[str]:
        """Return the tasks of these ids as `tasks` has them.

        Raises:
            ValueError: there is no such task.
        """
        return list(ids)

    def plan_folder(self, path: Path, ids: Sequence[int] | None, *, plan: Callable[[], EnvPlan]) -> EnvPlan:  # noqa: ARG002
        """Return the plan of the tasks in a user's folder.

        Args:
            path: the folder.
            ids: positions in its own list; None for all that can be simulated.
            plan: returns the plan of this section, which is asked once the folder's files are known to be in order.

        Raises:
            ValueError: this environment has no folders, or one of the files is wrong; names all that are.
        """
        raise ValueError(f"--suite: {self.name} has no tasks in folders, found {path}; leave the option out")

    def perturbed(self, plan: EnvPlan, asked: str) -> tuple[PerturbedTasks, ...]:  # noqa: ARG002 - for kinds with some
        """Return the tasks of a plan under each perturbation that was asked for.

        Args:
            plan: of this section.
            asked: names and levels, as the option `--perturb` has them.

        Raises:
            ValueError: a name or a level does not exist.
        """
        raise ValueError(f"--perturb: {self.name} has no perturbations; leave the option out")

    def evaluation_deviations(self, plan: EnvPlan, terms: EvaluationTerms) -> tuple[str, ...]:  # noqa: ARG002
        """Return a sentence for everything in which an evaluation departs from the benchmark's protocol.

        Args:
            plan: of this section.
            terms: how its episodes are played.
        """
        return plan.deviations


def known_suites(asked: Sequence[str], allowed: Collection[str]) -> Sequence[str]:
    """Return the suites that were asked for, each checked.

    Raises:
        ValueError: one does not exist, or stands twice.
    """
    if set(asked) - set(allowed) or len(set(asked)) != len(asked):
        raise ValueError(f"--suite: found {', '.join(asked)}; allowed are {', '.join(allowed)}, each once")
    return asked
