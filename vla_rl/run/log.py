"""Output of a run while it is in progress: metrics over all ranks, the live view."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace

import torch

from vla_rl.files import directory_bytes
from vla_rl.learner.collectives import Collectives
from vla_rl.policies.devices import peak_memory
from vla_rl.replay.group_sampler import GroupSampler
from vla_rl.reporting.alarms import AlarmLimits, Alarms, AlarmsFile
from vla_rl.reporting.catalogue import reduce_over_ranks
from vla_rl.reporting.evaluated_points import EvaluatedPoint
from vla_rl.reporting.live import Display
from vla_rl.reporting.metrics_file import METRICS_FILE, Clocks, MetricsWriter, read_metrics
from vla_rl.reporting.run_snapshot import RunSnapshot
from vla_rl.run.estimate import estimate_memory
from vla_rl.run.performance import Moment, memory_metrics, peak_of, rates, utilisation_metrics
from vla_rl.run.rollout_stats import group_metrics, group_sums, rollout_metrics
from vla_rl.run.training import TrainingRun

logger = logging.getLogger(__name__)

SHOW_EVERY_S = 0.25
LOWEST_ENTROPY = 0.01  # nat per token, of a choice among bins
LOWEST_GAUSSIAN_ENTROPY = -4.0  # nat: a standard deviation of exp(-4) / sqrt(2 pi e) = 0.0044
HIGHEST_SHARE = 0.95  # of the entropy of a uniform choice among the bins


def changed_ranks(
    *, before: int, now: int, with_replay: int | None, segments: int, min_decisions: int
) -> Iterator[str]:
    """Yield what a resumed run does otherwise than before, because of its ranks; one line each.

    Args:
        before: ranks of the checkpoint.
        now: ranks that go on.
        with_replay: those of them that have experience from before; None: the run keeps none in its checkpoints.
        segments: segments of one update and rank.
        min_decisions: decisions that a ring must hold before the first update.
    """
    if now != before:
        yield (
            f"the checkpoint has {before} ranks, the run continues with {now}: an update now takes "
            f"{now * segments} segments instead of {before * segments}; scale the learning rates if that matters"
        )
    if with_replay is None:
        return
    if before > now:
        left_out = ", ".join(map(str, range(now, before)))
        yield f"the replay of rank {left_out} is left out"
    if 0 < with_replay < now:
        yield (
            f"{now - with_replay} of {now} ranks have no replay in the checkpoint: they begin with an empty ring, and "
            f"the others wait until each holds {min_decisions} decisions"
        )


class RunLog:
    """Log points over all ranks, and the live view of rank 0.

    `point` is collective: every rank calls it after the same optimizer steps. `show` is not.
    """

    def __init__(
        self, run: TrainingRun, collectives: Collectives, *, writer: MetricsWriter | None, display: Display | None
    ) -> None:
        """Create the log.

        Args:
            run: this rank's run.
            collectives: the engine's collectives.
            writer: metrics writer, on rank 0.
            display: live view, on rank 0.
        """
        self._run, self._collectives = run, collectives
        self._writer, self._display = writer, display
        self._last = Moment.of(run)
        peak = peak_of(run)
        self._peak = None if collectives.any_over_ranks(peak is None) else peak  # ranks log the same metrics
        self._shown_at = 0.0
        self._latest: dict[str, float] = {}
        self._estimated = estimate_memory(run.plan, num_ranks=collectives.num_ranks).gpu
        self._restarts_told = 0
        self._second_copy_told = False
        self._micro_batches_told = run.learner.num_micro_batches
        self._run_bytes = 0
        self._disk_told = False
        self._alarms = self._alarms_file = None
        if writer is not None:
            metrics = run.run_dir / METRICS_FILE
            before = read_metrics(metrics) if metrics.is_file() else []
            self._alarms = Alarms(_alarm_limits(run), before)
            self._alarms_file = AlarmsFile(run.run_dir, resume_at=run.totals.optimizer_steps)
        self._evaluated: EvaluatedPoint | None = None
        self._best_evaluated: EvaluatedPoint | None = None
        self._evaluation_seconds = 0.0
        self._evaluation: dict[str, float] = {}

    @property
    def latest(self) -> dict[str, float]:
        """Return the newest log point."""
        return self._latest

    def point(self, update_metrics: dict[str, float]) -> None:
        """Write one log point: the update's metrics, those of recent episodes, rates since the last point."""
        run = self._run
        now = Moment.of(run)
        own = rates(self._last, now, num_env_workers=run.plan.recipe.rollout.num_workers) | {
            "replay/size": float(run.sampler.num_decisions),
            "policy_lag/excluded": run.excluded_share,
            "perf/publish_ms": 1000 * run.waits.last_publish,
            "perf/adopt_ms": 1000 * float(run.memory.counters.highest("inference_adopt_seconds")),
            **{f"perf/{part}_ms": 1000 * seconds for part, seconds in run.learner.seconds.items()},
            "system/env_worker_restarts": float(run.cell.restarts),
            "system/dropped_episodes": float(run.cell.dropped_episodes),
        }
        own |= memory_metrics(peak_memory(run.plan.device), run.memory.counters, estimated=self._estimated)
        policy = run.plan.policy
        own |= utilisation_metrics(
            self._last,
            now,
            update_flops=policy.update_flops,
            inference_flops=policy.inference_flops,
            peak=self._peak,
        )
        self._last = now
        gathered = self._gather(own)
        episodes = rollout_metrics(self._collectives.sum_over_ranks(run.stats.sums()))
        episodes |= self._group_metrics()
        used = self._collectives.sum_over_ranks({"consumed": run.totals.consumed, "decisions": now.decisions})
        ratio = {"replay/ratio": used["consumed"] / max(1.0, used["decisions"])}
        self._latest = episodes | update_metrics | reduce_over_ranks(gathered) | ratio
        clocks = self.global_clocks()
        if self._writer is not None:
            self._write(self._writer, clocks, self._latest)
            self._raise_alarms(clocks)
        self.show(force=True)

    def _raise_alarms(self, clocks: Clocks) -> None:
        """Tell what the newest log point shows to be wrong."""
        assert self._alarms is not None
        assert self._alarms_file is not None
        for alarm in self._alarms.check(asdict(clocks) | self._latest):
            logger.warning("alarm %s: %s", alarm.name, alarm.sentence)
            self.say(f"alarm at optimizer step {alarm.optimizer_step}: {alarm.sentence}")
            try:
                self._alarms_file.add(alarm)
            except OSError as error:
                self.say(f"warning: the alarm is not recorded: {error}")

    def evaluated(self, newest: EvaluatedPoint, best: EvaluatedPoint, *, without_gain: int, seconds: float) -> None:
        """Show an evaluation while training from now on, on rank 0.

        Args:
            newest: evaluation.
            best: best one so far.
            without_gain: evaluations since then.
            seconds: wall clock of all evaluations.
        """
        self._evaluated, self._best_evaluated, self._evaluation_seconds = newest, best, seconds
        self._evaluation = newest.metrics() | {
            "evaluation/best_success_rate": best.success_rate,
            "evaluation/without_gain": without_gain,
            "perf/evaluation_fraction": self._evaluation_fraction or 0.0,
        }

    def evaluation_point(self, clocks: Clocks) -> None:
        """Write the newest evaluation as a log point of its own, on rank 0.

        Args:
            clocks: when the policy that was evaluated was saved, summed over all ranks; the time is that of now.
        """
        if self._writer is not None:
            self._write(self._writer, replace(clocks, seconds=self._run.clocks.seconds), self._evaluation)
        self.show(force=True)

    def tell_what_is_left_behind(self) -> None:
        """Say what a resumed run leaves behind if it has other ranks or tasks, or ranks without experience.

        Collective.
        """
        run, ranks = self._run, self._collectives
        recipe = run.plan.recipe
        with_replay = ranks.sum_over_ranks({"with_replay": float(run.has_replay)})["with_replay"]
        lines = changed_ranks(
            before=run.ranks_before,
            now=ranks.num_ranks,
            with_replay=int(with_replay) if recipe.checkpoint.save_replay else None,
            segments=recipe.learner.batch_segments,
            min_decisions=recipe.replay.min_decisions,
        )
        for line in lines:
            self.say(line)
        left_out = ranks.sum_over_ranks({"left_out": float(run.decisions_left_out)})["left_out"]
        if left_out:
            self.say(
                f"left out {left_out:,.0f} decisions of the saved replay: this run does not have their tasks, or "
                "scales rewards otherwise"
            )

    def pass_over(self) -> None:
        """Leave the time since the last log point out of the next one's rates: the learner stood still."""
        self._last = Moment.of(self._run)

    @property
    def _evaluation_fraction(self) -> float | None:
        if self._evaluated is None:
            return None
        return min(1.0, self._evaluation_seconds / max(self._run.clocks.seconds, 1e-9))

    def _group_metrics(self) -> dict[str, float]:
        """Return what became of the recent groups of all ranks; nothing if the credit needs none. Collective."""
        needs, sampler = self._run.plan.recipe.targets.groups, self._run.sampler
        if needs is None or not isinstance(sampler, GroupSampler):
            return {}
        sums = self._collectives.sum_over_ranks(group_sums(sampler.outcomes))
        return group_metrics(sums, candidates=needs.candidates)

    def _write(self, writer: MetricsWriter, clocks: Clocks, metrics: Mapping[str, float]) -> None:
        """Write a log point; a full disk costs this point, not the run, and is reported once."""
        try:
            writer.write(clocks, metrics)
        except OSError as error:
            if not self._disk_told:
                self._disk_told = True
                self.say(f"warning: log points are lost from optimizer step {clocks.optimizer_steps} on: {error}")

    def _gather(self, own: dict[str, float]) -> list[dict[str, float]]:
        """Return the same metrics of every rank."""
        rows = self._collectives.gather_over_ranks(torch.tensor([list(own.values())], dtype=torch.float64))
        return [dict(zip(own, row, strict=True)) for row in rows.tolist()]

    def global_clocks(self) -> Clocks:
        """Return the clocks summed over the ranks. Collective."""
        own = self._run.clocks
        summed = self._collectives.sum_over_ranks(
            {"env_steps": own.env_steps, "decisions": own.decisions, "episodes": own.episodes}
        )
        return Clocks(
            env_steps=int(summed["env_steps"]),
            decisions=int(summed["decisions"]),
            episodes=int(summed["episodes"]),
            optimizer_steps=own.optimizer_steps,
            policy_version=own.policy_version,
            seconds=own.seconds,
        )

    def show(self, *, force: bool = False) -> None:
        """Refresh the live view, at most every quarter of a second. Shows this rank's own clocks."""
        if self._display is None or (not force and time.monotonic() - self._shown_at < SHOW_EVERY_S):
            return
        self._shown_at = time.monotonic()
        run, latest = self._run, self._latest
        if run.cell.restarts > self._restarts_told:
            self._restarts_told = run.cell.restarts
            self.say(f"an env worker was restarted ({run.cell.restarts} so far), see {run.log_dir}")
        if not self._second_copy_told and run.memory.counters.total("inference_own_frozen"):
            self._second_copy_told = True
            self.say(
                "the frozen weights are on the device twice, because processes cannot share them here: "
                f"{run.log_dir / 'inference_worker.log'} says why"
            )
        parts = run.learner.num_micro_batches
        if parts > self._micro_batches_told:
            self._micro_batches_told = parts
            self.say(
                f"out of memory: batches are cut into {parts} micro-batches from now on (learner.accumulation); "
                "updates stay the same"
            )
        episodes = rollout_metrics(run.stats.sums())
        self._display.update(
            RunSnapshot(
                clocks=run.clocks,
                samples=run.totals.consumed,
                success_rate=episodes.get("rollout/success_rate"),
                mean_return=episodes.get("rollout/return"),
                policy_lag_mean=latest.get("policy_lag/mean"),
                policy_lag_p95=latest.get("policy_lag/p95"),
                old_fraction=latest.get("policy_lag/old_fraction"),
                abs_log_ratio_p95=latest.get("ratio/abs_log_p95"),
                env_wait_fraction=latest.get("perf/env_wait_fraction"),
                env_held_back_fraction=latest.get("perf/env_held_back_fraction"),
                inference_busy_fraction=self._inference_busy(),
                learner_wait_fraction=latest.get("perf/learner_wait_fraction"),
                replay_size=run.sampler.num_decisions,
                replay_capacity=run.plan.recipe.replay.capacity,
                num_env_workers=run.plan.recipe.rollout.num_workers,
                env_worker_restarts=run.cell.restarts,
                evaluated=self._evaluated,
                best_evaluated=self._best_evaluated,
                evaluation_fraction=self._evaluation_fraction,
                run_bytes=self._run_bytes,
            )
        )

    def measure_disk(self) -> None:
        """Measure the run's folder; called after a checkpoint, because it walks through all files."""
        if self._display is not None:
            self._run_bytes = directory_bytes(self._run.run_dir)

    def note(self, text: str) -> None:
        """Show one line that stays, and put it into the log."""
        logger.info("%s", text)
        self.say(text)

    def say(self, text: str) -> None:
        """Show one line that stays."""
        if self._display is not None:
            self._display.message(text)

    def _inference_busy(self) -> float:
        now, servers = Moment.of(self._run), self._run.memory.counters.num_servers
        return min(1.0, now.inference_busy / servers / max(now.seconds - self._run.totals.seconds, 1e-9))


def _alarm_limits(run: TrainingRun) -> AlarmLimits:
    """Return the recipe's limits, with those that follow from the policy's actions."""
    section, bins = run.plan.recipe.alarms, run.plan.action_spec.num_bins
    low, high = section.entropy_min, section.entropy_max
    if low == "auto":
        low = LOWEST_GAUSSIAN_ENTROPY if bins is None else LOWEST_ENTROPY
    if high == "auto":
        high = None if bins is None else HIGHEST_SHARE * math.log(bins)
    return AlarmLimits(
        success_drop=section.success_drop,
        all_fail_episodes=section.all_fail_episodes,
        all_succeed_episodes=section.all_succeed_episodes,
        entropy_min=low,
        entropy_max=high,
        kl_max=section.kl_max,
        value_loss_growth=section.value_loss_growth,
        explained_variance_min=section.explained_variance_min,
        recent_episodes=run.plan.recipe.logging.recent_episodes,
    )
