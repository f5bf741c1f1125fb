"""Runner of the study of groups; see `vla_rl.studies.jobs`.

OUT/study.json         the plan, and the recipe that all runs share
OUT/runs/NAME/         a finished run
OUT/runs/NAME_after/   evaluation of its policy on held-out states, if the study has them; START_before of the start
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from vla_rl.errors import UserError, preflight
from vla_rl.files import atomic_write_json
from vla_rl.recipe import find_recipe, load_recipe
from vla_rl.recipe.sizes import decisions_per_episode
from vla_rl.run.plan import check_contradictions, plan_policy
from vla_rl.studies import held_out
from vla_rl.studies.grouped.plan import LIBERO, METHODS, RECIPE, GroupPlan, GroupRun, Start, group_plan_from
from vla_rl.studies.held_out import LiberoTasks, evaluation_job, held_out_options
from vla_rl.studies.jobs import ONE_CORE, Job, Work, resume_option, share_of_env_steps
from vla_rl.studies.libero import stages
from vla_rl.studies.pace import Expected
from vla_rl.studies.study_file import KIND, STUDY_FILE, read_settings, refuse_another_study
from vla_rl.studies.study_plan import computes_on_gpu, in_words, memory_of_run

GROUPS = "groups"  # kind of the study
RUN_FILE = "study_run.json"
RUNS = "runs"
RUN = "run"  # stage of a job that is a run; another evaluates

# Of one virtual core that nothing else keeps busy.
START_S, ENV_STEPS_PER_S, SAMPLES_PER_S = 5.0, 20_000.0, 50_000.0  # with the recipe `gates`


def open_study(plan: GroupPlan, out: Path) -> None:
    """Write `study.json`, or extend an existing one.

    Raises:
        UserError: as of `joined_study`.
    """
    settings, base = joined_study(plan, out).settings(), load_recipe(find_recipe(plan.recipe))
    atomic_write_json(out / STUDY_FILE, {KIND: GROUPS, "plan": settings, "base": base.dump_yaml()})


def joined_study(plan: GroupPlan, out: Path) -> GroupPlan:
    """Return a plan together with that of the study in its folder, if there is one.

    Raises:
        UserError: the folder holds another study, or one with a recipe that says something else.
    """
    if not (out / STUDY_FILE).exists():
        return plan
    with preflight():
        there, began_with = read_study(out)
    before = {start.name: start for start in there.starts}
    changed = [start.name for start in plan.starts if before.get(start.name, start) != start]
    if changed:
        other = _difference(before, plan, changed[0])
        raise UserError(
            f"--out: {out} holds a study whose start {changed[0]} has another {other}: runs of both would not be "
            "comparable. Choose another folder"
        )
    refuse_another_study(
        out,
        there.settings(),
        plan.settings(),
        fixed=(),
        began_with=began_with,
        recipe=plan.recipe,
        base=load_recipe(find_recipe(plan.recipe)),
    )
    return replace(
        plan,
        methods=tuple(dict.fromkeys([*there.methods, *plan.methods])),
        starts=tuple((before | {start.name: start for start in plan.starts}).values()),
        seeds=max(there.seeds, plan.seeds),
    )


def _difference(before: Mapping[str, Start], plan: GroupPlan, name: str) -> str:
    """Return the names of the settings in which a start differs from the one that the study has."""
    start = next(start for start in plan.starts if start.name == name)
    old, new = asdict(before[name]), asdict(start)
    return ", ".join(field for field in old if old[field] != new[field])


def read_study(out: Path) -> tuple[GroupPlan, str]:
    """Return the plan of a study, and the recipe (YAML) that it began with.

    Raises:
        ValueError: `study.json` is missing or broken; names it.
    """
    return read_settings(out, GROUPS, group_plan_from)


def work_of(plan: GroupPlan, out: Path) -> Work:
    """Return all jobs of a study.

    Raises:
        UserError: a recipe or a start does not fit, or the folder holds a study that this one cannot join.
    """
    jobs = jobs_of(plan, out)
    joined_study(plan, out)
    return Work(
        jobs=jobs,
        out=out,
        folder=out / RUNS,
        begin=partial(open_study, plan, out),
        record_file=RUN_FILE,
        noun="jobs",
        what=in_words([[f"starts {', '.join(start.name for start in plan.starts)}"], plan.methods], seeds=plan.seeds),
        kind_field="stage",
        on_gpu=computes_on_gpu(plan.recipe_of(plan.runs()[0])),
        guess=_why_a_guess(plan),
    )


def _why_a_guess(plan: GroupPlan) -> str:
    """Return why the expected times of a study are a guess; empty where there are rates of such runs."""
    if plan.recipe == RECIPE:
        return ""
    recipe = plan.recipe_of(plan.runs()[0])
    return stages.why_a_guess(recipe) if recipe.env.name == LIBERO else f"the rates are of the recipe {RECIPE}"


def jobs_of(plan: GroupPlan, out: Path) -> list[Job]:
    """Return all jobs of a study, in the order in which they should run: the start is evaluated first, a run after it.

    Raises:
        UserError: a recipe does not fit, or a given start is no checkpoint that it can be trained from.
    """
    first = {start.name: next(run for run in plan.runs() if run.start == start.name) for start in plan.starts}
    for run in first.values():
        if plan.start(run).checkpoint is not None:
            with preflight():
                recipe = plan.recipe_of(run)
                check_contradictions(plan_policy(recipe.setup).contradictions, source=recipe.name)
    jobs = [_evaluation(plan, run, out, after=False) for run in first.values() if plan.start(run).states]
    alike = {(run.start, run.method): run for run in plan.runs()}  # the seed changes neither validity nor cost
    expected = {place: expect(plan, run) for place, run in alike.items()}
    for run in plan.runs():
        jobs.append(_job(plan, run, expected=expected[run.start, run.method]))
        if plan.start(run).states:
            jobs.append(_evaluation(plan, run, out, after=True))
    return jobs


def _job(plan: GroupPlan, run: GroupRun, *, expected: Expected) -> Job:
    overrides, start = plan.overrides(run), plan.start(run)
    return Job(
        name=run.name,
        arguments=lambda folder: [
            *("train", plan.recipe, *overrides, ONE_CORE, "--run-dir", str(folder)),
            *(resume_option(folder) if start.is_own else []),
        ],
        expected=expected,
        share=lambda folder: share_of_env_steps(folder, env_steps=start.env_steps),
        record={"stage": RUN, **asdict(run)},
        continues=start.is_own,
    )


def before_name(start: Start) -> str:
    """Return the name of the job that evaluates a start."""
    return f"{start.name}_before"


def after_name(run: GroupRun) -> str:
    """Return the name of the job that evaluates the policy that a run ended with."""
    return f"{run.name}_after"


def _evaluation(plan: GroupPlan, run: GroupRun, out: Path, *, after: bool) -> Job:
    """Evaluate a run's policy, or the start of this run, on held-out states with sampled actions, as training plays."""
    start, recipe = plan.start(run), plan.recipe_of(run)
    policy = out / RUNS / run.name if after else Path(str(start.checkpoint))
    return evaluation_job(
        after_name(run) if after else before_name(start),
        lambda: policy,
        [*held_out_options(recipe.env.init_state_set), "--temperature", str(recipe.rollout.temperature)],
        of=LiberoTasks(recipe.env.suite_name, recipe.env.task_ids, recipe.env.episode_horizon),
        states=start.states,
        record={"stage": "evaluation", "run": run.name if after else None},
        needs=(run.name,) if after else (),
    )


def expect(plan: GroupPlan, run: GroupRun) -> Expected:
    """Return the expected cost of a run; with a recipe that is neither the preset's nor of LIBERO its time is a guess.

    Raises:
        UserError: the recipe does not fit, or is not possible here.
    """
    start, recipe = plan.start(run), plan.recipe_of(run)
    memory = memory_of_run(recipe)
    uses = start.replay_ratio if METHODS[run.method].over_replay else 1.0
    if recipe.env.name == LIBERO:
        decisions = start.env_steps / recipe.env.episode_horizon * decisions_per_episode(recipe.env, recipe.policy)
        training = start.env_steps / stages.ENV_STEPS_PER_S + uses * decisions / stages.SAMPLES_PER_S
        return Expected(held_out.START_S, training, memory=memory)
    training = start.env_steps / ENV_STEPS_PER_S + uses * start.env_steps / SAMPLES_PER_S
    return Expected(START_S, training, memory=memory)
