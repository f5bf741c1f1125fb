import numpy as np
import pytest

from vla_rl.evaluation.control import BLIND_EPISODES_FILE, BlankFrames, blind_control, stored_control
from vla_rl.evaluation.episodes import EpisodeLog, EpisodeResult


class Halving:
    input_size = 8
    output_size = 4

    def __call__(self, frames):
        return frames[:, ::2, ::2]


def episodes(outcomes):
    return [
        EpisodeResult(
            suite="s", task_id=0, init_state=state, seed=0, success=won, env_steps=9, episode_return=0.0, seconds=1.0
        )
        for state, won in enumerate(outcomes)
    ]


def test_blank_frames_have_the_shape_of_the_policy_s_own_and_nothing_on_them():
    blank = BlankFrames(Halving())
    frames = np.full((2, 8, 8, 3), 9, np.uint8)
    assert (blank.input_size, blank.output_size) == (8, 4)
    assert blank(frames).shape == Halving()(frames).shape
    assert blank(frames).dtype == np.uint8
    assert not blank(frames).any()


@pytest.mark.parametrize(
    ("seeing", "blind", "meaning"),
    [
        ([True] * 20, [False] * 15 + [True] * 5, "depends on its images"),
        ([False] * 20, [True] * 15 + [False] * 5, "look for a fault"),
        ([True] * 20, [False] * 2 + [True] * 18, "images make no measurable difference"),
        ([False] * 20, [False] * 20, "neither succeeded once"),
    ],
)
def test_the_difference_that_sight_makes_is_put_in_words(seeing, blind, meaning):
    control = blind_control(episodes(seeing), episodes(blind))
    assert meaning in control.meaning
    assert control.success_rate == sum(blind) / 20
    assert control.comparison.difference == pytest.approx((sum(seeing) - sum(blind)) / 20)


def test_a_control_that_was_played_stays_until_there_are_more_episodes_than_it_has(tmp_path):
    assert stored_control(tmp_path, episodes([True] * 2)) == (None, [])
    with EpisodeLog(tmp_path / BLIND_EPISODES_FILE) as log:
        for episode in episodes([False] * 2):
            log.append(episode)
    kept, gaps = stored_control(tmp_path, episodes([True] * 2))
    assert (kept.comparison.difference, gaps) == (1.0, [])
    kept, gaps = stored_control(tmp_path, episodes([True] * 5))
    assert (kept, gaps) == (
        None, ["the blind control has 2 of 5 episodes; --control blind plays the others and compares."]
    )  # fmt: skip
