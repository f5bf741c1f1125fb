"""Failures of ranks: what they tell each other, the errors that come of it, and the launcher's report."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Self

from vla_rl.errors import RunFailureError, UserError


@dataclass(frozen=True, slots=True)
class Failure:
    """Cause of the end of all ranks."""

    rank: int  # that failed, or that is gone
    cause: str  # for people; names the rank
    is_user_error: bool
    is_common: bool = False  # all ranks found it together

    @classmethod
    def from_text(cls, text: bytes) -> Self:
        """Return the failure that another rank wrote."""
        return cls(**json.loads(text))

    def to_text(self) -> str:
        """Return the failure as ranks tell it to each other."""
        return json.dumps(asdict(self))

    def as_error(self) -> Exception:
        """Return the error with which a rank ends because of it."""
        if self.is_common:
            return CommonError(self.cause)
        return (AnotherRankRefusedError if self.is_user_error else AnotherRankError)(self.cause)


class AnotherRankError(RunFailureError):
    """End of this rank because another one failed or is gone."""


class AnotherRankRefusedError(UserError):
    """User error that another rank found."""


class CommonError(UserError):
    """User error that all ranks find together."""


def in_words(error: BaseException) -> str:
    """Return why a rank ends, without its name."""
    if isinstance(error, UserError | RunFailureError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted at once, by a second Ctrl-C"
    if isinstance(error, SystemExit):
        return f"ended with exit code {error.code}"
    return f"{type(error).__name__}: {first_line(error)}; its own output has the traceback"


def first_line(error: BaseException) -> str:
    """Return the first line of a message that has words."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")


def report_to_launcher(failure: Failure) -> None:
    """Write the cause where torchrun looks for it, so that its own summary says it too."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        shown = {"timestamp": str(int(time.time())), "py_callstack": failure.cause}
        message = {"message": failure.cause, "extraInfo": shown}
        with suppress(OSError), open(path, "w", encoding="utf-8") as file:  # noqa: PTH123 - torchrun's own path
            json.dump({"message": message}, file)
