"""Meaning of a time limit for the task; free of torch, because a recipe names it."""

from __future__ import annotations

from typing import Literal

TimeLimit = Literal["end", "bootstrap"]
"""See `vla_rl.rl.targets`."""
