"""Domain randomisation: a share of the episodes is perturbed, each in its own way."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vla_rl.envs.libero.perturbations.kind import Effect
from vla_rl.envs.libero.perturbations.kinds import ALL, KINDS, Perturbation, parse_perturbations
from vla_rl.types import TaskInfo


@dataclass(frozen=True, slots=True)
class Randomisation:
    """Perturbation drawn for each episode: first whether, then the kind, then its level. Satisfies `kind.Change`.

    The draws follow from task, initial state and seed alone: they depend neither on the order of the episodes nor on
    the worker that plays them, and episodes of a group, which share all three, share their perturbation.
    """

    perturbations: tuple[Perturbation, ...]  # kinds are equally likely, and so are the levels of one kind
    share: float  # of the episodes

    def drawn(self, task: TaskInfo, init_state: int, *, seed: int) -> Perturbation | None:
        """Return what happens to an episode; None: nothing."""
        rng = self._own_generator(task, init_state, seed)
        if rng.random() >= self.share:
            return None
        kinds = list(dict.fromkeys(one.kind for one in self.perturbations))
        kind = kinds[rng.integers(len(kinds))]
        levels = [one for one in self.perturbations if one.kind == kind]
        return levels[rng.integers(len(levels))]

    def effect(self, task: TaskInfo, init_state: int, *, seed: int) -> Effect:
        """Return what is done to an episode."""
        drawn = self.drawn(task, init_state, seed=seed)
        return Effect() if drawn is None else drawn.effect(task, init_state, seed=seed)

    def generator(
        self, task: TaskInfo, init_state: int, *, seed: int, moment: tuple[int, ...] = ()
    ) -> np.random.Generator:
        """Return the generator of an episode's draws in one `moment`: that of its perturbation."""
        drawn = self.drawn(task, init_state, seed=seed)
        if drawn is None:
            return self._own_generator(task, init_state, seed)
        return drawn.generator(task, init_state, seed=seed, moment=moment)

    @staticmethod
    def _own_generator(task: TaskInfo, init_state: int, seed: int) -> np.random.Generator:
        names = (zlib.crc32(name.encode()) for name in ("randomisation", task.suite))
        return np.random.default_rng([*names, task.task_id, init_state, seed])


def training_perturbations(entries: Sequence[str]) -> list[Perturbation]:
    """Parse kinds for training, like `["camera:1-3", "light"]`; `all` stands for all but those of the instruction.

    Raises:
        ValueError: a name or a level does not exist, or changes the instruction, which a policy reads once per task.
    """
    found = {one for entry in entries for one in parse_perturbations(entry) if not _is_left_out(entry, one)}
    if texts := sorted({one.kind for one in found if KINDS[one.kind].tells}):
        raise ValueError(
            f"{', '.join(texts)}: instructions cannot change between the episodes of a run; leave these kinds out"
        )
    order = list(KINDS)
    return sorted(found, key=lambda one: (order.index(one.kind), one.level))


def _is_left_out(entry: str, one: Perturbation) -> bool:
    return entry.partition(":")[0].strip() == ALL and KINDS[one.kind].tells
