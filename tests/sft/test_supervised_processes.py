"""Supervised runs on several ranks: equal to one rank, and what is left when a rank dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from sft_demos import RECIPE, train

from vla_rl.sft.stage import SupervisedOutcome

pytestmark = pytest.mark.slow

DEADLINE_S = 300.0


@pytest.fixture
def start(demos: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start `vla-rl sft`; whatever is still running at the end is killed."""
    started = []
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(path=demos), encoding="utf-8")

    def launch(*overrides: str, name: str, resume: bool = False) -> subprocess.Popen[bytes]:
        run_dir = tmp_path / name
        which = [str(run_dir), "--resume"] if resume else [str(recipe), "--run-dir", str(run_dir)]
        with (tmp_path / f"{name}.txt").open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "vla_rl", "sft", *which, *overrides],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        started.append(process)
        return process

    yield launch
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait(10)


def succeeded(process: subprocess.Popen[bytes], output: Path) -> None:
    assert process.wait(DEADLINE_S) == 0, output.read_text()


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {DEADLINE_S} s"
        time.sleep(0.02)


def points(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def weights(policy: Path) -> torch.Tensor:
    tensors = load_file(policy / "model.safetensors")
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


def ranks(tmp_path: Path, name: str) -> list[psutil.Process]:
    """Ranks of a run, in the order of their numbers."""
    found = {}
    for process in psutil.process_iter():
        try:
            if str(tmp_path / name) in process.cmdline() and "LOCAL_RANK" in process.environ():
                found[int(process.environ()["LOCAL_RANK"])] = process
        except psutil.Error:
            continue
    return [found[rank] for rank in sorted(found)]


@pytest.fixture(scope="module")
def begin(demos: Path, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """The weights before the first update."""
    still = ("demos.held_out=0.5", "budget.optimizer_steps=1", "optimizer.policy_lr=0", "optimizer.value_lr=0")
    policy = train(tmp_path_factory.mktemp("begin") / "run", demos, *still).policy
    assert policy is not None
    return weights(policy)


@pytest.fixture(scope="module")
def one(demos: Path, tmp_path_factory: pytest.TempPathFactory) -> SupervisedOutcome:
    """A run on one rank."""
    return train(tmp_path_factory.mktemp("one") / "run", demos, "demos.held_out=0.5")


@pytest.mark.parametrize("strategy", ["ddp", "deepspeed"])
def test_two_ranks_with_half_a_batch_each_learn_what_one_with_the_whole_batch_does(
    begin: torch.Tensor, one: SupervisedOutcome, start, tmp_path: Path, strategy: str
) -> None:
    """The loss is the mean over both ranks' samples.

    Float32 sums in another order differ by rounding, and Adam divides by the size of a gradient, so that the distance
    between both ends is compared with the distance from the start.
    """
    two = start(
        *(f"learner={{strategy: {strategy}, num_ranks: 2, zero_stage: 2, micro_batch: 2}}", "demos.held_out=0.5"),
        name="two",
    )
    succeeded(two, tmp_path / "two.txt")
    assert one.policy is not None
    alone, together = weights(one.policy), weights(tmp_path / "two" / "policy")
    distance, way = float((together - alone).norm()), float((alone - begin).norm())
    assert distance < 1e-2 * way, distance / way
    for found, expected in zip(points(tmp_path / "two"), points(one.run_dir), strict=True):
        for name in ("supervised/loss", "supervised/epochs", "learner/grad_norm"):
            assert found[name] == pytest.approx(expected[name], rel=1e-3), name
    final = points(tmp_path / "two")[-1]
    assert final["held_out/loss"] == pytest.approx(one.metrics["held_out/loss"], rel=1e-3)


def test_when_a_rank_dies_all_end_and_the_resumed_run_ends_with_the_same_bits(start, tmp_path: Path) -> None:
    overrides = ("learner={strategy: ddp, num_ranks: 2, micro_batch: 1}", "checkpoint.every_optimizer_steps=2")
    killed = start(*overrides, "budget.optimizer_steps=1000000", name="killed")  # far from its end when it is killed
    wait_until((tmp_path / "killed" / "checkpoints" / "optimizer_step_2").is_dir, "the first checkpoint")
    both = ranks(tmp_path, "killed")
    assert len(both) == 2
    os.kill(both[1].pid, signal.SIGKILL)
    assert killed.wait(DEADLINE_S) != 0
    wait_until(lambda: not ranks(tmp_path, "killed"), "the end of all ranks")
    steps = points(tmp_path / "killed")[-1]["optimizer_steps"] + 2
    budget = f"budget.optimizer_steps={steps}"
    succeeded(start(budget, name="killed", resume=True), tmp_path / "killed.txt")
    succeeded(start(*overrides, budget, name="whole"), tmp_path / "whole.txt")
    model = Path("policy") / "model.safetensors"
    assert (tmp_path / "killed" / model).read_bytes() == (tmp_path / "whole" / model).read_bytes()
    assert [point["optimizer_steps"] for point in points(tmp_path / "killed")] == list(range(1, steps + 1))
