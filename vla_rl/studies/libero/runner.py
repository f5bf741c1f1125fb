"""Runner of the LIBERO study; see `vla_rl.studies.jobs`.

OUT/study.json         the plan, and the recipe that all runs share
OUT/jobs/NAME/         a finished job: demonstrations, the cloned policy, a run, an evaluation
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from vla_rl.errors import preflight
from vla_rl.files import atomic_write_json
from vla_rl.studies.jobs import Work
from vla_rl.studies.libero.plan import Plan, grown, plan_from
from vla_rl.studies.libero.stages import JOB_FILE, JOBS, jobs_of, why_a_guess
from vla_rl.studies.study_file import KIND, STUDY_FILE, read_settings, refuse_another_study
from vla_rl.studies.study_plan import computes_on_gpu, in_words

LIBERO = "libero"
GROWING = ("arms", "regimes", "seeds")  # fields that a later call may extend
RECIPE = "recipe"  # field with the recipe's name or path, whose content is compared


def open_study(plan: Plan, out: Path) -> None:
    """Write `study.json`, or extend an existing one.

    Raises:
        UserError: as of `joined_study`.
    """
    settings = joined_study(plan, out).settings()
    atomic_write_json(out / STUDY_FILE, {KIND: LIBERO, "plan": settings, "base": plan.base().dump_yaml()})


def joined_study(plan: Plan, out: Path) -> Plan:
    """Return a plan together with that of the study in its folder, if there is one.

    Raises:
        UserError: the folder holds another study, or one with a recipe that says something else.
    """
    if not (out / STUDY_FILE).exists():
        return plan
    with preflight():
        there, began_with = read_study(out)
    before = there.settings()
    refuse_another_study(
        out,
        before,
        plan.settings(),
        fixed=[name for name in before if name not in (*GROWING, RECIPE)],
        began_with=began_with,
        recipe=plan.recipe,
        base=plan.base(),
    )
    return grown(there, plan)


def read_study(out: Path) -> tuple[Plan, str]:
    """Return the plan of a study, and the recipe (YAML) that it began with.

    Raises:
        ValueError: `study.json` is missing or broken; names it.
    """
    return read_settings(out, LIBERO, plan_from)


def work_of(plan: Plan, out: Path) -> Work:
    """Return every stage of a study.

    Raises:
        UserError: a recipe does not fit, or the folder holds a study that this one cannot join.
    """
    jobs = jobs_of(plan, out)
    joined_study(plan, out)
    return Work(
        jobs=jobs,
        out=out,
        folder=out / JOBS,
        begin=partial(open_study, plan, out),
        record_file=JOB_FILE,
        noun="jobs",
        what=in_words(
            [[f"{plan.suite}, tasks {', '.join(map(str, plan.tasks))}"], plan.arms, plan.regimes], seeds=plan.seeds
        ),
        kind_field="stage",
        on_gpu=computes_on_gpu(plan.base()),
        guess=why_a_guess(plan.recipe_of(plan.runs()[0])),
    )
