"""Interface of a kind of perturbation, and of what it does to one episode."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from vla_rl.types import TaskInfo, UInt8Array

if TYPE_CHECKING:
    from vla_rl.envs.libero.simulation import Simulation

LEVELS = (1, 2, 3, 4, 5)
SCENE_CAMERA = "agentview"  # the wrist's camera is never perturbed, as in LIBERO-plus

Group = Literal["camera", "light", "texture", "image", "robot", "objects", "instruction", "action"]
Numbers = dict[str, Any]
"""Meaning of a level: keys that end in a unit, and numbers, words, or lists and tables of them as values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Compiled model of a scene, to be edited before its first frame. Pixels change, physics does not."""

    mujoco: Any  # the module
    model: Any  # mujoco.MjModel
    repainted: set[int]  # textures whose pixels were changed; an edit adds to it

    @property
    def camera(self) -> Any:  # noqa: ANN401 - MuJoCo is untyped here
        """Return the scene's camera: fields pos (3,), quat (4,) w x y z, fovy (1,) degrees."""
        return self.model.camera(SCENE_CAMERA)


class Effect:
    """Changes that a perturbation makes to one episode; the base makes none. A new one is drawn for every episode."""

    def extra_objects(self, present: frozenset[str]) -> tuple[str, ...]:  # noqa: ARG002 - for those that add some
        """Return categories of objects to add to a scene that has the categories `present`."""
        return ()

    def edit_model(self, scene: Model) -> None:
        """Change what is drawn."""

    def before_settling(self, simulation: Simulation) -> None:
        """Change positions after the initial state was set."""

    def after_settling(self, simulation: Simulation) -> bool:  # noqa: ARG002 - for those that move something
        """Change positions where everything has come to rest; return whether any was changed."""
        return False

    def frames(
        self,
        frames: UInt8Array,
        cameras: Sequence[str],  # noqa: ARG002 - for those that change pictures, as below
        rng: np.random.Generator,  # noqa: ARG002
    ) -> UInt8Array:
        """Return what the policy sees instead of `frames`, (N, H, W, 3), rows from the bottom, one per camera."""
        return frames

    def filmed(self, frames: UInt8Array, cameras: Sequence[str], rng: np.random.Generator) -> UInt8Array:
        """Return what a video shows of one control step: what a decision would see there. Changes no later picture."""
        return self.frames(frames, cameras, rng)

    def action(
        self,
        action: NDArray[np.float64],
        rng: np.random.Generator,  # noqa: ARG002
    ) -> NDArray[np.float64]:
        """Return what is executed instead of `action`, (7,); called once for every control step."""
        return action


class PictureEffect(Effect, ABC):
    """Effect on the pictures of the scene's camera."""

    def frames(self, frames: UInt8Array, cameras: Sequence[str], rng: np.random.Generator) -> UInt8Array:
        """Change the scene's pictures in a copy."""
        changed = frames.copy()
        for number, camera in enumerate(cameras):
            if camera == SCENE_CAMERA:
                changed[number] = self.picture(frames[number], rng)
        return changed

    @abstractmethod
    def picture(self, picture: UInt8Array, rng: np.random.Generator) -> UInt8Array:
        """Return a changed copy of one picture, (H, W, 3)."""


class Change(Protocol):
    """Something that happens to the episodes of a task. Picklable."""

    def effect(self, task: TaskInfo, init_state: int, *, seed: int) -> Effect:
        """Return what it does to one episode, which follows from the arguments alone."""
        ...

    def generator(
        self, task: TaskInfo, init_state: int, *, seed: int, moment: tuple[int, ...] = ()
    ) -> np.random.Generator:
        """Return the generator of an episode's draws, or of those of one `moment` in it."""
        ...


class Kind(ABC):
    """One kind of perturbation, with five levels."""

    name: ClassVar[str]
    group: ClassVar[Group]
    summary: ClassVar[str]  # what changes, in a few words
    source: ClassVar[str]  # whose numbers the levels are
    moves: ClassVar[bool] = False  # whether equal actions may lead to other positions
    tells: ClassVar[bool] = False  # whether it changes the instruction

    @abstractmethod
    def numbers(self, level: int) -> Numbers:
        """Return everything that defines a level."""

    def draw(self, level: int, task: TaskInfo, rng: np.random.Generator) -> Effect:  # noqa: ARG002 - for all but texts
        """Draw what happens in one episode of a task."""
        return Effect()

    def instruction(self, level: int, task: TaskInfo, suite: Sequence[TaskInfo]) -> str:  # noqa: ARG002 - for texts
        """Return the instruction that a policy reads in a task; `suite` are all tasks of its suite."""
        return task.language


def one_of(*values: float) -> Numbers:
    """Describe a number that every episode draws from a few, all equally likely."""
    return {"one_of": list(values)}


def uniform(low: float, high: float) -> Numbers:
    """Describe a number that is drawn uniformly from a range."""
    return {"uniform_in": [low, high]}


def signed(rng: np.random.Generator, size: float) -> float:
    """Return plus or minus `size`, either with probability 1/2."""
    return size if rng.integers(2) else -size
