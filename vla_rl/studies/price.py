"""Price of a study before it starts: what a call would make, its time and its memory."""

from __future__ import annotations

from dataclasses import dataclass

from vla_rl.container import usable_cores
from vla_rl.errors import UserError
from vla_rl.ipc.memory_check import available_memory, readable
from vla_rl.studies.gpu_room import available_gpu_memory
from vla_rl.studies.jobs import Job, Work
from vla_rl.studies.pace import minutes_left

HOST_MEMORY, GPU_MEMORY = "memory", "GPU memory"


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
            *(room.in_words(min(at_once, len(left))) for room in _rooms(left)),
        ]
    )


def usual_jobs(work: Work) -> int:
    """Return the default number of jobs at the same time: one for each core, if they fit in memory.

    On a GPU they must fit in its memory too; where it is not known how many do, it is one.
    """
    fitting = [room.fitting for room in _rooms(work.left())]
    return max(1, min([usable_cores(), *fitting, *([1] if why_one(work) else [])]))


def why_one(work: Work) -> str:
    """Return why `usual_jobs` makes one job at a time; empty where it goes by cores and memory."""
    if not work.on_gpu or GPU_MEMORY in [room.kind for room in _rooms(work.left())]:
        return ""
    return (
        f"one at a time, because the {work.noun} share one GPU, and how many fit in its memory is not known; "
        "--jobs 2 makes two at once"
    )


def check_memory(work: Work, *, at_once: int) -> None:
    """Refuse more jobs at the same time than fit in memory. One alone may fill a GPU: that is for the job to find out.

    Raises:
        UserError: they do not fit; says how many do.
    """
    left = work.left()
    together = min(at_once, len(left))
    for room in _rooms(left):
        fitting = max(room.fitting, 1) if room.kind == GPU_MEMORY else room.fitting
        if together > fitting:
            smaller = "make the recipe smaller: `vla-rl train RECIPE --dry-run` says what takes how much"
            fix = f"choose --jobs {fitting}" if fitting else f"free memory, or {smaller}"
            raise UserError(
                f"--jobs: {together} of these {work.noun} need {readable(together * room.each)} of {room.kind} at "
                f"once, and {readable(room.available)} are available; {fix}"
            )


@dataclass(frozen=True, slots=True)
class _Room:
    """Room for jobs in one kind of memory, in bytes."""

    kind: str
    each: int  # of the largest job
    available: int

    @property
    def fitting(self) -> int:
        return self.available // self.each

    def in_words(self, together: int) -> str:
        needed = f"{readable(self.each)} each, {readable(together * self.each)} at once"
        return f"{self.kind}: {needed}; {readable(self.available)} are available"


def _rooms(jobs: list[Job]) -> list[_Room]:
    """Return the room in each kind of memory of which the need is estimated and what is available is known."""
    host = max((job.expected.memory.host for job in jobs), default=0)
    gpu = max((job.expected.memory.gpu for job in jobs), default=0)
    on_card = available_gpu_memory() if gpu else None
    return [
        *([_Room(HOST_MEMORY, host, available_memory())] if host else []),
        *([_Room(GPU_MEMORY, gpu, on_card)] if on_card is not None else []),
    ]


def _core_time(jobs: list[Job]) -> str:
    return _time(sum(job.expected.seconds * job.expected.cores for job in jobs), of="core ")


def _time(seconds: float, *, of: str = "") -> str:
    """Format 5000 as "83.3 minutes", more than 100 minutes as hours."""
    minutes = seconds / 60
    value, unit = (minutes, "minutes") if minutes < 100 else (minutes / 60, "hours")
    return f"{value:,.0f} {of}{unit}" if value >= 100 else f"{value:.1f} {of}{unit}"
