"""Errors that mean "this request cannot work", as opposed to errors that mean "the program has a bug"."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Error in the user's input or machine: the message says what, where, what is allowed and how to fix it.

    The command line prints it without a traceback and exits with code 2.
    """


class SimulatorError(UserError):
    """Error of a simulator, its assets or its graphics; the message names the cause and the fix."""


class RunFailureError(RuntimeError):
    """Failure of a run whose message says everything there is to say.

    The command line prints it without a traceback and exits with code 1.
    """


class CellFailureError(RunFailureError):
    """Final failure of a cell's process: the message holds the process's own traceback.

    The traceback of the parent, which only noticed it, is useless.
    """


class NoSignalError(RunFailureError):
    """End of a run that has nothing to learn from, though it does not solve what it plays."""


@contextmanager
def preflight() -> Iterator[None]:
    """Run checks before anything starts: a `ValueError` raised inside is the user's to fix.

    The layers below raise plain `ValueError`. Before the first process is started it is about the recipe, a checkpoint
    or a folder; later it would be a bug, and must keep its traceback.

    Raises:
        UserError: a `ValueError` was raised inside; has its message.
    """
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error
