"""Price of a study before it starts: what a call would make, its time and its memory."""

from __future__ import annotations

from vla_rl.container import usable_cores
from vla_rl.errors import UserError
from vla_rl.ipc.memory_check import available_memory, readable
from vla_rl.studies.jobs import Job, Work
from vla_rl.studies.pace import minutes_left


def price(work: Work, *, at_once: int) -> str:
    """Return what is left of a study, in words: its axes, a line for each kind of job, the sum, and the memory.

    Args:
        work: the study's jobs.
        at_once: jobs of one core that run at the same time.
    """
    left = work.left()
    kinds: dict[str, list[Job]] = {}
    for job in left:
        kinds.setdefault(str(job.record[work.kind_field]), []).append(job)
    finished = len(work.jobs) - len(left)
    told = f"{len(left)} {work.noun}" + (f" ({finished} of {len(work.jobs)} finished)" if finished else "")
    wall = 60 * minutes_left([], [], [job.expected for job in left], jobs=at_once)
    return "\n".join(
        [
            work.what,
            *(
                f"{kind:<12} {len(own):>3} {work.noun}  about {_core_time(own)}, "
                f"the longest {_time(max(job.expected.seconds for job in own))}"
                for kind, own in kinds.items()
            ),
            f"{told}, {at_once} at once: about {_time(wall)} ({_core_time(left)})",
            *([f"times are a guess: {work.guess}"] if work.guess and left else []),
            *_memory_line(left, at_once=at_once),
        ]
    )


def usual_jobs(work: Work) -> int:
    """Return the default number of jobs at the same time: one for each core, if they fit in memory; one on a GPU."""
    if work.on_gpu:
        return 1
    cores, each = usable_cores(), _memory_of_one(work.left())
    return max(1, min(cores, available_memory() // each)) if each else cores


def why_one(work: Work) -> str:
    """Return why `usual_jobs` makes one job at a time; empty where it goes by cores and memory."""
    if not work.on_gpu:
        return ""
    return f"one at a time, because the {work.noun} would share the memory of one GPU; --jobs 2 makes two at once"


def check_memory(work: Work, *, at_once: int) -> None:
    """Refuse more jobs at the same time than fit in memory.

    Raises:
        UserError: they do not fit; says how many do.
    """
    left, available = work.left(), available_memory()
    each, together = _memory_of_one(left), min(at_once, len(left))
    if together * each > available:
        fitting = available // each
        smaller = "free memory, or make the recipe smaller: `vla-rl train RECIPE --dry-run` says what takes how much"
        fix = f"choose --jobs {fitting}" if fitting else smaller
        raise UserError(
            f"--jobs: {together} of these {work.noun} need {readable(together * each)} of memory at once, and "
            f"{readable(available)} are available; {fix}"
        )


def _memory_of_one(jobs: list[Job]) -> int:
    """Return the bytes of the largest job; 0 if none is estimated."""
    return max((job.expected.memory for job in jobs), default=0)


def _memory_line(left: list[Job], *, at_once: int) -> list[str]:
    each = _memory_of_one(left)
    together, available = readable(min(at_once, len(left)) * each), readable(available_memory())
    return [f"memory: {readable(each)} each, {together} at once; {available} are available"] if each else []


def _core_time(jobs: list[Job]) -> str:
    return _time(sum(job.expected.seconds * job.expected.cores for job in jobs), of="core ")


def _time(seconds: float, *, of: str = "") -> str:
    """Format 5000 as "83.3 minutes", more than 100 minutes as hours."""
    minutes = seconds / 60
    value, unit = (minutes, "minutes") if minutes < 100 else (minutes / 60, "hours")
    return f"{value:,.0f} {of}{unit}" if value >= 100 else f"{value:.1f} {of}{unit}"
