"""`vla-rl demos`: inspect data sets of demonstrations, and convert them to a common layout."""

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

app = typer.Typer(help="Demonstrations: inspect data sets, convert them to LIBERO's HDF5 layout.", no_args_is_help=True)

Dataset = Annotated[
    Path, typer.Argument(help="LIBERO's HDF5 files (one, or a suite's folder), an RLDS or a LeRobot data set's folder.")
]
GripperOption = Annotated[
    Literal["auto", "signed", "binary"],
    typer.Option("--gripper", help="Commands in the files: signed (-1 open, +1 close), binary (0 close, 1 open)."),
]
RotatedOption = Annotated[
    Literal["auto", "yes", "no"],
    typer.Option(
        "--rotated", help="Whether pictures in the files are rotated by 180 degrees already; auto: by format."
    ),
]
ROTATED: dict[str, bool | Literal["auto"]] = {"auto": "auto", "yes": True, "no": False}
COMPONENTS = {
    "action": ("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
    "proprio": ("x", "y", "z", "axis x", "axis y", "axis z", "finger 1", "finger 2"),
}
COLUMNS = ("mean", "std", "min", "q01", "q99", "max")


@app.command()
def inspect(
    path: Dataset,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", dir_okay=False, help="PNG of first and last pictures of every task.")
    ] = None,
    gripper: GripperOption = "auto",
    rotated: RotatedOption = "auto",
) -> None:
    """Describe a data set: format, counts, conventions, statistics, and every known pitfall that applies."""
    from vla_rl.demos import open_demos
    from vla_rl.demos.contact_sheet import write_contact_sheet
    from vla_rl.demos.inspection import inspect_demos
    from vla_rl.demos.traps import traps_of

    demos = open_demos(path, gripper=gripper, rotated=ROTATED[rotated])
    with _progress() as progress:
        seen = inspect_demos(demos, progress)
    traps = traps_of(demos, seen)
    if out is not None:
        _make_room(out)
        write_contact_sheet(demos, out)
    if as_json:
        found = seen.as_json() | {"traps": {trap.name: trap.text for trap in traps}}
        print(json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False))
        return
    print("\n".join([*_overview(seen), "", *_statistics(seen), "", *_traps(traps)]))
    if out is not None:
        print(f"\nfirst and last pictures, as a policy sees them: {out}")


@app.command()
def convert(
    path: Dataset,
    out: Annotated[
        Path, typer.Option("--out", file_okay=False, help="Folder of the new files; called again, it goes on in it.")
    ],
    first: Annotated[
        int | None,
        typer.Option("--first", min=1, help="Only this many episodes of each task; 1 is the one-trajectory protocol."),
    ] = None,
    drop_no_ops: Annotated[
        bool,
        typer.Option("--drop-no-ops", help="Leave out actions that do nothing, by the rule of OpenVLA-OFT's data."),
    ] = False,
    gripper: GripperOption = "auto",
    rotated: RotatedOption = "auto",
) -> None:
    """Write a data set as LIBERO's regenerated HDF5 files, one per task; nothing is written over."""
    from vla_rl.demos import open_demos
    from vla_rl.demos.conversion import convert_demos

    only_comments()
    demos = open_demos(path, gripper=gripper, rotated=ROTATED[rotated], drop_no_ops=drop_no_ops)
    result = convert_demos(demos, out, first=first, say=lambda line: print(line, flush=True))
    print(f"{out}: {len(result.files)} tasks, {result.episodes} episodes, {result.frames:,} frames")
    if result.missing:
        print(f"not in the source, therefore not in the new files: {', '.join(sorted(result.missing))}")


def _make_room(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)


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
