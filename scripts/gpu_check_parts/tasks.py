"""The prompts of LIBERO-Spatial, in the benchmark's order, for machines without hf-libero."""

from __future__ import annotations

_PLACES = (
    "between the plate and the ramekin",
    "next to the ramekin",
    "from table center",
    "on the cookie box",
    "in the top drawer of the wooden cabinet",
    "on the ramekin",
    "next to the cookie box",
    "on the stove",
    "next to the plate",
    "on the wooden cabinet",
)
TASKS = tuple(f"pick up the black bowl {place} and place it on the plate" for place in _PLACES)
