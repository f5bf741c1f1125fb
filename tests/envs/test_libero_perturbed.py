"""Perturbed episodes in the simulator: what changes, what stays, and that an episode repeats itself."""

import numpy as np
import pytest

from vla_rl.envs.libero.env import LiberoEnv
from vla_rl.envs.libero.perturbations.action_delay import REST
from vla_rl.envs.libero.perturbations.bodies import Bodies
from vla_rl.envs.libero.perturbations.distractors import CATEGORIES
from vla_rl.envs.libero.perturbations.kinds import KINDS, Perturbation
from vla_rl.envs.libero.perturbations.placement import Displaced, radius
from vla_rl.envs.libero.perturbations.robot_pose import poses
from vla_rl.envs.libero.perturbations.rotations import turned

pytestmark = pytest.mark.libero

LEVEL = 4
CHUNK = np.random.default_rng(0).uniform(-1.0, 1.0, (4, 7)).astype(np.float32)
INVISIBLE = {"paraphrase", "wrong-instruction", "dropped-frames", "texture-floor"}  # the table hides the floor


@pytest.fixture(scope="module")
def env():
    made = LiberoEnv("libero_spatial", 0, assets="proxy", image_size=48)
    yield made
    made.close()


def play(env, name, level=LEVEL, *, state=2, chunk=CHUNK):
    """One short episode; `name` None: unperturbed."""
    from vla_rl.envs.libero.perturbations.kind import Effect

    env._perturbation = None if name is None else Perturbation(name, level)
    env._effect = Effect()
    first = env.reset(state, seed=7)
    last = env.step_chunk(chunk).observation
    return first, last, env.physics_state()


@pytest.fixture(scope="module")
def unperturbed(env):
    return play(env, None)


@pytest.fixture(scope="module")
def perturbed(env):
    """Every kind once, in order."""
    return {name: play(env, name) for name in KINDS}


def same_state(one, other):
    return all(a.shape == b.shape and np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if not kind.moves])
def test_where_only_pixels_change_every_position_and_velocity_is_the_unperturbed_one(unperturbed, perturbed, name):
    first, last, state = perturbed[name]
    assert same_state(state, unperturbed[2])
    assert np.array_equal(last.state, unperturbed[1].state)
    seen = [np.array_equal(ours.frames[0], plain.frames[0]) for ours, plain in zip((first, last), unperturbed[:2], strict=True)]  # fmt: skip  # noqa: E501
    assert not any(seen) or name in INVISIBLE
    if KINDS[name].group in ("camera", "image") and name != "dropped-frames":
        assert np.array_equal(last.frames[1], unperturbed[1].frames[1])  # of the wrist


@pytest.mark.parametrize("name", ["camera-orbit", "light-strength", "shadows", "texture-walls", "distractors"])
def test_afterwards_an_unperturbed_episode_is_as_it_was_before(env, unperturbed, name):
    """Graphics outlive a reset, and hold textures and shadows."""
    play(env, name)
    again = play(env, None)
    assert same_state(again[2], unperturbed[2])
    for ours, plain in zip(again[:2], unperturbed[:2], strict=True):
        assert np.array_equal(ours.frames, plain.frames)


@pytest.mark.parametrize("name", reversed(KINDS))
def test_an_episode_repeats_itself_whatever_was_played_before(env, perturbed, name):
    again = play(env, name)
    assert same_state(perturbed[name][2], again[2])
    assert all(np.array_equal(a.frames, b.frames) for a, b in zip(perturbed[name][:2], again[:2], strict=True))


@pytest.fixture(scope="module")
def filming():
    made = LiberoEnv("libero_spatial", 0, assets="proxy", image_size=48, render="every_step")
    yield made
    made.close()


@pytest.mark.parametrize("name", ["fog", "camera-orbit", "dropped-frames"])
def test_a_film_shows_what_a_policy_would_see_and_changes_no_episode(filming, perturbed, name):
    """A dropped picture was lost on its way to a decision; a film shows the scene."""
    play(filming, None)
    plain = filming.chunk_frames
    first, last, state = play(filming, name)
    assert same_state(state, perturbed[name][2])
    assert all(
        np.array_equal(ours.frames, theirs.frames)
        for ours, theirs in zip((first, last), perturbed[name][:2], strict=True)
    )
    film = filming.chunk_frames
    assert len(film) == len(CHUNK)
    if name == "dropped-frames":
        assert np.array_equal(film, plain)
    else:
        assert np.array_equal(film[-1], last.frames)
        assert not any(np.array_equal(ours[0], theirs[0]) for ours, theirs in zip(film, plain, strict=True))


