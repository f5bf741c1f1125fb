"""Samples of demonstrations: everything but their pictures, in memory (about 100 bytes a row).

A sample is a row of an episode at which a whole chunk of actions begins: the first T - K + 1 rows of an episode of T
rows, K the chunk size. Nothing is padded, as in OpenVLA-OFT's training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_rl.demos import Demos
from vla_rl.demos.scaling_statistics import action_statistics, to_training_actions
from vla_rl.errors import UserError
from vla_rl.policies.action_tokens import Quantiles, encode_tokens, normalize_actions
from vla_rl.types import FloatArray

Rows = NDArray[np.int64]
Progress = Callable[[int, int], None]
"""(episodes read, episodes in all)"""


@dataclass(frozen=True, slots=True)
class Rollouts:
    """Numbers of all episodes, one after the other. R rows, E episodes."""

    actions: FloatArray  # (R, 7) in the environment's units
    state: FloatArray  # (R, 8)
    first: Rows  # (E,) first row of each episode
    length: Rows  # (E,)
    task: Rows  # (E,) index into the instructions
    instructions: tuple[str, ...]  # lower case, sorted
    names: tuple[str, ...]  # of tasks, sorted: LIBERO's, or made of the instruction where the data have no other
    named: Rows  # (E,) index into the names: in libero_90 several tasks share an instruction
    image_size: tuple[int, int]  # H, W of the stored pictures

    @property
    def num_rows(self) -> int:
        """Return R."""
        return len(self.actions)

    def statistics(self) -> dict[str, object]:
        """Return the entry of `dataset_statistics.json` for all episodes."""
        bounds = self.first[1:]
        parts = zip(np.split(self.actions, bounds), np.split(self.state, bounds), strict=True)
        return action_statistics(_Numbers(actions, state) for actions, state in parts)


@dataclass(frozen=True, slots=True)
class _Numbers:
    actions: FloatArray
    state: FloatArray


def read_rollouts(demos: Demos, progress: Progress = lambda _done, _total: None) -> Rollouts:
    """Read the numbers of every episode; pictures are not read.

    Raises:
        DemosError: the data are broken.
        UserError: there is no episode.
    """
    actions, states, texts, tasks = [], [], [], []
    image_size = (0, 0)
    for done, episode in enumerate(demos, 1):
        actions.append(episode.actions)
        states.append(episode.state)
        texts.append(episode.instruction)
        tasks.append(episode.task)
        image_size = episode.stored.image_size
        progress(done, len(demos))
    if not actions:
        raise UserError(f"demos.path: {demos.path} holds no episode")
    instructions, names = tuple(sorted(set(texts))), tuple(sorted(set(tasks)))
    length = np.array([len(each) for each in actions], np.int64)
    return Rollouts(
        actions=np.concatenate(actions),
        state=np.concatenate(states),
        first=np.concatenate([[0], np.cumsum(length)[:-1]]).astype(np.int64),
        length=length,
        task=np.array([instructions.index(text) for text in texts], np.int64),
        instructions=instructions,
        names=names,
        named=np.array([names.index(task) for task in tasks], np.int64),
        image_size=image_size,
    )


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples of a data set, split in two. R rows, K control steps per chunk."""

    rollouts: Rollouts
    tokens: NDArray[np.int16]  # (R, 7) of single actions
    episode: Rows  # (R,) episode of each row
    chunk_size: int  # K
    train: Rows  # rows at which samples begin
    held_out: Rows  # the same, of episodes that are not trained on
    held_out_episodes: int
    held_out_asked: int  # episodes that the share asks for; fewer are held out where tasks would be left with none

    @property
    def kept_to_train(self) -> str:
        """Return why fewer episodes are held out than the share asks for; empty if as many are."""
        if self.held_out_episodes == self.held_out_asked:
            return ""
        return (
            f"held-out episodes: {self.held_out_episodes} of the {self.held_out_asked} that demos.held_out asks for, "
            "because every task keeps one to train on"
        )

    def chunk_tokens(self, rows: Rows) -> NDArray[np.int16]:
        """Return (B, 7 K) tokens of the chunks that begin in some rows, time by time."""
        return self.tokens[self._chunk_rows(rows)].reshape(len(rows), -1)

    def chunk_actions(self, rows: Rows) -> FloatArray:
        """Return (B, K, 7) actions of these chunks, in the environment's units."""
        return self.rollouts.actions[self._chunk_rows(rows)]

    def task_index(self, rows: Rows) -> Rows:
        """Return (B,) indices of the rows' instructions."""
        return self.rollouts.task[self.episode[rows]]

    def values(self, rows: Rows, *, discount: float) -> FloatArray:
        """Return (B,) discounted outcomes: the last decision of every demonstration ends in a success, reward 1.

        With n decisions to go, of K control steps each, the last one included, that is discount ** (n - 1).
        """
        left = self.rollouts.first[self.episode[rows]] + self.rollouts.length[self.episode[rows]] - rows
        decisions = -(-left // self.chunk_size)
        return (float(discount) ** (decisions - 1)).astype(np.float32)

    def _chunk_rows(self, rows: Rows) -> Rows:
        return rows[:, None] + np.arange(self.chunk_size)


def make_samples(
    rollouts: Rollouts, statistics: dict[str, object], *, chunk_size: int, held_out: float, seed: int
) -> Samples:
    """Encode all actions, and split the episodes.

    Args:
        rollouts: of the whole data set.
        statistics: of the whole data set.
        chunk_size: K.
        held_out: share of the episodes that are not trained on; at least one if it is not 0, but never the last one
            of a task that has a whole chunk.
        seed: of the split.

    Raises:
        UserError: no chunk fits in an episode.
    """
    block = statistics["action"]
    assert isinstance(block, dict)
    constant = np.asarray(block["min"]) == np.asarray(block["max"])
    trained = to_training_actions(rollouts.actions)
    tokens = encode_tokens(normalize_actions(trained, Quantiles.from_mapping(block), constant=constant))
    episode = np.repeat(np.arange(len(rollouts.length)), rollouts.length)
    left = rollouts.first[episode] + rollouts.length[episode] - np.arange(rollouts.num_rows)
    starts = np.flatnonzero(left >= chunk_size)
    if not len(starts):
        raise UserError(
            f"demos.path: no episode has {chunk_size} rows, which is one chunk of actions; the longest of "
            f"{len(rollouts.length)} has {rollouts.length.max()}"
        )
    apart, asked = _split(rollouts, chunk_size, held_out, seed)
    is_held_out = np.isin(episode[starts], apart)
    return Samples(
        rollouts=rollouts,
        tokens=tokens,
        episode=episode,
        chunk_size=chunk_size,
        train=starts[~is_held_out],
        held_out=starts[is_held_out],
        held_out_episodes=len(apart),
        held_out_asked=asked,
    )


def _split(rollouts: Rollouts, chunk_size: int, share: float, seed: int) -> tuple[Rows, int]:
    """Return the episodes that are held out, and how many the share asks for."""
    usable = np.flatnonzero(rollouts.length >= chunk_size)
    asked = max(1, round(share * len(usable))) if share > 0.0 else 0
    to_train = np.bincount(rollouts.named[usable], minlength=len(rollouts.names))  # (number of tasks,)
    apart: list[int] = []
    for episode in np.random.default_rng([seed, len(rollouts.length)]).permutation(usable):
        if len(apart) == asked:
            break
        if to_train[rollouts.named[episode]] > 1:  # a task without any sample would not be learned at all
            to_train[rollouts.named[episode]] -= 1
            apart.append(int(episode))
    return np.array(apart, np.int64), asked


class Order:
    """Order of the samples: a random permutation of all of them, then another, and so on.

    What is drawn depends only on the seed and on how many were drawn before.
    """

    def __init__(self, rows: Rows, *, seed: int) -> None:
        self._rows, self._seed = rows, seed
        self._epoch, self._permuted = -1, rows

    def __getitem__(self, drawn: Sequence[int] | Rows) -> Rows:
        """Return the rows that are drawn as number `drawn`, which counts from 0."""
        return np.array([self._row(int(number)) for number in drawn], np.int64)

    def _row(self, number: int) -> int:
        epoch, place = divmod(number, len(self._rows))
        if epoch != self._epoch:
            self._epoch = epoch
            self._permuted = np.random.default_rng([self._seed, epoch]).permutation(self._rows)
        return int(self._permuted[place])
