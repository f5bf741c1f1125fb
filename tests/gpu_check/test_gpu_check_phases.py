"""What the phases are made of."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from gpu_check_parts import phases, table
from gpu_check_parts.expected import EXPECTED
from gpu_check_parts.invented import SUCCESS, InventedEnv
from gpu_check_parts.measure_tests import files_with_gpu_tests, summary
from gpu_check_parts.record import Setting
from gpu_check_parts.runner import Outcome, Phase, StopRequest, run_phase
from gpu_check_parts.tasks import TASKS

from vla_rl.types import TaskInfo

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")


def invented(task_id: int = 0, *, horizon: int = 220) -> InventedEnv:
    task = TaskInfo("libero_spatial", task_id, "name", "language")
    return InventedEnv(task, num_images=1, size=32, horizon=horizon, step_seconds=0.0)


def test_an_invented_episode_ends_by_chance_or_with_the_horizon() -> None:
    env = invented()
    ends = []
    for episode in range(300):
        first = env.reset(episode)
        assert first.frames.shape == (1, 32, 32, 3) and first.frames.dtype == np.uint8
        assert first.state.shape == (8,) and first.state.dtype == np.float32
        steps = decisions = 0
        while True:
            result = env.step_chunk(np.zeros((8, 7), np.float32))
            steps, decisions = steps + result.executed, decisions + 1
            if result.terminated or result.truncated:
                break
        assert result.terminated != result.truncated
        assert result.reward == float(result.terminated)
        assert result.terminated or (steps == 220 and decisions == 28 and result.executed == 4)
        ends.append(result.truncated)
    lasting = (1 - SUCCESS) ** 28
    assert np.mean(ends) == pytest.approx(lasting, abs=4 * (lasting * (1 - lasting) / 300) ** 0.5)


def test_the_same_start_is_the_same_episode() -> None:
    one, other = invented(), invented()
    other.reset(5)
    for env in (one, other):
        env.reset(3, seed=2)
    for _ in range(5):
        first, second = (env.step_chunk(np.zeros((8, 7), np.float32)) for env in (one, other))
        assert np.array_equal(first.observation.frames, second.observation.frames)
        assert np.array_equal(first.observation.state, second.observation.state)
        assert first.terminated == second.terminated
    assert not np.array_equal(invented(0).reset(0).frames, invented(1).reset(0).frames)


@pytest.mark.libero
def test_the_prompts_are_libero_s_own() -> None:
    from vla_rl.envs.libero.suites import libero_tasks

    assert tuple(task.language for task in libero_tasks("libero_spatial")) == TASKS


def test_what_torch_says_of_skipped_graphs_is_kept_once() -> None:
    from gpu_check_parts.measure_graphs import Reasons
    from torch._inductor import cudagraph_utils

    reasons = Reasons()
    for _ in range(2):
        cudagraph_utils.log_cudagraph_skip_and_bump_counter("skipping cudagraphs due to a full moon")
    assert reasons.found == ["skipping cudagraphs due to a full moon"]


GPU_TESTS = """
import pytest
@pytest.mark.gpu
def test_good(): pass
@pytest.mark.gpu
def test_bad(): assert 1 + 1 == 3, "the card cannot add"
@pytest.mark.gpu
@pytest.mark.skipif(True, reason="why not")
def test_left_out(): pass
def test_of_another_kind(): raise RuntimeError
"""


def test_gpu_tests_are_found_run_and_counted(tmp_path: Path) -> None:
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "test_card.py").write_text(GPU_TESTS, encoding="utf-8")
    (tests / "test_other.py").write_text("import a_package_that_is_not_here\n", encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\nmarkers = ["gpu: x"]\n', encoding="utf-8")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    outcome = run_phase(
        Phase("tests", "", "gpu_check_parts.measure_tests", 60.0),
        60.0,
        setting=Setting("tiny", 60.0, scratch, tmp_path),
        log=tmp_path / "log",
        stop=StopRequest(),
        environment=os.environ | {"PYTHONPATH": f"{ROOT / 'scripts'}{os.pathsep}{ROOT}"},
    )
    assert outcome.status == "failed"
    assert "test_bad: AssertionError: the card cannot add" in outcome.reason
    assert (outcome.figures["passed"], outcome.figures["skipped"]) == (1, 1)
    assert outcome.figures["files"] == ["tests/test_card.py"]


def test_the_repository_has_gpu_tests_and_a_missing_report_is_a_failure(tmp_path: Path) -> None:
    assert len(files_with_gpu_tests(ROOT / "tests")) >= 4
    assert summary(tmp_path / "none.xml")["broken"] == ["pytest wrote no report"]


def test_the_document_has_every_phase_and_every_expectation() -> None:
    for phase in phases.PHASES:
        assert f"`{phase.name}`" in DOCUMENT
    missing = [text for text in EXPECTED.values() if text not in re.sub(r"\s+", " ", DOCUMENT)]
    assert not missing


def test_every_phase_has_a_module_and_rows_in_the_table() -> None:
    for phase in (phases.START, *phases.PHASES):
        assert (ROOT / "scripts" / f"{phase.module.replace('.', '/')}.py").is_file()
    assert {phase.name for phase in phases.PHASES} == set(table.ROWS)


def test_the_table_has_the_state_the_reason_and_the_last_words_of_what_failed() -> None:
    failed = Outcome("failed", "memory comes back: 14 GiB lost", seconds=12.3, last_lines=["one", "two"])
    failed.checks = [{"what": "memory comes back", "holds": False, "found": "14 GiB lost"}]
    ways = {"SIGKILL": {"allocated_bytes_lost": 14 << 20, "on_card_bytes_lost": 3 << 20}}
    failed.figures = {"ways": ways}
    text = table.render(report(ipc=failed, egl=Outcome("skipped", "not installed: mujoco")))
    lines = text.splitlines()
    assert "ipc       failed         12 s  memory comes back: 14 GiB lost" in lines
    assert "egl       skipped           -  not installed: mujoco" in lines
    row = next(line for line in lines if "a child that ends by SIGKILL" in line)
    assert row.split()[-3:] == ["MiB", "lost", "0"]
    assert " 14 MiB lost" in row
    assert "--- ipc: failed; the last it said (all of it: gpu_check.log)" in lines
    assert lines[-1].strip() == "two"


def test_figures_that_cannot_be_shown_do_not_cost_those_of_other_phases() -> None:
    strange = Outcome("passed", figures={"setup_s": None, "updates": [{"update_s": 1.0}]})
    good = Outcome("passed", figures={"rollout/success_rate": 0.97, "seconds": 9.0, "optimizer_steps": 400})
    text = table.render(report(cell=strange, toy=good))
    assert f"cell: {table.UNREADABLE}" in text
    assert "97% after 400 updates" in text


def test_expectations_stand_beside_the_real_network_alone() -> None:
    good = Outcome("passed", figures={"rollout/success_rate": 0.97, "seconds": 9.0, "optimizer_steps": 400})
    assert "0.9 and more" in table.render(report(toy=good))
    assert "0.9 and more" not in table.render(report(toy=good) | {"size": "tiny"})


def report(**outcomes: Outcome) -> dict[str, object]:
    from dataclasses import asdict

    named = {name: asdict(outcome) for name, outcome in outcomes.items()}
    return {"size": "7b", "seconds": 100.0, "device": "a card", "commit": "abc", "phases": named}


def test_the_table_has_the_parts_of_the_middle_update_and_the_noise_of_the_first() -> None:
    rows = [
        {
            "update_s": seconds, "publish_ms": 1.0, "decisions": 4, "ratio/lag0_abs_log_p95": 0.01 * seconds,
            "seconds": {"values": 0.1 * seconds, "loss": 0.8 * seconds},
        }
        for seconds in (9.0, 2.0, 4.0)
    ]  # fmt: skip
    lines = table.render(report(cell=Outcome("passed", figures={"updates": rows}))).splitlines()
    (parts,) = [line for line in lines if "its parts" in line]
    assert "values 0.4 s, loss 3.2 s" in parts
    (noise,) = [line for line in lines if "at lag 0" in line]
    assert " 0.09 " in noise
