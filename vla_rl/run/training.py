"""Run of one rank: its cell, its learner, its clocks.

`train` strings the steps together:

    wait for experience ─► update ─► publish ─► log ─► checkpoint        until the budget is spent or Ctrl-C

The only wait is `wait_for_batch`, which ends with data, with a request to stop, or with a failure of the cell.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vla_rl.errors import NoSignalError
from vla_rl.learner.checkpoint import CheckpointInfo, Progress, load, save
from vla_rl.learner.engine import Engine
from vla_rl.learner.learner import Learner
from vla_rl.policies.devices import use_device
from vla_rl.replay.group_sampler import GroupSampler
from vla_rl.replay.ratio_control import RatioControl
from vla_rl.replay.ring import ReplayRing
from vla_rl.replay.ring_file import REPLAY, RING_FILE, load_ring, save_ring
from vla_rl.replay.sampler import SegmentSampler
from vla_rl.reporting.metrics_file import Clocks
from vla_rl.reporting.run_layout import log_folder
from vla_rl.run.assembly import make_cell, make_memory
from vla_rl.run.group_signal import no_signal
from vla_rl.run.plan import TrainingPlan
from vla_rl.run.ranks import make_engine
from vla_rl.run.rollout_stats import RolloutStats
from vla_rl.run.statistics_key import STATISTICS, check_statistics
from vla_rl.run.trained_network import NETWORK, check_network, network_record
from vla_rl.types import SegmentBatch

logger = logging.getLogger(__name__)

RANKS_TIMEOUT_S = 1800.0  # longest wait of one rank for experience while the others wait for it
EVALUATION_TIMEOUT_S = 7 * 86_400.0  # the same where rank 0 also evaluates; ranks that are gone are told by the board
NOTHING = Progress(optimizer_steps=0, env_steps=0, decisions=0, episodes=0, policy_version=0, consumed=0)
SAMPLER_FILE = "sampler.json"  # of one rank, in a checkpoint
GOVERNOR, ACCOUNT_FILE = "governor", "account.json"  # folder of one rank in a checkpoint, and the file in it
ROLLOUT, EPISODES_FILE = "rollout", "recent_episodes.json"  # the same, of the rollout
RANK_SEED_STRIDE = 1_000_003  # ranks draw from seeds this far apart


@dataclass(slots=True)
class Totals:
    """This rank's clocks. Those of the cell's counters are since the last start, these are since the first."""

    env_steps: int = 0  # before this start, like all below except `consumed`, `optimizer_steps` and `policy_version`
    decisions: int = 0
    episodes: int = 0
    seconds: float = 0.0
    consumed: int = 0
    optimizer_steps: int = 0
    policy_version: int = 0


@dataclass(slots=True)
class Waits:
    """Waiting times of this rank's learner, in seconds since the start."""

    began: float = field(default_factory=time.monotonic)
    for_experience: float = 0.0
    last_publish: float = 0.0


