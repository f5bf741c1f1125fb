"""`vla-rl demos`: collect, inspect and convert demonstrations."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vla_rl.cli.commentary import only_comments

if TYPE_CHECKING:
    from vla_rl.demos.inspection import Inspection, Progress
    from vla_rl.demos.traps import Trap

app = typer.Typer(
    help="Collect, inspect and convert demonstrations.",
    no_args_is_help=True,
)

Dataset = Annotated[
    Path, typer.Argument(help="An HDF5 file of LIBERO, or the folder of a suite, an RLDS or a LeRobot data set.")
]
GripperOption = Annotated[
    Literal["auto", "signed", "binary"],
    typer.Option(
        "--gripper", help="Gripper commands in the files: signed (-1 open, +1 close) or binary (0 close, 1 open)."
    ),
]
RotatedOption = Annotated[
    Literal["auto", "yes", "no"],
    typer.Option(
        "--rotated", help="Whether pictures in the files are already rotated by 180 degrees; auto: by format."
    ),
]
ROTATED: dict[str, bool | Literal["auto"]] = {"auto": "auto", "yes": True, "no": False}
COMPONENTS = {
    "action": ("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
    "proprio": ("x", "y", "z", "axis x", "axis y", "axis z", "finger 1", "finger 2"),
}
ALL_TASKS = "all"
COLUMNS = ("mean", "std", "min", "q01", "q99", "max")


@app.command()
def inspect(
    path: Dataset,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            dir_okay=False,
            help="PNG or JPEG file to write, with the first and last pictures of the first 20 tasks.",
        ),
    ] = None,
    gripper: GripperOption = "auto",
    rotated: RotatedOption = "auto",
) -> None:
    """Describe a data set: format, counts, conventions, statistics, and every known pitfall that applies."""
    from vla_rl.demos import open_demos
    from vla_rl.demos.contact_sheet import write_contact_sheet
    from vla_rl.demos.inspection import inspect_demos
    from vla_rl.demos.traps import traps_of

    if out is not None:
        _check_sheet(out)
    demos = open_demos(path, gripper=gripper, rotated=ROTATED[rotated])
    with _progress() as progress:
        seen = inspect_demos(demos, progress)
    traps = traps_of(demos, seen)
    sheet = ""
    if out is not None:
        _make_parent(out)
        shown = write_contact_sheet(demos, out)
        cut = f" ({shown} of {len(seen.tally.names)} tasks)" if shown < len(seen.tally.names) else ""
        sheet = f"\nfirst and last pictures, as a policy sees them{cut}: {out}"
    if as_json:
        found = seen.as_json() | {"traps": {trap.name: trap.text for trap in traps}}
        print(json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False))
        return
    print("\n".join([*_overview(seen), "", *_statistics(seen), "", *_traps(traps)]))
    if sheet:
        print(sheet)


@app.command()
def convert(
    path: Dataset,
    out: Annotated[
        Path,
        typer.Option(
            "--out", file_okay=False, help="Folder of the new files; the same command continues an interrupted one."
        ),
    ],
    first: Annotated[
        int | None,
        typer.Option(
            "--first",
            min=1,
            help="Convert only the first N episodes of each task, with --replay the first N that succeed; 1 is the "
            "one-trajectory protocol.",
        ),
    ] = None,
    drop_no_ops: Annotated[
        bool,
        typer.Option("--drop-no-ops", help="Leave out actions that do nothing, as OpenVLA-OFT's data do."),
    ] = False,
    replay: Annotated[
        bool,
        typer.Option("--replay", help="Play every episode again in LIBERO and leave out those that fail."),
    ] = False,
    gripper: GripperOption = "auto",
    rotated: RotatedOption = "auto",
) -> None:
    """Write a data set as LIBERO's regenerated HDF5 files, one per task. Never overwrites files."""
    from vla_rl.demos import open_demos
    from vla_rl.demos.conversion import convert_demos
    from vla_rl.run.folder_lock import claim_folder

    only_comments()
    demos = open_demos(path, gripper=gripper, rotated=ROTATED[rotated], drop_no_ops=drop_no_ops)
    replayer = None
    if replay:
        from vla_rl.collection.replaying import Replayer

        replayer = Replayer()
        replayer.check(demos)
    try:
        result = convert_demos(
            demos,
            out,
            first=first,
            keep=replayer,
            claimed=claim_folder(out, option="--out"),
            say=lambda line: print(line, flush=True),
        )
    finally:
        if replayer is not None:
            replayer.close()
    print(f"{out}: {len(result.files)} tasks, {result.episodes} episodes, {result.frames:,} frames")
    if replay:
        print(f"left out in this call, because they did not succeed when played again: {result.failed} episodes")
    if result.missing:
        print(f"not in the source, therefore not in the new files: {', '.join(sorted(result.missing))}")


