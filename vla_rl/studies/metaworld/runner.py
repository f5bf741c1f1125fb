"""Runner of a grid of Meta-World runs; see `vla_rl.studies.jobs`.

OUT/study.json              the grid, and the recipe that all runs share
OUT/runs/NAME/              a finished run: the folder of `vla-rl train` and `study_run.json`

A run whose checkpoints hold its ring (`checkpoint.save_replay`) is continued after an interruption, any other begins
again: with an empty ring its experience would be newer than its regime says.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

from vla_rl.errors import UserError, preflight
from vla_rl.files import ASIDE, atomic_write_json
from vla_rl.learner.checkpoint_folder import CHECKPOINTS, remove_part
from vla_rl.recipe import Recipe, build_recipe
from vla_rl.replay.ring_file import REPLAY
from vla_rl.studies.jobs import ONE_CORE, Job, Work, resume_option, share_of_updates
from vla_rl.studies.metaworld.duration import expect
from vla_rl.studies.metaworld.grid import WHOLE, Grid, Share, StudyRun, joined
from vla_rl.studies.pace import Expected
from vla_rl.studies.study_file import METAWORLD, STUDY_FILE, SharedByRuns, read_study_file, refuse_another_study
from vla_rl.studies.study_plan import computes_on_gpu

RUN_FILE = "study_run.json"
RUNS = "runs"
ASIDE_STATES = (".unfinished", ".failed")  # ends of the names of such folders; see `vla_rl.studies.jobs`
BASELINES_FILE = "random_returns.json"  # return of random actions by task


def open_study(grid: Grid, out: Path) -> None:
    """Write `study.json`, or extend an existing one.

    Raises:
        UserError: as of `joined_study`.
    """
    write_settings(out, joined_study(grid, out), base=grid.base().dump_yaml())


def joined_study(grid: Grid, out: Path) -> Grid:
    """Return a grid together with that of the study in its folder, if there is one.

    Raises:
        UserError: the folder holds a study with another budget, or with a recipe that says something else.
    """
    if not (out / STUDY_FILE).exists():
        return grid
    with preflight():
        there, began_with = read_study(out)
    refuse_another_study(
        out,
        there.settings(),
        grid.settings(),
        fixed=("optimizer_steps",),
        began_with=began_with,
        recipe=grid.recipe,
        base=grid.base(),
    )
    return joined(there, grid)


def write_settings(out: Path, grid: Grid, *, base: str) -> None:
    """Write `study.json`.

    Args:
        out: folder of the study.
        grid: all its runs.
        base: the recipe (YAML) that all runs share.
    """
    atomic_write_json(out / STUDY_FILE, grid.settings() | {"base": base})


def read_study(out: Path) -> tuple[Grid, str]:
    """Return the grid of a study, and the recipe (YAML) that it began with.

    Raises:
        ValueError: `study.json` is missing, broken, or of another kind; names it.
    """
    path, values = out / STUDY_FILE, read_study_file(out, METAWORLD)
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


def shared_by_runs(out: Path, grid: Grid, base: str) -> SharedByRuns:
    """Return what runs must share to be compared, from what `read_study` returns of a folder.

    Raises:
        UserError: the recipe is not valid.
    """
    return SharedByRuns({"optimizer_steps": grid.optimizer_steps}, build_recipe(base, source=str(out / STUDY_FILE)))


def finished_runs(out: Path) -> list[Path]:
    """Return the folders of all finished runs of a study, by name."""
    recorded = (path.parent for path in (out / RUNS).glob(f"*/{RUN_FILE}"))
    # A run that was stopped while it was renamed has its record already, and so has half a copy.
    return sorted(folder for folder in recorded if not _is_aside(folder))


def unfinished_runs(out: Path) -> dict[str, str]:
    """Return the state of every run that was begun and has not finished, by its name: unfinished or failed."""
    begun = [path for path in sorted((out / RUNS).glob("*.*")) if path.suffix in ASIDE_STATES]
    return {path.stem: path.suffix.removeprefix(".") for path in begun}


def _is_aside(folder: Path) -> bool:
    return folder.name.startswith(ASIDE) or folder.suffix in ASIDE_STATES


def work_of(grid: Grid, out: Path, *, share: Share = WHOLE) -> Work:
    """Return the runs of a grid that one machine makes.

    Raises:
        UserError: a recipe does not fit, the share is empty, or the folder holds a study that this one cannot join.
    """
    runs, base = grid.share_of(share), grid.base()
    recipes = {(run.regime, run.surrogate): run for run in runs}  # tasks and seeds change neither validity nor cost
    expected = {place: expect(grid.recipe_of(run)) for place, run in recipes.items()}
    joined_study(grid, out)
    return Work(
        jobs=[_job(grid, run, base, expected=expected[run.regime, run.surrogate]) for run in runs],
        out=out,
        folder=out / RUNS,
        begin=partial(open_study, grid, out),
        record_file=RUN_FILE,
        noun="runs",
        what=("" if share == WHOLE else f"share {share.number}/{share.of} of ") + grid.in_words(),
        kind_field="regime",
        on_gpu=computes_on_gpu(base),
    )


def _job(grid: Grid, run: StudyRun, base: Recipe, *, expected: Expected) -> Job:
    overrides, keeps_rings = grid.overrides(run, base), base.checkpoint.save_replay
    return Job(
        name=run.name,
        arguments=lambda folder: [
            *("train", grid.recipe, *overrides, ONE_CORE, "--run-dir", str(folder)),
            *(resume_option(folder) if keeps_rings else []),
        ],
        expected=expected,
        share=lambda folder: share_of_updates(folder, optimizer_steps=grid.optimizer_steps),
        record=asdict(run),
        continues=keeps_rings,
        tidy=_drop_rings if keeps_rings else None,
    )


def _drop_rings(run_dir: Path) -> None:
    """Remove the rings from a finished run's checkpoints: gigabytes each, of use only to a run that goes on."""
    for checkpoint in (run_dir / CHECKPOINTS).glob("optimizer_step_*"):
        remove_part(checkpoint, REPLAY)
