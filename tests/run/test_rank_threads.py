"""Threads of a recipe that names no number: the cores of a rank, which others beside it do not get too."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vla_rl import container
from vla_rl.learner import launch
from vla_rl.recipe import find_recipe, load_recipe
from vla_rl.run.assembly import _inference_settings
from vla_rl.run.plan import make_plan
from vla_rl.run.ranks import ranks_of_machine
from vla_rl.studies.price import usual_jobs


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> int:
    """128 cores, of which the container may use 24."""
    (tmp_path / "cpu.max").write_text("2400000 100000")
    (tmp_path / "membership").write_text("0::/")
    monkeypatch.setattr(container, "_MOUNT", tmp_path)
    monkeypatch.setattr(container, "_MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(128)))
    monkeypatch.setattr("os.cpu_count", lambda: 128)
    return 24


@pytest.mark.parametrize(("ranks", "threads"), [(None, 12), (1, 12), (3, 4), (64, 1)])
def test_learner_and_inference_worker_of_all_ranks_share_the_cores_of_a_machine(
    monkeypatch: pytest.MonkeyPatch, cores: int, ranks: int | None, threads: int
) -> None:
    """64 ranks: WORLD_SIZE counts those of other machines too, and a batch system's ranks have cores of their own."""
    monkeypatch.setenv("WORLD_SIZE", "64")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if ranks is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    recipe = load_recipe(find_recipe("toy"), ["runtime.device=cpu"])
    assert make_plan(recipe.setup).threads == threads
    asked = load_recipe(find_recipe("toy"), ["runtime={device: cpu, threads_per_process: 5}"])
    assert make_plan(asked.setup).threads == 5


@pytest.mark.parametrize(("inference", "threads"), [("shared", 12), ("local", 4)])
def test_env_workers_that_decide_share_the_half_of_an_inference_worker(
    monkeypatch: pytest.MonkeyPatch, cores: int, tmp_path: Path, inference: str, threads: int
) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    setup = f"rollout={{inference: {inference}, num_workers: 3}}"
    plan = make_plan(load_recipe(find_recipe("toy"), ["runtime.device=cpu", setup]).setup)
    assert plan.threads == 12
    assert _inference_settings(plan, tmp_path, greedy=True, seed=0).threads == threads


def test_the_launcher_and_studies_divide_the_same_cores(monkeypatch: pytest.MonkeyPatch, cores: int) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert launch._environment("ddp", "cpu", 3)["OMP_NUM_THREADS"] == "8"
    without_memory: Any = SimpleNamespace(left=list, on_gpu=False)  # whose jobs have no estimate of it
    assert usual_jobs(without_memory) == cores


@pytest.mark.parametrize(("started", "ranks"), [({}, 1000), ({"LOCAL_WORLD_SIZE": "4"}, 4), ({"LOCAL_RANK": "0"}, 1)])
def test_a_launcher_says_how_many_ranks_a_machine_has(
    monkeypatch: pytest.MonkeyPatch, started: dict[str, str], ranks: int
) -> None:
    """Then the recipe's number, which may be that of all machines or of another one, counts for nothing."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (started and {"RANK": "0", "WORLD_SIZE": "8"} | started).items():
        monkeypatch.setenv(name, value)
    learner = load_recipe(find_recipe("toy"), ["learner.strategy=ddp", "learner.num_ranks=1000"]).learner
    assert ranks_of_machine(learner, device="cpu") == ranks
