"""Runner of the LIBERO study; see `vla_rl.studies.jobs`.

OUT/study.json         the plan, and the recipe that all runs share
OUT/jobs/NAME/         a finished job: demonstrations, the cloned policy, a run, an evaluation
"""

from __future__ import annotations

from pathlib import Path

from vla_rl.errors import preflight
from vla_rl.files import atomic_write_json
from vla_rl.recipe import find_recipe, load_recipe
from vla_rl.run.folder_lock import claim_folder
from vla_rl.studies.jobs import Progress, Say, run_jobs
from vla_rl.studies.libero.plan import Plan, grown, plan_from
from vla_rl.studies.libero.stages import JOB_FILE, JOBS, jobs_of
from vla_rl.studies.study_file import KIND, STUDY_FILE, read_settings, refuse_another_study

LIBERO = "libero"
GROWING = ("arms", "regimes", "seeds")  # fields that a later call may extend


def open_study(plan: Plan, out: Path) -> None:
    """Write `study.json`, or check that an existing one describes this study.

    Raises:
        UserError: the folder holds another study, or one with a recipe that has changed since.
    """
    path = out / STUDY_FILE
    base = load_recipe(find_recipe(plan.recipe))
    settings = plan.settings()
    if path.exists():
        with preflight():
            there, began_with = read_study(out)
        before = there.settings()
        refuse_another_study(
            out,
            before,
            settings,
            fixed=[name for name in before if name not in GROWING],
            began_with=began_with,
            recipe=plan.recipe,
            base=base,
        )
        settings = grown(there, plan).settings()
    atomic_write_json(path, {KIND: LIBERO, "plan": settings, "base": base.dump_yaml()})


def read_study(out: Path) -> tuple[Plan, str]:
    """Return the plan of a study, and the recipe (YAML) that it began with.

    Raises:
        ValueError: `study.json` is missing or broken; names it.
    """
    return read_settings(out, LIBERO, plan_from)


def run_study(plan: Plan, out: Path, *, at_once: int, say: Say) -> Progress:
    """Run every stage that is not finished yet.

    Args:
        plan: the study.
        out: its folder.
        at_once: jobs of one core that run at the same time.
        say: called with one line per event.

    Raises:
        UserError: a recipe does not fit, or a study is running in the folder; nothing was started.
        KeyboardInterrupt: Ctrl-C, SIGTERM or a closed terminal; all jobs were stopped and continue next time.
    """
    jobs = jobs_of(plan, out)
    with claim_folder(out, option="--out"):
        open_study(plan, out)
        return run_jobs(jobs, out / JOBS, at_once=at_once, record_file=JOB_FILE, say=say, noun="jobs")
