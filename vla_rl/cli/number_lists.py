"""Lists of whole numbers on the command line: task ids and seeds."""

from __future__ import annotations

from vla_rl.errors import UserError
from vla_rl.section import Problem

_DIGITS = 18  # digits of any integer that fits in 64 bits
_MOST_TASKS = 10_000  # more than any benchmark has; a list of them still fits in memory


def parse_seeds(text: str) -> list[int]:
    """Parse `0,1,2` to [0, 1, 2].

    Raises:
        UserError: not a list of whole numbers from 0, or one that torch does not take.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) <= _DIGITS for part in parts):
        raise UserError(f"--seed: found {text!r}; allowed are whole numbers from 0 to {'9' * _DIGITS}, like 0 or 0,1,2")
    return [int(part) for part in parts]


def parse_tasks(text: str) -> list[int]:
    """Parse `0,3-5` to [0, 3, 4, 5].

    Raises:
        UserError: not a list of ids and ranges, or an id twice.
    """
    ids: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise _refused("not a list of task ids", text, "ids and ranges")
        if len(first) > _DIGITS or len(last) > _DIGITS or int(last or first) - int(first) >= _MOST_TASKS:
            raise _refused("too many tasks", text, f"at most {_MOST_TASKS} tasks")
        ids += range(int(first), int(last or first) + 1)
    if len(set(ids)) != len(ids) or not ids:
        raise _refused("an id is repeated, or a range runs downwards", text, "each id once, ranges from low to high")
    return ids


def _refused(rule: str, text: str, allowed: str) -> UserError:
    return UserError(str(Problem("--tasks", rule, repr(text), allowed, "--tasks 0,3 or --tasks 0-4")))
