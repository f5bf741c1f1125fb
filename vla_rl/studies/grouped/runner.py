"""Runner of the study of groups; see `vla_rl.studies.jobs`.

OUT/study.json         the plan, and the recipe that all runs share
OUT/runs/NAME/         a finished run
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from vla_rl.errors import UserError, preflight
from vla_rl.files import atomic_write_json
from vla_rl.recipe import find_recipe, load_recipe
from vla_rl.run.folder_lock import claim_folder
from vla_rl.studies.grouped.plan import METHODS, REPLAY_RATIO, GroupPlan, GroupRun, group_plan_from
from vla_rl.studies.jobs import Job, Progress, Say, run_jobs, share_of_env_steps
from vla_rl.studies.pace import Expected
from vla_rl.studies.study_file import KIND, STUDY_FILE, read_settings, refuse_another_study

GROUPS = "groups"  # kind of the study
RUN_FILE = "study_run.json"
RUNS = "runs"
START_S, ENV_STEPS_PER_S, SAMPLES_PER_S = 5.0, 20_000.0, 50_000.0  # of one virtual core, with the recipe `gates`


def open_study(plan: GroupPlan, out: Path) -> None:
    """Write `study.json`, or check that an existing one describes this study, which may grow.

    Raises:
        UserError: the folder holds another study, or one with a recipe that has changed since.
    """
    path = out / STUDY_FILE
    base = load_recipe(find_recipe(plan.recipe))
    settings = plan.settings()
    if path.exists():
        with preflight():
            there, began_with = read_study(out)
        before = {start.name: start for start in there.starts}
        changed = [start.name for start in plan.starts if before.get(start.name, start) != start]
        if changed:
            raise UserError(
                f"--out: {out} holds a study whose start {changed[0]} has another target or budget: runs of both would "
                "not be comparable. Choose another folder"
            )
        refuse_another_study(
            out, there.settings(), settings, fixed=("recipe",), began_with=began_with, recipe=plan.recipe, base=base
        )
        starts = list((before | {start.name: start for start in plan.starts}).values())
        settings |= {
            "methods": list(dict.fromkeys([*there.methods, *plan.methods])),
            "starts": [asdict(start) for start in starts],
            "seeds": max(there.seeds, plan.seeds),
        }
    atomic_write_json(path, {KIND: GROUPS, "plan": settings, "base": base.dump_yaml()})


def read_study(out: Path) -> tuple[GroupPlan, str]:
    """Return the plan of a study, and the recipe (YAML) that it began with.

    Raises:
        ValueError: `study.json` is missing or broken; names it.
    """
    return read_settings(out, GROUPS, group_plan_from)


def run_study(plan: GroupPlan, out: Path, *, at_once: int, say: Say) -> Progress:
    """Run everything that is not finished yet.

    Args:
        plan: the study.
        out: its folder.
        at_once: runs at the same time.
        say: called with one line per event.

    Raises:
        UserError: a recipe does not fit, or a study is running in the folder; nothing was started.
        KeyboardInterrupt: Ctrl-C, SIGTERM or a closed terminal; all runs were stopped, and finished ones stay.
    """
    jobs = [_job(plan, run) for run in plan.runs()]
    with claim_folder(out, option="--out"):
        open_study(plan, out)
        return run_jobs(jobs, out / RUNS, at_once=at_once, record_file=RUN_FILE, say=say, noun="runs")


def _job(plan: GroupPlan, run: GroupRun) -> Job:
    overrides, start = plan.overrides(run), plan.start(run)
    plan.recipe_of(run)  # refuse what does not fit before anything starts
    return Job(
        name=run.name,
        arguments=lambda folder: ["train", plan.recipe, *overrides, "--run-dir", str(folder)],
        expected=expect(plan, run),
        share=lambda folder: share_of_env_steps(folder, env_steps=start.env_steps),
        record=asdict(run),
    )


def expect(plan: GroupPlan, run: GroupRun) -> Expected:
    """Return the expected time of a run of the preset; with another recipe it is a guess."""
    env_steps = plan.start(run).env_steps
    uses = REPLAY_RATIO if METHODS[run.method].over_replay else 1
    return Expected(START_S, env_steps / ENV_STEPS_PER_S + uses * env_steps / SAMPLES_PER_S)


def estimate(plan: GroupPlan, *, at_once: int) -> str:
    """Return one line with the number of runs and their estimated duration."""
    minutes = sum(expect(plan, run).seconds for run in plan.runs()) / 60
    return f"{len(plan.runs())} runs, {at_once} at once: about {minutes / at_once:.0f} minutes"
