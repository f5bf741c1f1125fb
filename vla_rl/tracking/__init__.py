"""Trackers: each is a class in a file of its own, and a field here, by which a recipe asks for it.

`vla_rl.tracking.base` has the interface, CONTRIBUTING.md how to add one.
"""

from __future__ import annotations

from pydantic import Field

from vla_rl.section import Section
from vla_rl.tracking.base import Ending, Session, TrackedRun, Tracker
from vla_rl.tracking.mlflow import Mlflow
from vla_rl.tracking.trackio import Trackio
from vla_rl.tracking.wandb import Wandb


class TrackersSection(Section):
    """Trackers of a run, by the names of their libraries; null: not used. This is the one list of them."""

    wandb: Wandb | None = Field(None, description="Weights & Biases; {} for its defaults")
    trackio: Trackio | None = Field(None, description="Trackio; {} for its defaults")
    mlflow: Mlflow | None = Field(None, description="MLflow; {} for its defaults")

    def trackers(self) -> dict[str, Tracker]:
        """Return the trackers that are asked for, by name."""
        found = {name: getattr(self, name) for name in TrackersSection.model_fields}
        return {name: tracker for name, tracker in found.items() if tracker is not None}


__all__ = ["Ending", "Session", "TrackedRun", "Tracker", "TrackersSection"]
