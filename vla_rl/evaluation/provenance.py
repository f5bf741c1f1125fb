"""Provenance of a policy: what it was trained on, which must be read with its scores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from vla_rl.files import atomic_write_json
from vla_rl.libero_suites import SUITES
from vla_rl.policies.openvla_oft.checkpoint_files import RECORD_FILE
from vla_rl.policies.openvla_oft.json_files import read_json
from vla_rl.recipe import EnvSection

UNKNOWN_TRAINING = "unknown"

_FIELD = "training"  # field of an export's record


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Tasks and initial states of one training."""

    suite: str  # the environment's name, if it has no suites
    tasks: tuple[int, ...]
    init_states: str  # standard, spare, sampled or widened
    perturbed_by: str = ""  # what perturbed its episodes, in words; empty: nothing did, or that is unknown

    def __str__(self) -> str:
        whole = self.suite in SUITES and len(self.tasks) == SUITES[self.suite].num_tasks
        tasks = "all" if whole else ",".join(map(str, self.tasks))
        perturbed = f", perturbed: {self.perturbed_by}" if self.perturbed_by else ""
        return f"{self.suite} (tasks: {tasks}), {self.init_states} initial states{perturbed}"

    def notes(self, *, init_states: str, tasks: Iterable[tuple[str, int]]) -> list[str]:
        """Return the caveats of an evaluation on a set of stored states of some tasks (suite, id)."""
        shared = {(self.suite, task) for task in self.tasks} & set(tasks)
        if init_states != self.init_states or not shared:
            return []
        return [
            f"the policy was trained on the {init_states} initial states of {self.suite}, on which it is evaluated "
            "here: the score does not say how it does on others."
        ]


def training_in(env: EnvSection) -> Training:
    """Return the training in an environment."""
    return Training(
        suite=env.suite_name,
        tasks=tuple(env.task_ids),
        init_states=env.init_state_set,
        perturbed_by=env.perturbed_by,
    )


def record_training(directory: Path, training: Training) -> None:
    """Add the training to the record of an export."""
    path = directory / RECORD_FILE
    record = {name: value for name, value in asdict(training).items() if value != ""}
    atomic_write_json(path, {**read_json(path), _FIELD: record})


def record_statistics(directory: Path, key: str) -> None:
    """Add the key of the data set that scales actions to the record of an export."""
    path = directory / RECORD_FILE
    atomic_write_json(path, {**read_json(path), "statistics": key})


def recorded_training(directory: Path) -> Training | None:
    """Return the training in the record of an export; None if there is none.

    Raises:
        ValueError: the record is broken.
    """
    path = directory / RECORD_FILE
    found = read_json(path).get(_FIELD) if path.is_file() else None
    if found is None:
        return None
    match found:
        case {"suite": str(suite), "tasks": [*tasks], "init_states": str(states)} if suite in SUITES:
            ids = [task for task in tasks if isinstance(task, int) and 0 <= task < SUITES[suite].num_tasks]
            if tasks and ids == tasks:
                perturbed_by = str(found.get("perturbed_by", ""))
                return Training(suite=suite, tasks=tuple(ids), init_states=states, perturbed_by=perturbed_by)
    raise ValueError(
        f"{path}: {_FIELD} is {found!r}; expected suite (a name of LIBERO's), tasks (ids of its tasks) and "
        "init_states, or no such field"
    )
