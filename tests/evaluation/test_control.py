import numpy as np
import pytest

from vla_rl.evaluation.control import (
    CONTROLS,
    BlankFrames,
    compare_control,
    episodes_file,
    stored_controls,
    wrong_instructions,
)
from vla_rl.evaluation.episode_log import EpisodeLog, EpisodeResult


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
    ("plain", "controlled", "meanings"),
    [
        ([True] * 20, [False] * 15 + [True] * 5, ("depends on its images", "depends on its instruction")),
        ([False] * 20, [True] * 15 + [False] * 5, ("a fault in its images", "a fault in its prompts")),
        (
            [True] * 20,
            [False] + [True] * 19,
            ("images make no measurable difference", "instruction makes no measurable difference"),
        ),
        (
            [True] * 4,
            [False] * 4,
            (
                "4 episodes are too few to tell whether images make a difference: success changes by -100 points",
                "4 episodes are too few to tell whether the right instruction makes a difference",
            ),
        ),
        (
            [True] * 10 + [False] * 10,
            [True] * 6 + [False] * 14,
            (
                "20 episodes are too few to tell whether images make a difference: success changes by -20 points",
                "20 episodes are too few to tell whether the right instruction makes a difference",
            ),
        ),
        ([True] * 20, [True] * 20, ("images make no measurable", "instruction makes no measurable")),
        (
            [True] * 4,
            [True] * 4,
            (
                "4 episodes are too few to tell whether images make a difference: success changes by +0 points",
                "4 episodes are too few to tell whether the right instruction makes a difference",
            ),
        ),
        ([False] + [True] * 3, [True] * 4, ("too few to tell whether images", "too few to tell whether the right")),
        ([False] * 20, [False] * 20, ("its use of images", "its use of the instruction")),
    ],
)
def test_the_difference_that_a_control_makes_is_put_in_words(plain, controlled, meanings):
    for name, meaning in zip(CONTROLS, meanings, strict=True):
        control = compare_control(name, episodes(plain), episodes(controlled))
        assert meaning in control.meaning
        assert control.success_rate == pytest.approx(sum(controlled) / len(plain))
        assert control.comparison.difference == pytest.approx((sum(plain) - sum(controlled)) / len(plain))


def test_a_control_that_was_played_stays_until_there_are_more_episodes_than_it_has(tmp_path):
    assert stored_controls(tmp_path, episodes([True] * 2)) == ((), [])
    with EpisodeLog(tmp_path / episodes_file("instruction")) as log:
        for episode in episodes([False] * 2):
            log.append(episode)
    kept, gaps = stored_controls(tmp_path, episodes([True] * 2))
    assert ([(it.name, it.comparison.difference) for it in kept], gaps) == ([("instruction", 1.0)], [])
    kept, gaps = stored_controls(tmp_path, episodes([True] * 5))
    assert (kept, gaps) == (
        (), ["the instruction control has 2 of 5 episodes; --control instruction plays the others and compares."]
    )  # fmt: skip


TEXTS = {0: "open", 1: "close", 2: "close", 3: "push", 4: "pull"}


def test_a_wrong_instruction_is_that_of_the_next_task_with_another_text():
    assert wrong_instructions(TEXTS, among=()) == {0: "close", 1: "push", 2: "push", 3: "pull", 4: "open"}


def test_a_policy_that_knows_some_tasks_is_misled_by_those_it_knows():
    wrong = wrong_instructions(TEXTS, among=(0, 3))
    assert (wrong[0], wrong[3]) == ("push", "open")
    assert wrong[4] == "open"  # unknown itself: any other


def test_a_policy_that_knows_one_task_is_misled_by_another_of_the_suite():
    assert wrong_instructions(TEXTS, among=(3,))[3] == "pull"
    assert wrong_instructions(TEXTS, among=(1, 2))[1] == "push"  # the other one it knows has the same text


def test_a_suite_with_one_instruction_has_no_wrong_one():
    with pytest.raises(ValueError, match="--control instruction: all tasks have the same instruction"):
        wrong_instructions({0: "open", 1: "open"}, among=())
