"""Options of a collection of demonstrations."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Physics = Literal["exact", "fast"]
InitStates = Literal["sampled", "widened"]
Renderer = Literal["auto", "egl", "osmesa"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Disturbance of the expert's motions while it plays. Labels stay its own, undisturbed actions.

    A clone of an undisturbed expert has never seen how to return to the expert's path. All numbers
    are in units of actions, of which 1 is the largest motion. The gripper and rotations are not disturbed.
    """

    chunk_share: float = 0.3  # of the chunks that get a constant offset
    chunk_scale: float = 0.35  # its standard deviation in x, y and z
    step_scale: float = 0.1  # standard deviation of what every control step gets besides
    chunk: int = 8  # control steps


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectOptions:
    """Demonstrations to collect."""

    suite: str
    tasks: tuple[int, ...]
    episodes: int  # successful ones of each task
    seed: int = 0
    image_size: int = 256
    init_states: InitStates = "sampled"
    physics: Physics = "exact"
    assets: str = "auto"
    gl: Renderer = "auto"
    noise: Noise = field(default_factory=Noise)

    @property
    def most_attempts(self) -> int:
        """Return the episodes of a task after which the expert is considered unable to do it."""
        return 2 * self.episodes + 10

    def recorded(self, *, assets: str) -> dict[str, Any]:
        """Return everything that determines the content of a task's file, for its attributes.

        Args:
            assets: kind of the assets that are used: `proxy` or `full`.
        """
        names = ("suite", "episodes", "seed", "image_size", "init_states", "physics")
        return {
            "made_by": "vla-rl demos collect",
            **{name: getattr(self, name) for name in names},
            "assets": assets,
            "noise": asdict(self.noise),
        }
