"""Perturbed training episodes: which are, by what, that draws repeat themselves, and what recipes may ask for."""

from collections import Counter

import numpy as np
import pytest

from vla_rl.envs.kind import EnvOptions
from vla_rl.envs.libero.env import LiberoEnv
from vla_rl.envs.libero.perturbations.kind import Effect
from vla_rl.envs.libero.perturbations.kinds import KINDS, Perturbation
from vla_rl.envs.libero.perturbations.randomisation import Randomisation, training_perturbations
from vla_rl.envs.libero.plan import libero_builder
from vla_rl.envs.libero.section import LiberoSection
from vla_rl.recipe import RecipeError, build_recipe
from vla_rl.types import TaskInfo

TASK = TaskInfo(suite="libero_spatial", task_id=3, name="a_task", language="put the bowl on the plate")
RECIPE = """
name: t
env: {name: libero, suite: libero_spatial}
policy: {name: openvla_oft}
surrogate: {name: gipo}
budget: {optimizer_steps: 1}
"""


def drawn(randomisation, count=4000, *, task=TASK):
    return [randomisation.drawn(task, number % 50, seed=number) for number in range(count)]


def test_a_share_of_the_episodes_is_perturbed_kinds_alike_and_levels_alike():
    """Deviations of five standard ones: of 4,000 episodes 1,200 +- 145, of those half +- 87 and a third of it +- 58."""
    asked = training_perturbations(["fog:2", "camera-orbit:1-3"])
    counts = Counter(map(str, drawn(Randomisation(tuple(asked), 0.3))))
    perturbed = 4000 - counts.pop("None")
    assert perturbed == pytest.approx(1200, abs=145)
    assert set(counts) == {"fog:2", "camera-orbit:1", "camera-orbit:2", "camera-orbit:3"}
    assert counts["fog:2"] == pytest.approx(perturbed / 2, abs=87)
    assert all(counts[f"camera-orbit:{level}"] == pytest.approx(perturbed / 6, abs=58) for level in (1, 2, 3))


def test_a_draw_follows_from_task_state_and_seed_alone():
    randomisation = Randomisation(tuple(training_perturbations(["all"])), 0.5)
    first = drawn(randomisation, 200)
    assert drawn(randomisation, 200) == first
    assert [randomisation.drawn(TASK, number % 50, seed=number) for number in reversed(range(200))] == first[::-1]
    assert drawn(randomisation, 200, task=TaskInfo("libero_spatial", 4, "b", "b")) != first


def test_an_episode_without_a_perturbation_is_left_alone_and_one_with_it_is_that_of_an_evaluation():
    randomisation = Randomisation((Perturbation("fog", 3),), 0.5)
    outcomes = {}
    for seed in range(30):
        one = randomisation.drawn(TASK, 0, seed=seed)
        effect = randomisation.effect(TASK, 0, seed=seed)
        assert (type(effect) is Effect) == (one is None)
        outcomes[one] = True
        if one is not None:
            frames = np.full((1, 8, 8, 3), 90, np.uint8)
            ours, usual = (it.generator(TASK, 0, seed=seed, moment=(1, 4)) for it in (randomisation, one))
            seen = effect.frames(frames, ["agentview"], ours)
            assert np.array_equal(seen, one.effect(TASK, 0, seed=seed).frames(frames, ["agentview"], usual))
    assert set(outcomes) == {None, Perturbation("fog", 3)}


def test_all_are_all_but_the_instructions_which_a_run_cannot_change():
    assert {one.kind for one in training_perturbations(["all"])} == {
        name for name, kind in KINDS.items() if kind.group != "instruction"
    }
    for entry in ("instruction:1", "paraphrase", "wrong-instruction:3"):
        with pytest.raises(ValueError, match="instructions cannot change between the episodes of a run"):
            training_perturbations([entry])


def test_recipes_perturb_nothing_by_themselves_and_evaluations_never_do():
    recipe = build_recipe(RECIPE)
    assert recipe.env.perturbed_by == ""
    perturbed = build_recipe(RECIPE, overrides=["env.perturb.kinds=[camera:1-3,fog:2]", "env.perturb.share=0.25"])
    assert perturbed.env.perturbed_by == "camera:1-3, fog:2 in 25 % of the episodes"
    assert perturbed.env.evaluation_changes("libero_spatial", EnvOptions())["perturb"] is None


def test_every_fault_of_perturb_is_told_at_once():
    overrides = ["env.perturb.kinds=[smoke,camera:6,paraphrase:2]", "env.perturb.share=0"]
    with pytest.raises(RecipeError) as caught:
        build_recipe(RECIPE, overrides=overrides[:1])
    told = {problem.found: problem for problem in caught.value.problems}
    assert {problem.path for problem in caught.value.problems} == {"env.perturb.kinds"}
    assert told["smoke"].rule == "names no kind"
    assert "camera-orbit" in told["smoke"].allowed
    assert told["camera:6"].rule == "has other levels than 1 to 5"
    assert "instructions cannot change" in told["paraphrase:2"].rule
    with pytest.raises(RecipeError, match=r"env\.perturb\.share"):
        build_recipe(RECIPE, overrides=overrides[1:])


def section(**perturb):
    values = {"name": "libero", "suite": "libero_spatial", "assets": "proxy", "tasks": [0]}
    return LiberoSection.model_validate(values | ({"perturb": perturb} if perturb else {}))


@pytest.mark.libero
def test_pixels_change_physics_does_not_and_unperturbed_episodes_stay_bit_identical():
    task = section().task_infos()[0]
    assert libero_builder(section(), task, render_size=48, horizon=8).keywords["perturbation"] is None
    own = libero_builder(section(kinds=["camera:2-4", "light"], share=0.5), task, render_size=48, horizon=8)
    change = own.keywords["perturbation"]
    seeds = {change.drawn(task, 0, seed=seed) is None: seed for seed in range(20)}
    env = own()
    assert isinstance(env, LiberoEnv)
    chunk = np.random.default_rng(0).uniform(-1.0, 1.0, (2, 7)).astype(np.float32)

    def play(seed):
        frames = [env.reset(0, seed=seed).frames, env.step_chunk(chunk).observation.frames]
        return frames, np.concatenate(env.physics_state())

    perturbed = {untouched: play(seed) for untouched, seed in seeds.items()}
    env._perturbation, env._effect = None, Effect()
    for untouched, seed in seeds.items():
        frames, state = play(seed)
        assert np.array_equal(perturbed[untouched][1], state)
        same = [np.array_equal(ours, plain) for ours, plain in zip(perturbed[untouched][0], frames, strict=True)]
        assert same == [untouched] * 2
    env.close()
