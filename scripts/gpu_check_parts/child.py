"""The process of one phase: `python -m gpu_check_parts.child MODULE RECORD SIZE LIMIT_S SCRATCH ROOT`.

Exit codes: 0 all checks hold, 3 a check does not; anything else is a crash, whose traceback stands in the output.
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import signal
import sys
from pathlib import Path

from gpu_check_parts.record import Record, Setting

CHECK_FAILED = 3
STACKS_BEFORE_S = 3.0  # before the limit, so that the output tells where a phase hung
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> int:
    """Run one phase."""
    module, path, size, limit, scratch, root = sys.argv[1:]
    die_with_parent()
    faulthandler.enable()
    limit_s = float(limit)
    if limit_s > 2 * STACKS_BEFORE_S:
        faulthandler.dump_traceback_later(limit_s - STACKS_BEFORE_S)
    record = Record(Path(path))
    record.write()
    setting = Setting(size=size, limit_s=limit_s, scratch=Path(scratch), root=Path(root))
    importlib.import_module(module).measure(record, setting)
    for broken in record.broken:
        print(f"does not hold: {broken}", flush=True)
    return CHECK_FAILED if record.broken else 0


def die_with_parent() -> None:
    """Have the kernel end this process if the one that started it dies, however that happens. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
