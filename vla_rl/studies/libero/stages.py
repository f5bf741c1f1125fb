"""Stages of the LIBERO study as jobs, each a command of the program.

demos ─► sft ─► start_STEP (each candidate) ─► before_ACTIONS, before_videos
└─► RUN ─► RUN_ACTIONS, RUN_videos

A study from a given checkpoint begins with `before` and the runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from vla_rl.errors import UserError, preflight
from vla_rl.evaluation.episode_log import EPISODES_FILE, read_episodes
from vla_rl.evaluation.eval_results import summarise
from vla_rl.recipe import Recipe
from vla_rl.run.plan import check_contradictions, plan_policy
from vla_rl.studies.held_out import EVALUATED_ENV_STEPS_PER_S, START_S, LiberoTasks, evaluation_job, held_out_options
from vla_rl.studies.jobs import ONE_CORE, Job, resume_option, share_of_updates
from vla_rl.studies.libero.plan import (
    ACTIONS,
    CHOICE_SEED,
    TINY,
    Actions,
    Plan,
    StudyRun,
    choose_start,
)
from vla_rl.studies.pace import Expected
from vla_rl.studies.study_plan import memory_of_run

JOBS = "jobs"
JOB_FILE = "study_job.json"
DATA = "data"  # folder of the demonstrations in their job's folder
POLICY = "policy"  # folder of the policy in the folder of a supervised run

# Rates of one virtual core that nothing else keeps busy, from CPU times; other machines differ by a factor.
DEMONSTRATION_S = 1.5
FRAMES_S = 20.0  # preparation of the demonstrations' frames
SFT_BATCH, SFT_SAMPLES_PER_S = 16, 130.0
ENV_STEPS_PER_S = 165.0  # fast physics, the policy's answers included
SAMPLES_PER_S = 225.0
RATED_PARAMETERS = 4_460_984  # of the policy that these are the rates of
SHARE_OF_HORIZON = 0.7  # of a training episode, in the mean: successful ones end early
FILMED_ENV_STEPS_PER_S = 30.0


def jobs_of(plan: Plan, out: Path) -> list[Job]:
    """Return all jobs of a study, in the order in which they should run.

    Raises:
        UserError: a recipe does not fit.
    """
    stages = Stages(plan, out / JOBS)
    cloning = [] if plan.start else [stages.demos(), *map(stages.sft, plan.sft_steps)]
    choosing = [] if plan.start else [*map(stages.choice, plan.sft_steps)]
    before = [stages.evaluation("before", actions, stages.start, needs=stages.choices) for actions in ACTIONS]
    jobs = [*cloning, *choosing, *before]
    jobs.append(stages.videos("before", stages.start, needs=stages.choices))
    for number, run in enumerate(plan.runs()):
        jobs.append(stages.run(run))
        jobs += [
            stages.evaluation(run.name, actions, stages.folder_of(run.name), needs=(run.name,), controls=number == 0)
            for actions in ACTIONS
        ]
        if number == 0:
            jobs.append(stages.videos(run.name, stages.folder_of(run.name), needs=(run.name,)))
    return jobs


def why_a_guess(recipe: Recipe) -> str:
    """Return why the rates above are not those of a recipe; empty where its policy is about as large as theirs.

    Raises:
        UserError: the policy is not possible here.
    """
    with preflight():
        policy = plan_policy(recipe.setup)
    parameters = policy.trainable_parameters + policy.frozen_parameters
    if parameters < 10 * RATED_PARAMETERS:
        return ""
    return (
        f"the rates are of a policy with {RATED_PARAMETERS / 1e6:.0f} million parameters on a CPU, and this one has "
        f"{parameters / 1e6:,.0f} million"
    )


def sft_name(steps: int) -> str:
    """Return the name of the job that clones the demonstrations for so many optimizer steps."""
    return f"sft_{steps}"


def choice_name(step: int) -> str:
    """Return the name of the job that evaluates a candidate for the start."""
    return f"start_{step}"


def evaluation_name(subject: str, actions: Actions) -> str:
    """Return the name of the job that evaluates `before` or a run."""
    return f"{subject}_{actions}"


class Stages:
    """Commands of a study's jobs."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        """Take the plan and the folder of the jobs' folders.

        Raises:
            UserError: the recipe does not fit or is not possible here, a given start is no checkpoint that it can be
                trained from, or none is given and the recipe is of another policy than the study clones.
        """
        self._plan, self._folder = plan, folder
        self._recipe = plan.recipe_of(plan.runs()[0])
        self._tasks = ",".join(map(str, plan.tasks))
        if plan.start:
            with preflight():
                check_contradictions(plan_policy(self._recipe.setup).contradictions, source=self._recipe.name)
        else:
            _check_cloned(plan)
        alike = {run.regime: run for run in plan.runs()}  # arm and seed change no sizes
        self._memory = {regime: memory_of_run(plan.recipe_of(run)) for regime, run in alike.items()}

    @property
    def choices(self) -> tuple[str, ...]:
        """Return the names of the jobs that the choice of the start needs; none if it is given."""
        return () if self._plan.start else tuple(map(choice_name, self._plan.sft_steps))

    def folder_of(self, name: str) -> Callable[[], Path]:
        """Return the folder of a finished job, as a function."""
        return lambda: self._folder / name

    def start(self) -> Path:
        """Return the checkpoint that RL starts from; all candidates must have been evaluated."""
        if self._plan.start:
            return Path(self._plan.start)
        return self._candidate(chosen_step(self._plan, self._folder))

    def _candidate(self, step: int) -> Path:
        return candidate(self._folder, step)

    def demos(self) -> Job:
        """Collect demonstrations with the scripted expert, from sampled states."""
        plan = self._plan
        return Job(
            name="demos",
            arguments=lambda folder: [
                *("demos", "collect", "--suite", plan.suite, "--tasks", self._tasks),
                *("--init-states", plan.init_states, "--episodes", str(plan.demonstrations)),
                *("--image-size", str(self._render_size())),
                *("--out", str(folder / DATA)),
            ],
            expected=Expected(START_S, DEMONSTRATION_S * plan.demonstrations * len(plan.tasks) / 2, cores=2),
            share=lambda _: 0.0,
            record={"stage": "demos"},
            continues=True,
        )

    def sft(self, steps: int) -> Job:
        """Clone the demonstrations for so many optimizer steps, a whole schedule: a candidate for the start."""
        plan = self._plan
        return Job(
            name=sft_name(steps),
            arguments=lambda folder: [
                *("sft", plan.sft_recipe, f"demos.path={self._folder / 'demos' / DATA}", f"demos.suite={plan.suite}"),
                *(f"name={sft_name(steps)}", f"budget.optimizer_steps={steps}"),
                *(ONE_CORE, "runtime.loader_threads=1", "--run-dir", str(folder), *resume_option(folder)),
            ],
            expected=Expected(START_S + FRAMES_S, steps * SFT_BATCH / SFT_SAMPLES_PER_S),
            share=lambda folder: share_of_updates(folder, optimizer_steps=steps),
            record={"stage": "sft", "optimizer_steps": steps},
            needs=("demos",),
            continues=True,
        )

    def choice(self, step: int) -> Job:
        """Evaluate a candidate as training would play it, on states of its own."""
        return self._evaluate(
            choice_name(step),
            lambda: self._candidate(step),
            ["--init-states", self._plan.init_states, "--seed", str(CHOICE_SEED), *self._actions("sampled")],
            states=self._plan.choice_states,
            record={"stage": "choice", "optimizer_steps": step},
            needs=(sft_name(step),),
        )

    def evaluation(
        self,
        subject: str,
        actions: Actions,
        policy: Callable[[], Path],
        *,
        needs: Sequence[str],
        controls: bool = True,
    ) -> Job:
        """Evaluate the start (`before`) or a run's policy on the held-out states; controls with sampled actions."""
        with_controls = controls and actions == "sampled"
        return self._evaluate(
            evaluation_name(subject, actions),
            policy,
            [
                *self._held_out(),
                *self._actions(actions),
                *(["--control", "blind,instruction"] if with_controls else []),
            ],
            states=self._plan.states,
            passes=3 if with_controls else 1,
            record={"stage": "evaluation", "subject": subject, "actions": actions},
            needs=needs,
        )

    def videos(self, subject: str, policy: Callable[[], Path], *, needs: Sequence[str]) -> Job:
        """Film one episode of every task, on the first held-out state."""
        return self._evaluate(
            f"{subject}_videos",
            policy,
            [*self._held_out(), *self._actions("sampled"), "--video", "all"],
            states=1,
            record={"stage": "videos", "subject": subject},
            needs=needs,
            env_steps_per_s=FILMED_ENV_STEPS_PER_S,
        )

    def _render_size(self) -> int:
        """Return the pixels per side that the policy's camera draws."""
        transform = plan_policy(self._recipe.setup).transform
        assert transform is not None, "policies in LIBERO see frames"
        return transform.input_size

    def _held_out(self) -> list[str]:
        return held_out_options(self._plan.init_states)

    def _actions(self, actions: Actions) -> list[str]:
        return ["--temperature", str(self._recipe.rollout.temperature)] if actions == "sampled" else []

    def _evaluate(
        self,
        name: str,
        policy: Callable[[], Path],
        options: Sequence[str],
        *,
        states: int,
        record: dict[str, object],
        needs: Sequence[str],
        passes: int = 1,
        env_steps_per_s: float = EVALUATED_ENV_STEPS_PER_S,
    ) -> Job:
        return evaluation_job(
            name,
            policy,
            options,
            of=LiberoTasks(self._plan.suite, self._plan.tasks, self._recipe.env.episode_horizon),
            states=states,
            record=record,
            needs=needs,
            passes=passes,
            env_steps_per_s=env_steps_per_s,
        )

    def run(self, run: StudyRun) -> Job:
        """Train from the start."""
        plan, recipe = self._plan, self._plan.recipe_of(run)
        segments = recipe.budget.optimizer_steps * recipe.learner.batch_segments
        consumed = SHARE_OF_HORIZON * segments * recipe.replay.segment_length
        env_steps = 8 * (recipe.replay.min_decisions + consumed / recipe.replay.replay_ratio)
        return Job(
            name=run.name,
            arguments=lambda folder: [
                *("train", plan.recipe, *plan.overrides(run, start=str(self.start())), ONE_CORE),
                *("--run-dir", str(folder), *resume_option(folder)),
            ],
            expected=Expected(
                START_S, env_steps / ENV_STEPS_PER_S + consumed / SAMPLES_PER_S, memory=self._memory[run.regime]
            ),
            share=lambda folder: share_of_updates(folder, optimizer_steps=plan.optimizer_steps),
            record={"stage": "run", "arm": run.arm, "regime": run.regime, "seed": run.seed},
            needs=self.choices,
            continues=True,
        )


