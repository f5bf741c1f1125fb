"""Evaluate a checkpoint: exactly the asked episodes, greedy, whatever the number of workers.

Episodes are handed out one by one from a central queue; a worker that dies costs a retry, not an episode. Results are
appended as they come, so an interrupted evaluation goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vla_rl.evaluation.episodes import EPISODES_FILE, EpisodeLog, EpisodeResult
from vla_rl.evaluation.results import EvaluationSummary, write_results
from vla_rl.ipc.shared_arrays import sweep_stale
from vla_rl.learner.checkpoint import FOLDER, CheckpointError, find_latest, load_policy
from vla_rl.recipe import LiberoSection, Recipe, ToySection, load_recipe
from vla_rl.reporting.manifest import MANIFEST_FILE, write_manifest
from vla_rl.run.assembly import make_cell, make_memory, trainable_tensors
from vla_rl.run.folder import RECIPE_FILE
from vla_rl.run.plan import Plan, make_plan
from vla_rl.workers.episodes import EpisodeJob, EpisodeRecord

Progress = Callable[[int, int, int], None]
"""(episodes done, episodes in all, successes so far)"""


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """What an evaluation found, and under which conditions."""

    checkpoint: Path
    folder: Path  # of results.json, results.csv, episodes.jsonl, manifest.json
    summary: EvaluationSummary
    deviations: tuple[str, ...]

    def to_json(self) -> str:
        """The report as one JSON object."""
        return json.dumps(
            {
                "checkpoint": str(self.checkpoint),
                "folder": str(self.folder),
                "deviations": list(self.deviations),
                **asdict(self.summary),
            },
            indent=2,
        )

    def __str__(self) -> str:
        lines = [f"{'suite':<16} {'task':>5} {'episodes':>8} {'success':>8}  95 % interval"]
        lines += [
            f"{row['suite']:<16} {row['task_id']:>5} {row['episodes']:>8} {100 * float(row['success_rate']):>7.1f}%  "
            f"{100 * float(row['wilson_low']):.1f} to {100 * float(row['wilson_high']):.1f}"
            for row in self.summary.rows()
        ]
        lines += [f"note: {note}" for note in self.summary.notes]
        lines += [f"deviation from the protocol: {deviation}" for deviation in self.deviations]
        return "\n".join([*lines, f"results: {self.folder}"])


def evaluate(
    checkpoint: Path,
    *,
    suite: str | None = None,
    tasks: Sequence[int] | None = None,
    episodes_per_task: int = 50,
    workers: int = 1,
    seed: int = 0,
    out: Path | None = None,
    horizon: int | None = None,
    progress: Progress | None = None,
) -> EvaluationReport:
    """Evaluate a checkpoint on the benchmark's standard initial states.

    Args:
        checkpoint: a checkpoint's folder, or a run's: its newest whole checkpoint.
        suite: instead of the one of the training.
        tasks: task ids, instead of those of the training.
        episodes_per_task: initial states 0 .. n - 1 of each task.
        workers: simulator processes.
        seed: of the environments.
        out: where results are written; default: eval/ of the run.
        horizon: control steps, instead of the suite's.
        progress: told after every episode.

    Raises:
        ValueError: the checkpoint or the choices do not fit; nothing was started.
        CellFailureError: a part failed for good.
    """
    path = _checkpoint_folder(checkpoint)
    run_dir = path.parent.parent
    recipe = _evaluation_recipe(
        load_recipe(run_dir / RECIPE_FILE), suite=suite, tasks=tasks, workers=workers, horizon=horizon
    )
    plan = make_plan(recipe)
    jobs = evaluation_jobs(plan, episodes_per_task=episodes_per_task, seed=seed)
    folder = out or run_dir / "eval" / f"{path.name}_{plan.env.tasks[0].suite}"
    sweep_stale()
    with EpisodeLog(folder / EPISODES_FILE) as episodes:
        write_manifest(
            folder / MANIFEST_FILE,
            recipe=recipe.model_dump(mode="json", by_alias=True),
            seeds={"environments": seed},
            assets={"checkpoint": str(path)},
            deviations=plan.env.deviations,
            extra={"episodes_per_task": episodes_per_task, "workers": workers, "greedy": True},
        )
        todo = [job for job in jobs if _key(plan, job) not in episodes.done]
        if todo:
            _play(plan, path, todo, episodes, folder, len(jobs), progress)
        wanted = {_key(plan, job) for job in jobs}
        summary = write_results(folder, [episode for episode in episodes.episodes if episode.key in wanted])
    return EvaluationReport(path, folder, summary, plan.env.deviations)


def evaluation_jobs(plan: Plan, *, episodes_per_task: int, seed: int) -> list[EpisodeJob]:
    """Every (task, initial state) once, task by task.

    Raises:
        ValueError: more episodes per task than there are initial states.
    """
    for task, count in zip(plan.env.tasks, plan.env.num_init_states, strict=True):
        if count is not None and episodes_per_task > count:
            raise ValueError(
                f"--episodes-per-task: {episodes_per_task} were asked for, but {task.suite} task {task.task_id} has "
                f"{count} initial states; allowed are 1 to {count}"
            )
    pairs = [(task, state) for task in range(len(plan.env.tasks)) for state in range(episodes_per_task)]
    return [
        EpisodeJob(task_index=task, init_state=state, seed=seed, job_id=number)
        for number, (task, state) in enumerate(pairs)
    ]


def _checkpoint_folder(path: Path) -> Path:
    """A checkpoint's folder as it is, or the newest whole one of a run.

    Raises:
        CheckpointError: neither is there.
    """
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: give the folder of a checkpoint or of a run")
    if path.parent.name == FOLDER:
        return path
    search = find_latest(path)
    if search.newest is None:
        reasons = "".join(f"\n  {warning}" for warning in search.warnings)
        raise CheckpointError(f"{path} holds no whole checkpoint under {FOLDER}/{reasons}")
    return search.newest.path


def _evaluation_recipe(
    recipe: Recipe, *, suite: str | None, tasks: Sequence[int] | None, workers: int, horizon: int | None
) -> Recipe:
    """The run's recipe with the evaluation's environments: standard initial states, one slot per worker."""
    env = recipe.env
    changes: dict[str, object] = {}
    if isinstance(env, LiberoSection):
        changes = {"init_states": "standard", "horizon": horizon}
        if suite is not None and suite != env.suite:
            changes |= {"suite": suite, "tasks": "all"}
    elif suite not in (None, "toy"):
        raise ValueError(f"--suite: the policy was trained on {env.name}, found {suite!r}; leave the option out")
    elif isinstance(env, ToySection) and horizon is not None:
        changes = {"horizon": horizon}
    if tasks is not None:
        changes["tasks"] = list(tasks)
    values = recipe.model_dump(by_alias=True)
    values["env"] |= changes
    values["rollout"] |= {"num_workers": workers, "envs_per_worker": 1}
    values["evaluation"]["tasks"] = "all"
    values["loss"]["kl_coefficient"] = 0.0
    values["learner"] |= {"strategy": "single", "num_ranks": "auto"}
    return Recipe.model_validate(values)


def _play(
    plan: Plan,
    checkpoint: Path,
    jobs: Sequence[EpisodeJob],
    episodes: EpisodeLog,
    folder: Path,
    total: int,
    progress: Progress | None,
) -> None:
    """Play the jobs and append what came of them."""
    policy = plan.policy.build(device=plan.device)
    load_policy(checkpoint, policy)
    finished: list[EpisodeRecord] = []
    memory = make_memory(plan, policy, with_ring=False)
    try:
        memory.mailbox.publish(0, trainable_tensors(policy))
        cell = make_cell(
            plan,
            plan.env,
            memory,
            log_dir=folder / "logs",
            greedy=True,
            seed=0,
            on_episode=finished.append,
            jobs=iter(jobs),
        )
        try:
            cell.start()
            # Asked in this order: once the cell has finished, all its records are in the list.
            while not cell.finished or finished:
                cell.raise_if_failed()
                while finished:
                    episodes.append(_result(plan, finished.pop(0)))
                    if progress is not None:
                        progress(len(episodes.episodes), total, sum(episode.success for episode in episodes.episodes))
                if not cell.finished:
                    cell.collect()
        finally:
            cell.close()
    finally:
        memory.close()


def _key(plan: Plan, job: EpisodeJob) -> tuple[str, int, int, int]:
    task = plan.env.tasks[job.task_index]
    return (task.suite, task.task_id, job.init_state, job.seed)


def _result(plan: Plan, record: EpisodeRecord) -> EpisodeResult:
    task = plan.env.tasks[record.job.task_index]
    return EpisodeResult(
        suite=task.suite,
        task_id=task.task_id,
        init_state=record.job.init_state,
        seed=record.job.seed,
        success=record.terminated,
        env_steps=record.env_steps,
        episode_return=record.episode_return,
        seconds=record.seconds,
    )
