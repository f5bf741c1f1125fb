"""Ranks of one run: what each plays, and how a run goes on with another number of them. Ranks in one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from toy_runs import run, toy_recipe

from vla_rl.learner.checkpoint import find_latest
from vla_rl.run.plan import make_training_plan
from vla_rl.run.rollout_stats import RolloutStats
from vla_rl.run.training import TrainingRun
from vla_rl.workers.episodes import EpisodeJob, EpisodeRecord


def played_by(
    rank: int, num_ranks: int, *, episodes: int, slots: int, run_dir: Path, resume: bool, patch: pytest.MonkeyPatch
) -> set[EpisodeJob]:
    """Episodes that one rank plays first."""
    jobs: list[EpisodeJob] = []

    def note(_: RolloutStats, record: EpisodeRecord) -> None:
        jobs.append(record.job)

    recipe = toy_recipe(env={"tasks": [0, 1, 2]}, rollout={"envs_per_worker": slots, "max_batch": slots})
    newest = find_latest(run_dir).newest if resume else None
    with patch.context() as patched:
        patched.setattr(RolloutStats, "add", note)
        with TrainingRun(
            make_training_plan(recipe), run_dir, resume_from=newest, rank=rank, num_ranks=num_ranks
        ) as training:
            training.start()
            while len(jobs) < episodes:
                training.cell.collect()
    assert len(jobs) == len(set(jobs))
    return set(jobs)


def test_two_ranks_play_different_episodes_which_one_rank_with_all_slots_would_play(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The schedule is one of the run; ranks divide it, so no task or start is favoured by their number."""
    first, second = (
        played_by(rank, 2, episodes=12, slots=2, run_dir=tmp_path, resume=False, patch=monkeypatch) for rank in (0, 1)
    )
    alone = played_by(0, 1, episodes=100, slots=4, run_dir=tmp_path, resume=False, patch=monkeypatch)
    assert not first & second
    assert first | second <= alone
    assert {job.task_index for job in first | second} == {0, 1, 2}
    assert not {job.seed for job in first} & {job.seed for job in second}


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_more_ranks_go_on_with_episodes_that_were_not_played_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_ranks: int
) -> None:
    before: set[EpisodeJob] = set()
    with monkeypatch.context() as patched:
        patched.setattr(RolloutStats, "add", lambda _, record: before.add(record.job))
        run(toy_recipe(env={"tasks": [0, 1, 2]}), tmp_path / "run")
    assert before
    for rank in range(num_ranks):
        after = played_by(
            rank, num_ranks, episodes=6, slots=2, run_dir=tmp_path / "run", resume=True, patch=monkeypatch
        )
        assert not before & after


def test_all_ranks_go_on_after_the_episodes_of_the_one_that_was_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TrainingRun(make_training_plan(toy_recipe()), tmp_path, resume_from=None, rank=0, num_ranks=1) as training:
        training.start()
        training.wait_for_batch(lambda: False)
        of_the_other = torch.tensor([50, 3])
        monkeypatch.setattr(
            training.engine.collectives, "gather_over_ranks", lambda own: torch.cat([own, of_the_other])
        )
        saved = training.save(training.clocks)
    assert json.loads((saved.path / "state.json").read_text(encoding="utf-8"))["extra"]["episodes_per_slot"] == 50


@pytest.mark.parametrize("num_ranks", [1, 3, 5])
def test_the_clocks_of_a_resumed_run_add_up_to_those_of_the_checkpoint_whatever_the_number_of_ranks(
    tmp_path: Path, num_ranks: int
) -> None:
    outcome, _ = run(toy_recipe(), tmp_path / "run")
    newest = find_latest(tmp_path / "run").newest
    with TrainingRun(
        make_training_plan(toy_recipe()), tmp_path / "run", resume_from=newest, rank=0, num_ranks=1
    ) as one:
        consumed = one.totals.consumed
    assert consumed > 0
    env_steps = decisions = episodes = shares = 0
    for rank in range(num_ranks):
        with TrainingRun(
            make_training_plan(toy_recipe()), tmp_path / "run", resume_from=newest, rank=rank, num_ranks=num_ranks
        ) as resumed:
            clocks = resumed.clocks
            env_steps, decisions = env_steps + clocks.env_steps, decisions + clocks.decisions
            episodes, shares = episodes + clocks.episodes, shares + resumed.totals.consumed
            assert clocks.optimizer_steps == outcome.clocks.optimizer_steps  # all make the same updates
            assert clocks.policy_version == outcome.clocks.policy_version
            assert resumed.ranks_before == 1
            assert resumed.has_replay == (rank == 0)
    assert (env_steps, decisions, episodes) == (
        outcome.clocks.env_steps,
        outcome.clocks.decisions,
        outcome.clocks.episodes,
    )
    assert shares == consumed
