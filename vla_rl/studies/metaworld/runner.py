"""Runner of a grid of Meta-World runs; see `vla_rl.studies.jobs`.

OUT/study.json              the grid, and the recipe that all runs share
OUT/runs/NAME/              a finished run: the folder of `vla-rl train` and `study_run.json`

A run whose checkpoints hold its ring (`checkpoint.save_replay`) is continued after an interruption, any other begins
again: with an empty ring its experience would be newer than its regime says.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from vla_rl.errors import UserError, preflight
from vla_rl.files import atomic_write_json, read_json_object
from vla_rl.learner.checkpoint_folder import CHECKPOINTS, remove_part
from vla_rl.replay.ring_file import REPLAY
from vla_rl.run.folder_lock import claim_folder
from vla_rl.studies.jobs import Job, Progress, Say, resume_option, run_jobs, share_of_updates
from vla_rl.studies.metaworld.duration import expect
from vla_rl.studies.metaworld.grid import Grid, StudyRun
from vla_rl.studies.study_file import STUDY_FILE, refuse_another_study

RUN_FILE = "study_run.json"
RUNS = "runs"


def open_study(grid: Grid, out: Path) -> None:
    """Write `study.json`, or check that an existing one describes this study.

    Raises:
        UserError: the folder holds a study with another recipe or budget, or with a recipe that has changed since.
    """
    path = out / STUDY_FILE
    base = grid.base()
    settings = grid.settings() | {"base": base.dump_yaml()}
    if path.exists():
        with preflight():
            there, began_with = read_study(out)
        refuse_another_study(
            out,
            there.settings(),
            settings,
            fixed=("recipe", "optimizer_steps"),
            began_with=began_with,
            recipe=grid.recipe,
            base=base,
        )
        for axis in ("tasks", "surrogates", "regimes"):  # a study may grow
            settings[axis] = list(dict.fromkeys([*getattr(there, axis), *settings[axis]]))
        settings["seeds"] = max(there.seeds, settings["seeds"])
    atomic_write_json(path, settings)


def read_study(out: Path) -> tuple[Grid, str]:
    """Return the grid of a study, and the recipe (YAML) that it began with.

    Raises:
        ValueError: `study.json` is missing or broken; names it.
    """
    path = out / STUDY_FILE
    values = read_json_object(path)
    match values:
        case {"tasks": [*tasks], "surrogates": [*surrogates], "regimes": [*regimes], "seeds": int(seeds),
              "optimizer_steps": int(optimizer_steps), "recipe": str(recipe), "base": str(base)}:  # fmt: skip
            try:
                return Grid(tuple(tasks), tuple(surrogates), tuple(regimes), seeds, optimizer_steps, recipe), base
            except UserError as error:
                raise ValueError(f"{path}: {error}") from error
    raise ValueError(
        f"{path}: expected the settings of a study (tasks, surrogates, regimes, seeds, optimizer_steps, recipe, base), "
        f"found {', '.join(values) or 'nothing'}; restore the file, or start the study in another folder"
    )


def run_grid(grid: Grid, out: Path, *, jobs: int, say: Say) -> Progress:
    """Run everything that is not finished yet.

    Args:
        grid: the runs.
        out: the study's folder.
        jobs: runs at once.
        say: called with one line per event.

    Raises:
        UserError: a recipe does not fit, or a study is running in the folder; nothing was started.
        KeyboardInterrupt: Ctrl-C, SIGTERM or a closed terminal; all runs were stopped, and finished ones stay.
    """
    jobs_of_grid = jobs_of(grid)
    with claim_folder(out, option="--out"):
        open_study(grid, out)
        return run_jobs(jobs_of_grid, out / RUNS, at_once=jobs, record_file=RUN_FILE, say=say, noun="runs")


def jobs_of(grid: Grid) -> list[Job]:
    """Return all runs of a grid as jobs.

    Raises:
        UserError: a recipe does not fit.
    """
    keeps_rings = grid.base().checkpoint.save_replay
    return [_job(grid, run, keeps_rings=keeps_rings) for run in grid.runs()]


def _job(grid: Grid, run: StudyRun, *, keeps_rings: bool) -> Job:
    overrides = grid.overrides(run)
    return Job(
        name=run.name,
        arguments=lambda folder: [
            *("train", grid.recipe, *overrides, "--run-dir", str(folder)),
            *(resume_option(folder) if keeps_rings else []),
        ],
        expected=expect(grid, run),
        share=lambda folder: share_of_updates(folder, optimizer_steps=grid.optimizer_steps),
        record=asdict(run),
        continues=keeps_rings,
        tidy=_drop_rings if keeps_rings else None,
    )


def _drop_rings(run_dir: Path) -> None:
    """Remove the rings from a finished run's checkpoints: gigabytes each, of use only to a run that goes on."""
    for checkpoint in (run_dir / CHECKPOINTS).glob("optimizer_step_*"):
        remove_part(checkpoint, REPLAY)
