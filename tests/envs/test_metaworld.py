"""Meta-World behind the environment protocol: what is observed, paid, truncated and called a success."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("metaworld", reason="the extra metaworld is not installed")

from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.policies import ENV_POLICY_MAP
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from metaworld.utils import reward_utils
from scipy.spatial.transform import Rotation

from vla_rl.envs.metaworld.control_step import _general_tolerance, tolerance
from vla_rl.envs.metaworld.env import NUM_GOALS, STATE_DIM, MetaworldEnv, hand_and_objects, quaternion, task_info
from vla_rl.envs.metaworld.section import MetaworldSection
from vla_rl.envs.metaworld.tasks import METAWORLD_TASKS

pytestmark = pytest.mark.filterwarnings("ignore:Constant\\(s\\) may be too high")  # the scripted experts say it
STILL = np.zeros((1, 4), np.float32)


@pytest.fixture(scope="module")
def press():
    env = MetaworldEnv("handle-press-v3", task_id=23, horizon=60, chunk_size=4)
    yield env
    env.close()
    env.close()  # twice is safe


def play(env, init_state, *, steps):
    """The scripted expert's episode: states, rewards, successes."""
    expert = ENV_POLICY_MAP[env.task.name]()
    state, rewards, successes = env.reset(init_state).state, [], []
    for _ in range(steps):
        result = env.step_chunk(np.clip(expert.get_action(state.astype(float)), -1, 1)[None].astype(np.float32))
        state = result.observation.state
        rewards.append(result.reward)
        successes.append(result.success)
    return state, rewards, successes


def test_the_program_knows_exactly_the_benchmark_s_fifty_tasks():
    assert set(METAWORLD_TASKS) == set(ALL_V3_ENVIRONMENTS)
    assert len(METAWORLD_TASKS) == 50
    assert task_info(15, "door-open-v3").language == "door open"


def test_an_observation_is_39_numbers_with_the_goal_in_sight_and_no_frames(press):
    observation = press.reset(0)
    assert observation.state.shape == (STATE_DIM,)
    assert observation.state.dtype == np.float32
    assert np.isfinite(observation.state).all()
    assert observation.frames.size == 0
    assert np.array_equal(observation.state[:18], observation.state[18:36])  # nothing happened yet
    assert observation.state[36:].any()


def test_the_same_initial_state_gives_the_same_episode_whatever_was_played_before(press):
    first = play(press, 3, steps=30)
    play(press, 7, steps=45)
    again = play(press, 3, steps=30)
    assert np.array_equal(first[0], again[0])
    assert first[1] == again[1]


def test_the_fifty_initial_states_differ(press):
    states = np.array([press.reset(init_state).state for init_state in (0, 1, NUM_GOALS - 1)])
    assert len(np.unique(states, axis=0)) == 3
    with pytest.raises(ValueError, match=r"0\.\.49"):
        press.reset(NUM_GOALS)


def test_an_expert_succeeds_and_the_episode_goes_on_to_the_horizon_without_terminating(press):
    _, rewards, successes = play(press, 0, steps=59)
    assert any(successes)
    assert min(rewards) >= 0.0
    assert max(rewards) <= 10.0
    last = press.step_chunk(STILL)
    assert (last.terminated, last.truncated) == (False, True)
    with pytest.raises(RuntimeError, match="after the end"):
        press.step_chunk(STILL)


def test_a_chunk_sums_its_rewards_and_stops_at_the_horizon(press):
    actions = np.random.default_rng(0).uniform(-1, 1, (60, 4)).astype(np.float32)
    press.reset(5)
    singles = [press.step_chunk(action[None]).reward for action in actions]
    press.reset(5)
    chunks = [press.step_chunk(actions[start : start + 4]) for start in range(0, 56, 4)]
    assert [chunk.reward for chunk in chunks] == pytest.approx(np.reshape(singles[:56], (-1, 4)).sum(axis=1))
    press.step_chunk(actions[56:57])
    last = press.step_chunk(actions[56:60])
    assert (last.executed, last.truncated) == (3, True)


def test_a_success_in_any_control_step_of_a_chunk_counts(press, monkeypatch):
    press.reset(0)
    flags = iter([0.0, 1.0, 0.0, 0.0, 0.0])
    step = press._simulator.step
    monkeypatch.setattr(press._simulator, "step", lambda action: (*step(action)[:4], {"success": next(flags)}))
    assert press.step_chunk(np.zeros((4, 4), np.float32)).success
    assert not press.step_chunk(STILL).success


def test_the_reward_scale_multiplies_the_benchmark_s_reward(press):
    scaled = MetaworldEnv("handle-press-v3", task_id=23, reward_scale=0.01)
    rewards = play(press, 2, steps=20)[1]
    assert play(scaled, 2, steps=20)[1] == pytest.approx([0.01 * reward for reward in rewards])


def test_what_cannot_be_is_refused(press):
    press.reset(0)
    with pytest.raises(ValueError, match=r"\(1\.\.4, 4\)"):
        press.step_chunk(np.zeros((5, 4), np.float32))
    with pytest.raises(ValueError, match=r"1\.\.500"):
        MetaworldEnv("handle-press-v3", task_id=23, horizon=501)
    with pytest.raises(ValueError, match="no task 'handle-press'"):
        MetaworldEnv("handle-press", task_id=23)