@app.command()
def collect(  # noqa: PLR0913 - one parameter per option
    suite: Annotated[str, typer.Option("--suite", help="libero_spatial or libero_object.")],
    episodes: Annotated[int, typer.Option("--episodes", min=1, help="Number of successful episodes of each task.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out", file_okay=False, help="Folder of the new files; the same command continues an interrupted one."
        ),
    ],
    tasks: Annotated[str, typer.Option("--tasks", help="Task ids, like 0,3 or 0-4; or all.")] = ALL_TASKS,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Determines initial states and noise.")] = 0,
    init_states: Annotated[
        Literal["sampled", "widened"],
        typer.Option(
            "--init-states",
            help="sampled: LIBERO's own sampler; widened: the scene also moves by some centimetres, which the "
            "benchmark does not do. Neither uses the benchmark's stored states.",
        ),
    ] = "sampled",
    image_size: Annotated[int, typer.Option("--image-size", min=16, max=1024, help="Pixels per side.")] = 256,
    chunk_share: Annotated[
        float,
        typer.Option("--chunk-share", min=0.0, max=1.0, help="Share of chunks whose motion gets a constant offset."),
    ] = 0.3,
    chunk_noise: Annotated[
        float,
        typer.Option("--chunk-noise", min=0.0, max=2.0, help="Standard deviation of that offset; 1 is a full motion."),
    ] = 0.35,
    step_noise: Annotated[
        float,
        typer.Option("--step-noise", min=0.0, max=2.0, help="Standard deviation of the noise of each control step."),
    ] = 0.1,
    chunk: Annotated[int, typer.Option("--chunk", min=1, max=100, help="Control steps per chunk.")] = 8,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Simulator processes.", show_default="one per core")
    ] = None,
    physics: Annotated[
        Literal["exact", "fast"], typer.Option("--physics", help="exact: LIBERO's own; fast: one solve per substep.")
    ] = "exact",
    assets: Annotated[str, typer.Option("--assets", help="auto, proxy, or a folder of LIBERO's assets.")] = "auto",
    gl: Annotated[Literal["auto", "egl", "osmesa"], typer.Option("--gl", help="Renderer.")] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, start nothing, write nothing.")] = False,
) -> None:
    """Collect demonstrations from a scripted expert that knows object positions, with noise.

    The robot executes noisy actions; the files hold the expert's own actions. Failed episodes are not written.
    """
    from vla_rl.cli.demos_view import CollectionProgress, collected
    from vla_rl.cli.number_lists import parse_tasks
    from vla_rl.collection.collecting import collect as collect_demos
    from vla_rl.collection.collecting import raise_if_given_up
    from vla_rl.collection.options import CollectOptions, Noise
    from vla_rl.collection.preparing import prepare, tasks_of
    from vla_rl.container import usable_cores
    from vla_rl.errors import preflight
    from vla_rl.run.folder_lock import claim_folder
    from vla_rl.run.signals import interrupted_by_signals

    with preflight():
        options = CollectOptions(
            suite=suite,
            tasks=tasks_of(suite, None if tasks.strip() == ALL_TASKS else parse_tasks(tasks)),
            episodes=episodes,
            seed=seed,
            image_size=image_size,
            init_states=init_states,
            physics=physics,
            assets=assets,
            gl=gl,
            noise=Noise(chunk_share=chunk_share, chunk_scale=chunk_noise, step_scale=step_noise, chunk=chunk),
        )
        plan = prepare(options, out)
    processes = workers or usable_cores()
    print(plan.describe(processes))
    if dry_run:
        return
    only_comments()
    with interrupted_by_signals(), claim_folder(out, option="--out"), CollectionProgress() as progress:
        result = collect_demos(options, plan.stores, out, workers=processes, progress=progress)
    print(collected(result, out))
    raise_if_given_up(result)


def _check_sheet(file: Path) -> None:
    """Refuse a picture of another kind before the data are read, which takes minutes for large ones."""
    from vla_rl.demos.contact_sheet import sheet_format
    from vla_rl.errors import UserError

    try:
        sheet_format(file)
    except ValueError as error:
        raise UserError(f"--out: {error}") from error


def _make_parent(file: Path) -> None:
    from vla_rl.errors import UserError

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: {file.parent} cannot be made ({error}); choose another path") from error


@contextmanager
def _progress() -> Iterator[Progress]:
    """Count episodes on stderr if it is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _done, _all: None
        return
    yield lambda done, total: print(f"\r{done} of {total} episodes", end="", file=sys.stderr, flush=True)
    print("\r\033[K", end="", file=sys.stderr, flush=True)


def _overview(seen: Inspection) -> list[str]:
    from vla_rl.demos.conventions import GRIPPERS

    found = seen.as_json()
    height, width = found["image_size"]
    rows = {
        "format": found["format"],
        "episodes": f"{found['episodes']:,}, of {found['shortest']} to {found['longest']} rows",
        "frames": f"{found['frames']:,}, of which {found['samples']:,} are pairs of picture and action",
        "chunk starts": f"{found['chunk_starts']:,}, the rows at which 8 actions of one episode begin",
        "pictures": f"{height}x{width}, {'rotated by 180 degrees' if seen.rotated else 'not rotated'} in the files",
        "gripper": f"{seen.gripper} in the files ({GRIPPERS[seen.gripper]})",
        "no-ops": f"{found['no_ops']:,} ({100 * found['no_op_share']:.1f} %)",
        "aligned": "yes" if seen.aligned else "no: pictures were taken after the action of their row",
        "tasks": str(len(found["tasks"])),
    }
    lines = [seen.path, *(f"  {name:<14}{text}" for name, text in rows.items())]
    return lines + [f"  {count:>6}  {task}" for task, count in found["episodes_per_task"].items()]


def _statistics(seen: Inspection) -> list[str]:
    lines = [f"statistics after the gripper's transform (1 open, 0 closed)\n  {'':<18}" + _cells(COLUMNS)]
    for kind, names in COMPONENTS.items():
        values = seen.statistics[kind]
        for place, name in enumerate(names):
            lines.append(f"  {kind + ' ' + name:<18}" + _cells([f"{values[it][place]:.4f}" for it in COLUMNS]))
    return lines


def _cells(texts: Sequence[str]) -> str:
    return "".join(f"{text:>10}" for text in texts)


def _traps(traps: list[Trap]) -> list[str]:
    return ["worth knowing", *(f"  {trap.name}: {trap.text}" for trap in traps)]
