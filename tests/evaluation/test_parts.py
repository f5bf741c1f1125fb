"""From what was asked for to plans: what is refused, how many episodes come of it, what departs from the protocol."""

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from vla_rl.envs.libero.assets import Assets
from vla_rl.envs.libero.check import SimulatorReport
from vla_rl.errors import UserError
from vla_rl.evaluation.choices import Choices
from vla_rl.evaluation.episodes import read_episodes
from vla_rl.evaluation.evaluate import evaluate
from vla_rl.evaluation.parts import all_deviations, folder_name, make_conditions, make_parts, usual_workers
from vla_rl.evaluation.play import fit_slots
from vla_rl.evaluation.protocol import Protocol
from vla_rl.evaluation.subject import find_subject
from vla_rl.recipe import Recipe

needs_simulator = pytest.mark.skipif(importlib.util.find_spec("libero") is None, reason="hf-libero is not installed")


def choices(**changes):
    settings: dict[str, Any] = {"workers": 4, "assets": "proxy"}
    return Choices(**(settings | changes))


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
def test_choices_that_do_not_fit_are_refused_before_the_simulator_is_looked_for(tmp_path, asked, complaint):
    with pytest.raises(UserError, match=complaint):
        evaluate("tiny", Choices(out=tmp_path / "out", **asked))
    assert not (tmp_path / "out").exists()


def test_no_rule_about_learning_refuses_an_evaluation(trained):
    subject = find_subject(str(trained), profile="auto")
    learning = {
        "loss": {"kl_coefficient": 0.1},
        "replay": {"segment_length": 4, "min_decisions": 400, "max_policy_lag": 3},
        "optimizer": {"policy_warmup": 9},
        "learner": {"strategy": "ddp", "num_ranks": 8},
        "runtime": {"mode": "async"},
    }
    recipe = subject.recipe.model_dump(by_alias=True)
    recipe |= {name: recipe[name] | values for name, values in learning.items()}
    subject = dataclasses.replace(subject, recipe=Recipe.model_validate(recipe))
    (part,) = make_parts(subject, choices(assets=None, horizon=1))
    assert not part.plan.store_logits
    assert part.plan.num_slots == 8  # two for each worker
    assert part.plan.env.horizon == 1


@pytest.mark.parametrize(
    ("cores", "gibibytes", "workers"),
    [(16, 100, 15), (16, 9, 4), (2, 100, 1), (1, 100, 1), (16, 1, 1), (128, 1000, 16)],
)
def test_without_a_number_there_is_a_worker_for_every_core_but_one_that_memory_holds_and_at_most_16(
    monkeypatch, cores, gibibytes, workers
):
    monkeypatch.setattr("vla_rl.evaluation.parts.usable_cores", lambda: cores)
    monkeypatch.setattr("vla_rl.evaluation.parts.available_memory", lambda: gibibytes * 2**30)
    assert usual_workers() == workers


def test_the_number_of_workers_that_was_asked_for_is_taken(trained, monkeypatch):
    monkeypatch.setattr("vla_rl.evaluation.parts.usual_workers", lambda: 7)
    subject = find_subject(str(trained), profile="auto")
    for asked, found in ((None, 7), (3, 3)):
        (part,) = make_parts(subject, choices(assets=None, workers=asked))
        assert part.plan.recipe.rollout.num_workers == found
    (part,) = make_parts(subject, choices(assets=None, workers=None, serial=True))
    assert part.plan.num_slots == 1


@pytest.mark.parametrize(("episodes", "workers", "slots"), [(1, 1, 1), (3, 3, 1), (4, 4, 1), (5, 4, 2), (500, 4, 2)])
def test_no_worker_is_started_that_would_have_nothing_to_play(trained, episodes, workers, slots):
    (part,) = make_parts(find_subject(str(trained), profile="auto"), choices(assets=None))
    rollout = fit_slots(part.plan, episodes).recipe.rollout
    assert (rollout.num_workers, rollout.envs_per_worker) == (workers, slots)


@pytest.fixture
def pretended_simulator(monkeypatch):
    """The simulator's check takes seconds; nothing is simulated here."""
    report = SimulatorReport({"mujoco": "3.3.0"}, "egl", "a renderer", Assets(Path("assets"), "proxy"), ())
    monkeypatch.setattr("vla_rl.run.env_plan.check_simulator", lambda **_choices: report)
    monkeypatch.setattr("vla_rl.run.env_plan.check_task_assets", lambda *_choices: None)