class TrainingRun:
    """Everything that exists while one rank trains."""

    def __init__(
        self,
        plan: TrainingPlan,
        run_dir: Path,
        *,
        resume_from: CheckpointInfo | None,
        rank: int,
        num_ranks: int,
        is_keeper: bool | None = None,
        built: Callable[[nn.Module], None] = lambda _policy: None,
    ) -> None:
        """Build policy, engine, shared memory and cell; no process is spawned before `start`.

        Args:
            plan: the recipe in plain values.
            run_dir: the run's folder; children log under it.
            resume_from: checkpoint with the weights, optimizer, clocks and experience to resume from.
            rank: rank of this process.
            num_ranks: number of cells.
            is_keeper: whether this rank writes what the run's folder has once; None: rank 0 does.
            built: called with the policy before the ranks form a group; it may raise.

        Raises:
            ValueError: the checkpoint is of another architecture, or the shared memory does not fit.
        """
        recipe = plan.recipe
        self.plan, self.run_dir, self.totals, self.waits = plan, run_dir, Totals(), Waits()
        self.solved = ""  # sentence that says so, once nothing is left to learn because the policy solves what it plays
        self.is_keeper = rank == 0 if is_keeper is None else is_keeper
        self._first_episode = 0  # where every slot enters the schedule
        self.ranks_before = num_ranks  # of the checkpoint that the run resumes from
        self.decisions_left_out = 0  # of the checkpoint's replay, because this run does not have their tasks
        self.has_replay = False  # whether this rank goes on with experience from before
        self.log_dir = log_folder(run_dir, rank=rank, num_ranks=num_ranks)
        seed = recipe.seed + RANK_SEED_STRIDE * rank
        torch.manual_seed(seed)
        torch.set_num_threads(plan.threads)
        use_device(plan.device)
        policy = plan.policy.build(device="cpu")
        with ExitStack() as stack:
            self.memory = make_memory(plan, policy, ring_capacity=recipe.replay.capacity)
            stack.callback(self.memory.close)
            recipe.policy.check(policy)
            built(policy)
            self.engine = make_engine(
                Engine,
                policy,
                plan.recipe.learner,
                device=plan.device_kind,
                optimizer=plan.recipe.optimizer,
                total_steps=plan.recipe.budget.optimizer_steps,
                collective_timeout_s=(
                    RANKS_TIMEOUT_S if recipe.evaluation.every_optimizer_steps is None else EVALUATION_TIMEOUT_S
                ),
            )
            self.learner = _make_learner(plan, self.engine)
            assert self.memory.ring is not None
            self.ring = self.memory.ring
            self.sampler = _make_sampler(plan, self.ring, seed=seed + 1)
            self._ratio = RatioControl(
                self.memory.counters,
                self.sampler,
                replay_ratio=recipe.replay.replay_ratio,
                min_decisions=recipe.replay.min_decisions,
                batch=recipe.learner.batch_segments * recipe.replay.segment_length,
                slack=plan.num_slots,
            )
            self.stats = RolloutStats(recent_episodes=recipe.logging.recent_episodes)
            before = NOTHING
            if resume_from is not None:
                before = self._restore(resume_from, rank=rank, num_ranks=num_ranks)
            self.resumed_from = resume_from
            self._before, self._num_ranks = before, num_ranks
            self._episodes_before = self.ring.num_episodes  # of every slot, in the loaded ring
            # Never back: with more slots than before, the episodes per slot are fewer, and some would be played again.
            self._first_episode = max(self._first_episode, math.ceil(before.episodes / (num_ranks * plan.num_slots)))
            self.cell = make_cell(
                plan,
                plan.env,
                self.memory,
                log_dir=self.log_dir,
                greedy=False,
                seed=seed + 2 + self.totals.optimizer_steps,
                on_episode=self.stats.add,
                rank=rank,
                num_ranks=num_ranks,
                first_episode=self._first_episode,
                groups=recipe.targets.groups,
            )
            stack.callback(self.cell.close)
            self._stack = stack.pop_all()

    def __enter__(self) -> TrainingRun:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process of the cell and release its memory; safe to call twice."""
        self._stack.close()

    def start(self) -> None:
        """Publish the first weights and start collecting."""
        if self.engine.compile_seconds:
            logger.info("layers compiled in %.0f s", self.engine.compile_seconds)
        self._ratio.start(consumed=self.totals.consumed)
        self.publish()
        self.cell.start()
        self.waits = Waits()

    def wait_for_batch(self, stop_requested: Callable[[], bool]) -> SegmentBatch | None:
        """Wait until the governor and the ring allow the next batch.

        Returns:
            The batch, or None if a stop was requested first, or if too many groups were left out since the last batch
            because they succeeded, which `solved` then says.

        Raises:
            CellFailureError: a part of the cell failed for good.
            NoSignalError: too many groups were left out since the last batch, for another reason.
        """
        began = time.monotonic()
        try:
            while not stop_requested():
                self.cell.raise_if_failed()
                self._ratio.refresh(consumed=self.totals.consumed)
                batch = self._sample() if self._ratio.may_learn(consumed=self.totals.consumed) else None
                if batch is None and self._ratio.is_warm:  # warm-up ends whatever becomes of the groups
                    self._check_signal()
                if batch is not None or self.solved:
                    return batch
                self.cell.collect()
            return None
        finally:
            self.waits.for_experience += time.monotonic() - began

    @property
    def excluded_share(self) -> float:
        """Return the share of segments in the ring that `max_policy_lag` excluded from the last batch."""
        return self.sampler.num_excluded / max(1, self.sampler.num_segments)

    def update(self, batch: SegmentBatch) -> dict[str, float]:
        """Make one optimizer step; advance the clocks and the governor's limit.

        Returns:
            Metrics if a log point can be due after this step; otherwise none.
        """
        done = self.totals.optimizer_steps
        is_logged = self.has_log_point(done) or self.has_log_point(done + 1)  # the first if this update is skipped
        metrics = self.learner.update(
            batch,
            policy_version=self.totals.policy_version,
            measure=is_logged,
            is_published=done % self.plan.recipe.learner.publish_every == 0,
        )
        self.totals.optimizer_steps = self.engine.optimizer_steps
        self.totals.consumed += int(batch.mask.sum())
        self._ratio.limit(consumed=self.totals.consumed)
        return metrics

    def has_log_point(self, optimizer_steps: int) -> bool:
        """Return whether a log point is due after so many steps: regularly, and after the last one."""
        recipe = self.plan.recipe
        return optimizer_steps % recipe.logging.every_optimizer_steps == 0 or (
            optimizer_steps == recipe.budget.optimizer_steps
        )

    def publish_if_due(self) -> None:
        """Publish the weights as a new version every `learner.publish_every` optimizer steps."""
        if self.totals.optimizer_steps % self.plan.recipe.learner.publish_every == 0:
            self.totals.policy_version += 1
            self.publish()

    def publish(self) -> None:
        """Put the trainable weights in the mailbox under the current version."""
        began = time.monotonic()
        self.memory.mailbox.publish(self.totals.policy_version, self.engine.trainable_state())
        self.waits.last_publish = time.monotonic() - began

    @property
    def clocks(self) -> Clocks:
        """Return this rank's current clocks."""
        counters, totals = self.memory.counters, self.totals
        return Clocks(
            env_steps=totals.env_steps + int(counters.total("env_worker_env_steps")),
            decisions=totals.decisions + int(counters.total("env_worker_decisions")),
            episodes=totals.episodes + int(counters.total("env_worker_episodes")),
            optimizer_steps=totals.optimizer_steps,
            policy_version=totals.policy_version,
            seconds=totals.seconds + time.monotonic() - self.waits.began,
        )

    @property
    def env_steps_of_all_ranks(self) -> int:
        """Estimate the control steps of all ranks since the first start, with this rank's speed since the last."""
        own = int(self.memory.counters.total("env_worker_env_steps"))
        return self._before.env_steps + self._num_ranks * own

    def save(self, clocks: Clocks) -> CheckpointInfo:
        """Write a checkpoint. All ranks call it together.

        Args:
            clocks: summed over all ranks.

        Raises:
            OSError: it could not be written; earlier checkpoints are unchanged.
        """
        recipe, ranks = self.plan.recipe, self.engine.collectives
        # Collection continues, and the clocks were read just before.
        account = self._ratio.state_dict(consumed=self.totals.consumed)
        consumed = ranks.sum_over_ranks({"consumed": float(self.totals.consumed)})["consumed"]
        own = torch.from_numpy(self.ring.num_episodes - self._episodes_before)
        played = int(ranks.gather_over_ranks(own).max())  # of the slot that is ahead of all others
        return save(
            self.run_dir,
            self.engine,
            progress=Progress(
                optimizer_steps=clocks.optimizer_steps,
                env_steps=clocks.env_steps,
                decisions=clocks.decisions,
                episodes=clocks.episodes,
                policy_version=clocks.policy_version,
                consumed=int(consumed),
            ),
            extra={
                "seconds": clocks.seconds,
                "num_ranks": self._num_ranks,
                "publish_every": recipe.learner.publish_every,
                "episodes_per_slot": self._first_episode + played,
                "advantage_moments": self.learner.moments.state_dict(),
                "skipped_updates": self.engine.skipped_updates,
                STATISTICS: self.plan.policy.statistics,
                NETWORK: network_record(self.plan.policy),
            },
            writers={
                GOVERNOR: partial(_write_account, account),
                ROLLOUT: self._write_episodes,
                **({REPLAY: self._write_replay} if recipe.checkpoint.save_replay else {}),
            },
            keep=recipe.checkpoint.keep,
            is_keeper=self.is_keeper,
        )

    def _write_episodes(self, folder: Path) -> None:
        (folder / EPISODES_FILE).write_text(json.dumps(self.stats.state_dict()), encoding="utf-8")

    def _write_replay(self, folder: Path) -> None:
        save_ring(self.ring, folder / RING_FILE, tasks=self._task_names())
        (folder / SAMPLER_FILE).write_text(json.dumps(self.sampler.state_dict()), encoding="utf-8")

    def _restore(self, info: CheckpointInfo, *, rank: int, num_ranks: int) -> Progress:
        """Resume from a checkpoint; return its clocks. Rank 0 continues those summed over ranks."""
        restored = load(info, self.engine)
        check_network(self.plan.policy, info.path, restored.extra.get(NETWORK))
        check_statistics(self.plan.policy, info.path, restored.extra.get(STATISTICS))
        self.learner.moments.load_state_dict(restored.extra.get("advantage_moments", {}))
        self.engine.skipped_updates = int(restored.extra.get("skipped_updates", 0))
        progress = restored.progress
        # Weights of a step between two publishes have no version yet; the newest one is of those that filled the ring.
        every = int(restored.extra.get("publish_every", self.plan.recipe.learner.publish_every))
        is_between = progress.optimizer_steps % every > 0
        self.totals = Totals(
            env_steps=progress.env_steps if rank == 0 else 0,
            decisions=progress.decisions if rank == 0 else 0,
            episodes=progress.episodes if rank == 0 else 0,
            seconds=float(restored.extra["seconds"]),
            consumed=progress.consumed // num_ranks + (rank < progress.consumed % num_ranks),
            optimizer_steps=progress.optimizer_steps,
            policy_version=progress.policy_version + is_between,
        )
        self._first_episode = int(restored.extra.get("episodes_per_slot", 0))
        self.ranks_before = int(restored.extra.get("num_ranks", 0)) or len([*info.path.glob("rank_*")])
        account = info.rank_folder(rank, GOVERNOR) / ACCOUNT_FILE
        if account.exists():  # otherwise the checkpoint is from an older version, or from fewer ranks
            self._ratio.load_state_dict(json.loads(account.read_text(encoding="utf-8")))
        episodes = info.rank_folder(rank, ROLLOUT) / EPISODES_FILE
        if episodes.exists():  # otherwise as above
            self.stats.load_state_dict(json.loads(episodes.read_text(encoding="utf-8")))
        replay = info.rank_folder(rank, REPLAY)
        if (replay / RING_FILE).exists() and self.plan.recipe.checkpoint.save_replay:
            loaded = load_ring(self.ring, replay / RING_FILE, tasks=self._task_names())
            self.decisions_left_out = loaded.left_out
            self.sampler.load_state_dict(json.loads((replay / SAMPLER_FILE).read_text(encoding="utf-8")))
            self.has_replay = True
        return progress

    def _task_names(self) -> list[str]:
        """Return what makes experience of each task usable: the task, its prompt, and the scale of its rewards."""
        factor = self.plan.recipe.env.reward_factor
        return [f"{it.suite}: {it.name}: {it.language}: rewards times {factor:g}" for it in self.plan.env.tasks]

    def _sample(self) -> SegmentBatch | None:
        """Sample a batch within the allowed lag; if there is none, collection continues until there is."""
        max_lag = self.plan.recipe.replay.max_policy_lag
        min_version = None if max_lag is None else self.totals.policy_version - max_lag
        batch = self.sampler.sample(samples_per_batch(self.plan), min_version=min_version)
        if batch is None:
            self._ratio.lift()
        else:  # before the update, in which this rank may wait for others
            self._ratio.limit(consumed=self.totals.consumed)
        return batch

    def _check_signal(self) -> None:
        """Check that not too many groups were left out while there was no batch.

        The governor may be what allows none: groups that are left out never make up for the last batch.

        If nearly all of them succeeded, this is the end that every run hopes for: `solved` says so from then on.

        Raises:
            NoSignalError: there were, for another reason; says what became of them and what to do.
        """
        needs, sampler = self.plan.recipe.targets.groups, self.sampler
        if needs is None or not isinstance(sampler, GroupSampler) or len(sampler.rejected) <= needs.max_rejected:
            return
        is_solved, told = no_signal(sampler.rejected, usable=sampler.num_usable, needs=samples_per_batch(self.plan))
        if not is_solved:
            raise NoSignalError(told)
        self.solved = told