def test_the_light_of_the_shadows_kind_casts_some(env, monkeypatch):
    with_shadows = play(env, "shadows")[0].frames[0].astype(int)
    monkeypatch.setattr("vla_rl.envs.libero.perturbations.shadows.SHADOW_MAP", 0)
    darker = play(env, "shadows")[0].frames[0] - with_shadows
    assert (darker > 20).any(axis=-1).mean() > 0.01
    assert darker.min() > -20  # MuJoCo adds a light with shadows in a pass of its own, which rounds otherwise


def test_a_floor_that_is_seen_is_painted():
    env = LiberoEnv("libero_object", 0, assets="proxy", image_size=32)
    plain = play(env, None)[0].frames[0]
    for name in ("texture-floor", "texture-table"):
        painted = play(env, name)[0].frames[0]
        assert (painted != plain).any(axis=-1).mean() > 0.3
    env.close()


def test_the_arm_starts_in_one_of_the_level_s_poses_and_objects_where_they_were(env, unperturbed):
    play(env, "robot-pose", chunk=CHUNK * 0)
    sim = env.simulation
    pose = sim.data.qpos[:7]
    nearest = np.linalg.norm(poses() - pose, axis=2).min(axis=1)
    assert nearest.argmin() == LEVEL - 1
    assert nearest.min() < 0.05  # after settling; poses of one level are about half a radian apart
    assert not sim.robot_touches()
    play(env, None, chunk=CHUNK * 0)
    rested = sim.data.qpos[9:].copy()
    play(env, "robot-pose", chunk=CHUNK * 0)
    assert np.abs(sim.data.qpos[9:] - rested).max() < 1e-6


def test_a_set_arm_is_where_its_controller_starts(env):
    env.reset(0)
    pose = poses()[4, 0]
    env.simulation.set_arm(pose)
    for _ in range(10):
        env.simulation.step(REST)
    assert np.abs(env.simulation.data.qpos[:7] - pose).max() < 0.02


def places(env):
    sim = env.simulation
    bodies = Bodies(sim)
    return {sim.model.body(body).name: bodies.pose(body).copy() for body in bodies.free}


@pytest.mark.parametrize("task_id", [0, 3])
def test_objects_move_within_their_disc_keep_their_height_and_stay_where_they_are_put(task_id):
    env = LiberoEnv("libero_spatial", task_id, assets="proxy", image_size=16)
    env.reset(1, seed=5)
    before = places(env)
    supported = {env.simulation.model.body(body).name for group in Bodies(env.simulation).stacks() for body in group}
    env._perturbation = Perturbation("placement", 5)
    env.reset(1, seed=5)
    after = places(env)
    distances = {name: np.linalg.norm(after[name][:2] - pose[:2]) for name, pose in before.items()}
    reach = radius(5, env.task)
    assert 0.005 < max(distances.values()) <= reach
    assert all(np.array_equal(after[name], before[name]) for name in before if name not in supported)
    assert all(np.array_equal(after[name][2:], before[name][2:]) for name in before)  # height and orientation
    env.step_chunk(np.zeros((8, 7), np.float32))
    for name, pose in places(env).items():
        assert np.abs(pose - after[name]).max() < 1e-3, name
    env.close()


def test_however_far_objects_move_none_touches_another_or_leaves_the_table(env):
    for seed in range(6):
        env._perturbation = None
        env.reset(0)
        bodies = Bodies(env.simulation)
        groups = bodies.stacks()
        Displaced(radius=0.6, seed=seed).after_settling(env.simulation)
        assert all(bodies.stands_alone(group) for group in groups)
        assert all(bodies.is_supported(body) for group in groups for body in group)


def test_a_bowl_on_the_stove_stays_on_it():
    env = LiberoEnv("libero_spatial", 7, assets="proxy", image_size=16)
    env.reset(0, seed=5)
    before = places(env)
    env._perturbation = Perturbation("placement", 5)
    env.reset(0, seed=5)
    assert np.array_equal(places(env)["akita_black_bowl_1_main"], before["akita_black_bowl_1_main"])
    env.close()


