"""What an expert needs of LIBERO: the scene, exact snapshots, grasps from geometry; and what it achieves."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_rl.envs.libero import widening
from vla_rl.envs.libero.env import LiberoEnv
from vla_rl.envs.libero.expert import Expert, check_expert
from vla_rl.envs.libero.suites import libero_tasks
from vla_rl.errors import SimulatorError

pytestmark = pytest.mark.libero

BOWL = "akita_black_bowl_1"


def env_of(task=2, **options):
    chosen: dict[str, Any] = {
        "assets": "proxy",
        "image_size": 32,
        "init_states": "sampled",
        "physics": "fast",
        "cameras": (),
    }
    return LiberoEnv("libero_spatial", task, **(chosen | options))


@pytest.fixture(scope="module")
def table():
    env = env_of()
    yield env
    env.close()


def play(env, steps):
    """The expert's own episode; what was seen after every step."""
    expert = Expert(env)
    for _ in range(steps):
        result = env.step_chunk(expert.action()[None])
        if result.terminated:
            break
    return result


@pytest.mark.parametrize("physics", ["exact", "fast"])
def test_a_branch_that_is_played_again_repeats_itself_to_the_last_bit(physics):
    env = env_of(physics=physics, cameras=("agentview",))
    observation = env.reset(0)
    expert = Expert(env)
    while observation.state[6] > 0.02:  # until the fingers are closing around the rim
        observation = env.step_chunk(expert.action()[None]).observation
    moment = env.snapshot()
    generator = np.random.default_rng(0)
    actions = generator.uniform(-1, 1, (3, 4, 7)).astype(np.float32)
    actions[0, :, 3:6] = 0.0  # then the controller keeps the orientation that it was told before

    def branch():
        found = []
        for chunk in actions:
            result = env.step_chunk(chunk)
            found += [result.observation.frames, result.observation.state, *env.physics_state()]
        return found

    first = branch()
    env.step_chunk(-actions[1])  # go on elsewhere
    for _ in range(2):
        again = env.restore(moment)
        assert np.array_equal(again.frames, observation.frames)
        assert np.array_equal(again.state, observation.state)
        for left, right in zip(first, branch(), strict=True):
            assert np.array_equal(left, right)
    env.close()


def test_a_snapshot_counts_the_steps_and_ends_with_the_episode():
    env = env_of(horizon=3)
    env.reset(0)
    still = np.zeros((2, 7), np.float32)
    moment = env.snapshot()
    env.step_chunk(still)
    assert env.step_chunk(still).truncated
    env.restore(moment)
    assert not env.step_chunk(still).truncated
    env.reset(1)
    with pytest.raises(RuntimeError, match="before the last reset"):
        env.restore(moment)
    env.close()


