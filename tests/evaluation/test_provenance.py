"""What a policy was trained on: told beside its scores, and kept by its exports."""

import json

import pytest

from vla_rl.evaluation.provenance import Training, record_training, recorded_training, training_in
from vla_rl.recipe import build_recipe

GOAL = Training(suite="libero_goal", tasks=(3, 5), init_states="standard")
SPARE = Training(suite="libero_spatial", tasks=tuple(range(10)), init_states="spare")
SAMPLED = Training(suite="libero_goal", tasks=(3,), init_states="sampled")


@pytest.mark.parametrize(
    ("training", "states", "task", "words"),
    [
        (GOAL, "standard", ("libero_goal", 5), "trained on the standard initial states of libero_goal"),
        (SPARE, "spare", ("libero_spatial", 0), "trained on the spare initial states of libero_spatial"),
        (GOAL, "standard", ("libero_spatial", 5), None),  # the same numbers, of another suite
        (GOAL, "standard", ("libero_goal", 4), None),
        (SPARE, "standard", ("libero_spatial", 0), None),
    ],
)
def test_a_score_on_the_training_s_own_states_says_so(training, states, task, words):
    notes = training.notes(init_states=states, tasks=[("libero_10", 3), task])
    assert [words in note for note in notes] == ([] if words is None else [True])


def test_a_recipe_says_what_is_trained_on():
    text = "name: t\nenv: {name: libero, suite: libero_goal, tasks: %s, init_states: standard}\n"
    text += "policy: {name: openvla_oft}\nsurrogate: {name: gipo}\nbudget: {optimizer_steps: 1}\n"
    assert training_in(build_recipe(text % "[3, 5]").env) == GOAL
    assert str(GOAL) == "libero_goal (tasks: 3,5), standard initial states"
    assert str(training_in(build_recipe(text % "all").env)) == "libero_goal (tasks: all), standard initial states"


def test_a_training_under_perturbations_says_so_in_a_recipe_and_in_a_record(tmp_path):
    text = (
        "name: t\nenv: {name: libero, suite: libero_goal, tasks: [3], perturb: {kinds: [camera:1-3, fog], share: 0.5}}"
    )
    text += "\npolicy: {name: openvla_oft}\nsurrogate: {name: gipo}\nbudget: {optimizer_steps: 1}\n"
    training = training_in(build_recipe(text).env)
    words = "libero_goal (tasks: 3), sampled initial states, perturbed: camera:1-3, fog in 50 % of the episodes"
    assert str(training) == words
    (tmp_path / "vla_rl.json").write_text("{}")
    record_training(tmp_path, training)
    assert str(recorded_training(tmp_path)) == words
    record_training(tmp_path, SAMPLED)
    assert json.loads((tmp_path / "vla_rl.json").read_text())["training"].keys() == {"suite", "tasks", "init_states"}


def test_a_record_keeps_the_training_beside_the_profile(tmp_path):
    assert recorded_training(tmp_path) is None
    (tmp_path / "vla_rl.json").write_text('{"profile": "rlinf"}')
    assert recorded_training(tmp_path) is None
    record_training(tmp_path, GOAL)
    assert recorded_training(tmp_path) == GOAL
    assert json.loads((tmp_path / "vla_rl.json").read_text())["profile"] == "rlinf"


@pytest.mark.parametrize(
    "training",
    [
        "libero_goal",
        {"suite": "libero_goal", "tasks": [3]},
        {"suite": "libero_gaol", "tasks": [3], "init_states": "standard"},
        {"suite": "libero_goal", "tasks": [10], "init_states": "standard"},
        {"suite": "libero_goal", "tasks": [], "init_states": "standard"},
    ],
)
def test_a_record_that_says_nonsense_is_named(tmp_path, training):
    (tmp_path / "vla_rl.json").write_text(json.dumps({"training": training}))
    with pytest.raises(ValueError, match=r"vla_rl\.json: training is .*; expected suite"):
        recorded_training(tmp_path)
