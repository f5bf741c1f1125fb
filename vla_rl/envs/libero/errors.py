"""What can be wrong with the simulator, as the user meets it."""

from __future__ import annotations

from vla_rl.errors import UserError


class SimulatorError(UserError):
    """The simulator, its assets or its graphics cannot be used; the message names the cause and the fix."""
