"""What an episode is: same arguments, same episode; success, truncation and the states that start it."""

import numpy as np
import pytest

from vla_rl.envs.libero.env import LiberoEnv

pytestmark = pytest.mark.libero

STILL = np.tile(np.array([0, 0, 0, 0, 0, 0, -1], np.float32), (8, 1))


@pytest.fixture(scope="module")
def spatial():
    env = LiberoEnv("libero_spatial", 0, assets="proxy", image_size=64, horizon=20)
    yield env
    env.close()


def put_bowl_on_plate(env):
    """Set the first bowl down at the plate's place: the goal of every task of Spatial."""
    data = env.simulation.env.sim.data
    plate = data.get_joint_qpos("plate_1_joint0").copy()
    bowl = plate.copy()
    bowl[2] += 0.004
    data.set_joint_qpos("akita_black_bowl_1_joint0", bowl)
    data.set_joint_qvel("akita_black_bowl_1_joint0", np.zeros(6))


def test_an_observation_has_the_promised_shapes_and_is_the_right_way_up(spatial):
    observation = spatial.reset(0)
    assert observation.frames.shape == (2, 64, 64, 3)
    assert observation.frames.dtype == np.uint8
    assert observation.state.shape == (8,)
    assert observation.state.dtype == np.float32
    scene = observation.frames[0].astype(float)
    assert scene[-8:].mean() > scene[:8, :20].mean()  # the lit table is below, the far wall above


def test_the_same_arguments_give_the_same_episode_whatever_came_before(spatial):
    actions = np.random.default_rng(0).uniform(-1, 1, (2, 8, 7)).astype(np.float32)

    def episode():
        frames = [spatial.reset(4, seed=11).frames]
        frames += [spatial.step_chunk(chunk).observation.frames for chunk in actions]
        return np.stack(frames), np.concatenate(spatial.physics_state())

    frames, state = episode()
    spatial.reset(5, seed=3)
    again, state_again = episode()
    assert np.array_equal(state, state_again)
    assert np.array_equal(frames, again)


def test_a_task_that_starts_with_an_open_drawer_repeats_too():
    env = LiberoEnv("libero_spatial", 4, assets="proxy", image_size=64, cameras=("agentview",))
    first = env.reset(1, seed=2)
    env.reset(2, seed=2)
    second = env.reset(1, seed=2)
    other = env.reset(1, seed=3)
    env.close()
    assert np.array_equal(first.frames, second.frames)
    assert not np.array_equal(first.frames, other.frames)  # the cabinet stands elsewhere


def test_an_episode_is_truncated_at_the_horizon_and_then_needs_a_reset(spatial):
    spatial.reset(0)
    results = [spatial.step_chunk(STILL) for _ in range(3)]
    assert [r.executed for r in results] == [8, 8, 4]
    assert [r.truncated for r in results] == [False, False, True]
    assert not any(r.terminated or r.reward for r in results)
    with pytest.raises(RuntimeError, match="after the end"):
        spatial.step_chunk(STILL)


def test_a_bowl_on_the_plate_ends_the_episode_with_its_frame(spatial):
    spatial.reset(0)
    spatial.step_chunk(STILL)
    put_bowl_on_plate(spatial)
    result = spatial.step_chunk(STILL)
    assert result.terminated
    assert not result.truncated
    assert result.reward == 1.0
    assert result.executed < 8
    assert np.array_equal(result.observation.frames, spatial.simulation.frames()[:, ::-1, ::-1])


def test_frames_of_every_step_end_with_the_observation():
    env = LiberoEnv("libero_spatial", 0, assets="proxy", image_size=64, cameras=("wrist",), render="every_step")
    env.reset(0)
    moving = np.random.default_rng(1).uniform(-1, 1, (8, 7)).astype(np.float32)
    result = env.step_chunk(moving)
    assert env.chunk_frames.shape == (8, 1, 64, 64, 3)
    assert np.array_equal(env.chunk_frames[-1], result.observation.frames)
    assert not np.array_equal(env.chunk_frames[-2], result.observation.frames)
    env.close()


