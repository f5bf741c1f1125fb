"""Start of the program: signals and streams first, imports afterwards."""

from __future__ import annotations

import atexit
import errno
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from vla_rl.cli import exit_codes
from vla_rl.cli.commentary import is_commentary
from vla_rl.ipc.parent_death import end_with_parent, stop_signals
from vla_rl.run.signals import heed_signals, interrupted_by_signals

if TYPE_CHECKING:
    from vla_rl.reporting.streams import EnduringFile

LAUNCHED_BY_TORCH = "TORCHELASTIC_RUN_ID"  # in the environment of what torchrun and Accelerate's launcher start


def run() -> NoReturn:
    """Entry point of the installed program."""
    is_rank = {"RANK", "WORLD_SIZE"} <= os.environ.keys()  # ranks end together, in the training: see `launch_ranks`
    try:
        with interrupted_by_signals(only_noted=is_rank):
            if is_rank and LAUNCHED_BY_TORCH in os.environ:
                end_with_parent(signal.SIGTERM)  # a rank whose launcher was killed would go on without one
            signal.pthread_sigmask(signal.SIG_UNBLOCK, stop_signals())  # a launcher holds them back until we are here
            try:
                code = _run()
            except Exception:
                heed_signals()  # NumPy makes an ImportError of an interrupted import
                raise
    except KeyboardInterrupt:  # before a verb was there to heed it
        print("interrupted", file=sys.stderr)
        code = exit_codes.INTERRUPTED
    atexit.register(_settle)
    # CPython notes an interruption that passes through `exec` of a text, as dataclasses are made, and under `-m` ends
    # itself by SIGINT whatever the exit code. Another `exec` clears the note.
    exec("")
    sys.exit(code)


def _run() -> str | int | None:
    """Run a verb; return the exit code."""
    from vla_rl.reporting.streams import guard_streams

    stdout, _ = guard_streams()

    from vla_rl.cli.main import app

    code: str | int | None = 0
    try:
        app(prog_name="vla-rl")
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    if not code and _lacks_output(stdout):
        print(f"error: stdout cannot be written to: {stdout.error}; the output is not complete", file=sys.stderr)
        code = exit_codes.FAILURE
    return code


def _settle() -> None:
    """Fix the exit code before modules are torn down; repeated signals change nothing."""
    for number in set(stop_signals()) - {signal.SIGINT}:
        signal.signal(number, signal.SIG_IGN)


def _lacks_output(stdout: EnduringFile) -> bool:
    """Return whether lost output matters; it does not to a reader that has seen enough (`head`)."""
    return stdout.error is not None and stdout.error.errno != errno.EPIPE and not is_commentary()
