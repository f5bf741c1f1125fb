"""Evaluations of suites in folders: what is planned, refused and told, and that the tiny policy plays them."""

import json
from pathlib import Path

import pytest
from test_suite_plans import needs_simulator, options, pretended_simulator  # noqa: F401 - a fixture
from toy_suites import ASKED_KINDLY, PLUS, plus_folder, pro_folder, stock

from vla_rl.envs.kind import EnvPlan, FolderSuite
from vla_rl.errors import UserError
from vla_rl.evaluation.categories import summarise_categories
from vla_rl.evaluation.episode_log import EpisodeResult, read_episodes
from vla_rl.evaluation.evaluate import _wrong_instructions, evaluate
from vla_rl.evaluation.policy_source import find_policy
from vla_rl.evaluation.suite_plans import all_deviations, make_suite_plans
from vla_rl.types import TaskInfo


def episode(task_id, success, *, suite="mine", state=0):
    return EpisodeResult(
        suite=suite, task_id=task_id, init_state=state, seed=0, success=success, env_steps=9, episode_return=0.0,
        seconds=1.0,
    )  # fmt: skip


def test_success_by_category_is_the_mean_over_its_tasks():
    """Task 0 succeeds in one of two states, task 1 in the one it has: 75 %, in two of three episodes."""
    folder = FolderSuite(
        path="p", base="libero_goal", num_tasks=4, episodes_per_task=1, sentences=(), bases={},
        categories={0: "Camera Viewpoints", 1: "Camera Viewpoints", 2: "Sensor Noise", 3: ""},
    )  # fmt: skip
    plan = EnvPlan(tasks=(TaskInfo("mine", 0, "n", "l"),), builders=(), num_init_states=(), horizon=1, folder=folder)
    episodes = [episode(2, False), episode(0, True), episode(0, False, state=1), episode(1, True), episode(3, True)]
    camera, noise = summarise_categories([*episodes, episode(0, True, suite="libero_goal")], [plan])
    assert (camera.category, camera.tasks, camera.episodes, camera.successes) == ("Camera Viewpoints", 2, 3, 2)
    assert camera.success_rate == 0.75
    assert str(camera) == "mine, Camera Viewpoints: 2/3 in 2 tasks, 75.0% (20.8 to 93.9)"
    assert (noise.category, noise.successes, noise.episodes) == ("Sensor Noise", 0, 1)


@needs_simulator
@pytest.mark.usefixtures("pretended_simulator")
def test_a_folder_is_planned_beside_a_suite_and_its_departures_are_named(tmp_path):
    folder = plus_folder(tmp_path)
    asked = options(suites=("libero_spatial", str(folder)), episodes_per_task=1)
    spatial, mine = suites = make_suite_plans(find_policy("tiny", profile="auto"), asked)
    assert len(spatial.jobs) == 10
    assert [(job.task_index, job.init_state) for job in mine.jobs] == [(task, 0) for task in range(5)]
    assert mine.plan.env.horizon == 300
    assert mine.plan.setup.env.suite_name == "libero_goal"
    found = all_deviations(asked, suites)
    assert "1 episodes per task instead of 50" in found  # of the suite; of the folder it is the protocol
    (other,) = make_suite_plans(
        find_policy("tiny", profile="auto"), options(suites=(str(folder),), episodes_per_task=1)
    )
    alone = all_deviations(options(suites=(str(folder),), episodes_per_task=1), [other])
    assert not [sentence for sentence in alone if "episodes per task" in sentence]
    assert [sentence for sentence in alone if "LIBERO-plus's variants of libero_goal" in sentence]


@needs_simulator
@pytest.mark.usefixtures("pretended_simulator")
def test_a_wrong_instruction_is_that_of_another_task_and_not_of_another_variant(tmp_path):
    source = find_policy("tiny", profile="auto")
    (suite,) = make_suite_plans(source, options(suites=(str(plus_folder(tmp_path)),), episodes_per_task=1))
    wrong = _wrong_instructions(suite, source)
    assert set(wrong) == {0, 1, 2, 3, 4}
    assert not set(wrong.values()) & {"put the bowl on the plate", ASKED_KINDLY}


@needs_simulator
@pytest.mark.usefixtures("pretended_simulator")
def test_what_does_not_go_with_a_folder_is_refused_before_anything_starts(trained, tmp_path):
    folder = str(pro_folder(tmp_path, "swap"))
    for policy, choices, complaint in (
        ("tiny", {"suites": (folder,), "perturb": "camera:3"}, "--perturb: found 'camera:3' with the folder"),
        ("tiny", {"suites": (folder, folder)}, "every folder stands once"),
        ("tiny", {"suites": (folder, "libero_gaol")}, "--suite: found libero_gaol"),
        ("tiny", {"suites": (str(tmp_path / "nowhere"),)}, "does not exist; give one of libero_spatial"),
        ("tiny", {"suites": (folder,), "tasks": (3,)}, "--tasks: .* has tasks 0..0, found .3."),
        ("tiny", {"suites": (folder,), "init_states": "spare"}, "spare"),
        (str(trained), {"suites": (folder,)}, "--suite: the policy was trained on toy"),
    ):
        with pytest.raises(UserError, match=complaint):
            evaluate(policy, options(out=tmp_path / "out", **choices))
    name = stock()[0]
    (Path(folder) / f"{name}.bddl").write_text("(define")
    with pytest.raises(UserError, match=rf"(?s)1 problem\n  {name}.bddl: a parenthesis .*Fix the files"):
        evaluate("tiny", options(out=tmp_path / "out", suites=(folder,)))
    assert not (tmp_path / "out").exists()


@needs_simulator
@pytest.mark.libero
@pytest.mark.slow
def test_the_tiny_policy_plays_the_folders_of_libero_plus_and_libero_pro(tmp_path):
    plus, pro = plus_folder(tmp_path / "plus"), pro_folder(tmp_path / "pro", "swap")
    asked = options(
        suites=(str(plus), str(pro)), episodes_per_task=1, workers=1, horizon=8, controls=("instruction",),
        out=tmp_path / "out",
    )  # fmt: skip
    report = evaluate("tiny", asked)
    (of_plus, of_pro) = (suite.suite for suite in report.summary.suites)
    assert of_plus.startswith("libero_goal-") and of_pro.startswith("libero_goal_swap-")
    wanted = {(of_plus, task, "standard", 0, 0) for task in range(5)} | {(of_pro, 0, "standard", 0, 0)}
    for file in ("episodes.jsonl", "episodes_instruction.jsonl"):
        assert {one.key for one in read_episodes(tmp_path / "out" / file)} == wanted
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {one["category"] for one in results["categories"]} == set(list(PLUS.values())[:5])
    told = json.loads((tmp_path / "out" / "manifest.json").read_text())["extra"]["folders"]
    assert told[of_pro] == {
        "path": str(pro), "base": "libero_goal", "num_tasks": 1, "names": {"0": "put_the_bowl_on_the_plate"}
    }  # fmt: skip
    assert evaluate("tiny", asked).summary == report.summary  # nothing is played again
