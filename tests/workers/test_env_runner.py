"""The runner on a six-line environment: what is written where, and when."""

import dataclasses

import numpy as np
import pytest

from vla_rl.envs.seeds import reset_seed
from vla_rl.ipc.counters import CellCounters
from vla_rl.ipc.shared_arrays import SharedArrays
from vla_rl.ipc.slots import ExchangeSlots, slot_fields
from vla_rl.types import ActionSpec, ChunkResult, Observation, ObservationSpec, TaskInfo
from vla_rl.workers.env_runner import EnvPool, EnvRunner
from vla_rl.workers.episodes import EpisodeJob
from vla_rl.workers.worker_counters import WorkerCounters

NO_FRAMES = np.zeros((0, 0, 0, 3), np.uint8)


class CountingEnv:
    """Its state counts control steps; it succeeds in control step 5 and is truncated in control step `horizon`."""

    made = 0
    task = TaskInfo(suite="counting", task_id=6, name="count", language="count")

    def __init__(self, *, succeeds_at=5, horizon=100):
        CountingEnv.made += 1
        self.succeeds_at, self.horizon, self.steps, self.closed = succeeds_at, horizon, 0, False
        self.resets = []

    def reset(self, init_state, *, seed=0):
        self.steps = 0
        self.resets.append((init_state, seed))
        return self.observe()

    def step_chunk(self, actions):
        before = self.steps
        for _ in actions:
            self.steps += 1
            if self.steps in (self.succeeds_at, self.horizon):
                break
        terminated = self.steps == self.succeeds_at
        truncated = not terminated and self.steps == self.horizon
        return ChunkResult(self.observe(), float(terminated), terminated, truncated, self.steps - before)

    def observe(self):
        return Observation(NO_FRAMES, np.array([self.steps], np.float32))

    def close(self):
        self.closed = True


class ListSink:
    """Keeps what a ring's writer would be told."""

    def __init__(self):
        self.calls, self.rows, self.members, self.successes = [], [], [], []

    def begin(self, task_index, *, group, member):
        self.calls.append(("begin", task_index))
        self.members.append((group, member))

    def add(self, **decision):
        self.calls.append("add")
        self.rows.append(
            {
                "state": decision["state"].copy().tolist(),
                **{k: decision[k] for k in ("reward", "executed", "terminated", "truncated", "policy_version")},
            }
        )

    def commit(self, final_frames, final_state, *, success):
        self.successes.append(success)
        self.calls.append(("commit", final_state.copy().tolist()))

    def abandon(self):
        self.calls.append("abandon")


@pytest.fixture
def cell():
    observation, action = ObservationSpec(0, 0, 1), ActionSpec(chunk_size=3, action_dim=1, num_bins=4)
    with (
        SharedArrays.create("slots", slot_fields(observation, action, 1, store_logits=False)) as arrays,
        CellCounters.create(num_env_workers=1) as counters,
    ):
        yield ExchangeSlots.view(arrays), counters


def make_runner(cell, builders, jobs, *, records=None, max_open=2):
    slots, counters = cell
    sink = ListSink()
    runner = EnvRunner(
        slots=slots,
        slot_ids=[0],
        pool=EnvPool(builders, max_open_per_slot=max_open),
        transform=None,
        jobs={0: iter(jobs)},
        writers={0: sink},
        counters=WorkerCounters(counters, 0),
        on_episode=(records if records is not None else []).append,
    )
    return runner, slots, sink


def answer(slots, version):
    slots.tokens[0], slots.logprobs[0], slots.value[0] = 1, -1.0, 0.25
    slots.policy_version[0], slots.actions[0] = version, 0.0


def job(task_index=0):
    return EpisodeJob(task_index=task_index, init_state=0, seed=0)


def test_a_decision_is_recorded_with_the_observation_it_was_made_on(cell):
    runner, slots, sink = make_runner(cell, [CountingEnv], [job()])
    assert runner.start(0)
    assert slots.state[0].tolist() == [0.0]
    answer(slots, version=7)
    assert runner.advance(0)
    assert sink.rows == [
        {
            "state": [0.0],
            "reward": 0.0,
            "executed": 3,
            "terminated": False,
            "truncated": False,
            "policy_version": 7,
        }
    ]
    assert slots.state[0].tolist() == [3.0]  # what the next decision is made on


def test_an_episode_that_ends_inside_a_chunk_says_how_many_control_steps_ran(cell):
    records = []
    runner, slots, sink = make_runner(cell, [CountingEnv], [job()], records=records)
    runner.start(0)
    for version in (7, 8):
        answer(slots, version)
        more = runner.advance(0)
    assert not more  # no second job
    assert sink.rows[1]["executed"] == 2
    assert sink.rows[1]["terminated"]
    assert not sink.rows[1]["truncated"]
    assert sink.calls == [("begin", 0), "add", "add", ("commit", [5.0])]
    (record,) = records
    assert (record.terminated, record.truncated, record.env_steps, record.decisions) == (True, False, 5, 2)
    assert record.episode_return == 1.0


