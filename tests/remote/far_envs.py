"""What the tests have built on the far side, where this module is imported by name."""

from __future__ import annotations

import os

from vla_rl.errors import SimulatorError
from vla_rl.types import Environment


def name_of_the_side() -> dict[str, str]:
    """An identity that differs: only the far side's processes have this variable."""
    return {"side": os.environ.get("VLA_RL_TEST_SIDE", "near")}


def no_simulator() -> Environment:
    raise SimulatorError("no renderer works. Fix: install one")
