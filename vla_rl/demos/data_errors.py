"""Form of all errors of data sets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vla_rl.errors import UserError
from vla_rl.section import Problem

AGAIN = "the file is damaged or was not downloaded to its end: fetch it again"
LFS = b"version https://git-lfs"
EXTRA = ("h5py", "pyarrow", "av")  # the packages of the extra `demos`


class DemosError(UserError):
    """Unusable demonstrations. The message holds file, key, rule, found and allowed values, and a fix."""

    def __init__(
        self, file: Path | str, key: str, rule: str, *, found: object = "", allowed: str = "", fix: str = ""
    ) -> None:
        path = f"{file}: {key}" if key else str(file)
        super().__init__(str(Problem(path, rule, str(found), allowed, fix)))
        self.file = Path(file)
        self.key = key


def damaged(file: Path, rule: str, *, key: str = "", found: object, allowed: str = "", fix: str = AGAIN) -> DemosError:
    """Return the error of a file with unexpected bytes; a git-lfs pointer is recognised as one."""
    with file.open("rb") as stream:
        if stream.read(len(LFS)) == LFS:
            return DemosError(file, "", rule, found="a git-lfs pointer, not the file itself", fix="git lfs pull")
    return DemosError(file, key, rule, found=found, allowed=allowed, fix=fix)


@contextmanager
def extra_needed(purpose: str) -> Iterator[None]:
    """Wrap the import of a package of the extra `demos`.

    Raises:
        UserError: it is not installed; the message holds the command that installs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in EXTRA:
            raise
        raise UserError(f"{purpose} needs {package}, which is not installed: pip install 'vla-rl[demos]'") from error