def test_a_truncated_episode_commits_the_observation_after_its_last_decision(cell):
    runner, slots, sink = make_runner(cell, [lambda: CountingEnv(succeeds_at=99, horizon=4)], [job()])
    runner.start(0)
    for _ in range(2):
        answer(slots, 1)
        runner.advance(0)
    assert sink.rows[1]["truncated"]
    assert not sink.rows[1]["terminated"]
    assert sink.rows[1]["executed"] == 1
    assert sink.calls[-1] == ("commit", [4.0])


def test_the_next_episode_starts_in_the_same_slot_at_once(cell):
    runner, slots, sink = make_runner(cell, [CountingEnv], [job(), job()])
    runner.start(0)
    for _ in range(2):
        answer(slots, 1)
        assert runner.advance(0)
    assert slots.state[0].tolist() == [0.0]
    assert sink.calls[-1] == ("begin", 0)


def test_half_an_episode_is_abandoned_when_the_runner_closes(cell):
    runner, slots, sink = make_runner(cell, [CountingEnv], [job()])
    runner.start(0)
    answer(slots, 1)
    runner.advance(0)
    runner.close()
    assert sink.calls == [("begin", 0), "add", "abandon"]


def test_simulators_are_kept_open_up_to_the_limit_and_the_oldest_is_closed(cell):
    CountingEnv.made = 0
    jobs = [job(0), job(1), job(0), job(2), job(0)]
    runner, slots, _ = make_runner(cell, [CountingEnv] * 3, jobs, max_open=2)
    runner.start(0)
    for _ in range(2 * len(jobs)):
        answer(slots, 1)
        runner.advance(0)
    assert CountingEnv.made == 3  # tasks 0, 1 and 2: task 0 was never closed, for it was used in between


def test_a_slot_never_closes_the_simulator_that_another_slot_plays_in():
    pool = EnvPool([FakeSimulator] * 6, max_open_per_slot=2)
    in_use = pool.get(0, 0)
    others = [pool.get(1, task) for task in (1, 2, 3, 4, 5)]
    assert not in_use.closed
    assert [env.closed for env in others] == [True, True, True, False, False]
    pool.close()
    assert in_use.closed


class FakeSimulator:
    closed = False

    def close(self):
        self.closed = True


def test_counters_count_control_steps_decisions_and_episodes(cell):
    _, counters = cell
    runner, slots, _ = make_runner(cell, [CountingEnv], [job(), job()])
    runner.start(0)
    for _ in range(3):
        answer(slots, 1)
        runner.advance(0)
    assert counters.total("env_worker_decisions") == 3
    assert counters.total("env_worker_env_steps") == 3 + 2 + 3
    assert counters.total("env_worker_episodes") == 1


class GoesOn(CountingEnv):
    """Reaches its goal in control step 5, loses it again, and is truncated in control step 9."""

    def __init__(self):
        super().__init__(succeeds_at=None, horizon=9)

    def step_chunk(self, actions):
        before = self.steps
        return dataclasses.replace(super().step_chunk(actions), success=before < 5 <= self.steps)


def test_an_episode_that_reached_its_goal_on_the_way_is_a_success_without_terminating(cell):
    records = []
    runner, slots, _ = make_runner(cell, [GoesOn], [job()], records=records)
    runner.start(0)
    while not records:
        answer(slots, version=0)
        runner.advance(0)
    assert (records[0].success, records[0].terminated, records[0].truncated) == (True, False, True)


def test_an_episode_is_reset_with_a_seed_of_its_own_and_recorded_under_the_schedules(cell):
    env, records = CountingEnv(), []
    jobs = [EpisodeJob(task_index=0, init_state=state, seed=9) for state in (2, 3)]
    runner, slots, _ = make_runner(cell, [lambda: env], jobs, records=records)
    assert runner.start(0)
    for _ in range(4):
        answer(slots, version=0)
        runner.advance(0)
    assert env.resets == [(2, reset_seed(9, 6, 2)), (3, reset_seed(9, 6, 3))]
    assert [record.job.seed for record in records] == [9, 9]


def test_the_seed_of_a_decision_follows_from_the_episode_s_and_its_place_in_it_alone(cell):
    """Two episodes of three decisions with one seed, one with another, and one without."""
    seeds, jobs = [], [dataclasses.replace(job(), sampling_seed=seed) for seed in (2**64 - 1, 2**64 - 1, 7, None)]
    runner, slots, _ = make_runner(cell, [lambda: CountingEnv(succeeds_at=None, horizon=9)], jobs)
    waits = runner.start(0)
    while waits:
        seeds.append(int(slots.sampling_seed[0]))
        answer(slots, version=0)
        waits = runner.advance(0)
    assert len(seeds) == 12
    assert seeds[:3] == seeds[3:6]
    assert len(set(seeds[:9])) == 6
    assert min(seeds[:9]) >= 0
    assert seeds[9:] == [-1] * 3


def test_an_episode_carries_its_place_in_a_group_to_the_ring_and_to_its_record(cell):
    records, jobs = [], [dataclasses.replace(job(), group=group, member=member) for group, member in ((7, 3), (0, 0))]
    runner, slots, sink = make_runner(cell, [CountingEnv], jobs, records=records)
    waits = runner.start(0)
    while waits:
        answer(slots, version=0)
        waits = runner.advance(0)
    assert sink.members == [(record.job.group, record.job.member) for record in records] == [(7, 3), (0, 0)]
    assert sink.successes == [record.success for record in records] == [True, True]
