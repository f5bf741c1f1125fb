"""Known pitfalls of data sets, each reported only where it applies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vla_rl.demos.conventions import GRIPPERS, instruction_of_task, task_of_file
from vla_rl.demos.hdf5 import RAW, Hdf5Reader
from vla_rl.demos.inspection import CHUNK, Inspection
from vla_rl.demos.lerobot import LeRobotReader
from vla_rl.demos.opening import Demos

PUBLISHED_SIZE = 256  # pixels per side of the published policies' training data
PUBLISHED = {  # episodes and frames of openvla/modified_libero_rlds
    "libero_spatial": (432, 52_970),
    "libero_object": (454, 66_984),
    "libero_goal": (428, 52_042),
    "libero_10": (379, 101_469),
}
CONTROL_HZ = 20
WIDTH_MARGIN = 0.005  # m


@dataclass(frozen=True, slots=True)
class Trap:
    """One pitfall: a short name for programs, and an explanation for people."""

    name: str
    text: str


def traps_of(demos: Demos, seen: Inspection) -> list[Trap]:
    """Return every pitfall that applies to a data set, with what the program does about it."""
    return [Trap(name, text) for name, text in (*_of_time(demos, seen), *_of_format(demos, seen), *_of_numbers(seen))]


def _of_time(demos: Demos, seen: Inspection) -> Iterator[tuple[str, str]]:
    tally = seen.tally
    if not seen.aligned:
        yield (
            "pictures_after_actions",
            "pictures were taken after the action of their row. Picture t is read with action t + 1; the first "
            f"action of each episode has no picture and is left out ({tally.frames - tally.rows} rows)",
        )
    if demos.format == RAW:
        yield "first_steps_missing", "LIBERO's script leaves out the first 5 control steps of every demonstration"
        yield (
            "failures_not_filtered",
            "demonstrations that fail when replayed may be included; the published data exclude them (1,693 of 2,000 "
            "remain)",
        )
    if tally.no_ops:
        yield (
            "no_ops",
            f"{tally.no_ops} of {tally.frames} actions do nothing. Policies trained on them tend to stop and never go "
            "on. To leave them out: convert --drop-no-ops, or open_demos(..., drop_no_ops=True)",
        )
    if tally.short:
        yield "short_episodes", f"{tally.short} episodes have fewer than {CHUNK} rows, and so no whole chunk of actions"


def _of_format(demos: Demos, seen: Inspection) -> Iterator[tuple[str, str]]:
    tally, reader = seen.tally, demos.reader
    assumed = (
        "are rotated by 180 degrees in the files" if seen.rotated else "are not rotated in the files, but when read"
    )
    origin = "the format prescribes it" if seen.rotated == reader.rotated else "the option says it"
    yield (
        "rotation_declared",
        f"pictures {assumed}: {origin}, and numbers cannot show it. Check with --out that pictures are upright",
    )
    if min(tally.image_size) < PUBLISHED_SIZE:
        height, width = tally.image_size
        yield (
            "small_pictures",
            f"pictures have {height}x{width} pixels; the data of the published policies were rendered with 256x256, "
            "and enlarging blurs",
        )
    if seen.gripper == "binary":
        yield (
            "gripper_binary",
            f"gripper commands are {GRIPPERS['binary']} in the files; they are read as {GRIPPERS['signed']}",
        )
    if demos.format == "rlds":
        yield "lossy_pictures", "JPEG: pixels differ by a few grey levels from those of the HDF5 files they came from"
    if isinstance(reader, Hdf5Reader):
        yield from _of_hdf5(reader, seen)
    if isinstance(reader, LeRobotReader):
        if reader.fps != CONTROL_HZ:
            yield (
                "fps_is_a_label",
                f"fps says {reader.fps:g}, LIBERO is controlled at {CONTROL_HZ} Hz: rows count",
            )
        yield (
            "stored_statistics",
            "the statistics in meta/ are of actions before the gripper's transform: use those that are printed here",
        )
        if any(reader.features.is_video.values()):
            yield "lossy_pictures", "videos: pixels differ by some grey levels from those that were rendered"
    if len(tally.names) > len(tally.tasks):
        yield (
            "one_prompt_several_tasks",
            f"{len(tally.names)} tasks share {len(tally.tasks)} prompts: only the picture distinguishes them",
        )


def _of_hdf5(reader: Hdf5Reader, seen: Inspection) -> Iterator[tuple[str, str]]:
    prompts = [(instruction_of_task(task_of_file(file.path)), file.sentence) for file in reader.files]
    other = [(prompt, inside) for prompt, inside in prompts if inside and inside.strip().lower() != prompt]
    if other:
        yield (
            "sentence_is_not_the_prompt",
            f"in {len(other)} of {len(reader.files)} files the sentence inside is not the prompt. Published policies "
            f'were trained on the file\'s name, which is used: "{other[0][0]}", not "{other[0][1]}"',
        )
    if any(max(file.numbers) > 9 for file in reader.files):
        yield "order_of_names", "by letters demo_10 comes before demo_2; demonstrations are read by number"
    gaps = sum(max(numbers) + 1 - len(numbers) for numbers in seen.tally.numbers.values())
    if gaps:
        yield "gaps_in_numbers", f"{gaps} numbers are missing, as where failed demonstrations were left out"


def _of_numbers(seen: Inspection) -> Iterator[tuple[str, str]]:
    tally = seen.tally
    if tally.jumps:
        yield (
            "orientation_jumps",
            f"in {tally.jumps} rows the axis-angle orientation jumps by more than half a circle. Where quaternions "
            "were flipped to their nearer antipode, published policies lose up to 40 points",
        )
    if tally.beyond:
        yield "large_actions", f"in {tally.beyond} rows the motion is beyond -1 ... 1, where the controller clips it"
    if tally.open_widths and tally.closed_widths:
        opened, closed = (sum(widths) / len(widths) for widths in (tally.open_widths, tally.closed_widths))
        if closed > opened + WIDTH_MARGIN:
            yield (
                "gripper_contradicts_fingers",
                f"fingers are {1000 * closed:.0f} mm apart after commands to close and {1000 * opened:.0f} mm after "
                "those to open: the sign of the gripper is probably the other one",
            )
    action = seen.statistics["action"]
    still = [str(i) for i in range(6) if action["min"][i] == action["max"][i]]
    if still:
        yield "constant_components", f"components {', '.join(still)} of the actions never move: they are scaled to 0"
    yield from _against_published(seen)


def _against_published(seen: Inspection) -> Iterator[tuple[str, str]]:
    names = Path(seen.path).resolve().parts
    for suite, (episodes, frames) in PUBLISHED.items():
        found = (len(seen.tally.lengths), seen.tally.frames)
        if any(f"{suite}_no_noops" in name for name in names) and found != (episodes, frames):
            yield (
                "not_the_published_set",
                f"{found[0]:,} episodes with {found[1]:,} frames; the published {suite}_no_noops has {episodes:,} with "
                f"{frames:,}",
            )
