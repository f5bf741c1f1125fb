"""Errors of the simulator that the user sees."""

from __future__ import annotations

from vla_rl.errors import UserError


class SimulatorError(UserError):
    """Error of the simulator, its assets or its graphics; the message names the cause and the fix."""