def _check_cloned(plan: Plan) -> None:
    """Check that a study that clones its start has a recipe of the policy that it clones.

    Raises:
        UserError: the recipe names another.
    """
    checkpoint = getattr(plan.base().policy, "checkpoint", None)
    if checkpoint != TINY:
        raise UserError(
            f"--recipe: policy.checkpoint is {checkpoint} in {plan.recipe}, but without --start all runs start from a "
            f"clone of the policy {TINY}. Add --start DIR, the folder of the checkpoint to start from, or choose a "
            f"recipe whose policy.checkpoint is {TINY}"
        )


def candidate(folder: Path, step: int) -> Path:
    """Return the policy that was cloned for so many optimizer steps; `folder` is that of the jobs."""
    return folder / sft_name(step) / POLICY


def chosen_step(plan: Plan, folder: Path) -> int:
    """Return the optimizer steps of the cloned policy that RL starts from.

    Raises:
        FileNotFoundError: a candidate has not been evaluated.
        ValueError: its episodes cannot be read.
    """
    return choose_start(success_of_candidates(plan, folder), plan.window)


def success_of_candidates(plan: Plan, folder: Path) -> dict[int, float]:
    """Return the success rate of every candidate by its optimizer steps, mean over tasks."""
    rates = {}
    for step in plan.sft_steps:
        episodes = read_episodes(folder / choice_name(step) / EPISODES_FILE)
        (suite,) = summarise(episodes).suites
        rates[step] = suite.success_rate
    return rates