@needs_simulator
@pytest.mark.usefixtures("pretended_simulator")
def test_the_protocol_is_followed_and_every_departure_named():
    subject = find_subject("tiny", profile="auto")
    goal = choices(suites=("libero_goal",))
    (usual,) = parts = make_parts(subject, goal)
    assert len(usual.jobs) == 500
    assert {(job.task_index, job.init_state) for job in usual.jobs} == {(t, s) for t in range(10) for s in range(50)}
    assert usual.plan.env.horizon == 300
    unavoidable = (
        "built-in proxy assets instead of LIBERO's: other pictures, scores are not comparable",
        "cameras draw 128 pixels a side instead of 256",
    )
    assert all_deviations(goal, parts) == unavoidable

    odd = choices(
        suites=("libero_spatial", "libero_10"),
        protocol=Protocol("long"),
        tasks=(0, 3),
        episodes_per_task=10,
        seeds=(0, 7),
        init_states="spare",
        temperature=1.6,
    )
    spatial, ten = parts = make_parts(subject, odd)
    assert (spatial.plan.env.horizon, ten.plan.env.horizon) == (512, 520)
    assert len(spatial.jobs) == 2 * 10 * 2
    found = all_deviations(odd, parts)
    assert set(found) - set(unavoidable) == {
        "initial states: spare instead of the benchmark's standard ones",
        "actions sampled at temperature 1.6 instead of greedy ones",
        "libero_spatial: only task 0, 3 of 10",
        "libero_10: only task 0, 3 of 10",
        "10 episodes per task instead of 50",
    }
    conditions = make_conditions(subject, odd, parts)
    assert conditions.assets.startswith("proxy, files ")
    assert folder_name(subject, odd, conditions, parts) == "libero_spatial_libero_10_2tasks_long_spare_T1.6_seed0-7"


@needs_simulator
@pytest.mark.usefixtures("pretended_simulator")
def test_versions_on_which_scores_shift_are_refused_unless_allowed(monkeypatch):
    warning = "mujoco 3.4.0 is installed; LIBERO's published scores hold for 3.3.0 alone"
    report = SimulatorReport({"mujoco": "3.4.0"}, "egl", "a renderer", Assets(Path("assets"), "proxy"), (warning,))
    monkeypatch.setattr("vla_rl.run.env_plan.check_simulator", lambda **_choices: report)
    subject = find_subject("tiny", profile="auto")
    with pytest.raises(ValueError, match=r"mujoco 3.4.0 is installed.*give --allow-unpinned"):
        make_parts(subject, choices(suites=("libero_goal",)))
    allowed = choices(suites=("libero_goal",), allow_unpinned=True)
    assert all_deviations(allowed, make_parts(subject, allowed))[0] == warning


@needs_simulator
@pytest.mark.usefixtures("pretended_simulator")
def test_more_episodes_than_initial_states_are_refused():
    with pytest.raises(ValueError, match=r"libero_spatial task 0 has 50 standard initial states; allowed are 1 to 50"):
        make_parts(find_subject("tiny", profile="auto"), choices(suites=("libero_spatial",), episodes_per_task=51))


@needs_simulator
@pytest.mark.libero
@pytest.mark.slow
def test_the_tiny_policy_is_evaluated_on_two_suites_filmed_and_blinded(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    choices = Choices(
        suites=("libero_spatial", "libero_goal"),
        tasks=(1,),
        episodes_per_task=2,
        workers=2,
        horizon=8,
        assets="proxy",
        control="blind",
        video="all",
        out=tmp_path,
    )
    report = evaluate("tiny", choices)
    wanted = {(suite, 1, "standard", state, 0) for suite in ("libero_spatial", "libero_goal") for state in (0, 1)}
    for file in ("episodes.jsonl", "episodes_blind.jsonl"):
        assert {episode.key for episode in read_episodes(tmp_path / file)} == wanted
    assert report.videos == (4, 0)
    assert report.control is not None
    assert report.control.comparison.pairs == 4
    assert evaluate("tiny", dataclasses.replace(choices, control=None)).control == report.control  # kept
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["evaluation"]["trained_on"] == "unknown"
    assert results["control"]["name"] == "blind"
    assert {suite["suite"] for suite in results["suites"]} == {"libero_spatial", "libero_goal"}
