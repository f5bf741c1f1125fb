"""Small toy runs for tests of the whole program."""

from __future__ import annotations

import gc
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from safetensors.numpy import load_file

from vla_rl import train as training
from vla_rl.recipe import Recipe

TOY = {
    "name": "toy-test",
    "env": {"name": "toy", "tasks": [0], "horizon": 8, "chunk_size": 2},
    "policy": {"name": "mlp", "hidden_dim": 16, "num_bins": 8},
    "surrogate": {"name": "gipo", "sigma": 1.0},
    "optimizer": {"policy_lr": 1e-3, "value_lr": 1e-3, "schedule": "constant"},
    "replay": {"capacity": 512, "min_decisions": 16, "segment_length": 4, "replay_ratio": 2.0},
    "learner": {"micro_batch": 4},
    "rollout": {"num_workers": 1, "envs_per_worker": 2, "max_batch": 2},
    "runtime": {"mode": "serial", "device": "cpu", "threads_per_process": 1},
    "budget": {"optimizer_steps": 6},
    "checkpoint": {"every_optimizer_steps": 3},
    "logging": {"tensorboard": False},
}


def toy_recipe(**sections):
    """The toy recipe with whole fields of sections replaced: toy_recipe(budget={"optimizer_steps": 2})."""
    values = {name: dict(value) if isinstance(value, dict) else value for name, value in TOY.items()}
    for name, changes in sections.items():
        values[name] = {**values.get(name, {}), **changes} if isinstance(changes, dict) else changes
    return Recipe.model_validate(values)


def run(recipe, run_dir: Path, *, resume: bool = False):
    """Train in this process; returns the outcome and what was printed."""
    stream = io.StringIO()
    outcome = training.train(recipe, run_dir=run_dir, resume=resume, console=Console(file=stream, width=200))
    return outcome, stream.getvalue()


def metrics(run_dir: Path) -> list[dict[str, float]]:
    """Log points without what depends on the machine's speed."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if name != "seconds" and not name.startswith("perf/")}
        for line in lines
    ]


def own_blocks() -> set[str]:
    """Shared memory that this process still maps."""
    gc.collect()  # views may be held by cycles
    return {line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:vla_rl" in line}


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder with what is in it."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@dataclass(frozen=True)
class Played:
    """One group in the replay ring of a checkpoint."""

    starts: frozenset[tuple[float, ...]]  # first observations of its episodes: the toy's position and goal
    tasks: frozenset[int]
    episodes: int
    versions: frozenset[int]  # of all decisions


def groups_in_ring(run_dir: Path, *, rank: int = 0) -> dict[int, Played]:
    """Groups in a rank's ring in the newest checkpoint, by id."""
    path = max(
        run_dir.rglob(f"rank_{rank}/*/ring.safetensors"), key=lambda file: int(file.parents[2].name.rsplit("_", 1)[1])
    )
    ring = load_file(path)
    first = np.cumsum(ring["length"] + 1) - (ring["length"] + 1)
    found = {}
    for group in set(ring["group"].tolist()):
        own = np.flatnonzero(ring["group"] == group)
        rows = [ring["policy_version"][first[i] : first[i] + ring["length"][i]].tolist() for i in own]
        found[group] = Played(
            starts=frozenset(tuple(ring["state"][first[i]].tolist()) for i in own),
            tasks=frozenset(ring["task_index"][own].tolist()),
            episodes=len(own),
            versions=frozenset(version for versions in rows for version in versions),
        )
    return found


def assert_pure(groups: dict[int, Played], *, size: int, teams: int) -> None:
    """Every group has one task and one start, which no other has; only those being played lack members."""
    assert 0 not in groups
    assert all(len(group.starts) == len(group.tasks) == 1 for group in groups.values())
    assert len({(*group.starts, *group.tasks) for group in groups.values()}) == len(groups)
    assert max(group.episodes for group in groups.values()) == size
    assert sum(group.episodes < size for group in groups.values()) <= 3 * teams  # the slowest's, and a lead of two
