"""Videos: what is kept, what stands on a page, and that filming changes nothing."""

import importlib.util
from typing import Any

import numpy as np
import pytest

from vla_rl.envs.seeds import reset_seed
from vla_rl.evaluation import video
from vla_rl.evaluation.episode_log import EpisodeResult
from vla_rl.evaluation.video import OUTCOME_FRAMES, RecordedEnv, check_video, compose, count_videos
from vla_rl.types import ChunkResult, Observation, TaskInfo

needs_encoder = pytest.mark.skipif(
    importlib.util.find_spec("imageio_ffmpeg") is None, reason="imageio-ffmpeg is not installed (extra video)"
)


class FakeEnv:
    """Two cameras, chunks of two, an episode of four control steps that succeeds or not."""

    horizon = 4
    task = TaskInfo(suite="libero_goal", task_id=3, name="t", language="open the middle drawer of the cabinet")

    def __init__(self, *, success):
        self.success = success
        self.elapsed = 0
        self.closed = False
        self.chunk_frames = np.zeros((0, 2, 32, 32, 3), np.uint8)

    def reset(self, init_state, *, seed=0):
        self.elapsed = 0
        return Observation(frames=np.full((2, 32, 32, 3), init_state, np.uint8), state=np.zeros(8, np.float32))

    def step_chunk(self, actions):
        self.elapsed += len(actions)
        self.chunk_frames = np.stack([np.full((2, 32, 32, 3), 50 + step, np.uint8) for step in range(len(actions))])
        ended = self.elapsed >= self.horizon
        return ChunkResult(
            observation=Observation(frames=self.chunk_frames[-1], state=np.ones(8, np.float32)),
            reward=float(ended and self.success),
            terminated=ended and self.success,
            truncated=ended and not self.success,
            executed=len(actions),
        )

    def close(self):
        self.closed = True


def play(env, *, chunks=2, init_state=7):
    results = [env.reset(init_state, seed=reset_seed(5, 3, init_state))]
    return results + [env.step_chunk(np.zeros((2, 7), np.float32)) for _ in range(chunks)]


def recorded(folder, *, success, keep="all"):
    return RecordedEnv(FakeEnv(success=success), seen=1, folder=folder, keep=keep, seeds=(4, 5))


def frame_count(path):
    import imageio_ffmpeg

    return imageio_ffmpeg.count_frames_and_secs(str(path))[0]


@needs_encoder
@pytest.mark.parametrize(("success", "word"), [(True, "success"), (False, "failure")])
def test_a_video_holds_every_control_step_and_its_name_tells_the_episode(tmp_path, success, word):
    play(recorded(tmp_path, success=success))
    (path,) = tmp_path.iterdir()
    assert path.name == f"libero_goal_task3_state7_seed5_{word}.mp4"
    assert frame_count(path) == 1 + 4 + OUTCOME_FRAMES


def test_episodes_that_were_played_before_videos_were_asked_for_are_counted(tmp_path):
    episodes = [
        EpisodeResult(
            suite="s", task_id=2, init_state=state, seed=1, success=won, env_steps=9, episode_return=0.0, seconds=1.0
        )
        for state, won in enumerate([True, False, False])
    ]
    (tmp_path / "s_task2_state1_seed1_failure.mp4").touch()
    assert count_videos(tmp_path, episodes, keep="all") == (1, 2)
    assert count_videos(tmp_path, episodes, keep="failures") == (1, 1)


@needs_encoder
def test_only_failures_are_kept_where_only_they_are_asked_for(tmp_path):
    for success in (True, False):
        play(recorded(tmp_path, success=success, keep="failures"))
    assert [path.name for path in tmp_path.iterdir()] == ["libero_goal_task3_state7_seed5_failure.mp4"]


@needs_encoder
def test_an_unfinished_episode_leaves_no_video(tmp_path):
    env = recorded(tmp_path, success=True)
    play(env, chunks=1)
    assert len(list(tmp_path.iterdir())) == 1
    env.reset(8, seed=reset_seed(4, 3, 8))  # the next episode makes it vanish, and so does the end of the worker
    env.close()
    env.close()
    assert list(tmp_path.iterdir()) == []


@needs_encoder
def test_a_policy_sees_its_own_cameras_alone(tmp_path):
    first, second, last = play(recorded(tmp_path, success=True))
    assert first.frames.shape == second.observation.frames.shape == (1, 32, 32, 3)
    assert (last.terminated, last.truncated, last.executed, last.reward) == (True, False, 2, 1.0)


def test_a_page_shows_the_cameras_side_by_side_between_title_and_outcome():
    frames = np.stack([np.full((128, 128, 3), value, np.uint8) for value in (200, 100)])
    page = compose(frames, "close the drawer " * 20, "SUCCESS after 9 steps", ink=(0, 255, 0))
    assert page.shape == (336, 512, 3)
    assert (page[150, 100] == 200).all()
    assert (page[150, 400] == 100).all()
    assert (page[:44] > 128).any()
    green = (page[300:, :, 1] > 200) & (page[300:, :, 0] < 100)
    assert green.any()


def test_without_the_encoder_the_fix_is_named(monkeypatch):
    monkeypatch.setattr(video.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ValueError, match=r"pip install 'vla-rl\[video\]'"):
        check_video()


@needs_encoder
@pytest.mark.libero
@pytest.mark.skipif(importlib.util.find_spec("libero") is None, reason="hf-libero is not installed")
def test_filming_changes_neither_physics_nor_what_the_policy_sees(tmp_path):
    from vla_rl.envs.libero.env import LiberoEnv
    from vla_rl.envs.libero.plan import libero_builder
    from vla_rl.envs.libero.section import LiberoSection
    from vla_rl.evaluation.video import build_recorded

    section = LiberoSection(name="libero", suite="libero_spatial", tasks=[3], assets="proxy", cameras=["wrist"])
    task = LiberoEnv("libero_spatial", 3, assets="proxy", image_size=64).task
    actions = np.random.default_rng(0).uniform(-1, 1, (3, 8, 7)).astype(np.float32)
    actions[:, :, 6] = np.sign(actions[:, :, 6])

    def seen_and_physics(env, simulated):
        seen = [env.reset(2, seed=reset_seed(4, 3, 2))] + [env.step_chunk(chunk).observation for chunk in actions]
        state = np.concatenate(simulated(env).physics_state())
        env.close()
        return np.stack([it.frames for it in seen]), np.stack([it.state for it in seen]), state

    plain = seen_and_physics(libero_builder(section, task, render_size=64, horizon=24)(), lambda env: env)
    build: Any = libero_builder(section, task, render_size=64, horizon=24, render_all=True)
    filmed = seen_and_physics(
        build_recorded(build=build, seen=1, folder=tmp_path, keep="all", seeds=(4,)), lambda env: env._env
    )
    for without, with_video in zip(plain, filmed, strict=True):
        assert np.array_equal(without, with_video)
    (path,) = tmp_path.iterdir()
    assert frame_count(path) == 1 + 24 + OUTCOME_FRAMES