@pytest.mark.parametrize("name", ["handle-press-v3", "door-open-v3", "stick-pull-v3"])  # the last has two objects
def test_the_state_is_the_simulator_s_own_to_the_last_bit(name):
    env = MetaworldEnv(name, task_id=0)
    env.reset(4)
    for action in np.random.default_rng(2).uniform(-1, 1, (20, 1, 4)).astype(np.float32):
        env.step_chunk(action)
        theirs = SawyerXYZEnv._get_curr_obs_combined_no_goal(env._simulator)
        assert np.array_equal(hand_and_objects(env._simulator), theirs)


# A door, two objects, one to be grasped, a target without a mark, a hole for the hand.
TASKS = ["door-open-v3", "stick-pull-v3", "pick-place-v3", "handle-press-v3", "hand-insert-v3"]


OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in METAWORLD_TASKS if name not in TASKS]


@pytest.mark.parametrize("name", [*TASKS, *OTHERS])
def test_an_episode_is_the_benchmark_s_to_the_last_bit(name, monkeypatch):
    """The expert, disturbed, with actions beyond their bounds."""
    ours, theirs = MetaworldEnv(name, task_id=0, horizon=40), MetaworldEnv(name, task_id=0, horizon=40)
    del theirs._simulator.step
    rng, expert = np.random.default_rng(3), ENV_POLICY_MAP[name]()
    state = ours.reset(4).state
    assert np.array_equal(theirs.reset(4).state, state)
    for elapsed in range(40):
        if elapsed == 20:  # what is observed stays within its bounds
            ours._simulator._prev_obs[:3] = theirs._simulator._prev_obs[:3] = 9.0
        action = (expert.get_action(state.astype(float)) + rng.normal(0.0, 0.5, 4)).astype(np.float32)[None]
        monkeypatch.setattr(reward_utils, "tolerance", tolerance)
        result = ours.step_chunk(action)
        monkeypatch.setattr(reward_utils, "tolerance", _general_tolerance)
        expected = theirs.step_chunk(action)
        state = result.observation.state
        assert np.array_equal(state, expected.observation.state)
        assert (result.reward, result.success) == (expected.reward, expected.success)
        for part in ("qpos", "qvel", "mocap_pos", "ctrl", "site_xpos"):
            assert np.array_equal(*(getattr(env._simulator.data, part) for env in (ours, theirs)))
    assert np.array_equal(ours._simulator._last_stable_obs, theirs._simulator._last_stable_obs)


def test_the_simulator_refuses_a_control_step_after_its_horizon(press):
    press.reset(0)
    press._simulator.curr_path_length = press._simulator.max_path_length - 1
    assert press._simulator.step(STILL[0])[3]  # truncated
    with pytest.raises(ValueError, match="reset"):
        press._simulator.step(STILL[0])


SIGMOIDS = ["gaussian", "hyperbolic", "long_tail", "reciprocal", "cosine", "linear", "quadratic", "tanh_squared"]
NUMBERS = st.floats(-3.0, 3.0) | st.sampled_from([0.0, 0.5, math.inf, math.nan])


@given(x=NUMBERS, bounds=st.tuples(st.floats(-1.0, 0.5), st.floats(0.5, 2.0)), margin=st.floats(0.0, 2.0))
@pytest.mark.parametrize("sigmoid", SIGMOIDS)
@pytest.mark.parametrize("kind", [float, np.float64])
def test_the_tolerance_of_a_number_has_the_bits_of_the_general_one(kind, sigmoid, x, bounds, margin):
    arguments = {"bounds": bounds, "margin": kind(margin), "sigmoid": sigmoid, "value_at_margin": 0.2}
    with np.errstate(all="ignore"):
        ours, theirs = (function(kind(x), **arguments) for function in (tolerance, _general_tolerance))
    assert type(ours) is type(theirs) is float
    assert ours == theirs or (math.isnan(ours) and math.isnan(theirs))


def test_the_tolerance_of_an_array_and_its_errors_are_the_general_ones():
    several = np.array([-1.0, 0.2, 3.0])
    assert np.array_equal(tolerance(several, margin=2.0), _general_tolerance(several, margin=2.0))
    with pytest.raises(ValueError, match="Lower bound"):
        tolerance(0.0, bounds=(1.0, 0.0))
    with pytest.raises(ValueError, match="margin"):
        tolerance(0.0, margin=-1.0)


def test_our_quaternion_is_scipy_s_in_every_branch_of_the_formula():
    rotations = Rotation.random(500, rng=np.random.default_rng(1))
    half_turns = Rotation.from_rotvec(np.pi * np.eye(3))
    for rotation in [*rotations, *half_turns, Rotation.identity()]:
        matrix = rotation.as_matrix()
        assert quaternion(matrix) == pytest.approx(Rotation.from_matrix(matrix).as_quat(), abs=1e-14)


def test_training_and_every_seed_of_an_evaluation_share_the_initial_states():
    section = MetaworldSection.model_validate({"name": "metaworld", "tasks": ["door-open-v3"]})
    assert section.plan(render_size=0).tasks_with_stored_states == [("metaworld", 15)]
