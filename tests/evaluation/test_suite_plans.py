"""From what was asked for to plans: what is refused, how many episodes come of it, what departs from the protocol."""

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from vla_rl.envs.libero.assets import Assets
from vla_rl.envs.libero.check import SimulatorReport
from vla_rl.envs.libero.protocol import Protocol
from vla_rl.envs.toy import ToySection
from vla_rl.errors import UserError
from vla_rl.evaluation.episode_log import read_episodes
from vla_rl.evaluation.eval_options import EvalOptions
from vla_rl.evaluation.evaluate import evaluate
from vla_rl.evaluation.play import fit_slots
from vla_rl.evaluation.policy_source import find_policy
from vla_rl.evaluation.suite_plans import (
    all_deviations,
    folder_name,
    make_conditions,
    make_suite_plans,
    named_by_options,
    usual_workers,
)
from vla_rl.evaluation.while_training import check_evaluation
from vla_rl.recipe import Recipe, RecipeError, find_recipe, load_recipe, load_recorded_recipe

needs_simulator = pytest.mark.skipif(importlib.util.find_spec("libero") is None, reason="hf-libero is not installed")


def options(**changes):
    settings: dict[str, Any] = {"workers": 4, "assets": "proxy"}
    return EvalOptions(**(settings | changes))


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ({}, "--suite: tiny does not say what it is for"),
        ({"suites": ("libero_gaol",)}, "--suite: found libero_gaol; allowed are libero_spatial"),
        ({"suites": ("libero_goal", "libero_goal")}, "each once"),
        (
            {"suites": ("libero_goal",), "tasks": (12,)},
            r"(?s)--tasks: libero_goal does not have these tasks.*allowed  0..9, all$",
        ),
        ({"suites": ("libero_goal",), "init_states": "spare"}, "--init-states: libero_goal has no spare ones"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_the_simulator_is_looked_for(tmp_path, asked, complaint):
    with pytest.raises(UserError, match=complaint):
        evaluate("tiny", EvalOptions(out=tmp_path / "out", **asked))
    assert not (tmp_path / "out").exists()


def test_no_rule_about_learning_refuses_an_evaluation(trained):
    source = find_policy(str(trained), profile="auto")
    learning = {
        "loss": {"kl_coefficient": 0.1},
        "replay": {"segment_length": 4, "min_decisions": 400, "max_policy_lag": 3},
        "optimizer": {"policy_warmup": 9},
        "learner": {"strategy": "ddp", "num_ranks": 8},
        "runtime": {"mode": "async"},
    }
    recipe = load_recorded_recipe(trained / "recipe.yaml").model_dump(by_alias=True)
    recipe |= {name: recipe[name] | values for name, values in learning.items()}
    source = dataclasses.replace(source, run=Recipe.model_validate(recipe).setup)
    (suite,) = make_suite_plans(source, options(assets=None, horizon=1))
    assert not suite.plan.store_logits
    assert suite.plan.num_slots == 8  # two for each worker
    assert suite.plan.env.horizon == 1


@pytest.mark.parametrize("asked", [(), ("toy",)])
def test_a_folder_here_that_is_called_as_the_environment_is_not_taken_for_a_suite(
    trained, tmp_path, monkeypatch, asked
):
    (tmp_path / "toy").mkdir()  # as the run of the recipe toy, seen from runs/
    monkeypatch.chdir(tmp_path)
    source = find_policy(str(trained), profile="auto")
    (suite,) = make_suite_plans(source, EvalOptions(suites=asked, episodes_per_task=1))
    assert [task.suite for task in suite.plan.env.tasks] == ["toy", "toy"]
    with pytest.raises(ValueError, match="--suite: toy holds no BDDL files"):
        make_suite_plans(source, EvalOptions(suites=("./toy",)))


def test_an_evaluation_simulates_here_wherever_the_run_did(trained):
    source = find_policy(str(trained), profile="auto")
    recipe = load_recorded_recipe(trained / "recipe.yaml").model_dump(by_alias=True)
    recipe["rollout"] |= {"remote": ["cpu1:10001"]}
    recipe["runtime"] |= {"mode": "async"}
    source = dataclasses.replace(source, run=Recipe.model_validate(recipe).setup)
    for serial in (False, True):
        (suite,) = make_suite_plans(source, options(assets=None, serial=serial, workers=None))
        assert suite.plan.setup.rollout.remote == []


@pytest.mark.parametrize(
    ("cores", "gibibytes", "workers"),
    [(16, 100, 15), (16, 9, 4), (2, 100, 1), (1, 100, 1), (16, 1, 1), (128, 1000, 16)],
)
def test_without_a_number_there_is_a_worker_for_every_core_but_one_that_memory_holds_and_at_most_16(
    monkeypatch, cores, gibibytes, workers
):
    monkeypatch.setattr("vla_rl.evaluation.suite_plans.usable_cores", lambda: cores)
    monkeypatch.setattr("vla_rl.evaluation.suite_plans.available_memory", lambda: gibibytes * 2**30)
    assert usual_workers() == workers


def test_the_number_of_workers_that_was_asked_for_is_taken(trained, monkeypatch):
    monkeypatch.setattr("vla_rl.evaluation.suite_plans.usual_workers", lambda: 7)
    source = find_policy(str(trained), profile="auto")
    for asked, found in ((None, 7), (3, 3)):
        (suite,) = make_suite_plans(source, options(assets=None, workers=asked))
        assert suite.plan.setup.rollout.num_workers == found
    (suite,) = make_suite_plans(source, options(assets=None, workers=None, serial=True))
    assert suite.plan.num_slots == 1


def test_processes_may_be_silent_for_as_long_as_asked_or_else_as_in_the_training(trained):
    source = find_policy(str(trained), profile="auto")
    for step, start in ((None, None), (7.0, None), (None, 900.0)):
        (suite,) = make_suite_plans(source, options(assets=None, step_timeout=step, start_timeout=start))
        rollout = suite.plan.setup.rollout
        assert (rollout.step_timeout_s, rollout.start_timeout_s) == (step or 120.0, start or 300.0)
    with pytest.raises(RecipeError, match="--step-timeout"):
        make_suite_plans(source, options(assets=None, step_timeout=0.0))


def test_a_failure_names_options_instead_of_the_fields_of_a_recipe():
    silent = "env worker 0 gave no sign of life for 130 s while STEPPING (allowed: 120 s, rollout.step_timeout_s)"
    used_up = "the cell has used up its 5 restarts (rollout.max_restarts)\nlog"
    assert named_by_options(silent).endswith("(allowed: 120 s, --step-timeout)")
    assert named_by_options(used_up) == "the cell has used up its 5 restarts\nlog"


@pytest.mark.parametrize(("episodes", "workers", "slots"), [(1, 1, 1), (3, 3, 1), (4, 4, 1), (5, 4, 2), (500, 4, 2)])
def test_no_worker_is_started_that_would_have_nothing_to_play(trained, episodes, workers, slots):
    (suite,) = make_suite_plans(find_policy(str(trained), profile="auto"), options(assets=None))
    rollout = fit_slots(suite.plan, episodes).setup.rollout
    assert (rollout.num_workers, rollout.envs_per_worker) == (workers, slots)


@pytest.fixture
def pretended_simulator(monkeypatch):
    """The simulator's check takes seconds; nothing is simulated here."""
    report = SimulatorReport({"mujoco": "3.3.0"}, "egl", "a renderer", Assets(Path("assets"), "proxy"), ())
    monkeypatch.setattr("vla_rl.envs.libero.plan.check_simulator", lambda **_options: report)
    monkeypatch.setattr("vla_rl.envs.libero.plan.check_task_assets", lambda *_options: None)


@needs_simulator
@pytest.mark.usefixtures("pretended_simulator")
def test_the_protocol_is_followed_and_every_departure_named():
    source = find_policy("tiny", profile="auto")
    goal = options(suites=("libero_goal",))
    (usual,) = suites = make_suite_plans(source, goal)
    assert len(usual.jobs) == 500
    assert {(job.task_index, job.init_state) for job in usual.jobs} == {(t, s) for t in range(10) for s in range(50)}
    assert usual.plan.env.horizon == 300
    unavoidable = (
        "built-in proxy assets instead of LIBERO's: other pictures, scores are not comparable",
        "cameras draw 128 pixels a side instead of 256",
    )
    assert all_deviations(goal, suites) == unavoidable

    odd = options(
        suites=("libero_spatial", "libero_10"),
        protocol=Protocol("long"),
        tasks=(0, 3),
        episodes_per_task=10,
        seeds=(0, 7),
        init_states="spare",
        temperature=1.6,
    )
    spatial, ten = suites = make_suite_plans(source, odd)
    assert (spatial.plan.env.horizon, ten.plan.env.horizon) == (512, 520)
    assert len(spatial.jobs) == 2 * 10 * 2
    found = all_deviations(odd, suites)
    assert set(found) - set(unavoidable) == {
        "initial states: spare instead of the benchmark's standard ones",
        "actions sampled at temperature 1.6 instead of greedy ones",
        "libero_spatial: only task 0, 3 of 10",
        "libero_10: only task 0, 3 of 10",
        "10 episodes per task instead of 50",
    }
    conditions = make_conditions(source, odd, suites)
    assert conditions.assets.startswith("proxy, files ")
    assert folder_name(source, odd, conditions, suites) == "libero_spatial_libero_10_2tasks_long_spare_T1.6_seed0-7"


@pytest.mark.parametrize(("seeds", "name"), [(range(3), "toy_seed0-1-2"), (range(200), "toy_200seeds")])
def test_any_number_of_seeds_makes_a_name_that_a_folder_can_have(trained, seeds, name):
    source = find_policy(str(trained), profile="auto")
    asked = EvalOptions(seeds=tuple(seeds), episodes_per_task=1)
    suites = make_suite_plans(source, asked)
    assert folder_name(source, asked, make_conditions(source, asked, suites), suites) == f"optimizer_step_30_{name}"


def test_versions_of_a_simulator_without_pictures_are_conditions_too(trained, monkeypatch):
    plan = ToySection.plan
    identity = {"mujoco": "3.3.0", "metaworld": "3.1.1"}
    monkeypatch.setattr(
        ToySection, "plan", lambda self, **size: dataclasses.replace(plan(self, **size), identity=lambda: identity)
    )
    source = find_policy(str(trained), profile="auto")
    suites = make_suite_plans(source, EvalOptions())
    assert make_conditions(source, EvalOptions(), suites).versions == "mujoco 3.3.0, metaworld 3.1.1"


@needs_simulator
@pytest.mark.usefixtures("pretended_simulator")
def test_versions_on_which_scores_shift_are_refused_unless_allowed(monkeypatch):
    warning = "mujoco 3.4.0 is installed; LIBERO's published scores hold only for 3.3.0"
    report = SimulatorReport({"mujoco": "3.4.0"}, "egl", "a renderer", Assets(Path("assets"), "proxy"), (warning,))
    monkeypatch.setattr("vla_rl.envs.libero.plan.check_simulator", lambda **_options: report)
    source = find_policy("tiny", profile="auto")
    with pytest.raises(ValueError, match=r"mujoco 3.4.0 is installed.*give --allow-unpinned"):
        make_suite_plans(source, options(suites=("libero_goal",)))
    allowed = options(suites=("libero_goal",), allow_unpinned=True)
    assert all_deviations(allowed, make_suite_plans(source, allowed))[0] == warning
    with pytest.raises(
        ValueError, match=r"evaluate the run afterwards with `vla-rl eval --allow-unpinned`.*; eval\S+ 0 "
    ):
        check_evaluation(load_recipe(find_recipe("libero_tiny_gipo"), ["evaluation.episodes_per_task=2"]))


@needs_simulator
@pytest.mark.usefixtures("pretended_simulator")
def test_more_episodes_than_initial_states_are_refused():
    with pytest.raises(ValueError, match=r"libero_spatial task 0 has 50 standard initial states; allowed are 1 to 50"):
        make_suite_plans(find_policy("tiny", profile="auto"), options(suites=("libero_spatial",), episodes_per_task=51))


@needs_simulator
@pytest.mark.libero
@pytest.mark.slow
def test_the_tiny_policy_is_evaluated_on_two_suites_filmed_and_blinded(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    options = EvalOptions(
        suites=("libero_spatial", "libero_goal"),
        tasks=(1,),
        episodes_per_task=2,
        workers=1,
        horizon=8,
        assets="proxy",
        controls=("blind", "instruction"),
        video="all",
        out=tmp_path,
    )
    report = evaluate("tiny", options)
    wanted = {(suite, 1, "standard", state, 0) for suite in ("libero_spatial", "libero_goal") for state in (0, 1)}
    for file in ("episodes.jsonl", "episodes_blind.jsonl", "episodes_instruction.jsonl"):
        assert {episode.key for episode in read_episodes(tmp_path / file)} == wanted
    assert report.videos == (4, 0)
    assert {control.name: control.comparison.pairs for control in report.controls} == {"blind": 4, "instruction": 4}
    assert evaluate("tiny", dataclasses.replace(options, controls=())).controls == report.controls  # kept
    told = json.loads((tmp_path / "manifest.json").read_text())["extra"]["wrong_instructions"]  # kept too
    assert told["libero_spatial"] == {"1": "pick up the black bowl from table center and place it on the plate"}
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["evaluation"]["trained_on"] == "unknown"
    assert [control["name"] for control in results["controls"]] == ["blind", "instruction"]
    assert {suite["suite"] for suite in results["suites"]} == {"libero_spatial", "libero_goal"}
