"""LiberoEnv, used by its public name alone, beside LIBERO's own env in a process that knows nothing of us."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vla_rl.envs.libero import LiberoEnv
from vla_rl.envs.libero.assets import resolve_assets

pytestmark = pytest.mark.libero

CHUNK = 8
DRAWN_CHUNKS = 5
SEED = 3


def play_stock(tmp_path, *, suite, task_id, assets, init_state, actions, image_size):
    """Physics after every control step (1 + steps, nq + nv), frames at the start and after the first chunks."""
    np.save(tmp_path / "actions.npy", actions.astype(np.float64))
    numbers = (task_id, init_state, SEED, image_size, CHUNK, CHUNK * DRAWN_CHUNKS)
    done = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("stock_program.py")),
            *(str(assets), suite, *map(str, numbers), str(tmp_path / "actions.npy"), str(tmp_path / "seen.npz")),
        ],
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"MUJOCO_GL": renderer()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = np.load(tmp_path / "seen.npz")
    return seen["physics"], seen["frames"]


def renderer():
    """Both must draw with the same library; ours chooses when the first env of this process is made."""
    from vla_rl.envs.libero.gl import choose

    return choose("auto")


def play_ours(env, init_state, actions):
    observation = env.reset(init_state, seed=SEED)
    physics, frames = [np.concatenate(env.physics_state())], [observation.frames]
    for chunk in actions.reshape(-1, CHUNK, 7):
        record = env.step_chunk(chunk)
        assert record.executed == CHUNK
        physics.append(np.concatenate(env.physics_state()))
        frames.append(record.observation.frames)
    return np.stack(physics), np.stack(frames)


def compare(tmp_path, *, suite, task_id, assets, steps, image_size, pixels):
    init_state = 11
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (steps, 7)).astype(np.float32)
    physics, frames = play_stock(
        tmp_path,
        suite=suite,
        task_id=task_id,
        assets=assets,
        init_state=init_state,
        actions=actions,
        image_size=image_size,
    )
    env = LiberoEnv(suite, task_id, assets=str(assets), image_size=image_size)
    for num_chunks in (steps // CHUNK, 3):  # the first reset, and a later one
        our_physics, our_frames = play_ours(env, init_state, actions[: num_chunks * CHUNK])
        assert np.array_equal(our_physics, physics[::CHUNK][: 1 + num_chunks])
        if pixels:
            drawn = frames[: 1 + num_chunks, :, ::-1, ::-1]
            assert np.array_equal(our_frames[: len(drawn)], drawn)
        env.reset(0, seed=5)
    env.close()


def test_an_episode_with_an_open_drawer_is_liberos_own_with_the_same_plain_seed(tmp_path):
    folder = resolve_assets("proxy").folder
    compare(tmp_path, suite="libero_spatial", task_id=4, assets=folder, steps=3 * CHUNK, image_size=32, pixels=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suite", "task_id", "chunks"),
    [
        ("libero_spatial", 4, 8),  # a bowl in an open drawer
        ("libero_object", 2, 8),
        ("libero_goal", 7, 8),
        ("libero_10", 3, 25),  # an open drawer; two hundred steps, in which a difference of the last bit would grow
    ],
)
def test_long_episodes_of_every_suite_and_their_frames_are_liberos_own(tmp_path, best_assets, suite, task_id, chunks):
    compare(
        tmp_path,
        suite=suite,
        task_id=task_id,
        assets=best_assets.folder,
        steps=chunks * CHUNK,
        image_size=64,
        pixels=best_assets.kind == "full",  # shadows and reflections of the stand-ins are off in ours alone
    )