def _write_account(account: dict[str, Any], folder: Path) -> None:
    (folder / ACCOUNT_FILE).write_text(json.dumps(account), encoding="utf-8")


def samples_per_batch(plan: TrainingPlan) -> int:
    """Return the samples of one update on each rank: segments, or groups if the credit needs them."""
    needs, segments = plan.recipe.targets.groups, plan.recipe.learner.batch_segments
    if needs is None:
        return segments
    per_episode = math.ceil(plan.max_episode_decisions / plan.recipe.replay.segment_length)
    return segments // (needs.size * per_episode)


def _make_sampler(plan: TrainingPlan, ring: ReplayRing, *, seed: int) -> SegmentSampler:
    recipe = plan.recipe
    needs, length = recipe.targets.groups, recipe.replay.segment_length
    if needs is None:
        return SegmentSampler(ring, segment_length=length, seed=seed)
    return GroupSampler(
        ring,
        segment_length=length,
        seed=seed,
        candidates=needs.candidates,
        choose=recipe.targets.choose,
        max_uses=needs.max_uses,
        recent_groups=max(1, recipe.logging.recent_episodes // needs.candidates),
    )


def _make_learner(plan: TrainingPlan, engine: Engine) -> Learner:
    recipe = plan.recipe
    return Learner(
        engine,
        surrogate=recipe.surrogate,
        credit=recipe.targets,
        loss=recipe.loss,
        batch_size=recipe.learner.batch_segments,
        num_micro_batches=recipe.learner.accumulation,
        old_threshold=recipe.replay.old_threshold,
        longest_episode=plan.max_episode_decisions,
        reuse_passes=recipe.learner.reuse_passes,
    )
