"""LIBERO in a recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from vla_rl.envs.kind import EnvironmentSection, EnvOptions, EnvPlan, EvaluationTerms, PerturbedTasks, known_suites
from vla_rl.envs.libero.perturb_section import PerturbSection
from vla_rl.libero_suites import CAMERAS, SUITES
from vla_rl.section import Horizon, NonNegative, PathText, Problem, RulesError, distinct, path_from_here
from vla_rl.types import TaskInfo


class LiberoSection(EnvironmentSection):
    """LIBERO on robosuite and MuJoCo."""

    name: Literal["libero"]
    suite: Literal["libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90"] = Field(
        description="LIBERO suite"
    )
    tasks: Literal["all"] | list[NonNegative] = Field("all", description="task ids in the benchmark's own order")
    assets: PathText = Field("auto", description="auto, proxy, or a folder in the layout of LIBERO's assets/")
    init_states: Literal["standard", "spare", "sampled", "widened"] = Field(
        "sampled",
        description="standard: the benchmark's 50; spare: 50 further stored states; sampled: LIBERO's own sampler; "
        "widened: sampled after moving the scene by some centimetres, which the benchmark does not do",
    )
    cameras: list[Literal["agentview", "wrist"]] = Field(
        ["agentview"], description="frames the policy sees, in this order"
    )
    physics: Literal["exact", "fast"] = Field(
        "exact", description="exact: bit-identical to LIBERO; fast: one solve per substep, only for training"
    )
    horizon: Horizon | None = Field(None, description="control steps per episode; default: the suite's own")
    gl: Literal["auto", "egl", "osmesa"] = Field("auto", description="renderer; auto: EGL if it works, else OSMesa")
    perturb: PerturbSection | None = None

    suites: ClassVar[tuple[str, ...]] = tuple(SUITES)
    observes: ClassVar[Literal["frames", "state"]] = "frames"
    state_lacks: ClassVar[str] = "LIBERO's state is the robot's own 8 numbers: no object is in it"

    @model_validator(mode="after")
    def _suite_offers_it(self) -> Self:
        problems = distinct("tasks", self.tasks) + distinct("cameras", self.cameras)
        count = SUITES[self.suite].num_tasks
        bad = [] if self.tasks == "all" else [task for task in self.tasks if task >= count]
        if bad:
            problems.append(
                Problem("tasks", f"{self.suite} does not have these tasks", str(bad), f"0..{count - 1}, all")
            )
        if self.init_states == "spare" and not SUITES[self.suite].has_spare_states:
            problems.append(Problem("init_states", f"{self.suite} has no spare ones", "spare", "sampled, standard"))
        if problems:
            raise RulesError(problems)
        return self

    @classmethod
    def of_suite(cls, suite: str, *, tasks: Sequence[int] | None, num_images: int) -> Self:
        """Return the section of a suite, seen through the first cameras that policies were trained with."""
        chosen = "all" if tasks is None else list(tasks)
        cameras = list(CAMERAS[:num_images])
        return cls.model_validate({"name": "libero", "suite": suite, "tasks": chosen, "cameras": cameras})

    def found_from(self, started_in: Path | None) -> Self:
        """Return the section with its assets where the run found them, if they are not here; see the base."""
        if self.assets in ("auto", "proxy"):
            return self
        return self.model_copy(update={"assets": path_from_here(self.assets, started_in)})

    @property
    def task_ids(self) -> list[int]:
        """Return the task ids, in order."""
        return list(range(SUITES[self.suite].num_tasks)) if self.tasks == "all" else list(self.tasks)

    @property
    def episode_horizon(self) -> int:
        """Return the control steps of the longest episode."""
        return self.horizon or SUITES[self.suite].horizon

    @property
    def num_images(self) -> int:
        """Return the camera frames in an observation."""
        return len(self.cameras)

    @property
    def suite_name(self) -> str:
        """Return the suite of the tasks."""
        return self.suite

    @property
    def init_state_set(self) -> str:
        """Return the set of initial states that episodes start from."""
        return self.init_states

    @property
    def perturbed_by(self) -> str:
        """Return what perturbs the episodes, in words."""
        return "" if self.perturb is None else str(self.perturb)

    def task_infos(self) -> tuple[TaskInfo, ...]:
        """Describe the tasks, in order; hf-libero names them."""
        from vla_rl.envs.libero.suites import libero_tasks

        known = libero_tasks(self.suite)
        return tuple(known[task_id] for task_id in self.task_ids)

    def instructions(self) -> dict[int, str]:
        """Return the instructions of all tasks of the suite, by task id; hf-libero has them."""
        from vla_rl.envs.libero.suites import libero_tasks

        return {task.task_id: task.language for task in libero_tasks(self.suite)}

    def plan(self, *, render_size: int) -> EnvPlan:
        """Turn the section into plain values; `render_size` is what its cameras draw.

        Raises:
            SimulatorError: it cannot be simulated here.
        """
        from vla_rl.envs.libero.plan import plan_libero

        return plan_libero(self, render_size=render_size)

    def suites_to_play(self, asked: Sequence[str]) -> Sequence[str]:
        """Return the suites of an evaluation; those that were asked for, or the section's own.

        Raises:
            ValueError: one does not exist, or stands twice.
        """
        return known_suites(asked, self.suites) or [self.suite]

    def evaluation_changes(self, suite: str, options: EnvOptions) -> dict[str, Any]:
        """Return the fields that an evaluation of a suite sets, with their values."""
        from vla_rl.envs.libero.protocol import Protocol

        changes: dict[str, Any] = {
            "suite": suite,
            "init_states": options.init_states or "standard",
            "perturb": None,  # an evaluation has --perturb
            "physics": "exact",  # fast physics is for training: scores require LIBERO's own
            "horizon": options.horizon or Protocol(options.protocol).horizon(suite),
        }
        if suite != self.suite:
            changes["tasks"] = "all"
        if options.tasks is not None:
            changes["tasks"] = list(options.tasks)
        if options.assets is not None:
            changes["assets"] = options.assets
        return changes

    def plan_folder(self, path: Path, ids: Sequence[int] | None, *, plan: Callable[[], EnvPlan]) -> EnvPlan:
        """Return the plan of the tasks in a user's folder; see the base."""
        from vla_rl.envs.libero.folders.folder_plan import plan_folder

        return plan_folder(self, path, ids, plan=plan)

    def perturbed(self, plan: EnvPlan, asked: str) -> tuple[PerturbedTasks, ...]:
        """Return the tasks of a plan under each perturbation that was asked for; see the base."""
        from vla_rl.envs.libero.perturbed_plan import perturbed_tasks
        from vla_rl.envs.libero.suites import libero_tasks

        return perturbed_tasks(plan, asked, suite=libero_tasks(self.suite))

    def evaluation_deviations(self, plan: EnvPlan, terms: EvaluationTerms) -> tuple[str, ...]:
        """Return a sentence for everything in which an evaluation departs from the protocol; see the base."""
        from vla_rl.envs.libero.protocol import Protocol

        return Protocol(terms.protocol).deviations(self, plan, terms)
