"""Errors that mean "what you asked for cannot work", as against errors that mean "the program is broken"."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Something the user wrote or has is wrong: the message says what, where, what is allowed and how to fix it.

    The command line prints it without a traceback and exits with code 2.
    """


class RunFailureError(RuntimeError):
    """A run could not go on, and the message says all there is to say.

    The command line prints it without a traceback and exits with code 1.
    """


class CellFailureError(RunFailureError):
    """A process of a cell failed for good: the message holds its own traceback.

    Where the parent noticed is of no use to anybody.
    """


@contextmanager
def preflight() -> Iterator[None]:
    """Checks made before anything starts: a `ValueError` raised inside is the user's to fix.

    The layers below raise plain `ValueError`. Before the first process is started it speaks of the recipe, a checkpoint
    or a folder; later it would be a fault of the program, and must keep its traceback.

    Raises:
        UserError: with the message of the `ValueError` that was raised inside.
    """
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error
