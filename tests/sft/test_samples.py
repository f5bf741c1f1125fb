"""Samples of demonstrations: which rows, which tokens, which values, in which order."""

from __future__ import annotations

import numpy as np
import pytest

from vla_rl.errors import UserError
from vla_rl.sft.samples import Order, Rollouts, make_samples

ROWS = 10


def rollouts(*lengths: int, tasks: list[int] | None = None) -> Rollouts:
    """Episodes in which action component x of row r is r / 100, y is always 0.5, and the gripper closes at the end.

    `tasks` are the numbers of their tasks, which share two instructions; by default each instruction is one task.
    """
    total = sum(lengths)
    actions = np.zeros((total, 7), np.float32)
    actions[:, 0] = np.arange(total) / 100
    actions[:, 1] = 0.5
    actions[:, 6] = np.where(np.arange(total) % 2 == 0, -1.0, 1.0)
    first = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return Rollouts(
        actions=actions,
        state=np.zeros((total, 8), np.float32),
        first=first.astype(np.int64),
        length=np.array(lengths, np.int64),
        task=np.arange(len(lengths)) % 2,
        instructions=("close", "open"),
        names=("close", "open") if tasks is None else tuple(f"task_{number}" for number in range(max(tasks) + 1)),
        named=np.arange(len(lengths)) % 2 if tasks is None else np.array(tasks),
        image_size=(8, 8),
    )


def samples(*lengths: int, chunk_size: int = 8, held_out: float = 0.0, seed: int = 0, tasks: list[int] | None = None):
    made = rollouts(*lengths, tasks=tasks)
    return make_samples(made, made.statistics(), chunk_size=chunk_size, held_out=held_out, seed=seed)


def test_a_sample_begins_at_each_of_the_first_t_minus_7_rows_and_short_episodes_give_none() -> None:
    made = samples(10, 7, 8)
    assert made.train.tolist() == [0, 1, 2, 17]


def test_tokens_go_time_by_time_and_the_gripper_is_1_open_0_closed_before_statistics() -> None:
    made = samples(10)
    tokens = made.chunk_tokens(np.array([1]))[0].reshape(8, 7)
    assert tokens[:, 6].tolist() == [128, 0] * 4  # row 1 closes: 0, the middle; row 2 opens: 1, the end
    assert (tokens[:, 1] == 128).all()  # a component that never changes is 0
    x = made.chunk_tokens(np.array([0]))[0].reshape(8, 7)[:, 0]
    assert x[0] == 255  # below q01: -1
    assert (np.diff(x) < 0).all()  # larger actions have smaller tokens
    assert made.chunk_actions(np.array([1]))[0, :, 0] == pytest.approx(np.arange(1, 9) / 100)


def test_the_value_is_the_discount_to_the_number_of_decisions_before_the_last() -> None:
    made = samples(20, 20)
    # 20 rows in chunks of 8: from row 0 three decisions are left, from row 4 on two, from row 12 on one.
    assert made.values(np.array([0, 3, 4, 11, 12, 20]), discount=0.5).tolist() == [0.25, 0.25, 0.5, 0.5, 1.0, 0.25]
    assert made.task_index(np.array([0, 19, 20])).tolist() == [0, 0, 1]


def test_held_out_episodes_are_whole_and_drawn_from_the_seed() -> None:
    splits = [samples(*[10] * 20, held_out=0.2, seed=seed) for seed in (0, 0, 1)]
    for made in splits:
        assert len(made.held_out) == 4 * 3  # 4 of 20 episodes with 3 starts each
        assert len(made.train) == 16 * 3
        assert not set(made.episode[made.held_out].tolist()) & set(made.episode[made.train].tolist())
    assert splits[0].held_out.tolist() == splits[1].held_out.tolist() != splits[2].held_out.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_the_last_usable_episode_of_a_task_is_never_held_out(seed: int) -> None:
    one_each = samples(*[10] * 10, held_out=0.05, seed=seed, tasks=[*range(10)])
    assert len(one_each.train) == 10 * 3
    assert len(one_each.held_out) == 0
    assert one_each.kept_to_train == (
        "held-out episodes: 0 of the 1 that demos.held_out asks for, because every task keeps one to train on"
    )
    # Task 1 has two episodes, of which one is too short for a chunk. Task 0 can give one of its two.
    uneven = samples(10, 10, 10, 7, held_out=0.9, seed=seed, tasks=[0, 0, 1, 1])
    assert len(uneven.held_out) == 3
    assert set(uneven.rollouts.named[uneven.episode[uneven.train]].tolist()) == {0, 1}
    assert uneven.kept_to_train.startswith("held-out episodes: 1 of the 3 that")
    # Tasks that share an instruction are still tasks of their own.
    assert len(samples(10, 10, 10, 10, held_out=0.5, seed=seed, tasks=[0, 1, 2, 3]).held_out) == 0


def test_a_split_that_leaves_every_task_something_is_the_first_part_of_one_permutation() -> None:
    """What is held out must not change between releases: a resumed run would train on what it measures."""
    made = samples(*[10] * 20, held_out=0.2, seed=7)
    drawn = np.random.default_rng([7, 20]).permutation(20)[:4]
    assert set(made.episode[made.held_out].tolist()) == set(drawn.tolist())
    assert made.kept_to_train == ""


def test_nothing_to_train_on_is_told_with_the_lengths() -> None:
    with pytest.raises(UserError, match="no episode has 8 rows, which is one chunk of actions; the longest of 2 has 7"):
        samples(7, 5)


def test_every_sample_is_drawn_once_before_any_is_drawn_twice_and_any_place_can_be_asked_for() -> None:
    order = Order(np.arange(100, 110), seed=3)
    drawn = order[range(30)].tolist()
    for epoch in range(3):
        assert sorted(drawn[10 * epoch : 10 * epoch + 10]) == list(range(100, 110))
    assert drawn[:10] != drawn[10:20]
    assert Order(np.arange(100, 110), seed=3)[[25, 7]].tolist() == [drawn[25], drawn[7]]
    assert Order(np.arange(100, 110), seed=4)[range(30)].tolist() != drawn