def test_sampled_states_differ_and_repeat():
    env = LiberoEnv("libero_spatial", 2, assets="proxy", image_size=64, cameras=("agentview",), init_states="sampled")
    states = []
    for init_state in (0, 1000, 0):
        env.reset(init_state)
        states.append(np.concatenate(env.physics_state()))
    env.close()
    assert np.array_equal(states[0], states[2])
    assert np.abs(states[0] - states[1]).max() > 1e-3


def test_two_environments_in_one_process_draw_their_own_pictures():
    first, second = (LiberoEnv("libero_spatial", task, assets="proxy", image_size=64) for task in (0, 9))
    alone = [first.reset(0).frames, first.step_chunk(STILL).observation.frames]
    together = [first.reset(0).frames]
    second.reset(0)
    together.append(first.step_chunk(STILL).observation.frames)
    second.close()
    assert np.array_equal(np.stack(alone), np.stack(together))
    assert np.array_equal(first.reset(0).frames, alone[0])
    first.close()


def test_a_reset_leaves_numpys_global_generator_as_it_was(spatial):
    np.random.seed(123)
    expected = np.random.RandomState(123).random_sample(3)
    spatial.reset(0)
    assert np.array_equal(np.random.random_sample(3), expected)


def test_a_state_that_does_not_exist_is_refused_with_what_exists(spatial):
    with pytest.raises(ValueError, match=r"init_state 50 .* 0\.\.49"):
        spatial.reset(50)


def test_actions_of_the_wrong_shape_are_refused(spatial):
    spatial.reset(0)
    with pytest.raises(ValueError, match=r"\(K, 7\)"):
        spatial.step_chunk(np.zeros((8, 6), np.float32))


def test_actions_may_be_a_list_and_are_left_as_they_are(spatial):
    moving = STILL.astype(np.float64) + 0.25
    spatial.reset(0)
    spatial.step_chunk(moving)
    expected = np.concatenate(spatial.physics_state())
    assert np.array_equal(moving, STILL + 0.25)
    spatial.reset(0)
    spatial.step_chunk(moving.tolist())
    assert np.array_equal(np.concatenate(spatial.physics_state()), expected)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_actions_that_are_not_finite_are_refused_and_the_episode_goes_on(spatial, wrong):
    spatial.reset(0)
    before = np.concatenate(spatial.physics_state())
    actions = STILL.copy()
    actions[3, 2] = wrong
    with pytest.raises(ValueError, match="finite"):
        spatial.step_chunk(actions)
    assert np.array_equal(np.concatenate(spatial.physics_state()), before)
    assert spatial.step_chunk(STILL).executed == 8


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_libero_cannot_take_is_refused(spatial, seed):
    with pytest.raises(ValueError, match=r"seed must be in 0\.\.4294967295"):
        spatial.reset(0, seed=seed)


@pytest.mark.parametrize(
    ("argument", "allowed"),
    [
        ({"physics": "x"}, "exact, fast"),
        ({"render": "x"}, "decision, every_step"),
        ({"cameras": ("agentview", "front")}, "'front'.*agentview, wrist"),
        ({"init_states": "x"}, "standard, spare, sampled"),
        ({"image_size": 0}, "image_size must be at least 1"),
        ({"horizon": 0}, "horizon must be at least 1"),
        ({"assets": "x"}, "'proxy' or 'auto'"),
        ({"gl": "x"}, "auto, egl, osmesa"),
    ],
)
def test_an_argument_that_does_not_exist_is_refused_with_what_does(argument, allowed):
    with pytest.raises(ValueError, match=allowed):
        LiberoEnv("libero_spatial", 0, **({"assets": "proxy"} | argument))


def test_closing_twice_is_harmless_and_what_is_closed_says_so():
    env = LiberoEnv("libero_spatial", 0, assets="proxy", image_size=64)
    env.close()
    env.close()
    for use in (lambda: env.reset(0), env.physics_state, lambda: env.start_from(np.zeros(92))):
        with pytest.raises(RuntimeError, match="closed"):
            use()