def test_what_is_drawn_after_objects_moved_is_the_moved_scene(env):
    moved = play(env, "placement", level=5)[0].frames[0]
    assert not np.array_equal(moved, play(env, None)[0].frames[0])


@pytest.mark.parametrize("suite", ["libero_spatial", "libero_object"])
def test_distractors_are_new_to_the_scene_in_sight_at_rest_and_leave_the_others_in_place(suite):
    env = LiberoEnv(suite, 1, assets="proxy", image_size=16)
    env.reset(2, seed=3)
    own, categories = places(env), env.simulation.categories
    env._perturbation = Perturbation("distractors", 5)
    env.reset(2, seed=3)
    sim, now = env.simulation, places(env)
    bodies = Bodies(sim)
    added = {f"{name}_main" for name in sim.extra_objects}
    assert len(added) == 5
    assert set(now) == set(own) | added
    assert not set(sim.extra_objects.values()) & categories
    assert all(np.abs(now[name] - pose).max() < 1e-4 for name, pose in own.items())
    surface = sim.data.xpos[bodies.surface][2]
    for name in added:
        assert bodies.in_view(now[name][:3]), name
        assert now[name][2] > surface - 0.05
        assert not bodies.touches_an_object(bodies.number(name))
        standing = {"y": [0.0, 1.0, 0.0], "z": [0.0, 0.0, 1.0]}[
            CATEGORIES[sim.extra_objects[name.removesuffix("_main")]]
        ]
        assert turned(now[name][3:], np.array(standing))[2] > 0.95, name
    env.step_chunk(np.zeros((4, 7), np.float32))
    assert all(np.abs(places(env)[name] - now[name]).max() < 0.005 for name in added)
    env.close()


def test_sampled_states_take_distractors_too():
    env = LiberoEnv("libero_goal", 0, assets="proxy", image_size=16, init_states="sampled")
    env.reset(5, seed=3)
    own = places(env)
    env._perturbation = Perturbation("distractors", 2)
    env.reset(5, seed=3)
    assert all(np.abs(places(env)[name] - pose).max() < 1e-4 for name, pose in own.items())
    assert len(places(env)) == len(own) + 2
    env.close()


def test_an_action_delayed_by_a_step_is_the_same_action_a_step_later(env):
    shifted = np.concatenate([REST[None].astype(np.float32), CHUNK[:-1]])
    assert same_state(play(env, "action-delay", level=1)[2], play(env, None, chunk=shifted)[2])


def test_every_control_step_has_its_own_noise_however_the_policy_divides_them(env, monkeypatch):
    executed = []
    step = env.simulation.step
    monkeypatch.setattr(env.simulation, "step", lambda action: executed.append(action) or step(action))
    whole = play(env, "action-noise", chunk=CHUNK * 0)[2]
    assert len(np.unique(np.array(executed[-4:])[:, 0])) == 4
    play(env, "action-noise", chunk=CHUNK[:2] * 0)
    env.step_chunk(CHUNK[2:] * 0)
    assert same_state(env.physics_state(), whole)


@pytest.mark.parametrize("name", ["pixel-noise", "dropped-frames", "action-noise"])
def test_filming_changes_neither_the_frames_nor_the_physics(env, name):
    filmed = LiberoEnv("libero_spatial", 0, assets="proxy", image_size=48, render="every_step")
    ours, theirs = play(env, name), play(filmed, name)
    assert same_state(ours[2], theirs[2])
    assert all(np.array_equal(a.frames, b.frames) for a, b in zip(ours[:2], theirs[:2], strict=True))
    filmed.close()


def test_a_perturbation_given_to_an_environment_is_that_of_all_its_episodes(env):
    made = LiberoEnv("libero_spatial", 0, assets="proxy", image_size=48, perturbation=Perturbation("fog", 2))
    frames = [made.reset(state, seed=7).frames[0] for state in (2, 2, 4)]
    made.close()
    assert np.array_equal(frames[0], frames[1])
    assert np.array_equal(frames[0], play(env, "fog", level=2)[0].frames[0])


def test_a_perturbed_episode_has_no_snapshots_and_starts_from_no_given_state(env, unperturbed):
    play(env, "action-delay")
    with pytest.raises(RuntimeError, match="a perturbed episode has no snapshots"):
        env.snapshot()
    env.start_from(env._states[2], seed=7)
    env.step_chunk(CHUNK)
    assert same_state(env.physics_state(), unperturbed[2])