def test_the_program_that_the_page_shows_does_what_it_says_there():
    page = (Path(__file__).parents[2] / "docs" / "libero.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    closing = "env.close()\n"
    names: dict[str, Any] = {}
    exec(compile(program.removesuffix(closing), "docs/libero.md", "exec"), names)
    env, first, again = names["env"], names["first"], names["again"]
    assert env.scene.goal == (("on", BOWL, "plate_1"),)
    assert BOWL in env.scene.objects
    assert np.array_equal(first.observation.frames, again.observation.frames)
    assert np.array_equal(first.observation.state, again.observation.state)
    # The bowl stood still meanwhile, and the new episode has it there.
    assert env.scene.pose(BOWL).position == pytest.approx(names["bowl"], abs=1e-3)
    assert program.endswith(closing)
    env.close()


def test_the_scene_knows_poses_the_goal_and_surfaces(table):
    table.reset(0)
    scene = table.scene
    assert scene.goal == (("on", BOWL, "plate_1"),)
    assert {BOWL, "plate_1"} <= set(scene.objects)
    assert set(scene.fixtures) == {"wooden_cabinet_1", "flat_stove_1"}
    bowl = scene.pose(BOWL).position
    assert np.array_equal(bowl, table.simulation.env.sim.data.get_body_xpos(f"{BOWL}_main"))
    rim, middle, beside = np.array([0.0, 0.0485]), np.zeros(2), np.array([0.0, 0.09])
    colours = table.simulation.env.sim.model._model.geom_rgba.copy()
    seen = scene.surface(bowl[:2] + np.array([rim, middle, beside]), ceiling=bowl[2] + 0.2)
    # The wall's inner side leaves radius 42 mm at height 20 mm for 50 at 52; the floor's top is at 9 mm, its foot at 2.
    assert seen.heights - bowl[2] == pytest.approx([0.020 + 0.0065 * 32 / 8, 0.009, 0.002], abs=0.001)
    assert list(seen.owners == scene.owner_of(BOWL)) == [True, True, False]
    through = scene.surface(bowl[None, :2], ceiling=bowl[2] + 0.2, without=BOWL)
    assert through.heights[0] == pytest.approx(0.9, abs=1e-3)  # the table
    assert np.array_equal(table.simulation.env.sim.model._model.geom_rgba, colours)
    with pytest.raises(KeyError, match="neither an object nor a site"):
        scene.pose("akita_black_bowl_9")


def test_a_bowl_is_held_by_its_rim(table):
    table.reset(0)
    grasp = Expert(table)._grasp
    bowl = table.scene.pose(BOWL).position
    assert grasp is not None
    assert np.linalg.norm(grasp.position[:2] - bowl[:2]) == pytest.approx(0.0485, abs=0.006)
    assert 0.01 < grasp.position[2] - bowl[2] < 0.05


def test_the_expert_succeeds_from_sampled_states(table):
    for state in range(3):
        table.reset(state, seed=3)
        assert play(table, 160).terminated


def test_the_expert_knows_what_it_cannot_do():
    for suite in ("libero_spatial", "libero_object"):
        for task in libero_tasks(suite):
            check_expert(task)
    with pytest.raises(SimulatorError, match=r"cannot do libero_goal task 0: it wants .*[Oo]pen"):
        check_expert(libero_tasks("libero_goal")[0])
    with pytest.raises(SimulatorError, match="cannot do libero_10 task"):
        check_expert(libero_tasks("libero_10")[0])


def test_widened_states_repeat_and_spread_farther_than_sampled_ones():
    def plates(init_states):
        env = env_of(init_states=init_states)
        places = []
        for state in (0, 1, 2, 3, 4, 5, 0):
            env.reset(state)
            places.append(env.scene.pose("plate_1").position[:2])
        env.close()
        return np.array(places)

    sampled, widened = plates("sampled"), plates("widened")
    assert np.array_equal(widened[0], widened[-1])
    assert (np.ptp(widened, axis=0) > np.ptp(sampled, axis=0)).all()


def test_objects_move_together_and_every_fixture_on_its_own():
    problem = {
        "fixtures": {"table": ["table_1"], "stove": ["stove_1"], "cabinet": ["cabinet_1"]},
        "regions": dict.fromkeys(("plate_region", "bowl_region", "stove_region", "cabinet_region")),
        "initial_state": [
            ["on", "plate_1", "plate_region"],
            ["on", "bowl_1", "bowl_region"],
            ["on", "stove_1", "stove_region"],
            ["on", "cabinet_1", "cabinet_region"],
        ],
    }
    drawn = [widening.shifts(problem, widening.generator_of(seed)) for seed in range(400)]
    assert all(shift["plate_region"] == shift["bowl_region"] for shift in drawn)
    assert all(len(set(shift.values())) == 3 for shift in drawn)
    spread = {name: np.array([shift[name] for shift in drawn]) for name in problem["regions"]}
    assert np.min(spread["plate_region"], axis=0) == pytest.approx([-0.08, -0.05], abs=0.003)
    assert np.max(spread["plate_region"], axis=0) == pytest.approx([0.0, 0.05], abs=0.003)
    assert np.min(spread["stove_region"], axis=0) == pytest.approx([-0.05, -0.03], abs=0.003)
    assert np.max(spread["stove_region"], axis=0) == pytest.approx([0.0, 0.03], abs=0.003)
    assert widening.moved({"a": [[0.0, 1.0, 2.0, 3.0]]}, {"a": (10.0, 20.0)}) == {"a": [[10.0, 21.0, 12.0, 23.0]]}
